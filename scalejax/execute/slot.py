"""A trial on its way, as the host sees it: where it is, what has been measured, and how it ended."""

from dataclasses import dataclass, field, replace

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

    `reason` says why in words if the status is not `DONE`.
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

    @property
    def best(self) -> Evaluation | None:
        """The evaluation at the best step."""
        return next((each for each in self.evaluations if each.step == self.best_step), None)


@dataclass
class Slot:
    """A trial in a lane.

    `step` is where the calls that were launched will have brought it, `evaluations` what the landed ones have seen.
    """

    trial: Trial
    step: int = 0
    seconds: float = 0.0
    stale: int = 0  # evaluations since the best
    evaluations: list[Evaluation] = field(default_factory=list)
    ended: bool = False
    owed: bool = False  # the next call evaluates or tests it: the one that brought it here had no time to

    @property
    def lacks(self) -> bool:
        """Whether its evaluation or its test is still to come, of a trial that no call is working on."""
        trial = self.trial
        measured = self.evaluations[-1].step if self.evaluations else 0
        at_stop = self.step % trial.evaluate_every == 0 or self.step == trial.settings.steps
        return self.impatient or (at_stop and measured < self.step)

    @property
    def next_stop(self) -> int:
        """The step of the next evaluation, at the latest the horizon."""
        trial = self.trial
        return min((self.step // trial.evaluate_every + 1) * trial.evaluate_every, trial.settings.steps)

    @property
    def impatient(self) -> bool:
        """Whether it has gone without improvement for as many evaluations as it has patience."""
        patience = self.trial.patience
        return patience is not None and self.stale >= patience

    def copy(self) -> "Slot":
        """Return one that does not change when this one does."""
        return replace(self, evaluations=list(self.evaluations))

    @property
    def best_step(self) -> int:
        """The step of the lowest validation loss so far."""
        return self.evaluations[-1 - self.stale].step


@dataclass(frozen=True)
class Parked:
    """A trial that waits at a rung, outside of any lane, until its competitors have arrived; its state as arrays."""

    slot: Slot
    state: TrialState

    @property
    def trial(self) -> Trial:
        """The trial."""
        return self.slot.trial


def failed(trial: Trial, reason: str, *, mode: str) -> Finished:
    """Return the end of a trial that could not be trained."""
    return Finished(trial, Status.FAILED, reason, (), None, None, None, 0.0, mode)


def stopped(parked: Parked, reason: str, *, mode: str) -> Finished:
    """Return the end of a trial that halving has stopped at a rung."""
    slot = parked.slot
    found = tuple(slot.evaluations)
    return Finished(slot.trial, Status.STOPPED, reason, found, slot.best_step, None, None, slot.seconds, mode)
