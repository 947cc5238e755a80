"""The devices of this machine and what they are called in a result's row."""

import importlib.metadata

import jax

from scalejax.cache import cache_directory

MODE = "vmap"  # how lanes run side by side


def keep_programs() -> None:
    """Keep compiled programs between processes, in a folder for each version of the compiler.

    The threshold is zero: JAX's own of one second would keep none of the small programs.
    """
    directory = cache_directory("programs") / f"jaxlib-{importlib.metadata.version('jaxlib')}"
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def device_kind() -> str:
    """Return the kind of the local devices, for example "cpu" or "NVIDIA H200"."""
    return jax.local_devices()[0].device_kind


def versions() -> dict[str, str]:
    """Return the versions of the packages that can change a result."""
    return {name: importlib.metadata.version(name) for name in ("scalejax", "jax", "jaxlib", "flax", "optax", "numpy")}
