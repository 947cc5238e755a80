"""A run: a sweep carried out in a directory. This is where the rooms meet; the command line calls the same."""

import base64
import hashlib
import json
import math
import os
import platform
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalejax.classical.families import is_older
from scalejax.errors import Interrupted, RunError, SweepError
from scalejax.execute import CHECKPOINT_SECONDS
from scalejax.rules import SpecError
from scalejax.run.advice import COMPUTE, advise
from scalejax.run.directory import (
    CHECKPOINTS,
    FIGURES,
    LEDGER,
    OLDER,
    directory_of,
    locked,
    prepare,
    read_environment,
    unit_of,
)
from scalejax.run.fits import BOOTSTRAP, LEVEL, Fits, fit_source
from scalejax.run.predict import predicted
from scalejax.run.rows import measurement_rows, older_result, older_row, result_row, told_row, trial_row
from scalejax.run.store import TRIAL_COLUMNS, Ended, Heartbeat, SessionRow, Store
from scalejax.run.timeline import Recorder, group_names
from scalejax.run.trackers import Tracker, tracker_of
from scalejax.run.tracking import Outcome, Tracking
from scalejax.run.watch import Accountant, Interruption, Preparation, Pulse
from scalejax.run.weights import Keeper, best_row, evaluated, kept_models, model_parts, without_model
from scalejax.spec import Sweep
from scalejax.spec.file import sweep_to_toml
from scalejax.spec.sweep import ALL, NONE
from scalejax.status import ENDED, FINAL, Status
from scalejax.text import Shown, listing, number_of

if TYPE_CHECKING:
    import pandas as pd

    from scalejax.analysis.forecast.statement import Advice
    from scalejax.analysis.laws.law import Law
    from scalejax.classical.pool import OlderFinished
    from scalejax.classical.trial import OlderTrial
    from scalejax.data import DataSet
    from scalejax.execute.checkpoint import Checkpoints
    from scalejax.execute.slot import Finished, Paused
    from scalejax.execute.successive_halving import SuccessiveHalving
    from scalejax.planning.device_specs import DeviceSpec
    from scalejax.planning.plan import Plan
    from scalejax.planning.trial import Trial
    from scalejax.report.plan import SweepPlan
    from scalejax.report.status import RunStatus
    from scalejax.run.report import Reported

FIGURE = "learning_curves"
TIMING_PATIENCE = 0.5  # seconds after which `plan` compiles no further program just to time it


