"""The trained models of a run: which of them are kept, and how they come back."""

import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalejax.classical.families import is_older
from scalejax.data.encoding import encoding_of
from scalejax.errors import RunError, SweepError
from scalejax.run.directory import LEDGER, MODELS, SWEEP
from scalejax.run.store import Store
from scalejax.spec import Sweep
from scalejax.status import Status
from scalejax.text import first_line, number_of

if TYPE_CHECKING:
    import pandas as pd

    from scalejax.data import DataCard
    from scalejax.execute.slot import Finished
    from scalejax.planning.plan import Plan
    from scalejax.planning.trial import Trial
    from scalejax.train.task import Task

STOP_SECONDS = 1.0  # to wait for a model that is being written once a run is told to stop


class Keeper:
    """Keeps the models of trials that are done: all of them, or in each cell those that tuning chooses.

    A model is set aside before its trial's result is written, so none is lost; in which setting of its cell it was
    trained is judged once the whole cell has ended. Orbax then writes those that stay, in a thread of its own.

    Args:
        directory: of the run.
        plan: what is trained.
        ended: ids of the trials that have ended in earlier runs.
        store: the open ledger.
    """

    def __init__(self, directory: Path, plan: "Plan", *, ended: Collection[str], store: Store):
        self.folder = directory / MODELS
        self._plan, self._store, self._all = plan, store, plan.sweep.keep_weights == "all"
        self._encoding = encoding_of(plan.sweep.data, plan.card.sizes)
        self._cells: dict[Any, list[str]] = {}
        for trial in plan.trials:
            self._cells.setdefault(self._cell(trial), []).append(trial.trial_id)
        self._left = {cell: set(trials) - set(ended) for cell, trials in self._cells.items()}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="models")
        self._writing: list[Future[None]] = []
        self._stopping = threading.Event()

    def __enter__(self) -> "Keeper":
        """Go on with what an earlier run has left: it may have ended between a result and what follows from it."""
        from scalejax.execute.kept import waiting_models

        waiting = set(waiting_models(self.folder))
        for cell, trials in self._cells.items():
            if waiting & set(trials):
                self._judge(cell)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for what is being written; not for long if the run did not come to its end.

        Raises:
            RunError: a model could not be written.
        """
        from scalejax.execute.kept import tidy

        if kind is not None:
            self._stopping.set()
        late = wait(self._writing, timeout=None if kind is None else STOP_SECONDS).not_done
        self._writer.shutdown(wait=not late, cancel_futures=True)
        tidy(self.folder)
        if kind is None:
            self._check(block=True)

    def begin(self, trials: Sequence["Trial"]) -> None:
        """Take note of trials that begin, or begin again."""
        for trial in trials:
            self._left[self._cell(trial)].add(trial.trial_id)

    def set_aside(self, end: "Finished") -> None:
        """Write the model of a trial that is done, before its result is.

        Raises:
            RunError: this one, or an earlier one, could not be written.
        """
        from scalejax.execute import kept

        self._check(block=False)
        if end.weights is not None:
            try:
                kept.set_aside(
                    self.folder, kept.kept_model(end.trial, end.weights, self._plan.card, encoding=self._encoding)
                )
            except OSError as error:
                raise self._trouble(error) from error

    def ended(self, trial: "Trial") -> None:
        """Take note of a trial whose result is written, and judge its cell if that has ended."""
        cell = self._cell(trial)
        self._left[cell].discard(trial.trial_id)
        self._judge(cell)

    def _judge(self, cell: Any) -> None:
        """Have the models of a cell written or thrown away, as far as that is decided; returns at once."""
        if self._all or not self._left[cell]:
            self._writing = [each for each in self._writing if not each.done() or each.exception()]
            self._writing.append(self._writer.submit(self._settle, self._cells[cell]))

    def _settle(self, cell: Sequence[str]) -> None:
        from scalejax.execute import kept

        waiting = sorted(set(cell) & set(kept.waiting_models(self.folder)))
        if not waiting:
            return
        rows = self._store.results(cell)
        done = set(rows["trial_id"][rows["status"] == Status.DONE])
        wanted = done if self._all else done & chosen(rows)
        for trial_id in waiting:
            if self._stopping.is_set():
                return  # the next run goes on from here
            if trial_id in wanted:
                kept.store(self.folder, trial_id)
            elif not self._all:
                kept.drop(self.folder, trial_id)

    def _check(self, *, block: bool) -> None:
        for each in self._writing:
            if (block or each.done()) and (error := each.exception()):
                raise self._trouble(error) from error

    def _trouble(self, error: BaseException) -> RunError:
        remedy = "see that the disk has room, then run the same command again: what has been written is kept"
        return RunError(f"{self.folder}: a model cannot be written ({first_line(error)}); {remedy}")

    @staticmethod
    def _cell(trial: "Trial") -> Any:
        # As a text: in Python True == 1, and these are two sizes.
        return trial.family, repr(trial.named_knobs), trial.settings.train_examples


def chosen(rows: "pd.DataFrame") -> set[str]:
    """Return the ids of the trials of a cell whose models are worth keeping.

    These are one for each seed, at the setting that its tuning chooses, and the one with the lowest validation loss.
    """
    from scalejax.analysis.curves.tuning import tuned

    try:
        best = set(tuned(rows)["trial_id"])
    except ValueError:  # nothing counts
        best = set()
    return best | {str(row["trial_id"]) for row in [best_row(rows)] if row is not None}


def without_model(rows: "pd.DataFrame", kept: Collection[str], *, every: bool) -> set[str]:
    """Return the ids of the networks' trials that are done and have no model, though a sweep keeps those of their kind.

    They were done in an earlier run that kept none, or others.

    Args:
        rows: the trial table.
        kept: ids of the trials that have a model.
        every: whether the sweep keeps all models, or in each cell those that tuning chooses, and the best.
    """
    from scalejax.analysis.curves.tuning import alike, tuned

    networks: Any = rows[~rows["family"].map(is_older).astype(bool)]
    done: Any = networks[(networks["status"] == Status.DONE) & networks["validation_loss"].notna()]
    wanted = {str(trial_id) for trial_id in done["trial_id"]}
    if not every and wanted - set(kept):
        cells = alike(done, ["train_examples"])
        best = {str(min(cell.values(), key=lambda row: row["validation_loss"])["trial_id"]) for cell in cells}
        try:
            wanted &= best | set(tuned(networks)["trial_id"])
        except ValueError:  # no test metric is finite
            wanted = best
    return wanted - set(kept)


def kept_models(directory: Path) -> list[str]:
    """Return the ids of the trials whose trained models are kept in the directory of a run."""
    from scalejax.execute.kept import stored_models, waiting_models

    return sorted({*stored_models(directory / MODELS), *waiting_models(directory / MODELS)})


def best_row(rows: "pd.DataFrame", family: str | None = None) -> "pd.Series | None":
    """Return the row of the trial with the lowest validation loss of those that are done; None if none is.

    A builder of one's own is called by its name, as the rows have it, or as a sweep file does, "package.module:name".
    """
    wanted = rows["status"] == Status.DONE
    if family is not None:
        wanted &= rows["family"] == (family.rpartition(":")[2].rpartition(".")[2] if ":" in family else family)
    losses = rows["validation_loss"].where(wanted).dropna()
    return None if losses.empty else rows.loc[losses.idxmin()]


def trial_called(directory: Path, trial: Any) -> str:
    """Return the id of a trial that is given by its first digits, or as a row of the table that has its `trial_id`.

    Raises:
        SweepError: there is none, or more than one, or this is neither.
    """
    from scalejax.execute.kept import stored_models, waiting_models

    name = trial if isinstance(trial, str) else _field(trial, "trial_id")
    if not isinstance(name, str):
        expected = "the trial_id of a trial, or its row of run.results() as run.best() returns it"
        raise SweepError(f"{directory}: expected {expected}, found a {type(trial).__name__}")
    with Store(directory / LEDGER, write=False) as store:
        known = store.trial_ids()
    folder = directory / MODELS
    found = sorted(each for each in {*known, *stored_models(folder), *waiting_models(folder)} if each.startswith(name))
    if not name or not found:
        raise SweepError(f"{directory}: no trial is called {name!r}; see the column trial_id of run.results()")
    if len(found) > 1 and name not in found:
        problem = f"{number_of(len(found), 'trial')} begin with {name!r}, such as {found[0]} and {found[1]}"
        raise SweepError(f"{directory}: {problem}; give more digits")
    return name if name in found else found[0]


def _field(row: Any, name: str) -> Any:
    """Return a field of a row, whether it is a mapping, one of pandas or a named tuple; None if it has none."""
    return row.get(name) if isinstance(row, Mapping) else getattr(row, name, None)


def model_parts(
    directory: Path, trial: Any, *, build: Any = None, features: Any = None, sweep: Sweep | None = None
) -> tuple[Any, Any, Mapping[str, Any]]:
    """Return a kept model as a Flax module in evaluation mode, its architecture, and its description.

    Args:
        directory: of the run.
        trial: as for `trial_called`.
        build: the user's own builder, where its name is not enough to find it.
        features: the steps before the model, where their names are not enough to find them.
        sweep: has both, if they are not given.

    Raises:
        SweepError: there is no such trial or no model of it, it is damaged, or the builder or the features do not fit.
    """
    from scalejax.execute import kept

    trial_id = trial_called(directory, trial)
    model = kept.read(directory / MODELS, trial_id)
    if model is None:
        raise SweepError(f"{directory}: {_missing(directory, trial_id)}")
    if sweep is not None:
        own_build, own_features = _of_sweep(sweep, model.description)
        build, features = build or own_build, features or own_features
    size, weights = kept.rebuilt(model, build, features)
    return kept.module_of(size, weights), size, model.description


def _of_sweep(sweep: Sweep, says: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the builder and the steps of the features of a model that a sweep has as objects, or None."""
    from scalejax.data.features import written
    from scalejax.planning.trial import family_name

    grids = [grid for grid in sweep.models if family_name(grid) == says["family"]]
    chains = [chain for grid in grids for chain in grid.features or (sweep.data.steps,)]
    wanted = says.get("features", [])
    return (
        next((grid.family for grid in grids if callable(grid.family)), None),
        next((chain for chain in chains if chain and [*map(written, chain)] == wanted), None),
    )


