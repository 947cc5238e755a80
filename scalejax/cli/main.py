"""The command line: one thin function a command, each of which calls what Python users call."""

import argparse
import contextlib
import functools
import io
import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from scalejax.cli.options import BAD_INPUT, number, parser_of
from scalejax.errors import FitError, Interrupted, RunError, SweepError
from scalejax.text import number_of

if TYPE_CHECKING:
    from rich.table import Table

    from scalejax.analysis.tables import TableFits
    from scalejax.planning.device_specs import DeviceKind
    from scalejax.planning.plan import Plan

TROUBLE, SIGNALLED = 1, 128  # to the last one the number of the signal is added
PLAIN_WIDTH = 120  # characters of a table where there is no terminal
TIMING_PATIENCE = 0.5  # seconds after which `plan` compiles no further program just to time it


def entry() -> NoReturn:
    """Run the command line and end the process, without waiting for threads if it was interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path may hold bytes that are no text
    code = main()
    if code <= SIGNALLED:
        sys.exit(code)
    sys.stdout.flush()
    os._exit(code)  # a program that is still being compiled would keep the process for as long as that takes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for trouble, 2 for bad input, 130 and 143 if interrupted.

    Trouble is a trial that failed, or what broke a run off, such as a full disk.
    """
    options = parser_of((plan, run, status, export, fit, bench)).parse_args(arguments)
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
    except (RunError, FitError) as error:
        print(f"scalejax {options.command}: {error}", file=sys.stderr)
        return TROUBLE
    except KeyboardInterrupt as error:
        outcome = f"{error.outcome}, and " if isinstance(error, Interrupted) else ""
        says = f"interrupted; finished trials are kept, {outcome}the same command goes on from there"
        print(f"scalejax {options.command}: {says}", file=sys.stderr)
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
    """Print trials, programs, padding waste, FLOPs, memory and forecast time of a sweep; train nothing."""
    from scalejax.execute.devices import device_kind, prepare
    from scalejax.execute.modes import with_modes
    from scalejax.execute.timing import remembered, timings_of
    from scalejax.planning.device_specs import LOCAL, device_kind_named, local_kind
    from scalejax.planning.forecast import forecast
    from scalejax.planning.outline import outline
    from scalejax.planning.simulate import simulate
    from scalejax.report.plan import plan_lines

    prepare()  # before the local kind is looked at
    kind = None if options.device_kind is None else device_kind_named(options.device_kind)
    made = _plan(options, devices=options.devices, kind=kind)
    if kind is None or kind.name == LOCAL:
        made = with_modes(made, {}, measure=False)
    if kind is None:
        timings = timings_of(made, patience_seconds=TIMING_PATIENCE)
        simulated = simulate(made, local_kind(), timings=timings) if options.devices else None
        facts = outline(made, forecast(made, timings), device=device_kind(), simulation=simulated)
    else:
        known = [remembered(each, made.card) for each in made.packing.buckets] if kind.name == LOCAL else None
        facts = outline(made, simulate(made, kind, timings=known), device=device_kind())
    print(json.dumps(facts, indent=2) if options.json else "\n".join(plan_lines(facts)))
    return 0


def run(options: argparse.Namespace) -> int:
    """Train what has not been trained yet, draw the learning curves, and say which have flattened."""
    from scalejax.report.status import counted
    from scalejax.run import carry_out

    made = _plan(options)
    done = carry_out(made, options.out, checkpoint_seconds=options.checkpoint_seconds)
    counts, programs = done.counts(), len(made.packing.buckets)
    facts = {"directory": str(done.directory), "trials": counts, "lane_programs": programs}
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        print(f"{counted(counts)}; {number_of(programs, 'lane program')} for all of them")
        _show(done)
    return TROUBLE if counts["failed"] else 0


def status(options: argparse.Namespace) -> int:
    """Say how far a run is, at any time: done, running at which step, diverged or failed and why, and the time left."""
    from scalejax.report.status import status_facts, status_lines
    from scalejax.run import Run

    found = Run(options.directory)
    facts = status_facts(found.results(), found.heartbeat())
    print(json.dumps(facts, indent=2) if options.json else "\n".join(status_lines(facts)))
    return 0


def export(options: argparse.Namespace) -> int:
    """Write the trial table of a run as CSV or Parquet."""
    from scalejax.run import Run

    found = Run(options.directory)
    table = found.measurements() if options.measurements else found.results()
    output: Path | None = options.output
    if output is None:
        table.to_csv(sys.stdout, index=False)
        return 0
    try:
        if output.suffix == ".parquet":
            table.to_parquet(output, index=False)
        elif output.suffix == ".csv":
            table.to_csv(output, index=False)
        else:
            raise SweepError(f"--output {output}: expected a name that ends in .csv or .parquet")
    except ImportError as error:
        raise SweepError('writing Parquet needs pyarrow; install it with pip install "scalejax[parquet]"') from error
    except OSError as error:
        raise SweepError(
            f"--output {output}: cannot be written ({error.strerror or error}); give another path"
        ) from error
    return 0


