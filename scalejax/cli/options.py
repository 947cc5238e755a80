"""The options of the commands, and one sentence for each mistake in them."""

import argparse
import inspect
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from scalejax.run.advice import COMPUTE
from scalejax.run.fits import BOOTSTRAP, LEVEL
from scalejax.run.run import CHECKPOINT_SECONDS

BAD_INPUT = 2  # the exit code
LARGEST = 999_999_999  # whole number on the command line
SHELLS = ("bash", "zsh", "fish")  # that `completion` knows
LONGEST_MESSAGE = 400  # characters of what is wrong with the command line

Command = Callable[[argparse.Namespace], int]


def _reader(kind: type[int] | type[float], expected: str, allowed: Callable[[float], bool] = lambda _: True):
    """Return what reads a number that was typed; what it does not allow is one sentence."""

    def read(text: str) -> float:
        try:
            if allowed(value := kind(text)):
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")

    return read


number = _reader(float, "a number")
_whole = _reader(int, "a whole number")
_positive = _reader(int, f"a whole number from 1 on, at most {LARGEST}", lambda value: 1 <= value <= LARGEST)
_natural = _reader(int, "a whole number from 0 on", lambda value: value >= 0)
_seconds = _reader(float, "a number of seconds from 0 on", lambda value: value >= 0)
_factor = _reader(float, "how many times, such as 10x", lambda value: 0 < value < float("inf"))
_share = _reader(float, "a number between 0 and 1", lambda value: 0 < value < 1)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        message = textwrap.shorten(message, LONGEST_MESSAGE, placeholder=" ...")  # it quotes what was typed
        self.exit(BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


class _Tour(_Parser):
    """Shows its commands in groups, a line each, and what one types first."""

    tour: Mapping[str, Sequence[Command]] = {}

    def format_help(self) -> str:
        lines = [f"usage: {self.prog} COMMAND ...", "", str(self.description)]
        for group, commands in self.tour.items():
            lines += ["", f"{group}:", *(f"  {each.__name__:12}{_headline(each)}" for each in commands)]
        lines += ["", "For example:", *(f"  {line}" for line in FIRST)]
        return "\n".join([*lines, "", f"{self.prog} COMMAND --help tells its options, with an example.", ""])


def _headline(command: Command) -> str:
    return inspect.cleandoc(command.__doc__ or "").partition("\n")[0].removesuffix(".")


def parser_of(tour: Mapping[str, Sequence[Command]]) -> argparse.ArgumentParser:
    """Return the parser of the command line, a subcommand a function; what it parses has the function as `run`.

    Args:
        tour: the heading of a group -> its commands, in the order in which one uses them. The first line of a
            function's docstring is what `scalejax --help` says of it, all of it what its own help begins with.
    """
    parser = _Tour(
        prog="scalejax", description="Train many model sizes on many data fractions, and see what scale buys."
    )
    parser.tour = tour
    names = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    width = shutil.get_terminal_size().columns - 2
    for function in (each for commands in tour.values() for each in commands):
        name, text = function.__name__, inspect.cleandoc(function.__doc__ or "")
        command = names.add_parser(
            name,
            help=_headline(function),
            description="\n\n".join(textwrap.fill(part, width) for part in text.split("\n\n")),
            epilog=f"example:\n  {EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,  # an example stays one line
        )
        command.set_defaults(run=function)
        OPTIONS[name](command)
    return parser


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the commands by name."""
    return next(dict(each.choices) for each in parser._actions if isinstance(each, argparse._SubParsersAction))


def paths_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the arguments of all commands that are files or folders."""
    return [each for command in subparsers(parser).values() for each in command._actions if each.type is Path]


def _plan_options(command: argparse.ArgumentParser) -> None:
    _sweep_options(command)
    command.add_argument("--devices", type=_positive, metavar="N", help="simulate the sweep on N devices")
    command.add_argument(
        "--device-kind",
        metavar="K",
        help="the kind of these devices, such as h200, v5e, or v5e:2x2, which says how many they are (default: local, "
        "those here); then no program is timed",
    )
    command.add_argument(
        "--compile", action="store_true",
        help="ask the compiler of that kind, without the device, about every program: memory, launches, loops, time",
    )  # fmt: skip


def _run_options(command: argparse.ArgumentParser) -> None:
    _sweep_options(command)
    command.add_argument(
        "--checkpoint-seconds", type=_seconds, default=CHECKPOINT_SECONDS, metavar="S",
        help="seconds between two checkpoints of the running trials (default: %(default)g)",
    )  # fmt: skip
    command.add_argument(
        "--no-report", dest="report", action="store_false",
        help="do not write DIR/report.html at the end, which takes some seconds",
    )  # fmt: skip
    command.add_argument(
        "--hosts", action="store_true",
        help="train on the devices of all hosts that start this command; JAX detects those of a TPU slice and the "
        "tasks of a Slurm step, and for others give the next three options",
    )  # fmt: skip
    command.add_argument(
        "--track", metavar="NAME[=PROJECT]",
        help="tell wandb, trackio or tensorboard what the run does; it goes on if they fail",
    )  # fmt: skip
    command.add_argument("--coordinator", metavar="HOST:PORT", help="the address of host 0, with a free port")
    command.add_argument("--host-number", type=_natural, metavar="K", help="the number of this host, from 0 on")
    command.add_argument("--number-of-hosts", type=_positive, metavar="N", help="how many hosts there are")


def _sweep_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("sweep", type=Path, metavar="SWEEP.toml", help="the sweep file")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="replace a key of the sweep file, for example train.steps=100; may be repeated",
    )  # fmt: skip
    command.add_argument("--out", type=Path, metavar="DIR", help="the directory of the run (default: runs/<name>)")
    _as_json(command)