def _missing(directory: Path, trial_id: str) -> str:
    """Say why a trial has no model, and what to do."""
    with Store(directory / LEDGER, write=False) as store:
        rows, (family, status) = store.results(), store.standing(trial_id) or ("", Status.DONE)
    if is_older(family):
        networks = [each for each in dict.fromkeys(rows["family"]) if not is_older(each)]
        named = " or ".join(f'run.best(family="{each}")' for each in networks)
        remedy = f"{named} names a network" if named else "this run has no network, whose models would be"
        return f"trial {trial_id} is of {family}, an algorithm of scikit-learn, whose models are not kept; {remedy}"
    if status in (Status.PENDING, Status.RUNNING):
        return f"trial {trial_id} is {status}; its model is there once it is done, if keep_weights says so"
    if status != Status.DONE:
        return f"trial {trial_id} is {status}; only trials that are done have a model"
    kept = 'keep_weights = "best" keeps those that tuning chooses, "all" each one, and "none" none'
    remedy = 'to train it again and keep it, run the sweep in another directory with keep_weights = "all"'
    return f"the model of trial {trial_id} was not kept ({kept}); {remedy}"


def evaluated(
    directory: Path, trial: Any, *, build: Any = None, features: Any = None, sweep: Sweep | None = None
) -> dict[str, float]:
    """Return the test loss and the headline metric of a kept model, predicted again; see `Run.evaluate`."""
    from scalejax.data import describe, load
    from scalejax.execute import kept
    from scalejax.spec.file import UNREADABLE, load_sweep

    module, size, says = model_parts(directory, trial, build=build, features=features, sweep=sweep)
    if sweep is None:
        try:
            sweep = load_sweep(directory / SWEEP)
        except SweepError as error:
            remedy = "give the sweep with run.evaluate(trial_id, sweep=...)"
            if UNREADABLE in (directory / SWEEP).read_text(encoding="utf-8"):
                raise SweepError(f"{directory}: its sweep has objects of Python; {remedy}") from None
            raise SweepError(f"{error}; or {remedy}") from None
    card = describe(sweep.data)
    if card.fingerprint != says["data"]:
        problem = f"trial {says['trial_id']} was trained on other data than the sweep {sweep.name} has now"
        raise SweepError(f"{directory}: {problem}; give the sweep that it comes from with sweep=...")
    loss, metric = kept.evaluate(module, size, task=_task(says, sweep, card), data=load(sweep.data))
    return {"test_loss": loss, "test_metric": metric}


def _task(says: Mapping[str, Any], sweep: Sweep, card: "DataCard") -> "Task":
    """Return the task of a kept model, with its metric: the sweep may be about another one by now.

    Raises:
        SweepError: it is one of the user's own, and not that of the sweep, or computes something else by now.
    """
    from scalejax.execute.kept import check_task
    from scalejax.train.task import TASKS, is_own, task_of

    name, metric = says["task"], says["metric"]
    if not says.get("own_task", name not in TASKS):
        return task_of(name, card, metric=metric if metric in TASKS[name][1] or name == "classification" else None)
    found = task_of(sweep.task, card, metric=sweep.metric)
    if not is_own(found) or (found.name, found.metric) != (name, metric):
        problem = f"trial {says['trial_id']} was trained on the task {name} with the metric {metric}"
        has = f"the sweep {sweep.name} has {found.name} with {found.metric}"
        raise SweepError(f"{problem}, and {has}; give the sweep that it comes from with sweep=...")
    check_task(says, found, card)
    return found
