"""What follows when a device refuses: which trials try again and which fail, and why, in words."""

import contextlib
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

from scalejax.errors import RunError, SweepError
from scalejax.text import first_line

OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY")  # in the messages of XLA's and CUDA's errors


class Refusals:
    """Remembers which trials were refused alone on a device: a trial refused so twice at the same step fails."""

    def __init__(self) -> None:
        self._steps: dict[str, int] = {}

    def failing(self, steps: Mapping[str, int], *, lanes: int, short: bool) -> set[str]:
        """Return which refused trials fail; the others try again from where they are.

        Args:
            steps: by id, where each would continue.
            lanes: that their program had on each device.
            short: whether memory was short; any other trouble would only come again.
        """
        if not short:
            return set(steps)
        if lanes > 1:
            return set()
        again = {name for name, step in steps.items() if self._steps.get(name) == step}
        self._steps |= steps
        return again


def short_of_memory(error: BaseException) -> bool:
    """Say whether an error means that the memory of a device, or of the host, does not suffice."""
    return isinstance(error, MemoryError) or any(word in str(error) for word in OUT_OF_MEMORY)


@contextlib.contextmanager
def unless_memory_is_short() -> Iterator[None]:
    """Leave a block early where memory does not suffice; raise any other error."""
    try:
        yield
    except Exception as error:
        if not short_of_memory(error):
            raise


def warn_of_no_checkpoint() -> None:
    """Say that memory does not suffice for a checkpoint, which must not end the training."""
    says = "Memory is too short for a checkpoint of the running trials; it is left out, and the training continues."
    warnings.warn(says, stacklevel=3)


def reason_of(error: BaseException) -> str:
    """Return what went wrong in one line, and in which line of the code unless it is a sentence of our own."""
    if isinstance(error, SweepError):
        return str(error)
    says = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, jax.errors.JaxRuntimeError | MemoryError):
        return says  # of the device; the line says nothing
    frames = traceback.extract_tb(error.__traceback__)
    return f"{says} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else says


def broke_off(error: BaseException) -> RunError:
    """Return what ends a run for trouble that is not of a trial.

    What a source raises as a sentence of its own is about the user's data: once these are mended they are other ones,
    and the same command may have nothing to resume.
    """
    if isinstance(error, RunError | SweepError):
        says = f"training broke off: {error}; finished trials are kept"
    else:
        says = f"training broke off: {reason_of(error)}; finished trials are kept, and the same command resumes"
    trouble = RunError(says)
    trouble.__cause__ = error
    return trouble
