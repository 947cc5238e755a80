"""Runs made without training: a directory whose ledger holds the losses that a test plants."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from scalejax.run.store import MeasurementRow, ResultRow, Store, TrialRow
from scalejax.status import Status

# What every trial of a test is like but for what the test changes.
TRIAL = TrialRow(
    trial_id="", family="mlp", knobs={}, params=99, train_examples=100, fraction=0.1, seed=0, learning_rate=0.01,
    weight_decay=0.0, batch_size=16, steps=50, flops=10**6,
)  # fmt: skip
DONE = ResultRow(
    trial_id="", status=Status.DONE, reason="", train_loss=None, validation_loss=None, test_loss=None, best_step=50,
    seconds=1.0, steps_taken=50, mode="map", device="cpu", versions="", program="", test_metric=None, metric="error",
)  # fmt: skip
SHARES = (0.2, 0.6, 1.0)  # of a trial's steps, at which it was measured


def write_run(
    directory: Path,
    trials: Sequence[TrialRow],
    *,
    loss_of: Callable[[TrialRow], float],
    metric_of: Callable[[float], float] = lambda loss: loss,
    metric: str = "error",
    sweep: str = "",
    ends: Mapping[str, tuple[Status, str]] | None = None,
) -> Path:
    """Write the directory of a run whose trials have ended, and return it.

    Args:
        directory: made if it does not exist.
        trials: as planned.
        loss_of: the loss of a trial, on all splits.
        metric_of: the metric of a loss.
        metric: what that is called.
        sweep: the text of its sweep file; none without it.
        ends: by id, the status and the reason of trials that are not done.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if sweep:
        (directory / "sweep.toml").write_text(sweep, encoding="utf-8")
    with Store(directory / "results.sqlite", write=True) as store:
        store.plan(trials)
        for trial in trials:
            status, reason = (ends or {}).get(trial.trial_id, (Status.DONE, ""))
            end = replace(DONE, trial_id=trial.trial_id, status=status, reason=reason, metric=metric)
            end = replace(end, steps_taken=trial.steps, best_step=trial.steps)
            if status is Status.DONE:
                loss = loss_of(trial)
                end = replace(
                    end, train_loss=loss, validation_loss=loss, test_loss=loss, test_metric=metric_of(loss)
                )  # fmt: skip
                store.finish(end, list(_measured(trial, loss, metric_of)))
            else:
                store.finish(replace(end, best_step=None), [])
    return directory


def _measured(trial: TrialRow, loss: float, metric_of: Callable[[float], float]) -> Iterable[MeasurementRow]:
    """Yield the evaluations of a trial whose loss falls to its last one."""
    for share in SHARES:
        step, now = round(share * trial.steps), loss / share**0.3
        yield MeasurementRow(trial.trial_id, step, step * (trial.batch_size or 1), now, now, metric_of(now))
