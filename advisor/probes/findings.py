"""What a race has found: probes by training, and what all of them say of every candidate."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from advisor.methods import learning_rates
from advisor.probes.judging import ACCURACY, Metric
from advisor.probes.picture import (
    Belief,
    Conditions,
    Picture,
    Point,
    Seen,
    accuracy_of,
    logit,
    pictured,
    shipped_prior,
    whole,
)
from advisor.probes.train import Answers, Probe, Trial, training_of
from advisor.records import FEATURES, Accuracy, Candidate, Census, Cost, CurvePoint, Estimate, Features
from advisor.training.loop import head_of


class Findings:
    """Those that train alike are trained once; what differs is the head that they are given in the end."""

    def __init__(
        self,
        costs: Mapping[Candidate, Cost],
        census: Census,
        conditions: Conditions,
        updates: int,
        metric: Metric,
        min_retained: float | None,
    ) -> None:
        """`costs`: cheapest first; `updates`: of a whole fine-tune."""
        self._census, self._conditions, self._updates = census, conditions, updates
        self.prior = shipped_prior(conditions.world)
        self._metric, self._min_retained = metric, min_retained
        self._alike: dict[Candidate, dict[Features | None, list[Candidate]]] = {}
        for candidate in costs:
            training = training_of(candidate, census)
            heads = self._alike.setdefault(training, {})
            heads.setdefault(_head_in(training, candidate), []).append(candidate)
        # Of each training the cheapest candidate's.
        self.costs = {one: costs[next(iter(heads.values()))[0]] for one, heads in self._alike.items()}
        self._probes: dict[Candidate, list[Probe]] = {}  # what went well, by what is trained
        self._by_head: dict[Trial, dict[Features | None, Accuracy]] = {}  # of those, as judged
        self._smoothed: dict[Trial, list[float]] = {}
        self._failures: dict[Candidate, str] = {}
        self._barred: dict[Candidate, float] = {}  # learning rates from which on a training fails

    def heads(self, training: Candidate) -> tuple[Features, ...]:
        """Which are solved for the training once it has ended."""
        return tuple(head for head in FEATURES if head in self._alike[training])

    def add(self, probe: Probe) -> None:
        """Keep what went well, and of what didn't, why."""
        one = probe.trial.candidate
        if probe.correct is not None:
            self._probes.setdefault(one, []).append(probe)
            return
        worst = probe.trial.learning_rate if probe.failure == "diverged" else None
        self._barred[one] = min(worst or 0.0, self._barred.get(one, math.inf))
        kept = [each for each in self.probes(one) if not _says_too_little(each.trial, probe)]
        if kept:
            self._probes[one] = kept
        else:
            self._probes.pop(one, None)
            self._failures[one] = _failure(probe)

    def probes(self, training: Candidate) -> Sequence[Probe]:
        """Those that went well."""
        return self._probes.get(training, ())

    def last(self, training: Candidate, rate: float | None) -> Trial | None:
        """What came furthest of those that went well, at this learning rate."""
        trials = [p.trial for p in self.probes(training) if p.trial.learning_rate == rate]
        return max(trials, key=lambda trial: (trial.updates, trial.samples), default=None)

    @property
    def all_diverged(self) -> bool:
        """Whether nothing went well, as losses became NaN."""
        return not self._probes and any("diverged" in failure for failure in self._failures.values())

    def fails_at(self, training: Candidate, rate: float | None) -> bool:
        """Whether the training failed, at this learning rate or, if it diverged, at a lower one."""
        return (rate or 0.0) >= self._barred.get(training, math.inf)

    def judged(self, correct: bytes, retained: bytes | None, **known: Any) -> Accuracy:
        """On the new data, in the metric, and on the old where there is some."""
        old = ACCURACY.of(retained) if retained else None
        return replace(self._metric.of(correct, **known), retained=old)

    def by_head(self, probe: Probe) -> dict[Features | None, Accuracy]:
        """Of the network as it was trained (None), and with each head of the trial."""
        trial = probe.trial
        if trial not in self._by_head:
            answers = (Answers(probe.correct or b"", probe.margins, probe.retained), *probe.solved)
            known = {"learning_rate": trial.learning_rate, "updates": trial.updates}
            self._by_head[trial] = {
                head: self.judged(of.correct, of.retained, **known)
                for head, of in zip((None, *trial.heads), answers, strict=True)
            }
        return self._by_head[trial]

    def best_mean(self, probe: Probe) -> float:
        """With the best of its heads."""
        return max(accuracy.mean for accuracy in self.by_head(probe).values())

    def seen(self) -> list[Seen]:
        """What every training says to the picture, with each of its heads.

        By smoothed shares, which chance moves less. What they are all too high or too low by, the answers
        themselves tell on average.
        """
        found = [
            (self._point(one, of_one, head), of_one.effective_samples or of_one.samples, of_one.mean, smooth)
            for one in self._probes
            for probe in self._furthest(one)
            for (head, of_one), smooth in zip(self.by_head(probe).items(), self._smooth(probe), strict=True)
        ]
        off = [logit(mean, samples) - logit(smooth, samples) for _, samples, mean, smooth in found]
        usual = statistics.median(off) if off else 0.0
        return [
            Seen(point, accuracy_of(logit(smooth, samples) + usual, samples), samples)
            for point, samples, _, smooth in found
        ]

    def _smooth(self, probe: Probe) -> list[float]:
        """The smoothed shares, with each of the heads that it was judged with."""
        if probe.trial not in self._smoothed:
            margins = (probe.margins, *(of.margins for of in probe.solved))
            self._smoothed[probe.trial] = list(map(self._metric.smoothed, margins))
        return self._smoothed[probe.trial]

    def _furthest(self, training: Candidate) -> list[Probe]:
        """At each learning rate and length, what was judged on most images."""
        found: dict[tuple[float | None, int], Probe] = {}
        for probe in sorted(self.probes(training), key=lambda probe: probe.trial.samples):
            found[probe.trial.learning_rate, probe.trial.updates] = probe
        return list(found.values())

    def finals(self) -> list[Point]:
        """What may be chosen in the end: nothing that forgets too much, unless all does."""
        found = [
            (one, point)
            for one, heads in self._alike.items()
            for head in heads
            for point in whole(one, head)
            if not self.fails_at(one, point.rate)
        ]
        return [point for one, point in found if not self._forgets(one)] or [point for _, point in found]

    def picture(self, lengths: Sequence[int]) -> Picture:
        """Of all trainings, for so many updates."""
        shares = dict.fromkeys([*(length / self._updates for length in lengths), 1.0])
        points = [
            Point(one, rate, share, head)
            for one in self.costs
            for rate in learning_rates(one) or (None,)
            for share in (shares if rate is not None else (1.0,))
            for head in (None, *self.heads(one))
        ]
        return Picture(points, self._conditions, self.prior)

    def longest(self) -> int:
        """Updates of what was trained for the longest; 0: nothing was."""
        trials = (probe.trial for probe in chain(*self._probes.values()))
        return max((trial.updates for trial in trials if trial.learning_rate is not None), default=0)

    def told(
        self, unaffordable: Sequence[Candidate]
    ) -> tuple[dict[Candidate, Accuracy], dict[Candidate, Estimate]]:
        """The accuracies of all that was probed, and what all others would come to.

        Those that were trained for the longest are the finalists. Of many that are judged on few images the
        best is the luckiest, too: what all probes together say of each makes up for that. Those that are no
        finalists are told at the best of their learning rates, `unaffordable` ones too.
        """
        judged, wanted = self._judged(), dict[Point, list[Candidate]]()
        for candidate in [*self._unended(), *unaffordable]:
            one = training_of(candidate, self._census)
            for point in whole(one, _head_in(one, candidate)) if one not in self._failures else ():
                wanted.setdefault(point, []).append(candidate)
        seen = self.seen()
        if not seen:
            return {}, {}
        accuracies, predicted = dict[Candidate, Accuracy](), dict[Candidate, Estimate]()
        points = list(dict.fromkeys([*judged, *wanted]))
        estimates = pictured(seen, points, self._conditions, self.prior)
        for point, told in zip(points, estimates, strict=True):
            for candidate, accuracy in judged.get(point, {}).items():
                if candidate not in accuracies or told.mean > accuracies[candidate].mean:
                    accuracies[candidate] = replace(
                        accuracy, seen=accuracy.mean, mean=told.mean, low=told.low, high=told.high
                    )
            for candidate in wanted.get(point, ()):
                if candidate not in predicted or told.mean > predicted[candidate].mean:
                    predicted[candidate] = told
        return accuracies, predicted

    def leading(self, picture: Picture, belief: Belief) -> tuple[Candidate, Estimate] | None:
        """The best of the finalists, by what is believed, and what it would come to; None: there is none."""
        finalists = (
            (picture.rows[point], candidate)
            for point, found in self._judged().items()
            for candidate, accuracy in found.items()
            if accuracy.finalist
        )
        best = max(finalists, key=lambda each: belief.means[each[0]], default=None)
        return None if best is None else (best[1], belief.estimate(best[0]))

    def _judged(self) -> dict[Point, dict[Candidate, Accuracy]]:
        """What was tried got right: finalists at each of their learning rates, others at the best."""
        found = {}
        for one, heads in self._alike.items():
            ended = self._ended(one)
            for probe in ended or ([self._standing(one)] if one in self._probes else []):
                for head, accuracy in self.by_head(probe).items():
                    known = replace(accuracy, finalist=bool(ended), curve=self._curve(probe.trial, head))
                    found[self._point(one, known, head)] = dict.fromkeys(heads.get(head, ()), known)
        return found

    def _unended(self) -> list[Candidate]:
        """Those that are no finalists."""
        return [
            candidate
            for one, heads in self._alike.items()
            if not self._ended(one)
            for candidate in chain(*heads.values())
        ]

    def failures(self, otherwise: str) -> dict[Candidate, str]:
        """Why a candidate has no accuracy: `otherwise` of those that were not tried."""
        return {
            candidate: self._failures.get(one, otherwise)
            for one, heads in self._alike.items()
            if one not in self._probes
            for candidates in heads.values()
            for candidate in candidates
        }

    def key(self) -> list[list[str]]:
        """All that is raced, in plain values."""
        return [[one.id, *map(str, self._alike[one])] for one in self.costs]

    def _ended(self, training: Candidate) -> list[Probe]:
        """At each learning rate what was trained for as long as any, or needs no training."""
        longest = self.longest()
        return [
            probe
            for probe in self._furthest(training)
            if probe.trial.learning_rate is None or probe.trial.updates == longest
        ]

    def _curve(self, of: Trial, head: Features | None) -> tuple[CurvePoint, ...]:
        """What it got right after each length that it was trained for at this learning rate."""
        if of.learning_rate is None:
            return ()
        trained = [p for p in self._furthest(of.candidate) if p.trial.learning_rate == of.learning_rate]
        by_length = {probe.trial.updates: self.by_head(probe) for probe in trained}
        return tuple(
            CurvePoint(updates, by_head[head].mean)
            for updates, by_head in sorted(by_length.items())
            if head in by_head
        )

    def _standing(self, training: Candidate) -> Probe:
        """The one that tells of the training: of the longest, that at the best learning rate."""
        return max(self._furthest(training), key=lambda probe: (probe.trial.updates, self.best_mean(probe)))

    def _forgets(self, training: Candidate) -> bool:
        """Whether it was seen to be surely below the least accuracy on the old data."""
        if self._min_retained is None or training not in self._probes:
            return False
        by_head = self.by_head(self._standing(training))
        old = [by_head[head].retained for head in self._alike[training] if head in by_head]
        return all(each is not None and each.high < self._min_retained for each in old)

    def _point(self, training: Candidate, accuracy: Accuracy, head: Features | None) -> Point:
        """Where in the picture the accuracy is."""
        rate = accuracy.learning_rate
        return Point(training, rate, 1.0 if rate is None else accuracy.updates / self._updates, head)


def _head_in(training: Candidate, candidate: Candidate) -> Features | None:
    """Which head the candidate has, other than the one that its training ends with."""
    head = head_of(candidate)
    return None if head == head_of(training) else head


def _says_too_little(trial: Trial, failed: Probe) -> bool:
    """Whether that a trial went well is no news, as the same failed later, trained as long or longer."""
    same = (trial.candidate, trial.learning_rate) == (failed.trial.candidate, failed.trial.learning_rate)
    longer = failed.trial.updates - trial.updates
    return same and (longer > 0 or (longer == 0 and failed.failure == "diverged"))


def _failure(probe: Probe) -> str:
    if probe.failure != "diverged":
        return f"its training failed: {probe.failure}"
    if probe.trial.learning_rate is None:
        return "diverged: the re-estimated statistics are not finite"
    return f"diverged: the loss became NaN at a learning rate of {probe.trial.learning_rate:.2g}"
