"""A trial while it runs, as the host sees it: its step, what has been measured, and how it ended."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from scalejax.execute.initial_weights import Weights
from scalejax.planning.trial import Trial
from scalejax.status import Status
from scalejax.train.step import TrialState


@dataclass(frozen=True)
class Evaluation:
    """One measurement along a trial's training."""

    step: int
    examples_seen: int
    train_loss: float
    validation_loss: float
    validation_metric: float


@dataclass(frozen=True)
class Finished:
    """A trial that has ended, and all that is known of it; losses are of its best step.

    `reason` says why in words if the status is not `DONE`. `weights` are the parameters and the rest of the best step,
    at the true size and on the host: of a trial that is done, where they are asked for.
    """

    trial: Trial
    status: Status
    reason: str
    evaluations: tuple[Evaluation, ...]
    best_step: int | None
    test_loss: float | None
    test_metric: float | None
    seconds: float  # the lane's share of the program's time
    mode: str
    weights: Weights | None = field(default=None, compare=False, repr=False)

    @property
    def best(self) -> Evaluation | None:
        """The evaluation at the best step."""
        return next((each for each in self.evaluations if each.step == self.best_step), None)


def next_stop(step: Any, *, every: Any, horizon: Any) -> Any:
    """Return the step of the next evaluation, at the latest the horizon; of one trial, or arrays of several."""
    return np.minimum((step // every + 1) * every, horizon)


@dataclass
class Slot:
    """A trial in a lane.

    `step` is where the calls that were launched will have brought it, `evaluations` what the landed ones have seen.
    Both `step` and `seconds` lag behind while it is in a lane and nothing is due (`LaneTable.synced`, `Pack.occupied`).
    """

    trial: Trial
    step: int = 0
    seconds: float = 0.0
    stale: int = 0  # evaluations since the best
    evaluations: list[Evaluation] = field(default_factory=list)
    ended: bool = False
    clock: float = field(default=0.0, compare=False)  # of its pack, up to which `seconds` have been counted

    @property
    def unmeasured(self) -> bool:
        """Whether its evaluation or its test is still to come, of a trial that no call is working on."""
        trial = self.trial
        measured = self.evaluations[-1].step if self.evaluations else 0
        at_stop = self.step % trial.evaluate_every == 0 or self.step == trial.settings.steps
        return self.out_of_patience or (at_stop and measured < self.step)

    @property
    def next_stop(self) -> int:
        """The step of the next evaluation, at the latest the horizon."""
        return int(next_stop(self.step, every=self.trial.evaluate_every, horizon=self.trial.settings.steps))

    @property
    def out_of_patience(self) -> bool:
        """Whether it has gone without improvement for as many evaluations as it has patience."""
        patience = self.trial.patience
        return patience is not None and self.stale >= patience

    def copy(self) -> "Slot":
        """Return one that does not change when this one does."""
        return replace(self, evaluations=list(self.evaluations))

    def count_to(self, clock: float) -> None:
        """Add the seconds that have passed on the clock of its pack."""
        self.seconds += clock - self.clock
        self.clock = clock

    def note(self, evaluation: Evaluation, *, best_step: int) -> None:
        """Add a measurement, and count those since the best."""
        self.evaluations.append(evaluation)
        self.stale = 0 if best_step == evaluation.step else self.stale + 1

    def end(
        self,
        status: Status,
        reason: str,
        test: tuple[float, float] | None,
        *,
        mode: str,
        weights: Weights | None = None,
    ) -> Finished:
        """End a trial that has been evaluated; `test` is its loss and metric on the test examples if it was tested."""
        self.ended = True
        # Of the lowest validation loss so far, unless no number can be relied on.
        best_step = None if status == "diverged" else self.evaluations[-1 - self.stale].step
        loss, metric = test or (None, None)
        return Finished(
            self.trial, status, reason, tuple(self.evaluations), best_step, loss, metric, self.seconds, mode, weights
        )


@dataclass(frozen=True)
class Paused:
    """A trial that has begun and is in no lane: at a rung, or after an interruption; its state [...] on the host."""

    slot: Slot
    state: TrialState

    @property
    def trial(self) -> Trial:
        """The trial."""
        return self.slot.trial


Waiting = Trial | Paused  # for a lane, to begin or to continue


def trial_of(waiting: Waiting) -> Trial:
    """Return the trial that waits."""
    return waiting.trial if isinstance(waiting, Paused) else waiting


def step_of(waiting: Waiting) -> int:
    """Return the step from which it trains on."""
    return waiting.slot.step if isinstance(waiting, Paused) else 0


def failed(trial: Trial, reason: str, *, mode: str) -> Finished:
    """Return the end of a trial that could not be trained."""
    return Finished(trial, Status.FAILED, reason, (), None, None, None, 0.0, mode)
