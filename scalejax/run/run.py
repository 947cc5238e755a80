"""A run: a sweep carried out in a directory. This is where the rooms meet; the command line calls the same."""

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scalejax.errors import Interrupted, RunError
from scalejax.run.directory import CHECKPOINTS, FIGURES, LEDGER, locked, prepare, read_environment
from scalejax.run.rows import measurement_rows, result_row, trial_row
from scalejax.run.store import FINAL, Ended, Heartbeat, Store
from scalejax.run.store_file import STOPPED
from scalejax.run.watch import Accountant, Interruption, Pulse
from scalejax.spec import Sweep
from scalejax.text import number_of

if TYPE_CHECKING:
    import pandas as pd

    from scalejax.execute.checkpoint import Checkpoints
    from scalejax.execute.observer import Progress
    from scalejax.execute.slot import Finished, Paused
    from scalejax.execute.snapshot import Homes
    from scalejax.execute.successive_halving import SuccessiveHalving
    from scalejax.planning.plan import Plan
    from scalejax.planning.trial import Trial

CHECKPOINT_SECONDS = 60.0  # between two checkpoints of a pack


@dataclass(frozen=True)
class Run:
    """The directory of a run and the tables in it."""

    directory: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(self.directory))

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

    def heartbeat(self) -> Heartbeat | None:
        """Return the process that runs here, or ran here when it was killed; None if the last one ended in order."""
        with Store(self.directory / LEDGER, write=False) as store:
            return store.heartbeat()

    def curves(self) -> "pd.DataFrame":
        """Return the tuned learning curves, one row a model size and number of training examples.

        Raises:
            ValueError: no trial has finished.
        """
        from scalejax.analysis import learning_curves

        return learning_curves(self.results())

    def save_figure(self) -> list[Path]:
        """Draw the learning curves to figures/learning_curves.png and .svg and return their paths.

        Raises:
            ValueError: no trial has finished.
            RunError: the figure cannot be written.
        """
        from scalejax.report.plot import plot_learning_curves, save_figure

        axes = plot_learning_curves(self.curves())
        try:
            return list(save_figure(axes.figure, self.directory / FIGURES, "learning_curves"))
        except OSError as error:
            says = f"the figure cannot be written ({error.strerror or error})"
            remedy = "see that nothing else has its place, then run the same command again: all results are kept"
            raise RunError(f"{self.directory / FIGURES}: {says}; {remedy}") from error

    def summary(self) -> list[str]:
        """Say in words which curves have flattened and which still fall, and what halving has stopped."""
        from scalejax.analysis import trends
        from scalejax.report.table import halving_lines, summary_lines

        curves = self.curves()
        return [*summary_lines(curves, trends(curves)), *halving_lines(self.results())]


