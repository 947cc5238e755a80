"""A run: a sweep carried out in a directory. This is where the rooms meet; the command line calls the same."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scalejax.errors import SweepError
from scalejax.spec import Sweep
from scalejax.spec_file import sweep_to_toml
from scalejax.store import FINAL, STOPPED, Ended, MeasurementRow, ResultRow, Store, TrialRow

if TYPE_CHECKING:
    import pandas as pd

    from scalejax.data import DataSet
    from scalejax.engine.pack import Finished
    from scalejax.engine.plan import Plan
    from scalejax.engine.scheduler import Progress
    from scalejax.engine.tournament import Tournament
    from scalejax.engine.trial import PlannedTrial
    from scalejax.report.progress import ProgressDisplay

LEDGER, ENVIRONMENT = "results.sqlite", "environment.json"


@dataclass(frozen=True)
class Run:
    """The directory of a run and the tables in it."""

    directory: Path

    def results(self) -> "pd.DataFrame":
        """Return the trial table, one row a trial; its columns are those of `Store.results`."""
        with Store(self.directory / LEDGER, write=False) as store:
            return store.results()

    def measurements(self) -> "pd.DataFrame":
        """Return the measurements along training: trial_id, step, examples_seen, losses and validation error."""
        with Store(self.directory / LEDGER, write=False) as store:
            return store.measurements()

    def counts(self) -> dict[str, int]:
        """Return the number of trials in each status."""
        with Store(self.directory / LEDGER, write=False) as store:
            return store.counts()

    def curves(self) -> "pd.DataFrame":
        """Return the tuned learning curves, one row a model size and number of training examples.

        Raises:
            ValueError: no trial has finished.
        """
        from scalejax.analysis import learning_curves

        return learning_curves(self.results())

    def save_figure(self) -> list[Path]:
        """Draw the learning curves to figures/learning_curves.png and .svg and return their paths."""
        from scalejax.report.plot import plot_learning_curves, save_figure

        axes = plot_learning_curves(self.curves())
        return list(save_figure(axes.figure, self.directory / "figures", "learning_curves"))

    def summary(self) -> list[str]:
        """Say in words which curves have flattened and which still fall, and what halving has stopped."""
        from scalejax.analysis import trends
        from scalejax.report.table import halving_lines, summary_lines

        curves = self.curves()
        return [*summary_lines(curves, trends(curves)), *halving_lines(self.results())]


def run_sweep(sweep: Sweep, out: str | os.PathLike[str] | None = None, *, progress: bool = True) -> Run:
    """Train what a sweep asks for and has not been trained yet, on all local devices, and draw the learning curves.

    Args:
        sweep: the question.
        out: directory of the run, made if needed; runs/<name> by default. A directory that holds a run is resumed or
            extended: finished trials are never repeated.
        progress: show progress on standard error.

    Raises:
        SweepError: the sweep asks for what cannot be, before anything is trained or written.
    """
    from scalejax.engine.device import prepare
    from scalejax.engine.plan import make_plan

    prepare()
    return carry_out(make_plan(sweep), out, progress=progress)


def carry_out(plan: "Plan", out: str | os.PathLike[str] | None = None, *, progress: bool = True) -> Run:
    """Carry out a plan; see `run_sweep`."""
    from scalejax.data import load
    from scalejax.engine.mode import kept_modes, with_modes

    directory = Path(out) if out is not None else Path("runs") / plan.sweep.name
    halving = plan.sweep.train.halving
    ended = _ended_trials(directory, FINAL if halving is None else (*FINAL, STOPPED))
    waiting = [planned for planned in plan.trials if planned.trial_id not in ended]
    data = load(plan.sweep.data) if waiting else None
    plan = with_modes(plan, kept_modes(_read_environment(directory)), measure=bool(waiting))
    _prepare(directory, plan)
    with Store(directory / LEDGER, write=True) as store:
        store.plan([_trial_row(planned, plan) for planned in plan.trials])
        try:
            if data is not None:
                _train(plan, waiting, data, store, tournament=_tournament(plan, ended), progress=progress)
        finally:
            store.release()
    run = Run(directory)
    if run.counts()["done"]:
        run.save_figure()
    return run


def _tournament(plan: "Plan", ended: Mapping[str, Ended]) -> "Tournament | None":
    from scalejax.engine.tournament import History, Tournament

    halving = plan.sweep.train.halving
    if halving is None:
        return None
    histories = {trial: History(each.losses, each.status) for trial, each in ended.items()}
    return Tournament(plan.trials, reduction=halving.reduction, histories=histories)


def _train(
    plan: "Plan",
    waiting: Sequence["PlannedTrial"],
    data: "DataSet",
    store: Store,
    *,
    tournament: "Tournament | None",
    progress: bool,
) -> None:
    import jax

    from scalejax.engine.scheduler import Observer, Scheduler
    from scalejax.report.progress import ProgressDisplay

    accountant = _Accountant(plan, waiting)
    with (
        nullcontext() if progress else Path(os.devnull).open("w") as stream,
        ProgressDisplay(trials=len(waiting), work=accountant.total, stream=stream) as display,
    ):

        def started(trials: Sequence["PlannedTrial"]) -> None:
            store.start([planned.trial_id for planned in trials])
            accountant.begin(trials)

        def finished(end: "Finished") -> None:
            store.finish(_result_row(end), _measurement_rows(end))
            display.end_trial(end.status, spared=accountant.spared(end.planned))

        def progressed(progress: "Progress") -> None:
            accountant.show(progress, display)

        Scheduler(
            plan.packing.buckets,
            {planned.trial_id for planned in waiting},
            data=data,
            observer=Observer(started=started, finished=finished, progressed=progressed),
            tournament=tournament,
        ).run(jax.local_devices())


class _Accountant:
    """Knows what share of the work each step of each waiting trial is."""

    def __init__(self, plan: "Plan", waiting: Sequence["PlannedTrial"]):
        from scalejax.engine.cost import step_flops

        self._left = {planned.trial_id: planned.trial.steps for planned in waiting}
        self._cost: dict[str, tuple[float, int]] = {}  # work and useful FLOPs of one step
        for bucket in plan.packing.buckets:
            for planned in bucket.trials:
                flops = step_flops(planned.architecture, planned.trial.batch_size, plan.card.shape)
                self._cost[planned.trial_id] = (bucket.seconds / bucket.lanes, flops)
        self.total = sum(self._cost[trial][0] * steps for trial, steps in self._left.items())

    def begin(self, trials: Sequence["PlannedTrial"]) -> None:
        """Count all steps of trials that start, or start again, as left."""
        self._left.update({planned.trial_id: planned.trial.steps for planned in trials})

    def show(self, progress: "Progress", display: "ProgressDisplay") -> None:
        """Report a call of a program."""
        work = flops = 0.0
        for planned, steps in progress.steps.items():
            self._left[planned.trial_id] -= steps
            work += self._cost[planned.trial_id][0] * steps
            flops += self._cost[planned.trial_id][1] * steps
        display.advance(steps=sum(progress.steps.values()), flops=flops, work=work)

    def spared(self, planned: "PlannedTrial") -> float:
        """Return the work of the steps that a trial that has ended did not take."""
        return self._cost[planned.trial_id][0] * self._left.pop(planned.trial_id)


def _ended_trials(directory: Path, statuses: Sequence[str]) -> dict[str, Ended]:
    if not (directory / LEDGER).exists():
        return {}
    with Store(directory / LEDGER, write=True) as store:  # an earlier process may have ended before it made the tables
        return store.ended(statuses)


def _prepare(directory: Path, plan: "Plan") -> None:
    """Make the run directory and write down the sweep as resolved and what it runs on.

    Raises:
        SweepError: the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / "sweep.toml", sweep_to_toml(plan.sweep))
        _write(directory / ENVIRONMENT, json.dumps(_environment(plan, directory), indent=2) + "\n")
    except OSError as error:
        raise SweepError(
            f"{directory}: cannot be written ({error.strerror}); give another directory with --out"
        ) from error