@dataclass(frozen=True, repr=False)
class Run(Shown):
    """The directory of a run and the tables in it.

    Attributes:
        directory: as described.
        sweep: that it was made of, where this process has made it: data, builders and steps of the features that are
            objects in Python are then found without being given again.
    """

    directory: Path
    sweep: Sweep | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(self.directory))

    def __str__(self) -> str:
        from scalejax.report.status import counted

        try:
            return f"run {self.directory}: {counted(self.counts())}"
        except SweepError as error:
            return f"run {error}"

    def _repr_html_(self) -> str:
        from scalejax.analysis import trends
        from scalejax.report.console import as_html
        from scalejax.report.table import curve_table

        shown = super()._repr_html_()
        try:
            shown += as_html(curve_table(curves := self.curves(), trends(curves)))
        except ValueError:  # nothing is done yet, or there is no run
            return shown
        figure = self.directory / FIGURES / f"{FIGURE}.png"
        if not figure.is_file():
            return shown
        picture = base64.b64encode(figure.read_bytes()).decode()
        return f'{shown}<img width="720" src="data:image/png;base64,{picture}">'

    def results(self) -> "pd.DataFrame":
        """Return the trial table, one row a trial; its columns are those of `Store.results`."""
        with Store(self.directory / LEDGER, write=False) as store:
            return store.results()

    def measurements(self) -> "pd.DataFrame":
        """Return the measurements along training: trial_id, step, examples_seen, losses and the validation metric."""
        with Store(self.directory / LEDGER, write=False) as store:
            return store.measurements()

    def timeline(self) -> "pd.DataFrame":
        """Return how the sweep ran: one row a span, in which a trial was in one lane; several where it came back.

        Its columns:

        - trial_id.
        - session: the process that trained here, from 1 on; see `sessions`.
        - pack, group, bucket: a pack is the lanes of a bucket (the sizes that share a program) on a group of devices,
          such as "cpu 0-3". The processes that fit the classical baselines are lanes of the group "host".
        - lanes, lane: how many the pack has, and which of them it was, from 0 on.
        - began, ended: in seconds since 1970; `ended` is missing (NaN) while the trial is there.
        - steps: taken there, 0 while it is there.
        - step_flops: of one step in that program, padding included.
        - outcome: why it left: "done", "diverged" or "failed"; "rung", where halving had to decide; "refused" by a
          device, such as one short of memory; "interrupted" with the run. Empty while it is there.

        A span begins with the first call that the trial is in: compiling is no part of it. Rows are written every other
        second; what began and ended after the last time before a kill is not there. Of several hosts the lanes of all
        are there. Runs of version 0.3.0 and earlier ones have no rows.
        """
        with Store(self.directory / LEDGER, write=False) as store:
            return store.timeline()

    def sessions(self) -> "pd.DataFrame":
        """Return the processes that trained here, one row each: what was planned, and how it came out.

        Its columns:

        - session, from 1 on; began and ended, in seconds since 1970, `ended` missing (NaN) while it runs.
        - host, device, devices, groups: where, and how many groups of devices worked on different buckets.
        - peak_flops: FLOP/s of matrix products on all devices together, as `scalejax bench` has measured them on this
          machine or as their vendor says; missing if unknown.
        - forecast_seconds: of wall time for what was left to train.
        - plan_useful_flops, plan_padding_flops, plan_idle_flops: of the whole plan.
        - useful_flops, padding_flops: that trials took in lanes, and that padding added.
        - lane_seconds, idle_seconds: of the lanes of packs at work, and of those among them without a trial.
        - training_seconds: in which any lane had a trial.
        """
        with Store(self.directory / LEDGER, write=False) as store:
            return store.sessions()

    def counts(self) -> dict[str, int]:
        """Return the number of trials in each status."""
        with Store(self.directory / LEDGER, write=False) as store:
            return store.counts()

    def heartbeat(self) -> Heartbeat | None:
        """Return the process that runs here, or ran here when it was killed; None if the last one ended cleanly."""
        with Store(self.directory / LEDGER, write=False) as store:
            return store.heartbeat()

    def status(self) -> "RunStatus":
        """Return how far the run is, at any time and from any process: it shows itself, and has `facts`."""
        from scalejax.report.status import RunStatus, status_facts

        return RunStatus(status_facts(self.results(), self.heartbeat()))

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
        from scalejax.report.figures.canvas import save_figure
        from scalejax.report.figures.learning_curves import plot_learning_curves

        axes = plot_learning_curves(curves := self.curves(), unit=self._unit(curves))
        try:
            return list(save_figure(axes.figure, self.directory / FIGURES, FIGURE, data=curves))
        except OSError as error:
            problem = f"the figure cannot be written ({error.strerror or error})"
            remedy = "see that nothing else has its place, then run the same command again: all results are kept"
            raise RunError(f"{self.directory / FIGURES}: {problem}; {remedy}") from error

    def summary(self) -> list[str]:
        """Say in words which curves have flattened and which still fall, and what halving has stopped.

        Raises:
            ValueError: no trial has finished.
        """
        from scalejax.analysis import trends
        from scalejax.report.table import halving_lines, summary_lines

        curves = self.curves()
        lines = [*summary_lines(curves, trends(curves)), *halving_lines(self.results())]
        if unit := self._unit(curves):
            lines.append(f"The RMSE is in {unit}, which were standardised (standardise_target).")
        return lines

    def _unit(self, curves: "pd.DataFrame") -> str:
        """Return the unit of the values of the curves where it is not that of the user's targets, else nothing."""
        return unit_of(self.directory, self.sweep, str(curves["metric"].iloc[0]))

    def best(self, family: str | None = None) -> "pd.Series":
        """Return the row of the trial with the lowest validation loss of those that are done; it has its `trial_id`.

        Of a family of networks `keep_weights = "best"` keeps the model of this trial. Without `family` it may be one of
        an algorithm of scikit-learn, whose models are not kept: `run.model` then says which families are networks.

        Args:
            family: to look at alone, as the table calls it; of a builder of one's own also as a sweep file does,
                "package.module:name".

        Raises:
            ValueError: no trial of the sweep, or of the family, is done; or the family is none of the table.
        """
        rows = self.results()
        row = best_row(rows, family)
        if row is None:
            families = sorted(set(rows.loc[rows["status"] == Status.DONE, "family"].astype(str)))
            if family is None or not families:
                raise ValueError(f"{self.directory}: no trial is done; run the sweep, or see run.results()")
            says = f"no trial of the family {family} is done; those with trials that are done: {listing(families)}"
            raise ValueError(f"{self.directory}: {says}")
        return row

    def models(self) -> list[str]:
        """Return the ids of the trials whose trained models are kept here."""
        return kept_models(self.directory)

    def model(self, trial_id: "str | pd.Series", *, build: Any = None, features: Any = None) -> Any:
        """Return the trained model of a trial: a Flax module at its true size with its best parameters by validation.

        It is in evaluation mode. A flag of its own `__call__`, such as `train`, is for the caller to give. Called by
        itself it computes in the types of its parameters and of what it is given, with the products that JAX is set to:
        where `precision` was not "float32", `predict` and `evaluate` compute as the training did.

        Args:
            trial_id: or as many of its first digits as no other trial has; or a row of the table, as `best` returns it.
            build: the builder of the module, where the run's directory alone does not tell: one of a notebook. A run
                that this process has made knows it.
            features: the steps before the model as the sweep has them, where their names alone do not tell: objects
                and lambdas.

        Raises:
            SweepError: there is no such trial, its model was not kept (`Sweep.keep_weights` says which are), or the
                builder makes another module, or a step of the features is another one: with other arrays, or a program
                that computes something else.

        Warns:
            UserWarning: the model is another program than the one that was kept, under another version of JAX, Flax,
                NumPy, Python or scalejax, or on another kind of device, which may be why.
        """
        return model_parts(self.directory, trial_id, build=build, features=features, sweep=self.sweep)[0]

    def evaluate(
        self, trial_id: "str | pd.Series", *, build: Any = None, features: Any = None, sweep: Sweep | None = None
    ) -> dict[str, float]:
        """Predict the test examples again with the trained model of a trial; return its `test_loss` and `test_metric`.

        They are those of the table, up to the order in which numbers are added: a model is evaluated at its true size,
        where the run may have padded it. In float32 the last digits may differ, in bfloat16 the third. The metric is
        that of the trial, whatever the sweep asks for now.

        Args:
            trial_id: as for `model`.
            build: as for `model`.
            features: as for `model`.
            sweep: that the run was made of, where its file does not hold the data or the task: objects of Python.

        Raises:
            SweepError: as `model` does; or the data cannot be loaded, or are others than those of the trial; or the
                trial has a task of the user's own, and the sweep another one.
        """
        return evaluated(self.directory, trial_id, build=build, features=features, sweep=sweep or self.sweep)

    def predict(
        self,
        trial_id: "str | pd.Series",
        new: Any,
        *,
        build: Any = None,
        features: Any = None,
        probabilities: bool = False,
    ) -> Any:
        """Predict new examples with the trained model of a trial, in the terms of the data that it was trained on.

        Args:
            trial_id: as for `model`.
            new: a table of pandas or the path of a .csv or .parquet file, with the columns that were inputs, in any
                order and with others beside them; or an array of inputs [n, ...] as they were stored: images as uint8.
                Of data that were no table, or of a model that version 0.3.0 or an earlier one kept, only an array.
            build: as for `model`.
            features: as for `model`.
            probabilities: of a classification, return those of all classes instead.

        Returns:
            A NumPy array [n]: of a classification the class names as they stood in the data, of a regression float64
            in the unit of the target, also where it was standardised, of tokens the one that follows. Of a task of the
            user's own what the model returns, [n, *outputs]. With `probabilities` a table of pandas, one column a class
            and the index of `new`.

        Raises:
            SweepError: as `model` does; or a column of `new` is missing, or has a category that the training data
                had not, or no number where they had one; or an array is of another shape or type.
        """
        return predicted(
            self.directory, trial_id, new, build=build, features=features, sweep=self.sweep, probabilities=probabilities
        )

    def report(self, *, output: str | os.PathLike[str] | None = None, brief: bool = False) -> "Reported":
        """Write all of it as one page: DIR/report.html, and DIR/report.md with figures/ for a pull request.

        Args:
            output: the place of the page, which then is written alone.
            brief: as at the end of `scalejax run`: the page alone, without samples of the data.

        Raises:
            SweepError: the directory holds no run, or the page cannot be written.
        """
        from scalejax.run.report import report

        place = None if output is None else Path(output)
        return report([self.directory], sweep=self.sweep, output=place, brief=brief)

    def fit(
        self,
        law: "str | Law",
        *,
        columns: Mapping[str, str] | None = None,
        fixed: Mapping[str, float] | None = None,
        shared: Sequence[str] = (),
        ceiling: float | None = None,
        bootstrap: int = BOOTSTRAP,
        seed: int = 0,
        level: float = LEVEL,
        figures: str | os.PathLike[str] | None = None,
    ) -> Fits:
        """Fit a law to each model's best setting in each cell, and draw the fits; see `fit_source`."""
        return fit_source(
            self.directory, law, columns=columns, fixed=fixed, shared=shared, ceiling=ceiling, bootstrap=bootstrap,
            seed=seed, level=level, figures=figures,
        )  # fmt: skip

    def advise(
        self, *, target: float | None = None, compute: float = COMPUTE, level: float = LEVEL, seed: int = 0
    ) -> "Advice":
        """Say whether more data or a bigger model helps, and what each would bring; see `scalejax.advise`."""
        return advise(self, target=target, compute=compute, level=level, seed=seed)


