"""Successive halving while trials train: which wait at a rung, and which are let through and which are stopped there.

A decision depends on the trials of one competition alone, and is made once all of them have arrived: so it is the same
whatever ran beside them, in whichever order, interrupted or not.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scalejax.execute.slot import Finished, Paused, Waiting
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
    """Trials that may train (on from where they wait or, stopped by an earlier run, again), and those that stop."""

    proceed: list[Waiting] = field(default_factory=list)
    stop: list[tuple[Paused, str]] = field(default_factory=list)  # and why


@dataclass
class Competition:
    """The trials that compete with each other."""

    trials: list[Trial]
    rates: tuple[float, ...]  # that still compete
    rung: int = 0  # the next one, by its number
    out: dict[float, str] = field(default_factory=dict)  # rates that are not, and why

    def competitors(self) -> list[Trial]:
        """Return the trials of the rates that still compete."""
        return [trial for trial in self.trials if trial.settings.learning_rate in self.rates]

    def clear(self, step: int) -> bool:
        """Say whether a trial that still competes may train on from a step: all rungs up to there are decided."""
        rungs = self.trials[0].rungs
        return self.rung == len(rungs) or step < rungs[self.rung]


class SuccessiveHalving:
    """The halving of a whole sweep.

    Args:
        trials: of the sweep, finished ones included.
        reduction: of the rates in a competition, the best one in `reduction` is let through at each rung.
        histories: of the trials that an earlier run has ended, by id.
    """

    def __init__(self, trials: Sequence[Trial], *, reduction: int, histories: Mapping[str, History]):
        self._reduction = reduction
        self._histories = dict(histories)
        # Stopped by an earlier run; they begin again should the sweep as it is now let them through.
        self._idle = {
            trial.trial_id: trial
            for trial in trials
            if trial.trial_id in histories and histories[trial.trial_id].status == Status.STOPPED
        }
        self._waiting: dict[str, Paused] = {}
        competitions: dict[Trial, list[Trial]] = {}
        for trial in trials:
            competitions.setdefault(trial.competition, []).append(trial)
        self._competitions = {
            key: Competition(members, tuple(dict.fromkeys(each.settings.learning_rate for each in members)))
            for key, members in competitions.items()
        }
        self._competition = {
            each.trial_id: competition for competition in self._competitions.values() for each in competition.trials
        }

    @property
    def waiting(self) -> list[Paused]:
        """Trials that wait at a rung for their competitors."""
        return list(self._waiting.values())

    def steps_left(self, trial: Trial, step: int) -> float:
        """Return the steps that a trial at a step is expected to take: the average of its competitors."""
        competition, rungs = self._competition[trial.trial_id], trial.rungs
        return steps_left(
            len(competition.rates),
            rungs[competition.rung :],
            trial.settings.steps,
            step=step,
            reduction=self._reduction,
        )

    @functools.cached_property
    def opening(self) -> Decision:
        """What earlier runs alone decide; it comes before anything else is decided, and once."""
        decision = Decision()
        for competition in self._competitions.values():
            self._decide(competition, decision)
        return decision

    def arrive(self, paused: Paused) -> Decision:
        """Take note of a trial that has come to a rung and waits.

        One that an earlier run has begun may be anywhere, beyond rungs that this run is still to decide included.
        """
        name, rate = paused.trial.trial_id, paused.trial.settings.learning_rate
        competition = self._competition[name]
        self._histories[name] = History({each.step: each.validation_loss for each in paused.slot.evaluations})
        # Decided already, where an earlier run had come further.
        if rate in competition.out:
            return Decision(stop=[(paused, competition.out[rate])])
        if competition.clear(paused.slot.step):
            return Decision(proceed=[paused])
        self._waiting[name] = paused
        return self._decide(competition, Decision())

    def leave(self, end: Finished) -> Decision:
        """Take note of a trial that has ended before its next rung; its competitors need not wait for it."""
        losses = {each.step: each.validation_loss for each in end.evaluations}
        self._histories[end.trial.trial_id] = History(losses, end.status)
        return self._decide(self._competition[end.trial.trial_id], Decision())

    def _decide(self, competition: Competition, decision: Decision) -> Decision:
        """Decide rung after rung, as far as all competitors have come."""
        while competition.rung < len(competition.trials[0].rungs):
            rung = competition.trials[0].rungs[competition.rung]
            scores = {trial: self._score(trial, rung) for trial in competition.competitors()}
            known = {trial: score for trial, score in scores.items() if score is not None}
            if len(known) < len(scores):
                # A stopped trial without a loss at this rung must be measured now.
                self._wake([trial for trial in scores if trial not in known], decision)
                return decision
            # Rank the rates: the best are let through with all their seeds, the others stop.
            losses: dict[float, list[float]] = {}
            for trial, score in known.items():
                losses.setdefault(trial.settings.learning_rate, []).append(score)
            best = verdict(losses, self._reduction)
            why = f"at step {rung} its learning rate was not among the best {len(best)} of {len(losses)}"
            competition.out.update(dict.fromkeys(losses.keys() - set(best), why))
            competition.rates, competition.rung = best, competition.rung + 1
            for paused in [self._waiting[trial.trial_id] for trial in known if trial.trial_id in self._waiting]:
                if paused.trial.settings.learning_rate not in best:
                    decision.stop.append((self._waiting.pop(paused.trial.trial_id), why))
                elif competition.clear(paused.slot.step):
                    decision.proceed.append(self._waiting.pop(paused.trial.trial_id))
        # Beyond the last rung all that still compete train to the end.
        self._wake(competition.competitors(), decision)
        return decision

    def _score(self, trial: Trial, rung: int) -> float | None:
        history = self._histories.get(trial.trial_id)
        return None if history is None else history.score(rung)

    def _wake(self, trials: Sequence[Trial], decision: Decision) -> None:
        """Let those trials begin again, once, that an earlier run has stopped."""
        for trial in trials:
            if self._idle.pop(trial.trial_id, None):
                del self._histories[trial.trial_id]
                decision.proceed.append(trial)
