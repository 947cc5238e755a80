"""A command run in this process within a time limit, and what is wrong with how it ended."""

import contextlib
import faulthandler
import io
import logging
import signal
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scalejax.cli import main as scalejax

SECONDS = 20.0  # after which a refusal, a status or an export counts as a hang
LONG_SECONDS = 300.0  # and a plan or a run that does something; programs are compiled for it

SMALL = """\
name = "small"
seeds = 2
[data]
source = "mnist1d"
examples = 200
train_examples = [20, 100]
validation_examples = 50
test_examples = 100
[[models]]
family = "logistic"
[[models]]
family = "mlp"
width = [4, 8]
depth = 1
[train]
learning_rate = [1e-2, 3e-2]
batch_size = 16
steps = 24
evaluate_every = 2
"""


class Hang(BaseException):  # not an error of ours: no `except Exception` may swallow it
    """A case that takes too long."""


@dataclass
class Ran:
    """What a command returned and printed, and what warnings it gave."""

    code: int | str | None
    out: str
    err: str
    warned: list[str]

    @property
    def fault(self) -> str:
        """What is wrong with how it ended, empty if it ended cleanly."""
        if self.code not in (0, 1, 2):
            return f"exit code {self.code}"
        noise = [word for word in ("Traceback", "Exception in thread", "Error:") if word in self.err]
        if noise:
            return f"{noise[0]} on standard error"
        said = [line for line in self.err.splitlines() if line.startswith("scalejax")]
        if self.code == 2 and (len(said) != 1 or said[0] != self.err.rstrip("\n") or len(said[0]) > 1000):
            return "not one sentence on standard error"
        return next((f"warns {each}" for each in self.warned if not each.startswith("UserWarning")), "")


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `Hang` after so many seconds; where even that is not heard, end the process with its stacks."""

    def ring(*_: object) -> None:
        raise Hang(f"no end after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + 300, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def call(*arguments: object, seconds: float = SECONDS) -> Ran:
    """Run a command in this process; what escapes it is a fault."""
    out, err, code = io.StringIO(), io.StringIO(), None
    warned: list[warnings.WarningMessage] = []
    handler = logging.StreamHandler(err)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("Error: logged by %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            limited(seconds),
        ):
            warned = caught
            warnings.simplefilter("always")
            code = scalejax([str(each) for each in arguments])
    except SystemExit as leaving:
        code = leaving.code
    except Hang as hang:
        where = traceback.extract_tb(hang.__traceback__)[-3:]
        return Ran(f"{hang} in {[f'{Path(each.filename).name}:{each.lineno}' for each in where]}", "", "", [])
    except BaseException:
        err.write(traceback.format_exc())
        code = "an exception"
    finally:
        logging.getLogger().removeHandler(handler)
    messages = [f"{each.category.__name__}: {each.message}" for each in warned]
    return Ran(code, out.getvalue(), err.getvalue(), messages)
