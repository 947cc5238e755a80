"""The command line: one thin function a command, each of which calls what Python users call."""

import argparse
import contextlib
import io
import json
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from scalejax.cli.options import BAD_INPUT, number, parser_of, paths_of
from scalejax.errors import FitError, HostError, Interrupted, RunError, SweepError
from scalejax.text import number_of

if TYPE_CHECKING:
    from rich.table import Table

    from scalejax.spec import Sweep

TROUBLE, SIGNALLED = 1, 128  # to the last one the number of the signal is added

_Made = TypeVar("_Made")


def entry() -> NoReturn:
    """Run the command line and end the process, without waiting for threads if it was interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path may hold bytes that are no text
    code = main()
    if code <= SIGNALLED:
        sys.exit(code)
    sys.stdout.flush()
    if "scalejax.execute.hosts" in sys.modules:
        from scalejax.execute import hosts

        hosts.leave()
    os._exit(code)  # a program that is still being compiled would keep the process for as long as that takes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for trouble, 2 for bad input, 130 and 143 if interrupted.

    Trouble is a trial that failed, or what broke a run off, such as a full disk.
    """
    options = parser_of(TOUR).parse_args(arguments)
    try:
        with _plain_warnings(options.command):
            code = options.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output has enough, as `head` does; at exit Python flushes once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SweepError as error:
        print(f"scalejax {options.command}: {error}", file=sys.stderr)
        return BAD_INPUT
    except HostError as error:
        print(f"scalejax {options.command}: {error}", file=sys.stderr, flush=True)
        os._exit(TROUBLE)  # at its exit JAX would wait for the other hosts, which wait for this one
    except (RunError, FitError) as error:
        print(f"scalejax {options.command}: {error}", file=sys.stderr)
        return TROUBLE
    except KeyboardInterrupt as error:
        outcome = f"{error.outcome}, and " if isinstance(error, Interrupted) else ""
        message = f"interrupted; finished trials are kept, {outcome}the same command resumes from there"
        print(f"scalejax {options.command}: {message}", file=sys.stderr)
        return SIGNALLED + (error.signal if isinstance(error, Interrupted) else signal.SIGINT)


@contextlib.contextmanager
def _plain_warnings(command: str) -> Iterator[None]:
    """Show our warnings as sentences, without the line of the code that they come from."""
    before = warnings.formatwarning

    def plain(message: Warning | str, category: type[Warning], *place: Any) -> str:
        if category is UserWarning:
            return f"scalejax {command}: {message}\n"
        return before(message, category, *place)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = before


def plan(options: argparse.Namespace) -> int:
    """Say what a sweep will do, before anything is trained.

    Trials, programs, padding waste, FLOPs, memory and a forecast of the wall time; with --devices and --device-kind on
    devices that are not here.
    """
    with _on_cpu() if options.compile else contextlib.nullcontext():
        from scalejax.run import plan as plan_of

        def preview(sweep: "Sweep"):
            asked = {"device_kind": options.device_kind, "out": options.out, "compile": options.compile}
            return plan_of(sweep, options.devices, **asked)

        made = _from_file(options, preview)
    _print(made.facts, str(made), as_json=options.json)
    return 0


@contextlib.contextmanager
def _on_cpu() -> Iterator[None]:
    """Have JAX come up on the CPU: where compilers of accelerators are installed, it complains of what is not there."""
    name = "JAX_PLATFORMS"
    chosen = name in os.environ
    os.environ.setdefault(name, "cpu")
    try:
        yield
    finally:
        if not chosen:
            os.environ.pop(name, None)