def run_sweep(
    sweep: Sweep,
    out: str | os.PathLike[str] | None = None,
    *,
    progress: bool = True,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Run:
    """Train what a sweep asks for and has not been trained yet, on all local devices, and draw the learning curves.

    Args:
        sweep: the question.
        out: directory of the run, made if needed; runs/<name> by default. A directory that holds a run is resumed or
            extended: finished trials are never repeated, and those on their way go on at their step.
        progress: show progress on standard error.
        checkpoint_seconds: between two checkpoints of the trials on their way.

    Raises:
        SweepError: the sweep asks for what cannot be, or another process runs in the directory; before anything is
            trained.
        RunError: trouble on the way, such as a full disk; what has been done is kept.
        Interrupted: SIGINT or SIGTERM was heard; it says what could not be saved, if anything.

    Warns:
        UserWarning: results in the directory were computed by another program than would run today.
    """
    from scalejax.execute.devices import prepare as prepare_devices
    from scalejax.execute.probe import prober
    from scalejax.planning.plan import make_plan

    prepare_devices()
    plan = make_plan(sweep, probe=prober(sweep.data))
    return carry_out(plan, out, progress=progress, checkpoint_seconds=checkpoint_seconds)


def carry_out(
    plan: "Plan",
    out: str | os.PathLike[str] | None = None,
    *,
    progress: bool = True,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Run:
    """Carry out a plan; see `run_sweep`."""
    from scalejax.execute.checkpoint import Checkpoints
    from scalejax.execute.modes import kept_modes, with_modes

    directory = Path(out) if out is not None else Path("runs") / plan.sweep.name
    run = Run(directory)
    with locked(directory):
        halving = plan.sweep.train.halving
        ended = _ended_trials(directory, FINAL if halving is None else (*FINAL, STOPPED))
        waiting = [trial for trial in plan.trials if trial.trial_id not in ended]
        waiting += _recalled(plan, ended)
        _tell_of_other_programs(directory, plan, ended)
        plan = with_modes(plan, kept_modes(read_environment(directory)), measure=bool(waiting))
        prepare(directory, plan)
        with Store(directory / LEDGER, write=True) as store:
            store.plan([trial_row(trial, plan) for trial in plan.trials])
            checkpoints = Checkpoints(directory / CHECKPOINTS, seconds=checkpoint_seconds)
            try:
                _train(plan, waiting, ended, store=store, checkpoints=checkpoints, progress=progress)
            finally:
                store.release()
        if run.counts()["done"]:
            run.save_figure()
    return run


def _train(
    plan: "Plan",
    waiting: Sequence["Trial"],
    ended: Mapping[str, Ended],
    *,
    store: Store,
    checkpoints: "Checkpoints",
    progress: bool,
) -> None:
    """Train the waiting trials, those that an earlier run has begun from where it left them.

    Of those that have `ended` the halving calls back the ones that it would not have stopped, now or in the middle.
    """
    import jax

    from scalejax.data import load
    from scalejax.execute.observer import Observer
    from scalejax.execute.scheduler import Scheduler
    from scalejax.report.progress import ProgressDisplay

    fresh = [trial for trial in waiting if trial.trial_id not in ended]
    begun = checkpoints.load(_homes(plan, fresh))
    if not waiting:
        checkpoints.finish(complete=True)
        return
    data = load(plan.sweep.data)
    accountant = Accountant(plan, waiting, begun=begun)
    with ExitStack() as exits:
        stream = None if progress else exits.enter_context(Path(os.devnull).open("w"))
        display = exits.enter_context(ProgressDisplay(trials=len(waiting), work=accountant.total, stream=stream))
        for note in plan.packing.notes:
            display.say(f"note: {note}")
        if left_out := store.left_out():
            trials = number_of(left_out, "finished trial")
            display.say(f"{trials} of an earlier form of this sweep or its code: kept, and left out of the tables")
        if begun:
            display.say(f"resuming {number_of(len(begun), 'trial')} where an earlier run left off")
        exits.enter_context(Pulse(store, accountant=accountant, display=display))

        def started(trials: Sequence["Trial"]) -> None:
            store.start([trial.trial_id for trial in trials])

        def begins(trials: Sequence["Trial"]) -> None:
            started(trials)
            accountant.begin(trials, display)

        def finished(end: "Finished") -> None:
            store.finish(result_row(end), measurement_rows(end))
            display.end_trial(end.status, spared=accountant.spared(end.trial))

        def progressed(progress: "Progress") -> None:
            accountant.show(progress, display)

        started([paused.trial for paused in begun.values()])
        scheduler = Scheduler(
            plan.packing.buckets,
            {trial.trial_id for trial in fresh},
            data=data,
            observer=Observer(started=begins, finished=finished, progressed=progressed),
            halving=_successive_halving(plan, ended, begun),
            checkpoints=checkpoints,
            begun=begun,
        )
        interruption = exits.enter_context(Interruption(scheduler.stop))
        if not scheduler.run(jax.local_devices()) and interruption.signal:
            raise Interrupted(interruption.signal, lost=list(scheduler.lost.values()))


def _homes(plan: "Plan", waiting: Sequence["Trial"]) -> "Homes":
    """Return the program in which each waiting trial is to go on, by its id."""
    recipes = {trial.trial_id: bucket.program for bucket in plan.packing.buckets for trial in bucket.trials}
    return {trial.trial_id: (trial, recipes[trial.trial_id]) for trial in waiting}


def _recalled(plan: "Plan", ended: Mapping[str, Ended]) -> list["Trial"]:
    """Return the stopped trials that the halving as it is now lets go on, as far as that is known beforehand."""
    from scalejax.execute.slot import Paused

    halving = _successive_halving(plan, ended, {})
    back = halving.begin().proceed if halving else []
    return [each for each in back if not isinstance(each, Paused)]


def _successive_halving(
    plan: "Plan", ended: Mapping[str, Ended], begun: Mapping[str, "Paused"]
) -> "SuccessiveHalving | None":
    from scalejax.execute.successive_halving import History, SuccessiveHalving

    halving = plan.sweep.train.halving
    if halving is None:
        return None
    histories = {trial: History(each.losses, each.status) for trial, each in ended.items()}
    for trial, paused in begun.items():
        histories[trial] = History({each.step: each.validation_loss for each in paused.slot.evaluations})
    return SuccessiveHalving(plan.trials, reduction=halving.reduction, histories=histories)


def _tell_of_other_programs(directory: Path, plan: "Plan", ended: Mapping[str, Ended]) -> None:
    """Warn of results that are kept though today's code would compute them by another program.

    Of a builder of the user's own the program is part of the id. A family of scalejax keeps its ids over versions of
    JAX and Flax, which may trace it to another program; what its numbers are is then said by the tests alone.
    """
    from scalejax.train.traced import program_digest

    if not ended:
        return
    with Store(directory / LEDGER, write=False) as store:
        programs = store.programs()
    other = [
        trial
        for trial in plan.trials
        if trial.trial_id in ended
        and programs.get(trial.trial_id) not in (None, program_digest(trial.architecture, trial.recipe))
    ]
    if other:
        trials = number_of(len(other), "finished trial")
        says = f"{trials} came from another program than this version of scalejax, JAX and Flax would run"
        remedy = "the results are kept; to train again, give another directory"
        warnings.warn(f"{directory}: {says}; {remedy}.", stacklevel=3)


def _ended_trials(directory: Path, statuses: Sequence[str]) -> dict[str, Ended]:
    if not (directory / LEDGER).exists():
        return {}
    with Store(directory / LEDGER, write=True) as store:  # an earlier process may have ended before it made the tables
        store.results()  # what is damaged but no less a table is met with now, not once everything has been trained
        return store.ended(statuses)