def plan(
    sweep: Sweep,
    devices: int | None = None,
    *,
    device_kind: str | None = None,
    out: str | os.PathLike[str] | None = None,
    compile: bool = False,
) -> "SweepPlan":
    """Return what `run_sweep` will do: trials, programs and their modes, FLOPs, memory, and a forecast of the time.

    Trains nothing but the probes that a sweep asks for, and times programs here, as a run does where it chooses their
    modes; timings are kept for it.

    Args:
        sweep: the question.
        devices: how many to simulate the sweep on; by default it is planned for those of this machine.
        device_kind: which these are, such as "h200", "v5e", or "v5e:2x2" and "h200:8", which say how many they are; or
            "local" for those here. No program is timed then.
        out: the directory of the run, as for `run_sweep`: one that is resumed keeps its modes.
        compile: ask the compiler of that kind about every program, and estimate the time from what it says.

    Raises:
        SweepError: the sweep asks for what cannot be, there is no such kind of device, or its compiler is not
            installed.
    """
    from scalejax.execute import devices as here
    from scalejax.planning.device_specs import LOCAL
    from scalejax.planning.forecast import Forecast
    from scalejax.planning.outline import outline
    from scalejax.report.plan import SweepPlan

    here.prepare()  # before the local kind is looked at
    spec, shape = _devices_asked_for(device_kind, devices, compile=compile)
    devices = math.prod(shape) if shape else devices
    made = planned(sweep, devices=devices, spec=spec)
    if not made.packing.buckets:
        return SweepPlan(outline(made, Forecast((), ()), device=here.device_kind()))
    if spec is not None and spec.name != LOCAL:
        return SweepPlan(_outlined_elsewhere(made, spec, shape=shape, compile=compile))
    return SweepPlan(_outlined_here(made, spec, simulated=devices is not None, directory=directory_of(sweep, out)))