def fit(options: argparse.Namespace) -> int:
    """Fit a scaling law to a run or to any table: its parameters, what the data cannot tell, and a figure."""
    from scalejax.analysis.laws.laws import find_law
    from scalejax.analysis.tables import fit_table, from_table, from_trials, parse_columns, read_table
    from scalejax.report.fit import fit_facts, fit_tables
    from scalejax.run import Run

    source: Path = options.source
    with _mistakes():
        law, columns = find_law(options.law), parse_columns(options.columns)
        fixed = {name: number(value) for name, value in parse_columns(options.fix).items()}
        if source.is_dir():
            found = from_trials(law, Run(source).results(), columns=columns)
        else:
            found = from_table(law, read_table(source), columns=columns, curve=options.curves)
        done = fit_table(
            law, found, shared=options.share, fixed=fixed, ceiling=options.ceiling, bootstrap=options.bootstrap,
            seed=options.seed,
        )  # fmt: skip
    facts = fit_facts(done.fits, found[0].columns, level=options.level, notes=found[0].notes)
    facts |= {"refused": list(done.refused), "figures": _fit_figure(done, source, options)}
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        figures = [f"figure: {path}" for path in facts["figures"]]
        _print(*fit_tables(facts), *done.refused, *(figures or ["no figure; --figures DIR draws one"]))
    return TROUBLE if done.refused else 0


def _fit_figure(done: "TableFits", source: Path, options: argparse.Namespace) -> list[str]:
    """Draw fits into the run's directory, or beside a table where --figures says, and return the paths."""
    from scalejax.report.plot import save_figure
    from scalejax.report.plot_fit import plot_fits

    directory = options.figures or (source / "figures" if source.is_dir() else None)
    if directory is None:
        return []
    name = f"fit_{done.curves[0][1].law.name}"
    try:
        return [str(path) for path in save_figure(plot_fits(done.curves, level=options.level), directory, name)]
    except OSError as error:
        raise SweepError(
            f"{directory}: cannot be written ({error.strerror or error}); give another --figures"
        ) from error


@contextlib.contextmanager
def _mistakes() -> Iterator[None]:
    """Turn what the analysis finds wrong with what it was given into bad input."""
    try:
        yield
    except ValueError as error:
        raise error if isinstance(error, SweepError) else SweepError(str(error)) from error


def bench(options: argparse.Namespace) -> int:
    """Measure the engine's useful FLOP/s against a plain compiled loop and the matrix-multiply peak."""
    from scalejax.execute.bench import bench as measure
    from scalejax.execute.devices import device_kind, prepare
    from scalejax.report.bench import bench_table

    prepare()
    found = measure(
        options.widths,
        batch_size=options.batch_size,
        repetitions=options.repetitions,
        told=lambda line: print(line, file=sys.stderr),
    )
    widths = [{"width": each.width, "lanes": each.lanes, **each.modes, "loop": each.loop} for each in found.speeds]
    facts = {
        "device_kind": device_kind(),
        "devices": found.devices,
        "batch_size": found.batch_size,
        "peak": found.peak,
        "widths": widths,
    }
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        _print(bench_table(facts))
    return 0


def _plan(options: argparse.Namespace, *, devices: int | None = None, kind: "DeviceKind | None" = None) -> "Plan":
    """Read the sweep file and plan it."""
    from scalejax.execute.devices import prepare
    from scalejax.execute.probe import prober
    from scalejax.planning.plan import check_sweep, make_plan
    from scalejax.spec.file import load_sweep, parse_override

    prepare()
    overrides = dict(parse_override(text) for text in options.set)
    check = functools.partial(check_sweep, kind=kind)
    sweep = load_sweep(options.sweep, overrides, check=check)
    return make_plan(sweep, devices=devices, kind=kind, probe=prober(sweep.data))


def _show(done) -> None:
    """Print the table of learning curves, what they say in words, and where the figure is."""
    from scalejax.analysis import trends
    from scalejax.report.table import curve_table, halving_lines, summary_lines

    try:
        curves = done.curves()
    except ValueError as error:
        print(error)
        return
    found = trends(curves)
    _print(curve_table(curves, found), *summary_lines(curves, found), *halving_lines(done.results()))
    print(f"figure: {done.directory / 'figures' / 'learning_curves.png'} and .svg")


def _print(*parts: "Table | str") -> None:
    """Print tables and sentences. A file or a pipe has no width: tables are whole there, sentences stay on a line."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    for part in parts:
        # Printed by ourselves: rich ends the process with an error where the reader of a pipe has enough.
        with console.capture() as captured:
            console.print(part, markup=False, highlight=False, soft_wrap=not console.is_terminal)
        print(captured.get(), end="")
