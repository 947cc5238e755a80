"""Where data sets, compiled programs and calibrations are kept between runs. All of it is safe to delete."""

import importlib.metadata
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


def keep_programs() -> None:
    """Keep compiled programs between processes, in a folder for each version of the compiler.

    The threshold is zero: JAX's own of one second would keep none of the small programs. Where the caller has chosen a
    folder or switched the cache off, that stands.
    """
    import jax

    chosen = getattr(jax.config, "jax_compilation_cache_dir", None)
    if chosen is not None or not getattr(jax.config, "jax_enable_compilation_cache", True):
        return
    directory = cache_directory("programs") / f"jaxlib-{importlib.metadata.version('jaxlib')}"
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