def _devices_asked_for(
    device_kind: str | None, devices: int | None, *, compile: bool
) -> "tuple[DeviceSpec | None, tuple[int, ...]]":
    """Return the spec of a kind of devices, and how these are connected where the kind says it; see `plan`.

    Raises:
        SweepError: there is no such kind, it has another number of devices, or its compiler is not installed.
    """
    from scalejax.planning.device_specs import LOCAL, devices_named
    from scalejax.planning.topology import check_compiler

    spec, shape = devices_named(device_kind) if device_kind is not None else (None, ())
    if shape and devices not in (None, math.prod(shape)):
        says = f"--device-kind {device_kind}: it has {math.prod(shape)} devices, and --devices asks for {devices}"
        raise SweepError(f"{says}; leave one of them out")
    if compile:
        if spec is None or spec.name == LOCAL:
            raise SweepError("--compile: expected a --device-kind that is not here, such as v5e:2x2 or h200:8")
        check_compiler(spec)
    return spec, shape


def _outlined_elsewhere(plan: "Plan", spec: "DeviceSpec", *, shape: tuple[int, ...], compile: bool) -> dict[str, Any]:
    """Return the facts of a plan for devices that are not here: simulated, and compiled for them if asked for."""
    from scalejax.execute.devices import device_kind
    from scalejax.planning.compile_for import compile_for
    from scalejax.planning.outline import outline
    from scalejax.planning.packing import in_mode
    from scalejax.planning.simulate import simulate
    from scalejax.train.recipe import STATIC

    # The mode of a run there.
    buckets = [in_mode(each, STATIC, evaluation_bytes=spec.evaluation_bytes) for each in plan.packing.buckets]
    plan = replace(plan, packing=replace(plan.packing, buckets=tuple(buckets)))
    compiled = compile_for(plan, spec, shape=shape) if compile else []
    timings, source = [each.timing for each in compiled], "estimated from what its compiler says"
    simulated = simulate(plan, spec, timings=timings or None, source=source)
    return outline(plan, simulated, device=device_kind(), compiled=compiled)


def _outlined_here(plan: "Plan", spec: "DeviceSpec | None", *, simulated: bool, directory: Path) -> dict[str, Any]:
    """Return the facts of a plan for the kind of devices that are here.

    Args:
        plan: as described.
        spec: where that kind was asked for by name: then no program is timed.
        simulated: whether a number of devices was asked for.
        directory: of the run, which may have chosen modes.
    """
    from scalejax.execute.devices import device_kind
    from scalejax.execute.modes import kept_modes, with_modes
    from scalejax.execute.timing import TIMED_BYTES, remembered, timings_of
    from scalejax.planning.device_specs import local_spec
    from scalejax.planning.forecast import forecast
    from scalejax.planning.outline import outline
    from scalejax.planning.simulate import simulate

    measure = spec is None and not simulated and plan.data_bytes <= TIMED_BYTES
    plan = with_modes(plan, kept_modes(read_environment(directory)), measure=measure)
    if spec is not None:
        timings = [remembered(bucket, plan.card, group_size=plan.group_size) for bucket in plan.packing.buckets]
        return outline(plan, simulate(plan, spec, timings=timings), device=device_kind())
    timings = timings_of(plan, patience_seconds=TIMING_PATIENCE)
    simulation = simulate(plan, local_spec(), timings=timings) if simulated else None
    return outline(plan, forecast(plan, timings), device=device_kind(), simulation=simulation)