def _status_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("directory", type=Path, metavar="DIR", help="the directory of a run")
    command.add_argument(
        "--watch", action="store_true",
        help="follow the run until it ends, also from before it begins: a view in a terminal, else a line a change",
    )  # fmt: skip
    _as_json(command)


def _export_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("directory", type=Path, metavar="DIR", help="the directory of a run")
    command.add_argument(
        "--output", type=Path, metavar="FILE", help="a .csv or .parquet file (default: CSV on standard output)"
    )
    command.add_argument(
        "--measurements", action="store_true", help="write the measurements along training instead of the trials"
    )


def _report_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "directories", type=Path, nargs="+", metavar="DIR", help="the directory of a run, or of several to compare"
    )
    command.add_argument(
        "--output", type=Path, metavar="FILE.html",
        help="write the page there, and nothing else (default: DIR/report.html with DIR/report.md and DIR/figures; of "
        "several runs comparison.html in the working directory)",
    )  # fmt: skip
    _as_json(command)


def _advise_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "sources", type=Path, nargs="+", metavar="DIR|F.csv",
        help="the directory of a run, and of further runs on the same data, such as those of its next trials; or a CSV "
        "or Parquet file: one row a run",
    )  # fmt: skip
    command.add_argument("--target", type=number, metavar="X", help="say what it takes to reach this loss or error")
    command.add_argument(
        "--compute", type=_times, default=COMPUTE, metavar="Kx",
        help="share a budget of so many times the FLOPs of the run with the most compute (default: %(default)gx)",
    )  # fmt: skip
    command.add_argument(
        "--columns", nargs="+", default=[], metavar="NAME=COLUMN",
        help="the columns of a table, for example params=N tokens=D loss=loss",
    )  # fmt: skip
    command.add_argument(
        "--level", type=_share, default=LEVEL, metavar="P", help="the level of the intervals (default: %(default)s)"
    )
    command.add_argument(
        "--seed", type=_natural, default=0, metavar="S", help="the random seed of the forecast (default: %(default)s)"
    )
    command.add_argument(
        "--figures", type=Path, metavar="DIR",
        help="the folder to draw into (default: that of the run; none for a table)",
    )  # fmt: skip
    _as_json(command)