def _write(path: Path, text: str) -> None:
    """Replace a file whole: a reader never sees half of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _read_environment(directory: Path) -> object:
    """Return what an earlier process wrote down, or None."""
    try:
        return json.loads((directory / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _environment(plan: "Plan", directory: Path) -> dict[str, object]:
    from scalejax.engine.device import device_kind, versions
    from scalejax.engine.mode import modes_to_keep

    return {
        "device": device_kind(),
        "devices": plan.devices,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": dict(versions()),
        "modes": modes_to_keep(plan, _read_environment(directory)),
    }


def _trial_row(planned: "PlannedTrial", plan: "Plan") -> TrialRow:
    from scalejax.engine.cost import step_flops

    trial = planned.trial
    return TrialRow(
        trial_id=planned.trial_id,
        family=trial.family,
        knobs=dict(trial.knobs),
        params=planned.architecture.parameter_count,
        train_examples=trial.train_examples,
        fraction=trial.train_examples / plan.card.examples,
        seed=trial.seed,
        learning_rate=trial.learning_rate,
        weight_decay=trial.weight_decay,
        batch_size=trial.batch_size,
        steps=trial.steps,
        flops=step_flops(planned.architecture, trial.batch_size, plan.card.shape) * trial.steps,
    )


def _result_row(end: "Finished") -> ResultRow:
    from scalejax.engine.device import device_kind, versions

    best = end.best
    return ResultRow(
        trial_id=end.planned.trial_id,
        status=end.status,
        reason=end.reason,
        steps_taken=end.evaluations[-1].step if end.evaluations else 0,
        train_loss=best and best.train_loss,
        validation_loss=best and best.validation_loss,
        test_loss=end.test_loss,
        test_error=end.test_error,
        best_step=end.best_step,
        seconds=end.seconds,
        mode=end.mode,
        device=device_kind(),
        versions=" ".join(f"{name} {version}" for name, version in versions().items()),
    )


def _measurement_rows(end: "Finished") -> list[MeasurementRow]:
    return [
        MeasurementRow(
            trial_id=end.planned.trial_id,
            step=each.step,
            examples_seen=each.examples_seen,
            train_loss=each.train_loss,
            validation_loss=each.validation_loss,
            validation_error=each.validation_error,
        )
        for each in end.evaluations
    ]