def planned(sweep: Sweep, *, devices: int | None = None, spec: "DeviceSpec | None" = None) -> "Plan":
    """Check a sweep and plan it, for the devices of this machine unless others are given.

    Raises:
        SweepError: the sweep asks for what cannot be.
    """
    from scalejax.execute.devices import prepare as prepare_devices
    from scalejax.execute.probe import prober
    from scalejax.planning.plan import make_plan

    for index, grid in enumerate(sweep.models):
        for name in grid.knobs if not is_older(grid.family) else ():  # whose options are no columns
            if name in TRIAL_COLUMNS:
                problem = "a column of the results is called so already; rename the parameter of the model"
                raise SpecError(problem, table="models", keys=(name,), index=index)
    prepare_devices()
    return make_plan(sweep, devices=devices, spec=spec, probe=prober(sweep))


def run_sweep(
    sweep: Sweep,
    out: str | os.PathLike[str] | None = None,
    *,
    progress: bool = True,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    tracker: "str | Tracker | None" = None,
) -> Run:
    """Train what a sweep asks for and has not been trained yet, on all local devices, and draw the learning curves.

    Where `jax.distributed.initialize` was called before, the processes of the job that all call this train one sweep
    on the devices of all of them. They find the same files at the same paths and share the directory of the run, in
    which the first one writes; the table is there for all of them once this returns.

    Args:
        sweep: the question.
        out: directory of the run, made if needed; runs/<name> by default. A directory that holds a run is resumed or
            extended: finished trials are never repeated, and running ones resume at their step.
        progress: show progress on standard error.
        checkpoint_seconds: between two checkpoints of the running trials.
        tracker: is told what the run does: "wandb", "trackio" or "tensorboard", with "=project" behind it if wanted,
            or an object with the methods of `scalejax.Tracker`. If it fails, one sentence says so, and the run goes on.

    Raises:
        SweepError: the sweep asks for what cannot be, another process runs in the directory, or the tracker cannot
            begin; before anything is trained.
        RunError: trouble during the run, such as a full disk; what has been done is kept.
        Interrupted: SIGINT or SIGTERM was heard; it says what could not be saved, if anything.

    Warns:
        UserWarning: results in the directory were computed by another program than would run today; or trials whose
            models the sweep keeps were done in an earlier run that kept none.
    """
    plan = same_on_all_hosts(lambda: planned(sweep))
    return carry_out(plan, out, progress=progress, checkpoint_seconds=checkpoint_seconds, tracker=tracker)


def same_on_all_hosts(make: "Callable[[], Plan]") -> "Plan":
    """Return the plan that this process makes; of several hosts each makes one, and they have to be the same.

    Raises:
        SweepError: the sweep asks for what cannot be, here or on another host; or a host plans something else.
    """
    from scalejax.execute import hosts
    from scalejax.execute.devices import prepare as prepare_devices

    prepare_devices()  # before it is asked how many hosts there are
    return hosts.make_on_all(make, digest=_plan_digest)


def _plan_digest(plan: "Plan") -> str:
    """Return a digest of what has to be the same on all hosts: they launch the same programs with the same trials."""
    from scalejax.execute.devices import versions

    trials = [trial.trial_id for trial in (*plan.trials, *plan.older)]
    buckets = [
        (bucket.program.identity, bucket.lanes, bucket.call_steps, repr(bucket.spread))
        for bucket in plan.packing.buckets
    ]
    content = [trials, buckets, plan.devices, plan.group_size, plan.card.fingerprint, dict(versions())]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def carry_out(
    plan: "Plan",
    out: str | os.PathLike[str] | None = None,
    *,
    progress: bool = True,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    tracker: "str | Tracker | None" = None,
) -> Run:
    """Carry out a plan; see `run_sweep`. Of several hosts only the primary one writes, checkpoints apart."""
    from scalejax.execute import hosts

    run = Run(directory_of(plan.sweep, out), plan.sweep)
    with hosts.exit_together():
        if not hosts.is_primary():
            _carry_out(run, plan, progress=False, checkpoint_seconds=checkpoint_seconds, tracking=None)
            return run
        told = tracker_of(tracker, run.directory)
        tracking = Tracking(told, partial(_told_facts, run, plan), partial(_told_outcome, run))
        with locked(run.directory), tracking:
            _carry_out(run, plan, progress=progress, checkpoint_seconds=checkpoint_seconds, tracking=tracking)
            if run.counts()[Status.DONE]:
                try:
                    run.save_figure()
                except ValueError as error:  # such as errors of zero everywhere, which a logarithmic axis does not have
                    warnings.warn(f"{run.directory}: no figure is drawn: {error}", stacklevel=2)
            _warn_of_missing_models(run, plan.sweep.keep_weights)
    return run