def run(options: argparse.Namespace) -> int:
    """Train a sweep, or what is missing of it, and say what scale buys.

    It draws the learning curves and says which of them have flattened. Interrupted, the same command resumes; with
    more sizes or examples in the file it trains those alone.
    """
    from scalejax.analysis import trends
    from scalejax.execute.hosts import broadcast
    from scalejax.report.status import counted
    from scalejax.report.table import curve_table
    from scalejax.run import carry_out, planned, same_on_all_hosts

    primary = _join_hosts(options)
    made = same_on_all_hosts(lambda: _from_file(options, planned))
    done = carry_out(made, options.out, checkpoint_seconds=options.checkpoint_seconds, tracker=options.track)
    counts, programs = broadcast(done.counts), len(made.packing.buckets)
    if not primary:
        return TROUBLE if counts["failed"] else 0
    shared = f"; {number_of(programs, 'lane program')} for all of them" if programs else ""
    shared = shared.replace("all of them", "all networks") if made.older else shared
    parts: list[Table | str] = [f"{counted(counts)}{shared}"]
    if not options.json:
        try:
            curves = done.curves()
            figure = f"figure: {done.directory / 'figures' / 'learning_curves.png'} and .svg"
            parts += [curve_table(curves, trends(curves)), *done.summary(), figure]
            if models := set(done.models()) & set(done.results()["trial_id"]):  # others are of another sweep here
                says = f"{number_of(len(models), 'trained model')}; in Python, run.model(trial_id)"
                parts.append(f"models: {done.directory / 'models'}, {says}")
        except ValueError as error:
            parts.append(str(error))
    page = None
    if options.report:
        from scalejax.run.report import report_at_end

        page, note = report_at_end(done.directory, done.sweep, notify=_say)
        parts.append(note if page is None else f"report: {page}")
    facts = {"directory": str(done.directory), "trials": counts, "lane_programs": programs}
    facts["report"] = None if page is None else str(page)
    _print(facts, *parts, as_json=options.json)
    return TROUBLE if counts["failed"] else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _join_hosts(options: argparse.Namespace) -> bool:
    """Join the other hosts of a run, if there are any; return whether this is the primary one, which shows all."""
    given = options.coordinator, options.host_number, options.number_of_hosts
    if not options.hosts and given == (None, None, None):
        return True
    from scalejax.execute import hosts

    hosts.join(options.coordinator, number=options.host_number, count=options.number_of_hosts)
    return hosts.is_primary()


def status(options: argparse.Namespace) -> int:
    """Say how far a run is, at any time and from any terminal.

    Trials by status, the steps of those that run, reasons of those that failed, and the time left.
    """
    from scalejax.run import Run

    if options.watch:
        return _watch(options.directory, as_json=options.json)
    state = Run(options.directory).status()
    _print(state.facts, str(state), as_json=options.json)
    return 0


def _watch(directory: Path, *, as_json: bool) -> int:
    """Follow a run until it ends, or until Ctrl-C, which ends this view alone."""
    from rich.console import Console

    from scalejax.report.live import show
    from scalejax.run.live import states

    try:
        show(states(directory), as_json=as_json, console=Console(file=sys.stdout))
    except KeyboardInterrupt:
        return SIGNALLED + signal.SIGINT
    return 0


def export(options: argparse.Namespace) -> int:
    """Write the tables of a run as CSV or Parquet.

    One row a trial, or with --measurements one row an evaluation along training.
    """
    from scalejax.run import Run

    done = Run(options.directory)
    table = done.measurements() if options.measurements else done.results()
    output: Path | None = options.output
    try:
        if output is None:
            table.to_csv(sys.stdout, index=False)
        elif output.suffix == ".parquet":
            table.to_parquet(output, index=False)
        elif output.suffix == ".csv":
            table.to_csv(output, index=False)
        else:
            raise SweepError(f"--output {output}: expected a name that ends in .csv or .parquet")
    except ImportError as error:
        raise SweepError('writing Parquet needs pyarrow; install it with pip install "scalejax[parquet]"') from error
    except OSError as error:
        if output is None:
            raise
        reason = error.strerror or error
        raise SweepError(f"--output {output}: cannot be written ({reason}); give another path") from error
    return 0


def fit(options: argparse.Namespace) -> int:
    """Fit a scaling law to a run, or to any table.

    Parameters with errors and intervals, which parameters the data do not identify, and a figure.
    """
    from scalejax.analysis.tables import parse_columns
    from scalejax.run import fit_source

    try:
        done = fit_source(
            options.source,
            options.law,
            columns=parse_columns(options.columns),
            curves=options.curves,
            fixed={name: number(value) for name, value in parse_columns(options.fix).items()},
            shared=options.share,
            ceiling=options.ceiling,
            bootstrap=options.bootstrap,
            seed=options.seed,
            level=options.level,
            figures=options.figures,
        )
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise error if isinstance(error, SweepError) else SweepError(str(error)) from error
    _print(done.facts, *done.parts(), as_json=options.json)
    return TROUBLE if done.facts["refused"] else 0