def _times(text: str) -> float:
    return _factor(text.removesuffix("x"))


def _bench_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--widths", type=_positive, nargs="+", default=[8, 32, 128, 512], metavar="W",
        help="the widths of the networks (default: 8 32 128 512)",
    )  # fmt: skip
    command.add_argument(
        "--batch-size", type=_positive, default=128, metavar="B", help="examples in a batch (default: %(default)s)"
    )
    command.add_argument(
        "--repetitions", type=_positive, default=5, metavar="R",
        help="measurements of each speed, whose median is shown (default: %(default)s)",
    )  # fmt: skip
    _as_json(command)


def _as_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print the same as JSON")


def _fit_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "source", type=Path, metavar="DIR|F.csv", help="the directory of a run, or a CSV or Parquet file"
    )
    command.add_argument(
        "--law", required=True,
        help="power, power_floor, m4, bnsl0, bnsl, bnsl2, bnsl3, kaplan, chinchilla or data_constrained",
    )  # fmt: skip
    command.add_argument(
        "--columns", nargs="+", default=[], metavar="NAME=COLUMN",
        help="the columns of the law's predictors and of the loss, for example params=N tokens=D loss=loss",
    )  # fmt: skip
    command.add_argument(
        "--curves", metavar="COLUMN", help="fit a curve to the rows of each value of this column of a table"
    )
    command.add_argument(
        "--fix", nargs="+", default=[], metavar="PARAMETER=VALUE", help="parameters that are known, such as e_0=0.9"
    )
    command.add_argument(
        "--share", nargs="+", default=[], metavar="PARAMETER",
        help="parameters that all curves have in common, such as c: one exponent, fitted to all curves at once",
    )  # fmt: skip
    command.add_argument(
        "--ceiling", type=number, metavar="C", help="the upper bound of a target that rises, such as 1 for an accuracy"
    )
    command.add_argument(
        "--bootstrap", type=_whole, default=BOOTSTRAP, metavar="B",
        help="the number of resamples (default: %(default)s; 0: a normal approximation)",
    )  # fmt: skip
    command.add_argument(
        "--seed", type=_whole, default=0, metavar="S", help="the seed of the resamples (default: %(default)s)"
    )
    command.add_argument(
        "--level", type=_share, default=LEVEL, metavar="P", help="the level of the intervals (default: %(default)s)"
    )
    command.add_argument(
        "--figures", type=Path, metavar="DIR",
        help="the folder to draw into (default: that of the run; none for a table)",
    )  # fmt: skip
    _as_json(command)


def _completion_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("shell", choices=SHELLS, metavar="SHELL", help=f"one of {', '.join(SHELLS)}")


OPTIONS = {
    "plan": _plan_options,
    "run": _run_options,
    "status": _status_options,
    "export": _export_options,
    "fit": _fit_options,
    "advise": _advise_options,
    "report": _report_options,
    "bench": _bench_options,
    "completion": _completion_options,
}
EXAMPLES = {
    "plan": "scalejax plan sweeps/quickstart.toml --devices 8 --device-kind h100",
    "run": "scalejax run sweeps/quickstart.toml --set train.steps=600",
    "status": "scalejax status runs/quickstart",
    "export": "scalejax export runs/quickstart --output quickstart.csv",
    "report": "scalejax report runs/quickstart",
    "fit": "scalejax fit runs/quickstart --law power_floor --share c",
    "advise": "scalejax advise runs/quickstart --target 0.05",
    "bench": "scalejax bench --widths 8 64",
    "completion": "scalejax completion bash > ~/.local/share/bash-completion/completions/scalejax",
}
FIRST = (  # what `scalejax --help` ends with
    "scalejax plan sweeps/quickstart.toml",
    "scalejax run sweeps/quickstart.toml",
    "scalejax report runs/quickstart",
)