def _told_facts(run: Run, plan: "Plan") -> dict[str, Any]:
    """Return the facts with which a tracker begins; see `Tracker.init`."""
    from scalejax.execute.devices import device_kind, versions

    trials = {trial.trial_id for trial in (*plan.trials, *plan.older)}
    ended: set[str] = set()
    with suppress(SweepError), Store(run.directory / LEDGER, write=False) as store:  # there may be none yet
        ended = set(store.ended(ENDED))
    return {
        "name": plan.sweep.name,
        "directory": str(run.directory),
        "trials": len(trials),
        "ended": len(trials & ended),
        "families": list(dict.fromkeys(trial.family for trial in (*plan.trials, *plan.older))),
        "train_examples": sorted(
            {trial.settings.train_examples for trial in plan.trials} | {trial.train_examples for trial in plan.older}
        ),
        "device": device_kind(),
        "devices": plan.devices,
        "useful_flops": plan.useful_flops,
        "versions": dict(versions()),
        "sweep": sweep_to_toml(plan.sweep),
    }


def _told_outcome(run: Run) -> Outcome:
    """Return the tables and figures with which a tracker ends; see `Tracker.finish`."""
    tables = {"trials": run.results(), "measurements": run.measurements()}
    with suppress(ValueError):  # no trial is done
        tables["learning_curves"] = run.curves()
    return tables, sorted((run.directory / FIGURES).glob("*.png"))


def _carry_out(run: Run, plan: "Plan", *, progress: bool, checkpoint_seconds: float, tracking: Tracking | None) -> None:
    """Train what has not been trained yet, in a directory that is locked."""
    from scalejax.execute import hosts
    from scalejax.execute.checkpoint import Checkpoints
    from scalejax.planning.trial import Trial

    ledger = run.directory / LEDGER
    ended = hosts.broadcast(lambda: _ended(run.directory, plan))
    unfinished = [trial for trial in plan.trials if trial.trial_id not in ended]
    older = [trial for trial in plan.older if trial.trial_id not in ended]
    final = all(trial.trial_id in ended and ended[trial.trial_id].status in FINAL for trial in plan.trials)
    plan = _in_modes(plan, run.directory, measure=not final)
    if hosts.is_primary():
        prepare(run.directory, plan)
    with Store(ledger, write=True) if hosts.is_primary() else nullcontext() as store:
        if store:
            rows = [trial_row(trial, plan) for trial in plan.trials]
            store.plan([*rows, *(older_row(trial, plan) for trial in plan.older)])
        checkpoints = Checkpoints(run.directory / CHECKPOINTS, seconds=checkpoint_seconds)
        homes = {trial.trial_id: bucket.program for bucket in plan.packing.buckets for trial in bucket.trials}
        try:
            begun = checkpoints.load({trial.trial_id: (trial, homes[trial.trial_id]) for trial in unfinished})
            halving = _successive_halving(plan, ended, begun)
            recalled = [trial for trial in halving.opening.proceed if isinstance(trial, Trial)] if halving else []
            keeping: Any = nullcontext()
            if store and plan.sweep.keep_weights != NONE:
                keeping = Keeper(run.directory, plan, ended=ended, store=store)
            with keeping as keeper:
                if not (unfinished or recalled or older):
                    checkpoints.finish(complete=True)
                elif store and tracking:
                    _train(
                        plan, unfinished, begun, recalled=recalled, older=older, halving=halving, store=store,
                        checkpoints=checkpoints, keeper=keeper, folder=run.directory / OLDER, progress=progress,
                        tracking=tracking,
                    )  # fmt: skip
                else:
                    _train_on_other_host(plan, unfinished, begun, halving=halving, checkpoints=checkpoints)
        finally:
            if store:
                store.release()


def _ended(directory: Path, plan: "Plan") -> dict[str, Ended]:
    """Return the trials that have ended in earlier runs in a directory, by id."""
    ledger = directory / LEDGER
    shutil.rmtree(directory / OLDER, ignore_errors=True)  # of a run that was killed
    if not ledger.exists():
        return {}
    with Store(ledger, write=True) as store:  # an earlier process may have ended before it made the tables
        store.results()  # what is damaged but can be opened is found now, not once everything has been trained
        ended = store.ended(FINAL if plan.sweep.train.halving is None else (*FINAL, Status.STOPPED))
        _warn_of_other_programs(directory, plan, ended, store.programs())
    return ended


def _in_modes(plan: "Plan", directory: Path, *, measure: bool) -> "Plan":
    """Return a plan with the mode of every bucket: as the run has it, or as measured, on one host alone."""
    from scalejax.execute import hosts
    from scalejax.execute.modes import kept_modes, modes_to_keep, with_modes
    from scalejax.planning.device_specs import local_spec

    if hosts.is_primary():
        plan = with_modes(plan, kept_modes(read_environment(directory)), measure=measure)
    # By the memory of the first one all evaluate as much at once: they have to run the same programs.
    modes, room = hosts.broadcast(lambda: (modes_to_keep(plan, None), local_spec().evaluation_bytes))
    return plan if hosts.is_primary() else with_modes(plan, modes, measure=False, evaluation_bytes=room)


