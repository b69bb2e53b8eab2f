"""The race: short fine-tunes of every candidate, losers dropped early, inside a wall-clock budget.

Successive halving in three rungs. The first trains every candidate at each of its method's learning
rates for a few updates; each later one goes on with the better part at their best learning rate, for
more updates from scratch and on more held-out samples. All probes of a rung train equally long.
A place in the next rung goes to the most accurate, and to the cheapest that may be as good.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from torch import nn

from advisor.errors import DataError
from advisor.methods import learning_rates
from advisor.probes.data import Dataset
from advisor.probes.train import Probe, accuracy_of, evaluate, probe, seconds_per_update
from advisor.records import Accuracy, Candidate, Census

Report = Callable[[float, str], None]  # fraction done, what is running

# Shares of the time: enough in the last rung for its few finalists to train for long.
_RUNG_SHARES = (0.35, 0.3, 0.35)
_KEPT = (1.0, 0.5, 0.25)  # of the candidates, in each rung
_LEAST_FINALISTS = 4
_FEWEST_UPDATES = 4
_PATIENCE = 1.25  # times a rung's share of the time
_TIMING_SHARE = 0.08
_LEAST_UPDATES = 12  # a probe of fewer says nothing
_TELLING_UPDATES = 40  # more candidates are admitted only where each can have as many in the first rung
_MOST_EPOCHS = 12
_RECALIBRATION_SAMPLES = 512
_EVALUATION_SHARE = 0.25  # of a rung's time, at most
_OVERHEAD_SHARE = 0.1  # copying models and attaching methods
_LEAST_SAMPLES = 40  # judged on fewer, nothing can be told apart


@dataclass(frozen=True, slots=True)
class RaceResult:
    """What the race found, by candidate."""

    base: Accuracy | None  # the model as it is
    accuracies: Mapping[Candidate, Accuracy]
    failures: Mapping[Candidate, str]  # why a candidate has no accuracy
    seconds: float
    warnings: tuple[str, ...]


def race(
    model: nn.Module,
    census: Census,
    candidates: Sequence[Candidate],
    dataset: Dataset,
    *,
    batch_size: int,
    seconds: float,
    seed: int,
    judge_base: bool = True,
    report: Report = lambda fraction, running: None,
) -> RaceResult:
    """Probe the candidates for about `seconds` of wall clock.

    Args:
        candidates: those that the budget admits, cheapest first: among those that may be as good as the
            best, cheaper ones are kept.
        judge_base: whether the model's own accuracy on the held-out samples means anything.
        report: called after each probe.

    Raises:
        DataError: every probe of every candidate diverged.
    """
    return _Race(model, census, dataset, batch_size, seconds, seed, report).run(candidates, judge_base)


class _Race:
    def __init__(
        self,
        model: nn.Module,
        census: Census,
        dataset: Dataset,
        batch_size: int,
        seconds: float,
        seed: int,
        report: Report,
    ) -> None:
        self._model, self._census, self._dataset = model, census, dataset
        self._batch_size, self._seed, self._report = batch_size, seed, report
        self._start = time.perf_counter()
        self._seconds = seconds
        self._accuracies: dict[Candidate, Accuracy] = {}
        self._failures: dict[Candidate, str] = {}
        self._warnings: list[str] = []
        self._base: Accuracy | None = None

    def run(self, candidates: Sequence[Candidate], judge_base: bool) -> RaceResult:
        alike = _trained_alike(candidates)
        self._race(list(alike), judge_base)
        for raced, others in alike.items():
            for other in others:
                if raced in self._accuracies:
                    self._accuracies[other] = self._accuracies[raced]
                if raced in self._failures:
                    self._failures[other] = self._failures[raced]
        seconds = time.perf_counter() - self._start
        return RaceResult(self._base, self._accuracies, self._failures, seconds, tuple(self._warnings))

    def _race(self, candidates: Sequence[Candidate], judge_base: bool) -> None:
        per_image = self._seconds_per_image()
        validation = self._affordable_samples(per_image, _LEAST_FINALISTS, _RUNG_SHARES[-1] * self._seconds)
        if judge_base:
            self._tell("the model as it is")
            data = self._dataset
            self._base = accuracy_of(evaluate(self._model, data.validation, data.normalisation, validation))
        self._judge_untrained(candidates, validation)
        self._run_rungs([c for c in candidates if learning_rates(c)], validation, per_image)
        if candidates and not self._accuracies:
            raise DataError(
                "every probe diverged (the loss became NaN): check the images' range and --mean/--std, "
                "and that the model's weights are finite"
            )

    def _judge_untrained(self, candidates: Sequence[Candidate], validation: int) -> None:
        """One probe for each candidate that has no learning rate."""
        for candidate in candidates:
            if learning_rates(candidate):
                continue
            result = self._probe(candidate, None, self._recalibration_updates(), validation)
            if result.correct is None:
                self._failures[candidate] = "diverged: the re-estimated statistics are not finite"
            else:
                self._accuracies[candidate] = accuracy_of(result.correct, updates=result.updates)

    def _run_rungs(self, cheapest_first: Sequence[Candidate], validation: int, per_image: float) -> None:
        racing = _methods_in_turn(cheapest_first)
        speeds = self._time_updates(racing)
        admitted = set(self._admit(racing, speeds))
        racing = [candidate for candidate in cheapest_first if candidate in admitted]
        entries = [(c, rate) for c in racing for rate in learning_rates(c)]
        for rung, share in enumerate(_RUNG_SHARES):
            if not entries:
                return
            last = rung == len(_RUNG_SHARES) - 1
            seconds = self._left() * share / sum(_RUNG_SHARES[rung:])
            affordable = self._affordable_samples(per_image, len(entries), seconds)
            samples = validation if last else min(validation, affordable)
            updates = self._affordable_updates(entries, speeds, seconds)
            probes = self._run_rung(entries, updates, samples, seconds)
            # What it really took is a better guide to the next rung than the first timing.
            speeds |= {result.candidate: result.seconds / result.updates for result in probes}
            best = _best_of_each(probes)
            for candidate in dict.fromkeys(candidate for candidate, _ in entries):
                if candidate not in best:
                    self._failures[candidate] = "diverged: the loss became NaN at every learning rate"
                    self._accuracies.pop(candidate, None)
                    continue
                result = best[candidate]
                self._accuracies[candidate] = accuracy_of(
                    result.correct or b"",
                    learning_rate=result.learning_rate,
                    updates=result.updates,
                    finalist=last,
                )
            kept = max(round(len(racing) * _KEPT[min(rung + 1, len(_KEPT) - 1)]), _LEAST_FINALISTS)
            entries = _promoted(best, kept)

    def _run_rung(
        self, entries: Sequence[tuple[Candidate, float]], updates: int, samples: int, seconds: float
    ) -> list[Probe]:
        """All entries for as many updates; where the machine became much slower, the last for fewer."""
        start = time.perf_counter()
        probes = []
        for candidate, rate in entries:
            if updates > _FEWEST_UPDATES and time.perf_counter() - start > _PATIENCE * seconds:
                updates = max(updates // 4, _FEWEST_UPDATES)
                samples = min(samples, _LEAST_SAMPLES)
                self._warnings.append(
                    f"updates took longer than at first: from {candidate.id} on, some probes had only "
                    f"{updates} updates; allow more --probe-time, or leave the machine alone"
                )
            probes.append(self._probe(candidate, rate, updates, samples))
        return probes

    def _probe(self, candidate: Candidate, rate: float | None, updates: int, samples: int) -> Probe:
        self._tell(candidate.id if rate is None else f"{candidate.id} at {rate:g}")
        return probe(
            self._model,
            self._census,
            candidate,
            self._dataset,
            learning_rate=rate,
            updates=updates,
            batch_size=self._batch_size,
            validation_samples=samples,
            seed=self._seed,
        )

    def _tell(self, running: str) -> None:
        self._report(min((time.perf_counter() - self._start) / self._seconds, 1.0), running)

    def _left(self) -> float:
        return max(self._seconds - (time.perf_counter() - self._start), 0.0)

    def _seconds_per_image(self) -> float:
        """Wall clock of classifying one held-out image."""
        data = self._dataset
        few = min(32, len(data.validation))
        fastest = float("inf")
        for _ in range(3):  # the first pass compiles kernels
            start = time.perf_counter()
            evaluate(self._model, data.validation, data.normalisation, few)
            fastest = min(fastest, time.perf_counter() - start)
        return fastest / few

    def _affordable_samples(self, per_image: float, probes: int, seconds: float) -> int:
        """How many held-out samples that many probes can be judged on."""
        affordable = int(seconds * _EVALUATION_SHARE / (per_image * probes))
        return min(len(self._dataset.validation), max(affordable, _LEAST_SAMPLES))

    def _recalibration_updates(self) -> int:
        samples = min(len(self._dataset.train), _RECALIBRATION_SAMPLES)
        return max(samples // self._batch_size, 1)

    def _time_updates(self, candidates: Sequence[Candidate]) -> dict[Candidate, float]:
        """Seconds of an update: measured in turn while there is time for it, then their method's mean."""
        speeds: dict[Candidate, float] = {}
        end = time.perf_counter() + _TIMING_SHARE * self._left()
        for candidate in candidates:
            if speeds and time.perf_counter() > end:
                break
            self._tell(f"timing {candidate.id}")
            speeds[candidate] = seconds_per_update(
                self._model, self._census, candidate, self._dataset, self._batch_size
            )
        for candidate in candidates:
            if candidate not in speeds:
                timed = [speed for known, speed in speeds.items() if known.method == candidate.method]
                speeds[candidate] = statistics.mean(timed or speeds.values())
        return speeds

    def _admit(
        self, candidates: Sequence[Candidate], speeds: Mapping[Candidate, float]
    ) -> Sequence[Candidate]:
        """As many, in order, as the time allows; at least one for each finalist's place."""
        left = self._left() * _RUNG_SHARES[0] * (1 - _EVALUATION_SHARE - _OVERHEAD_SHARE)
        one_each = 0.0  # seconds of one update of every probe admitted
        admitted: list[Candidate] = []
        for candidate in candidates:
            one_each += len(learning_rates(candidate)) * speeds[candidate]
            if one_each * _TELLING_UPDATES > left and len(admitted) >= _LEAST_FINALISTS:
                break
            admitted.append(candidate)
        if len(admitted) <= _LEAST_FINALISTS and one_each * _LEAST_UPDATES > left:
            self._warnings.append(
                f"--probe-time allows fewer than {_LEAST_UPDATES} updates a probe: "
                "the accuracies say little; allow more time"
            )
        for candidate in candidates[len(admitted) :]:
            self._failures[candidate] = "not probed: --probe-time is too short for every candidate"
        return admitted

    def _affordable_updates(
        self,
        entries: Sequence[tuple[Candidate, float]],
        speeds: Mapping[Candidate, float],
        seconds: float,
    ) -> int:
        one_each = sum(speeds[candidate] for candidate, _ in entries)
        updates = int(seconds * (1 - _EVALUATION_SHARE - _OVERHEAD_SHARE) / one_each)
        most = _MOST_EPOCHS * max(len(self._dataset.train) // self._batch_size, 1)
        return max(min(updates, most), _FEWEST_UPDATES)


def _trained_alike(candidates: Sequence[Candidate]) -> dict[Candidate, list[Candidate]]:
    """One of each group whose training comes out the same - the quickest -, with the others.

    Checkpointing, when a parameter is stepped, a cache and fused norms change costs, not results.
    """
    groups: dict[Candidate, list[Candidate]] = {}
    for candidate in candidates:
        plain = replace(candidate.levers, checkpoint=False, update="end", fuse=False, cached_prefix="no")
        groups.setdefault(replace(candidate, levers=plain), []).append(candidate)
    quickest = [
        min(group, key=lambda c: (c.levers.cached_prefix == "no", c.levers.checkpoint))
        for group in groups.values()
    ]
    return {
        one: [other for other in group if other is not one]
        for one, group in zip(quickest, groups.values(), strict=True)
    }


def _methods_in_turn(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Each method's middle setting with the fewest levers, then its others, method by method in turn."""
    by_method: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_method.setdefault(candidate.method, []).append(candidate)
    for group in by_method.values():
        fewest = min(len(candidate.levers.described()) for candidate in group)
        plainest = [c for c in group if len(c.levers.described()) == fewest]
        middle = plainest[len(plainest) // 2]
        # How much of the network is trained tells more apart than another setting.
        others = sorted((c for c in group if c != middle), key=lambda c: c.levers == middle.levers)
        group[:] = [middle, *others]
    return [one for turn in zip_longest(*by_method.values()) for one in turn if one is not None]


def _promoted(best: Mapping[Candidate, Probe], kept: int) -> list[tuple[Candidate, float]]:
    """Half of the places go to the most accurate, the others to the cheapest that may be as good.

    `best` is in order of cost. May be as good: the interval reaches the leader's.
    """
    if not best:
        return []
    intervals = {candidate: accuracy_of(result.correct or b"") for candidate, result in best.items()}
    by_accuracy = sorted(best, key=lambda candidate: intervals[candidate].mean, reverse=True)
    leader = intervals[by_accuracy[0]]
    promoted = by_accuracy[: (kept + 1) // 2]
    as_good = [c for c in best if c not in promoted and intervals[c].high >= leader.low]
    promoted += as_good[: kept - len(promoted)]
    promoted += [c for c in by_accuracy if c not in promoted][: kept - len(promoted)]
    return [(c, rate) for c in best if c in promoted and (rate := best[c].learning_rate) is not None]


def _best_of_each(probes: Sequence[Probe]) -> dict[Candidate, Probe]:
    best: dict[Candidate, Probe] = {}
    for result in probes:
        if result.correct is None:
            continue
        known = best.get(result.candidate)
        if known is None or _score(result) > _score(known):
            best[result.candidate] = result
    return best


def _score(result: Probe) -> float:
    return sum(result.correct or b"") / max(len(result.correct or b""), 1)
