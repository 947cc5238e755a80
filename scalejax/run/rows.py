"""What the engine knows of trials as rows of the ledger."""

import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from scalejax.run.store import ERROR, PLANNED, RESULTS, MeasurementRow, ResultRow, TrialRow
from scalejax.text import exact

if TYPE_CHECKING:
    from scalejax.classical.pool import OlderFinished
    from scalejax.classical.trial import OlderTrial
    from scalejax.execute.slot import Finished
    from scalejax.planning.plan import Plan
    from scalejax.planning.trial import Trial


def hyperparameters_text(values: Sequence[tuple[str, Any]]) -> str | None:
    """Return hyperparameters as the trial table shows them, such as "b1=0.9, b2=0.95"; None if there are none."""
    shown = (f"{name}={exact(value) if isinstance(value, float) else value}" for name, value in values)
    return ", ".join(shown) or None


def trial_row(trial: "Trial", plan: "Plan") -> TrialRow:
    """Return a trial's row before it has run."""
    from scalejax.train.cost import step_flops

    return TrialRow(
        trial_id=trial.trial_id,
        family=trial.family,
        knobs=dict(trial.named_knobs),
        params=trial.architecture.parameter_count,
        train_examples=trial.settings.train_examples,
        fraction=trial.settings.train_examples / plan.card.examples,
        seed=trial.seed,
        learning_rate=trial.settings.learning_rate,
        weight_decay=trial.settings.weight_decay,
        batch_size=trial.recipe.batch_size,
        steps=trial.settings.steps,
        flops=step_flops(trial.architecture, trial.recipe) * trial.settings.steps,
        hyperparameters=hyperparameters_text(trial.hyperparameters),
    )


def older_row(trial: "OlderTrial", plan: "Plan") -> TrialRow:
    """Return the row of a trial of a classical baseline before it has run: one step over all its examples at once."""
    return TrialRow(
        trial_id=trial.trial_id,
        family=trial.family,
        knobs=dict(trial.knobs),
        params=trial.params,
        train_examples=trial.train_examples,
        fraction=trial.train_examples / plan.card.examples,
        seed=trial.seed,
        learning_rate=None,
        weight_decay=None,
        batch_size=None,
        steps=1,
        flops=0,  # not counted
        hyperparameters=hyperparameters_text(trial.hyperparameters),
    )


def result_row(end: "Finished", plan: "Plan") -> ResultRow:
    """Return what a trial's row says after it has ended."""
    from scalejax.execute.devices import device_kind, versions
    from scalejax.train.traced import program_digest

    best, trial = end.best, end.trial
    return ResultRow(
        trial_id=trial.trial_id,
        status=end.status,
        reason=end.reason,
        steps_taken=end.evaluations[-1].step if end.evaluations else 0,
        train_loss=best and best.train_loss,
        validation_loss=best and best.validation_loss,
        test_loss=end.test_loss,
        best_step=end.best_step,
        seconds=end.seconds,
        mode=end.mode,
        device=device_kind(),
        versions=" ".join(f"{name} {version}" for name, version in versions().items()),
        program=program_digest(trial.architecture, trial.recipe),
        test_metric=end.test_metric,
        metric=plan.task.metric,
    )


def older_result(end: "OlderFinished", plan: "Plan") -> ResultRow:
    """Return what the row of a trial of a classical baseline says after it has ended."""
    scores = end.scores
    return ResultRow(
        trial_id=end.trial.trial_id,
        status=end.status,
        reason=end.reason,
        steps_taken=0 if scores is None else 1,
        train_loss=scores and scores.train_loss,
        validation_loss=scores and scores.validation_loss,
        test_loss=scores and scores.test_loss,
        best_step=None if scores is None else 1,
        seconds=end.seconds,
        mode="host",
        device=f"{platform.machine()} core",
        versions=end.package,
        program=end.package,
        test_metric=scores and scores.test_metric,
        metric=plan.task.metric,
    )


def told_row(trial: TrialRow, result: ResultRow) -> dict[str, Any]:
    """Return a trial that has ended as a tracker is told of it: the columns of its row, and `knobs`, their names."""
    planned = {column.name: getattr(trial, column.name) for column in PLANNED if column.name != "knobs"}
    found = {column.name: getattr(result, column.name) for column in RESULTS}
    row = {"trial_id": trial.trial_id, "family": trial.family, **trial.knobs, **planned, **found}
    row["status"], row["knobs"] = str(result.status), list(trial.knobs)
    row["flops"] = trial.flops // trial.steps * result.steps_taken
    row["test_error"] = result.test_metric if result.metric == ERROR else None
    return row


def measurement_rows(end: "Finished") -> list[MeasurementRow]:
    """Return a row for each of a trial's evaluations."""
    return [MeasurementRow(end.trial.trial_id, **asdict(evaluation)) for evaluation in end.evaluations]