def advise(options: argparse.Namespace) -> int:
    """Say whether more data or a bigger model helps.

    What two and ten times of each would bring, with intervals, what a target takes, how well the largest scale would
    have been forecast, and which trials to run next.
    """
    from scalejax.analysis.tables import parse_columns
    from scalejax.run.advice import COMPUTE, advise_source, follow_up

    try:
        done = advise_source(
            options.sources,
            target=options.target,
            compute=options.compute,
            columns=parse_columns(options.columns),
            level=options.level,
            seed=options.seed,
            figures=options.figures,
        )
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise error if isinstance(error, SweepError) else SweepError(str(error)) from error
    figures, sweeps = ([str(path) for path in paths] for paths in (done.figures, done.sweeps))
    parts: list[Table | str] = [str(done.advice)]
    parts += [f"next: scalejax run {shlex.quote(path)}" for path in sweeps]
    asked = "" if options.target is None else f" --target {options.target:g}"
    asked += "" if options.compute == COMPUTE else f" --compute {options.compute:g}x"
    then = f"{follow_up(options.sources, done.sweeps)}{asked}" if sweeps else None
    parts += [f"then: {then}"] if then else []
    parts += [f"note: {note}" for note in done.notes]
    parts += [f"figure: {path}" for path in figures] or ["no figure; --figures DIR draws one"]
    files = {"figures": figures, "sweeps": sweeps, "then": then, "notes": list(done.notes)}
    facts = {**done.advice.facts, **files}
    _print(facts, *parts, as_json=options.json)
    return 0


def report(options: argparse.Namespace) -> int:
    """Write a run as one page, to send or print.

    The answer first, then the pictures, how well it would have been forecast, what did not count, and how to reproduce
    it; as HTML that needs no network, and as Markdown with pictures. Several runs are put side by side.
    """
    from scalejax.run.report import report as write

    done = write(options.directories, output=options.output)
    _print(done.facts, str(done), as_json=options.json)
    return 0


def bench(options: argparse.Namespace) -> int:
    """Measure the speed of the engine on this machine.

    Useful FLOP/s of each width against a plain compiled loop and the peak of matrix products.
    """
    from scalejax.execute.bench import bench as measure
    from scalejax.execute.devices import device_kind, prepare
    from scalejax.report.bench import bench_table

    prepare()
    measured = measure(
        options.widths,
        batch_size=options.batch_size,
        repetitions=options.repetitions,
        progress=lambda line: print(line, file=sys.stderr),
    )
    facts = {
        "device_kind": device_kind(),
        "devices": measured.devices,
        "batch_size": measured.batch_size,
        "peak": measured.peak,
        "widths": [
            {"width": speed.width, "lanes": speed.lanes, **speed.modes, "loop": speed.loop} for speed in measured.speeds
        ],
    }
    _print(facts, bench_table(facts), as_json=options.json)
    return 0


def completion(options: argparse.Namespace) -> int:
    """Print the completion script of a shell.

    It completes commands and options in bash, zsh or fish, and needs pip install "scalejax[completion]".
    """
    try:
        import shtab
    except ImportError as error:
        remedy = 'install it with pip install "scalejax[completion]"'
        raise SweepError(f"completion in a shell needs shtab; {remedy}") from error
    parser = parser_of(TOUR)
    for action in paths_of(parser):
        action.complete = shtab.FILE  # pyright: ignore[reportAttributeAccessIssue]  # that is how shtab is told
    print(shtab.complete(parser, shell=options.shell))
    return 0


# The commands in the order in which one uses them, in groups as `scalejax --help` shows them.
TOUR = {
    "Ask and train": (plan, run, status),
    "Understand": (report, advise, fit),
    "Export and tools": (export, bench, completion),
}


def _from_file(options: argparse.Namespace, make: "Callable[[Sweep], _Made]") -> _Made:
    """Return what is made of the sweep in a file. It is made while the file is at hand: a mistake gets its line."""
    from scalejax.spec.file import load_sweep, parse_override

    made: list[_Made] = []
    load_sweep(options.sweep, dict(map(parse_override, options.set)), check=lambda sweep: made.append(make(sweep)))
    return made[0]


def _print(facts: Mapping[str, Any], *parts: "Table | str", as_json: bool) -> None:
    """Print facts as JSON, or the tables and sentences that show them."""
    from scalejax.report.console import rendered

    # Printed by ourselves: rich ends the process with an error where the reader of a pipe has enough.
    print(json.dumps(facts, indent=2) if as_json else rendered(*parts, terminal=sys.stdout.isatty()))
