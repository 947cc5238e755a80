"""Files: the cache of data sets, compiled programs and calibrations, which is safe to delete; and atomic writes."""

import contextlib
import importlib.metadata
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import platformdirs

ENVIRONMENT_VARIABLE = "SCALEJAX_CACHE"
STALE_SECONDS = 3600.0  # after which a partial file is that of a process that was killed


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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a new file beside `path`, which takes its name once it is written: a reader never sees half of it."""
    for stale in path.parent.glob(f".{path.name}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - stale.stat().st_mtime > STALE_SECONDS:
                stale.unlink()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    try:
        yield Path(name)
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file whole."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def _umask() -> int:
    """Return the mask of the process, which only setting it tells; files of mkstemp are for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
