"""The host's own processor, for small programs that shall not wait behind the training on an accelerator."""

import contextlib

import jax


def beside_the_training() -> contextlib.AbstractContextManager[object]:
    """Return a context in which programs are compiled for the CPU; for the usual device if that is the CPU itself."""
    if jax.default_backend() == "cpu":
        return contextlib.nullcontext()
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return contextlib.nullcontext()
