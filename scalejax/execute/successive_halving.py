"""Successive halving while trials train: who waits at a rung for whom, who goes on and who is stopped.

A decision hangs on the trials of one cell alone, and falls once all of them have arrived: so it is the same whatever
ran beside them, in whichever order, interrupted or not.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scalejax.execute.slot import Finished, Parked
from scalejax.planning.halving import steps_left, verdict
from scalejax.planning.trial import Trial
from scalejax.status import Status


@dataclass(frozen=True)
class History:
    """What is known of a trial: the validation loss by step, and whether it has ended, and how."""

    losses: Mapping[int, float]
    status: Status = Status.RUNNING

    def score(self, rung: int) -> float | None:
        """Return the lowest loss up to a rung, None while the trial has not come that far; infinite if it was lost.

        A trial that diverged beyond the rung counts with what it had there: so it did when it came by.
        """
        if self.status == Status.FAILED or (self.status == Status.DIVERGED and rung >= max(self.losses, default=0)):
            return float("inf")
        if rung not in self.losses and self.status != Status.DONE:
            return None
        return min((loss for step, loss in self.losses.items() if step <= rung), default=float("inf"))


@dataclass
class Decision:
    """Who goes on (from where it waits or, stopped by an earlier run, from its beginning), and who stops and why."""

    go_on: list[Trial | Parked] = field(default_factory=list)
    stop: list[tuple[Parked, str]] = field(default_factory=list)


@dataclass
class Cell:
    """The trials that compete with each other."""

    trials: list[Trial]
    rates: tuple[float, ...]  # that are still in the race
    rung: int = 0  # the next one, by its number
    out: dict[float, str] = field(default_factory=dict)  # rates that are not, and why

    def competitors(self) -> list[Trial]:
        """Return the trials of the rates that are still in the race."""
        return [trial for trial in self.trials if trial.settings.learning_rate in self.rates]

    def clear(self, step: int) -> bool:
        """Say whether a trial that is in the race may go on from a step: all rungs up to there are decided."""
        rungs = self.trials[0].rungs
        return self.rung == len(rungs) or step < rungs[self.rung]


class Tournament:
    """The halving of a whole sweep.

    Args:
        trials: of the sweep, finished ones included.
        reduction: of the rates in a cell, the best one in `reduction` goes on at each rung.
        histories: of the trials that an earlier run has ended, by id.
    """

    def __init__(self, trials: Sequence[Trial], *, reduction: int, histories: Mapping[str, History]):
        self._reduction = reduction
        self._histories = dict(histories)
        # Stopped by an earlier run; they begin again should the sweep as it stands let them go on.
        self._idle = {
            trial.trial_id: trial
            for trial in trials
            if trial.trial_id in histories and histories[trial.trial_id].status == Status.STOPPED
        }
        self._waiting: dict[str, Parked] = {}
        cells: dict[Trial, list[Trial]] = {}
        for trial in trials:
            cells.setdefault(trial.cell, []).append(trial)
        self._cells = {
            key: Cell(members, tuple(dict.fromkeys(each.settings.learning_rate for each in members)))
            for key, members in cells.items()
        }
        self._cell = {each.trial_id: cell for cell in self._cells.values() for each in cell.trials}

    @property
    def waiting(self) -> list[Parked]:
        """Trials that wait at a rung for their competitors."""
        return list(self._waiting.values())

    def steps_left(self, trial: Trial, step: int) -> float:
        """Return the steps that a trial at a step is expected to take: the average of its competitors."""
        cell, rungs = self._cell[trial.trial_id], trial.rungs
        return steps_left(
            len(cell.rates), rungs[cell.rung :], trial.settings.steps, step=step, reduction=self._reduction
        )

    @functools.cached_property
    def opening(self) -> Decision:
        """What earlier runs alone decide; it comes before anything else is decided, and once."""
        decision = Decision()
        for cell in self._cells.values():
            self._decide(cell, decision)
        return decision

    def arrive(self, parked: Parked) -> Decision:
        """Take note of a trial that has come to a rung and waits.

        One that an earlier run has begun may be anywhere, beyond rungs that this run is still to decide included.
        """
        name, slot = parked.trial.trial_id, parked.slot
        cell = self._cell[parked.trial.trial_id]
        self._histories[name] = History({each.step: each.validation_loss for each in slot.evaluations})
        # Decided already, where an earlier run had come further.
        if parked.trial.settings.learning_rate in cell.out:
            return Decision(stop=[(parked, cell.out[parked.trial.settings.learning_rate])])
        if cell.clear(slot.step):
            return Decision(go_on=[parked])
        self._waiting[name] = parked
        return self._decide(cell, Decision())

    def leave(self, end: Finished) -> Decision:
        """Take note of a trial that has ended before its next rung; its competitors need not wait for it."""
        losses = {each.step: each.validation_loss for each in end.evaluations}
        self._histories[end.trial.trial_id] = History(losses, end.status)
        return self._decide(self._cell[end.trial.trial_id], Decision())

    def _decide(self, cell: Cell, decision: Decision) -> Decision:
        """Go from rung to rung as far as all competitors have come."""
        while cell.rung < len(cell.trials[0].rungs):
            rung = cell.trials[0].rungs[cell.rung]
            found = {each.trial_id: self._score(each, rung) for each in cell.competitors()}
            if None in found.values():
                # A stopped trial whose loss at this rung nobody has measured must be measured now.
                missing = [each for each in cell.competitors() if found[each.trial_id] is None]
                decision.go_on.extend(filter(None, (self._wake(each) for each in missing)))
                return decision
            self._close(cell, rung, {name: score for name, score in found.items() if score is not None}, decision)
        # Beyond the last rung whoever is in the race trains to the end.
        decision.go_on.extend(filter(None, (self._wake(each) for each in cell.competitors())))
        return decision

    def _close(self, cell: Cell, rung: int, found: Mapping[str, float], decision: Decision) -> None:
        """Rank the rates at a rung that all have reached; let the best go on and stop the others."""
        losses: dict[float, list[float]] = {}
        for each in cell.competitors():
            losses.setdefault(each.settings.learning_rate, []).append(found[each.trial_id])
        best = verdict(losses, self._reduction)
        why = f"at step {rung} its learning rate was not among the best {len(best)} of {len(losses)} of its cell"
        cell.out.update(dict.fromkeys(losses.keys() - set(best), why))
        here = [self._waiting[each.trial_id] for each in cell.competitors() if each.trial_id in self._waiting]
        cell.rates, cell.rung = best, cell.rung + 1
        for parked in here:
            if parked.trial.settings.learning_rate not in best:
                decision.stop.append((self._waiting.pop(parked.trial.trial_id), why))
            elif cell.clear(parked.slot.step):
                decision.go_on.append(self._waiting.pop(parked.trial.trial_id))

    def _score(self, trial: Trial, rung: int) -> float | None:
        history = self._histories.get(trial.trial_id)
        return None if history is None else history.score(rung)

    def _wake(self, trial: Trial) -> Trial | None:
        """Return a trial that was stopped earlier, once."""
        woken = self._idle.pop(trial.trial_id, None)
        if woken is not None:
            del self._histories[trial.trial_id]
        return woken