def _warn_of_missing_models(run: Run, keep: str) -> None:
    """Warn of trials whose models a sweep keeps and that have none: a trial that is done is not trained again."""
    if keep == NONE:
        return
    if missing := without_model(run.results(), run.models(), every=keep == ALL):
        one = len(missing) == 1
        trials = f"{number_of(len(missing), 'trial')} {'was' if one else 'were'} done in an earlier run without keeping"
        what = f"{trials} {'its model, and has' if one else 'their models, and have'} none"
        remedy = f'to have {"it" if one else "them"} (keep_weights = "{keep}"), run the sweep in another directory'
        warnings.warn(f"{run.directory}: {what}; {remedy}", stacklevel=3)


def _warn_of_other_programs(
    directory: Path, plan: "Plan", ended: Mapping[str, Ended], programs: Mapping[str, str]
) -> None:
    """Warn of results that are kept though today's code would compute them by another program.

    Of a builder of the user's own the program is part of the id. A family of scalejax keeps its ids over versions of
    JAX and Flax, which may trace it to another program; only the tests then say that its numbers are the same.
    """
    from scalejax.classical.pool import package
    from scalejax.train.traced import program_digest

    count = sum(
        programs.get(trial.trial_id) not in (None, program_digest(trial.architecture, trial.recipe))
        for trial in plan.trials
        if trial.trial_id in ended
    )
    count += sum(programs.get(trial.trial_id) != package() for trial in plan.older if trial.trial_id in ended)
    if count:
        trials = number_of(count, "finished trial")
        problem = f"{trials} came from another program than these versions of scalejax and its packages would run"
        remedy = "the results are kept; to train again, give another directory"
        warnings.warn(f"{directory}: {problem}; {remedy}.", stacklevel=3)


def _successive_halving(
    plan: "Plan", ended: Mapping[str, Ended], begun: Mapping[str, "Paused"]
) -> "SuccessiveHalving | None":
    """Return the halving of a sweep, which knows all trials that have ended or begun; None without halving."""
    from scalejax.execute.successive_halving import History, SuccessiveHalving

    halving = plan.sweep.train.halving
    if halving is None:
        return None
    histories = {trial_id: History(end.losses, end.status) for trial_id, end in ended.items()}
    for trial_id, paused in begun.items():
        histories[trial_id] = History({seen.step: seen.validation_loss for seen in paused.slot.evaluations})
    return SuccessiveHalving(plan.trials, reduction=halving.reduction, histories=histories)


def _train(
    plan: "Plan",
    unfinished: Sequence["Trial"],
    begun: Mapping[str, "Paused"],
    *,
    recalled: Sequence["Trial"],
    older: Sequence["OlderTrial"],
    halving: "SuccessiveHalving | None",
    store: Store,
    checkpoints: "Checkpoints",
    keeper: Keeper | None,
    folder: Path,
    progress: bool,
    tracking: Tracking,
) -> None:
    """Train the unfinished trials, from where an earlier run left those that have begun.

    Those that the halving recalls were stopped by an earlier run and would not be by this one; later it may recall
    more. The classical baselines are fitted beside, on host cores, and their trials begin anew if they are interrupted;
    what their processes read lies in `folder` for so long.
    """
    import jax

    from scalejax.classical.pool import HostPool
    from scalejax.execute.devices import groups, processes_beside
    from scalejax.execute.observer import Observer
    from scalejax.execute.scheduler import Scheduler
    from scalejax.report.progress import ProgressDisplay
    from scalejax.train.numerics import current, hold

    data = _loaded(plan)
    waiting = [*unfinished, *recalled]
    accountant, preparation = Accountant(plan, waiting, begun=begun), Preparation(plan)
    with ExitStack() as exits:
        stream = None if progress else exits.enter_context(Path(os.devnull).open("w"))
        # How long a fit takes is not known before: it is counted as much as a trial of the engine takes on average.
        share = accountant.total / len(waiting) if waiting else 1.0
        trials, work = len(waiting) + len(older), accountant.total + share * len(older)
        display = exits.enter_context(ProgressDisplay(trials=trials, work=work, stream=stream))
        if progress:
            tracking.listen(display.say)
        for note in (*plan.card.notes, *plan.packing.notes):
            display.say(f"note: {note}")
        if left_out := store.left_out():
            trials = number_of(left_out, "finished trial")
            display.say(f"{trials} of an earlier form of this sweep or its code: kept, and left out of the tables")
        if begun:
            display.say(f"resuming {number_of(len(begun), 'trial')} where an earlier run left off")
        processes = processes_beside(engine=bool(waiting))
        workers = group_names(groups(jax.devices(), size=plan.group_size))
        recorder = Recorder(_session(plan, store, share=accountant.share, groups=len(workers)), groups=workers)
        exits.enter_context(Pulse(store, accountant=accountant, display=display, recorder=recorder))

        def started(trials: Sequence["Trial"]) -> None:
            preparation.begin()
            store.start([trial.trial_id for trial in trials])
            accountant.begin(trials, display)
            if keeper:
                keeper.begin(trials)

        def finished(end: "Finished") -> None:
            if keeper:
                keeper.set_aside(end)
            trial, result, measured = end.trial, result_row(end, plan), measurement_rows(end)
            store.finish(result, measured)
            tracking.log(lambda: (told_row(trial_row(trial, plan), result), [asdict(each) for each in measured]))
            if keeper:
                keeper.ended(end.trial)
            display.end_trial(end.status, spared=accountant.spared(end.trial))

        def fitted(end: "OlderFinished") -> None:
            result = older_result(end, plan)
            store.finish(result, ())
            trial = end.trial
            tracking.log(lambda: (told_row(older_row(trial, plan), result), ()))
            recorder.fitted(end.trial.trial_id, end.status, steps=result.steps_taken)
            display.end_trial(end.status, spared=share)

        store.start(list(begun))
        scheduler = Scheduler(
            plan.packing.buckets,
            {trial.trial_id for trial in unfinished},
            data=data,
            observer=Observer(
                started=started,
                finished=finished,
                progressed=lambda each: accountant.show(each, display),
                moved=recorder.moved,
            ),
            halving=halving,
            checkpoints=checkpoints,
            begun=begun,
            keep_weights=keeper is not None,
        )
        pool = HostPool(
            older,
            data,
            folder=folder.absolute(),
            processes=processes,
            started=lambda trial: store.start([trial.trial_id]),
            placed=lambda trial, process: recorder.fits(trial.trial_id, process, processes=min(processes, len(older))),
            finished=fitted,
            failed=scheduler.stop,
            within=partial(hold, current()),
        )

        def stop(by: int) -> None:
            scheduler.stop(by)
            pool.stop()

        interruption = exits.enter_context(Interruption(stop))
        exits.enter_context(pool)
        complete = scheduler.run(jax.devices(), group_size=plan.group_size)
        if not complete:
            pool.stop()  # another host may have received the signal
        if not (pool.join() and complete) and (heard := interruption.signal or scheduler.signal):
            raise Interrupted(heard, lost=[*scheduler.lost.values(), *[0] * pool.dropped])


