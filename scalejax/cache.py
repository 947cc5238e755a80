"""Where data sets, compiled programs and calibrations are kept between runs. All of it is safe to delete."""

import os
from pathlib import Path

import platformdirs

ENVIRONMENT_VARIABLE = "SCALEJAX_CACHE"


def cache_directory(kind: str) -> Path:
    """Return (and make) the folder for one kind of cached thing: "data", "programs" or "calibrations".

    It lies in the platform's cache folder, or in the folder that the environment variable SCALEJAX_CACHE names.
    """
    root = os.environ.get(ENVIRONMENT_VARIABLE) or platformdirs.user_cache_dir("scalejax", appauthor=False)
    directory = Path(root).expanduser() / kind
    directory.mkdir(parents=True, exist_ok=True)
    return directory
