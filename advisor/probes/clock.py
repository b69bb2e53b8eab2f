"""The race's clock: how much of its time is left, and how long probes take on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from advisor.probes.train import Probe, Trial, is_reestimated, training_key
from advisor.records import Candidate, Cost
from advisor.training.loop import level_updates

# How far apart, as factors of FLOPs are, these are taken to be: another method; a front that is cached.
_OF_ANOTHER, _CACHED = math.log(2), math.log(4)
_Trained = dict[tuple[Any, ...], set[int]]  # by training, and which of its networks: updates to go on from


@dataclass(slots=True)
class Clock:
    """What is not known of a candidate is told, by FLOPs, from what is known of those like it."""

    seconds: float  # that the race may take
    costs: Mapping[Candidate, Cost]
    batch_size: int = 1
    solved_on: int = 0  # how many images a head is solved on after a training; 0: none is
    trainings: Callable[[int], int] = lambda samples: 1  # that it takes to judge so many images
    seconds_per_image: float = 0.0  # to classify one
    before: float = 0.0  # that was spent on what is now read from the store
    timed: dict[Candidate, tuple[float, float]] = field(default_factory=dict)  # setup; an update
    judged: dict[Candidate, float] = field(default_factory=dict)  # seconds an image
    start: float = field(default_factory=time.perf_counter)
    _fronts: set[Any] = field(default_factory=set)  # whose outputs are there
    _trained: _Trained = field(default_factory=dict)
    # Likewise, had this race never been interrupted.
    _worked_fronts: set[Any] = field(default_factory=set)
    _worked: _Trained = field(default_factory=dict)

    @property
    def spent(self) -> float:
        """Seconds so far, of this run and of what it found in the store."""
        return time.perf_counter() - self.start + self.before

    @property
    def left(self) -> float:
        """Seconds until the race should end."""
        return max(self.seconds - self.spent, 0.0)

    def expected(self, trial: Trial) -> float:
        """Seconds of the trial."""
        if trial.learning_rate is None:
            return self._untrained(trial)
        setup, each = self._times(trial.candidate)
        left = self._left(trial, self._trained)
        judging = self._images(trial) * self.judged.get(trial.candidate, self.seconds_per_image)
        return sum(setup + updates * each + judging for updates in left)

    def _untrained(self, trial: Trial) -> float:
        """Seconds of a trial in which all images run through the network, and nothing is trained."""
        front = front_of(trial.candidate)
        estimates = is_reestimated(trial.candidate)
        networks = len(self._left(trial, self._trained)) if estimates else front not in self._fronts
        images = trial.samples / self.trainings(trial.samples) + self.solved_on
        return networks * (images + 2 * self.solved_on * estimates) * self.seconds_per_image

    def _images(self, trial: Trial) -> float:
        """That one of its networks is judged on, and a head solved on."""
        return trial.samples / self.trainings(trial.samples) + self.solved_on * bool(trial.heads)

    def _left(self, trial: Trial, trained: _Trained) -> list[int]:
        """Updates of each network that is still to be trained."""
        found = []
        for number in range(self.trainings(trial.samples)):
            done = trained.get((*training_key(trial), number), set())
            if trial.updates not in done:
                level = level_updates(trial.updates)
                found.append(
                    trial.updates - max((u for u in map(level_updates, done) if u <= level), default=0)
                )
        return found

    def work(self, trial: Trial) -> float:
        """FLOPs of the trial, about: no matter of luck, nor of what an interrupted race has lost."""
        each, own = self._forward_flops(), self.costs[trial.candidate].flops
        images, left = self._images(trial), self._left(trial, self._worked)
        flops = sum(updates * own.total + images * own.forward / self.batch_size for updates in left)
        front = front_of(trial.candidate)
        if front is not None and front not in self._worked_fronts:
            flops += images * each
        return max(flops, 1.0)

    def _forward_flops(self) -> float:
        """Of the whole network, an image: the most that any candidate's forward pass takes."""
        return max(cost.flops.forward for cost in self.costs.values()) / self.batch_size

    def learn(self, probe: Probe, *, now: bool) -> None:
        """Expect of the candidate, and of those like it, what its probe took.

        Args:
            now: it ran in this race, so that a longer one can go on from it, and its front is at hand.
        """
        trial = probe.trial
        if probe.correct is None:
            return
        if images := self._images(trial):
            self.judged[trial.candidate] = probe.judging_seconds / images
        if trial.learning_rate is not None:
            setup = self.timed.pop(trial.candidate, (0.0, 0.0))[0]
            self.timed[trial.candidate] = max(setup, probe.setup_seconds), probe.update_seconds
        histories = [(self._worked, self._worked_fronts)]
        histories += [(self._trained, self._fronts)] if now else []
        for trained, fronts in histories:
            for number in range(self.trainings(trial.samples)):
                trained.setdefault((*training_key(trial), number), set()).add(trial.updates)
            fronts.update({front_of(trial.candidate)} - {None})

    def _times(self, candidate: Candidate) -> tuple[float, float]:
        """Seconds before the first update, and of one."""
        if not self.timed:
            return 0.0, 0.0
        setup, each = self._like(candidate)
        return (0.0 if front_of(candidate) in self._fronts else setup), each

    def _like(self, candidate: Candidate) -> tuple[float, float]:
        if candidate in self.timed:
            return self.timed[candidate]
        flops = self.costs[candidate].flops.total

        def difference(known: Candidate) -> float:
            apart = abs(math.log(flops / self.costs[known].flops.total))
            is_cached, knows = (one.levers.cached_prefix != "no" for one in (candidate, known))
            return apart + _OF_ANOTHER * (known.method != candidate.method) + _CACHED * (is_cached != knows)

        alike = min(reversed(self.timed), key=difference)
        setup, each = self.timed[alike]
        return setup, each * flops / self.costs[alike].flops.total


def front_of(candidate: Candidate) -> tuple[Any, ...] | None:
    """What runs once, before the first update, for all candidates that have the same; None: nothing does."""
    levers, estimates = candidate.levers, is_reestimated(candidate)
    scope = levers.scope if levers.cached_prefix != "no" else None
    return None if scope is None and not estimates else (scope, estimates)