def _session(plan: "Plan", store: Store, *, share: float, groups: int) -> SessionRow:
    """Return what is known of a session when it begins, without measuring anything.

    Args:
        plan: that it carries out.
        store: the ledger.
        share: of the work of the plan that is left.
        groups: of devices.
    """
    from scalejax.execute.devices import device_kind
    from scalejax.execute.peak import known_peak
    from scalejax.execute.timing import remembered
    from scalejax.planning.forecast import Timing, forecast

    timings = [remembered(bucket, plan.card, group_size=plan.group_size) for bucket in plan.packing.buckets]
    seconds = None
    if timings:  # compiled programs are loaded again, however little of the work is left
        loading = forecast(plan, [Timing(0.0, 0.0, 0.0)] * len(timings)).total
        seconds = share * forecast(plan, timings).total + (1 - share) * loading
    return SessionRow(
        session=store.next_session(),
        began=time.time(),
        ended=None,
        host=platform.node(),
        device=device_kind(),
        devices=plan.devices,
        groups=groups,
        peak_flops=known_peak(plan.devices, precision=plan.sweep.train.precision),
        forecast_seconds=seconds,
        plan_useful_flops=float(plan.useful_flops),
        plan_padding_flops=float(plan.padding_flops),
        plan_idle_flops=float(plan.idle_flops),
    )


def _train_on_other_host(
    plan: "Plan",
    unfinished: Sequence["Trial"],
    begun: Mapping[str, "Paused"],
    *,
    halving: "SuccessiveHalving | None",
    checkpoints: "Checkpoints",
) -> None:
    """Train what the primary host trains in `_train`, on the devices of all hosts; report nothing."""
    import jax

    from scalejax.execute.observer import SILENT
    from scalejax.execute.scheduler import Scheduler

    scheduler = Scheduler(
        plan.packing.buckets,
        {trial.trial_id for trial in unfinished},
        data=_loaded(plan),
        observer=SILENT,
        halving=halving,
        checkpoints=checkpoints,
        begun=begun,
        keep_weights=plan.sweep.keep_weights != NONE,
    )
    with Interruption(scheduler.stop):
        scheduler.run(jax.devices(), group_size=plan.group_size)
        if scheduler.signal:  # other trouble the primary host raises on all
            raise Interrupted(scheduler.signal, lost=list(scheduler.lost.values()))


def _loaded(plan: "Plan") -> "DataSet":
    """Return the data of a plan, on which all its features can be fitted; of several hosts each loads them.

    Raises:
        SweepError: they cannot be loaded any more, or have changed; or a step of the features fails.
    """
    from scalejax.data import load
    from scalejax.data.own_examples import FeatureFits
    from scalejax.execute import hosts

    def loaded() -> "DataSet":
        data = load(plan.sweep.data)
        if data.card.fingerprint != plan.card.fingerprint:
            raise SweepError("[data] source: the data have changed since the sweep was planned; run again")
        FeatureFits(data).check((each.chain, each.own_examples) for each in (*plan.trials, *plan.older))
        return data

    return hosts.make_on_all(loaded)
