"""The race: short fine-tunes of candidates, losers dropped early, inside a wall-clock budget.

Successive halving (arXiv 1502.07943) of trainings that go on from where they were. First what needs no
training: the model as it is, re-estimated statistics, heads in closed form. Then the opening: the methods,
whole and with half of the network trained, those first that did well elsewhere, each for as many updates;
then the leaders at other learning rates, and other settings and levers of theirs, for as many. Then, round
by round, fewer go on for twice as many updates, until a whole fine-tune is done. Those that can't be told
from the best of them are trained again with other seeds, while there is time. A place in the next round goes
to the most accurate of those that can't be told from the leader, then to the others; what is dearer and
surely worse is dropped.

What the clock decides is written into the store with what was found, so that a race that was killed
goes on as it was planned, and one that ended is only read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import torch

from advisor.errors import DataError
from advisor.interrupts import stoppable
from advisor.methods import learning_rates
from advisor.probes.clock import Clock
from advisor.probes.executor import Executor, InProcess
from advisor.probes.judging import ACCURACY, Metric
from advisor.probes.picture import Point, Seen, pictured, shipped_prior, whole
from advisor.probes.promotion import (
    Entry,
    by_promise,
    middle_rate,
    opening,
    rates_beside,
    statistics_to_try,
    surely_better,
    undominated,
    variants,
)
from advisor.probes.train import Answers, Probe, Trainer, Trial, head_of, training_of
from advisor.records import FEATURES, Accuracy, Candidate, Cost, Estimate, Features, StatisticsPolicy
from advisor.store import Store
from advisor.training.update import reestimation_updates

_log = logging.getLogger(__name__)
Report = Callable[[float, str], None]  # fraction done, what is running

_OPENING_SHARE, _ROUND_SHARE = 0.5, 0.6  # of the time that is left then; the last round may take all
# The opening trains for one in so many of a whole fine-tune's updates, if so many trainings fit into its
# time; rather fewer trainings than ones that say nothing.
_LENGTHS = ((4, 4), (8, 4), (16, 1))
_LEAST_UPDATES = 12  # a probe of fewer says nothing
_LEADERS = 3  # have their variants tried
_GO_ON = 8  # at most, after those; then half of them each round
_SEEDS = 3
_JUDGING_SHARE = 0.1  # of all time, at most, for one network's held-out images
_LEAST_SAMPLES = 40  # judged on fewer, nothing can be told apart
_TIMES = ("setup_seconds", "update_seconds", "judging_seconds")  # of a probe
_TIMED = 3  # candidates, beforehand; what others take is told from FLOPs, then from their probes


@dataclass(frozen=True, slots=True)
class RaceResult:
    """What the race found, by candidate."""

    base: Accuracy | None  # the model as it is
    accuracies: Mapping[Candidate, Accuracy]
    predicted: Mapping[Candidate, Estimate]  # of those that were not trained to the end, and may be
    failures: Mapping[Candidate, str]  # why a candidate has no accuracy
    seconds: float  # of this run and of the probes that it found in the store
    warnings: tuple[str, ...]
    probes_run: int  # now
    probes_recalled: int  # from the store


def race(
    trainer: Trainer,
    costs: Mapping[Candidate, Cost],
    *,
    seconds: float,
    updates: int,
    seed: int,
    judge_base: bool = True,
    metric: Metric = ACCURACY,
    min_retained: float | None = None,
    unaffordable: Sequence[Candidate] = (),
    store: Store | None = None,
    key: Mapping[str, Any] | None = None,
    executor: Executor | None = None,
    report: Report = lambda fraction, running: None,
) -> RaceResult:
    """Probe the candidates for about `seconds` of wall clock.

    Args:
        costs: of those that the budget admits, cheapest first: of equally accurate ones, the cheaper goes
            before.
        updates: of a whole fine-tune: what the finalists train for, if there is time.
        judge_base: whether the model's own accuracy on the held-out samples means anything.
        metric: what counts as accuracy on the held-out samples.
        min_retained: accuracy on the old data; what is surely below it goes no further.
        unaffordable: what the budget doesn't admit: predicted, and never probed.
        store: where probes are looked for and kept.
        key: of the model, the data and the environment, in the store.
        executor: what runs the probes; None: this process.
        report: called before each probe.

    Raises:
        DataError: every probe of every candidate diverged.
    """
    racing = _Race(
        trainer, costs, seconds, updates, seed, metric, min_retained, store, key or {}, executor, report
    )
    return racing.run(judge_base, unaffordable)


class _Race:
    def __init__(
        self,
        trainer: Trainer,
        costs: Mapping[Candidate, Cost],
        seconds: float,
        updates: int,
        seed: int,
        metric: Metric,
        min_retained: float | None,
        store: Store | None,
        key: Mapping[str, Any],
        executor: Executor | None,
        report: Report,
    ) -> None:
        self._trainer, self._updates, self._seed = trainer, updates, seed
        self._store, self._key = store or Store(None), dict(key)
        self._executor, self._report = executor or InProcess(trainer, lambda _: False), report
        # Those that train alike are trained once; what differs is the head that they are given in the end.
        self._alike: dict[Candidate, dict[Features | None, list[Candidate]]] = {}
        for candidate in costs:
            training = training_of(candidate, trainer.census)
            heads = self._alike.setdefault(training, {})
            heads.setdefault(_head_in(training, candidate), []).append(candidate)
        self._costs = {
            one: costs[next(iter(heads.values()))[0]] for one, heads in self._alike.items()
        }  # the cheapest's
        self._race_key = {
            "race": [[one.id, *map(str, self._alike[one])] for one in self._costs],
            "seconds": seconds,
            "updates": updates,
            "seed": seed,
            "metric": metric.name,
            "min_retained": min_retained,
        }
        self._metric, self._min_retained = metric, min_retained
        solves = any(head is not None for heads in self._alike.values() for head in heads)
        self._clock = Clock(seconds, self._costs, len(trainer.dataset.train) if solves else 0)
        self._found: dict[Candidate, list[Probe]] = {}  # what went well, by what is trained
        self._failures: dict[Candidate, str] = {}
        self._warnings: list[str] = []
        self._probes_run = self._probes_recalled = 0

    def run(self, judge_base: bool, unaffordable: Sequence[Candidate]) -> RaceResult:
        base = None
        try:
            with stoppable():
                correct, retained = self._base()
                base = self._accuracy(correct, retained) if judge_base else None
                self._run_rounds(len(correct), base)
        except KeyboardInterrupt:
            self._warnings.append("interrupted: what was found until then is all that is known")
        self._warnings += self._executor.losses
        if self._costs and not self._found and any("diverged" in f for f in self._failures.values()):
            raise DataError(
                "every probe diverged (the loss became NaN): check the images' range and --mean/--std, "
                "and that the model's weights are finite"
            )
        accuracies = self._accuracies()
        predicted = self._predicted(accuracies, unaffordable)
        for one in self._costs:
            if one not in self._found:
                self._failures.setdefault(one, "not probed: --probe-time is too short for every candidate")
        return RaceResult(
            base,
            accuracies,
            predicted,
            {
                candidate: why
                for one, why in self._failures.items()
                if one not in self._found
                for each in self._alike[one].values()
                for candidate in each
            },
            self._clock.spent,
            tuple(self._warnings),
            self._probes_run,
            self._probes_recalled,
        )

    def _accuracies(self) -> dict[Candidate, Accuracy]:
        """Of all that was probed; those that were trained the longest are the finalists."""
        longest = max(
            (p.trial.updates for one in self._found for p in self._standing(self._trained(one))), default=0
        )
        if 0 < longest < self._updates:
            self._warnings.append(
                f"there was no time to train for as long as a real fine-tune: accuracies are those after "
                f"{longest:,} of its {self._updates:,} updates; allow more --probe-time"
            )
        found = {}
        for one in self._costs:
            standing = self._standing(self._found.get(one, ()))
            for head, accuracy in self._judged_by_head(standing).items():
                finalist = accuracy.learning_rate is None or accuracy.updates == longest
                for candidate in self._alike[one].get(head, ()):
                    found[candidate] = replace(accuracy, finalist=finalist)
        return found

    def _predicted(
        self, accuracies: Mapping[Candidate, Accuracy], unaffordable: Sequence[Candidate]
    ) -> dict[Candidate, Estimate]:
        """What each that is no finalist would come to, at the best of its learning rates."""
        seen = [
            Seen(
                Point(one, trial.learning_rate, share, head),
                accuracy.mean,
                accuracy.effective_samples or accuracy.samples,
            )
            for one, probes in self._found.items()
            for probe in probes
            for trial in [probe.trial]
            for share in [trial.updates / self._updates if trial.learning_rate is not None else 1.0]
            for head, accuracy in self._judged_by_head([probe]).items()
        ]
        if not seen:
            return {}
        wanted: dict[Point, list[Candidate]] = {}
        for candidate in [c for heads in self._alike.values() for each in heads.values() for c in each]:
            if candidate not in accuracies or not accuracies[candidate].finalist:
                self._want(candidate, wanted)
        for candidate in unaffordable:
            self._want(candidate, wanted)
        if not wanted:
            return {}
        blocks = len(self._trainer.census.blocks)
        points, prior = list(wanted), shipped_prior()
        found: dict[Candidate, Estimate] = {}
        estimates = pictured(seen, points, blocks, self._trainer.batch_size, prior)
        for estimate, candidates in zip(estimates, wanted.values(), strict=True):
            for candidate in candidates:
                if candidate not in found or estimate.mean > found[candidate].mean:
                    found[candidate] = estimate
        return found

    def _want(self, candidate: Candidate, wanted: dict[Point, list[Candidate]]) -> None:
        one = training_of(candidate, self._trainer.census)
        for point in whole(one, _head_in(one, candidate)) if one not in self._failures else ():
            wanted.setdefault(point, []).append(candidate)

    def _trained(self, one: Candidate) -> list[Probe]:
        return [probe for probe in self._found.get(one, ()) if probe.trial.learning_rate is not None]

    def _base(self) -> tuple[bytes, bytes | None]:
        """Which held-out, and old, images the model classifies right: of as many as all are judged on."""
        parts = 1 if self._trainer.dataset.retained is None else 2

        def judged() -> dict[str, Any]:
            self._tell("the model as it is")
            few = min(32, len(self._trainer.dataset.validation))
            fastest = float("inf")
            with _threads(self._executor.threads):
                for _ in range(3):  # the first pass compiles kernels
                    start = time.perf_counter()
                    self._trainer.judge_base(few)
                    fastest = min(fastest, parts * (time.perf_counter() - start))
            affordable = int(_JUDGING_SHARE * self._clock.seconds * few / fastest)
            least = self._metric.least_samples(_LEAST_SAMPLES)
            samples = min(len(self._trainer.dataset.validation), max(affordable, least))
            right = self._trainer.judge_base(samples)
            retained = self._trainer.judge_base_retained(samples)
            return {"seconds_per_image": fastest / few, "correct": right.hex(), "retained": _hex(retained)}

        key = {"seconds": self._clock.seconds, "metric": self._metric.name}
        found = self._remembered("base", key, judged)
        self._clock.seconds_per_image = found["seconds_per_image"]
        return bytes.fromhex(found["correct"]), _bytes(found.get("retained"))

    def _run_rounds(self, samples: int, base: Accuracy | None) -> None:
        self._judge_untrained(samples)
        batch_size, shifted = self._trainer.batch_size, self._is_shifted(base)

        def wanted(candidate: Candidate) -> StatisticsPolicy:
            return statistics_to_try(candidate, batch_size, shifted=shifted)

        first = [(candidate, middle_rate(candidate)) for candidate in opening(self._costs, wanted)]
        updates = self._run_round("opening", first, samples, _OPENING_SHARE)
        leaders, rates = self._leaders()
        if not leaders:
            return
        self._run_round("rates", rates_beside(leaders, rates), samples, self._spare_share(2), updates)
        leaders, rates = self._leaders()
        screened = self._standings()
        others = [one for one in self._costs if one in screened and one not in leaders]
        unseen = [one for one in self._costs if one not in screened and one not in self._failures]
        entries = variants(leaders, others, rates, unseen)
        self._run_round("variants", entries, samples, self._spare_share(1), updates)
        most = _GO_ON
        while updates < self._updates:
            standings = self._standings(updates)
            order = by_promise(undominated(self._keeping(standings), self._costs))
            entries = [(one, standings[one].learning_rate or 0.0) for one in order[:most]]
            updates, most = min(2 * updates, self._updates), max(most // 2, 2)
            share = _ROUND_SHARE if updates < self._updates else 1.0
            if not self._run_round(f"{updates} updates", entries, samples, share, updates):
                return
        for repeat in range(1, _SEEDS):
            standings = self._standings(updates)
            order = by_promise(standings)
            alike = [one for one in order if not surely_better(standings[order[0]], standings[one])]
            if len(alike) < 2:
                return
            entries = [(one, standings[one].learning_rate or 0.0) for one in alike]
            self._run_round(f"seed {repeat + 1}", entries, samples, 1.0, updates, repeat)

    def _leaders(self) -> tuple[list[Candidate], dict[Candidate, float]]:
        """The most promising trainings, and their best learning rates."""
        standings = self._standings()
        leaders = by_promise(undominated(self._keeping(standings), self._costs))[:_LEADERS]
        return leaders, {one: standings[one].learning_rate or 0.0 for one in leaders}

    def _spare_share(self, parts: int) -> float:
        """Of the time that is left, one of so many parts of what a leader's whole fine-tune leaves over."""
        [leader, *_], rates = self._leaders()
        whole = Trial(leader, rates[leader], self._updates, 0, self._seed)
        left = self._clock.left
        return max(left - self._clock.expected(whole), 0.0) / max(left, 1e-9) / (parts + 1)

    def _judge_untrained(self, samples: int) -> None:
        """One probe for each candidate that has no learning rate."""

        def updates(candidate: Candidate) -> int:
            if head_of(candidate) is not None:
                return 0
            return reestimation_updates(len(self._trainer.images_for(candidate)), self._trainer.batch_size)

        trials = [
            Trial(candidate, None, updates(candidate), samples, 0, self._heads(candidate))
            for candidate in self._costs
            if not learning_rates(candidate)
        ]
        for probe in self._probes(trials, self._clock.seconds):
            self._judge(probe)

    def _heads(self, training: Candidate) -> tuple[Features, ...]:
        return tuple(head for head in FEATURES if head in self._alike[training])

    def _is_shifted(self, base: Accuracy | None) -> bool:
        """Whether statistics re-estimated on the data suit it surely better, where nothing is trained."""
        found = {
            one: _best_of(self._judged_by_head(self._standing(probes))) for one, probes in self._found.items()
        }
        for one, accuracy in found.items():
            if one.levers.statistics != "reestimated":
                continue
            own = found.get(replace(one, levers=replace(one.levers, statistics="own")))
            if own is not None:
                return surely_better(accuracy, own)
        untouched = [a for one, a in found.items() if head_of(one) is None]
        return base is not None and any(surely_better(accuracy, base) for accuracy in untouched)

    def _standings(self, updates: int | None = None) -> dict[Candidate, Accuracy]:
        """What was trained, for so many updates if they are given, with the best of its heads; by cost."""
        found = {}
        for one in self._costs:
            standing = self._standing(self._trained(one))
            if standing and updates in (None, standing[0].trial.updates):
                by_head = self._judged_by_head(standing)
                found[one] = _best_of({head: by_head[head] for head in self._alike[one]})
        return found

    def _keeping(self, found: dict[Candidate, Accuracy]) -> dict[Candidate, Accuracy]:
        """Without those that surely forget too much, unless all do: longer training forgets more."""
        least = self._min_retained
        if least is None:
            return found
        kept = {c: a for c, a in found.items() if a.retained is None or a.retained.high >= least}
        return kept or found

    def _run_round(
        self,
        name: str,
        entries: Sequence[Entry],
        samples: int,
        share: float,
        updates: int = 0,
        repeat: int = 0,
    ) -> int:
        """Probe as many of the entries as there is time for; if the round once ended, those of then.

        Args:
            share: of the time that is left, for this round.
            updates: 0: as many as there is time for.

        Returns:
            For how many updates they were trained; 0 where there was no time for any.
        """
        if not entries:
            return updates

        def trials(updates: int) -> list[Trial]:
            seed = self._seed + repeat
            return [
                Trial(candidate, rate, updates, samples, seed, self._heads(candidate))
                for candidate, rate in entries
            ]

        def planned() -> dict[str, Any]:
            self._time([candidate for candidate, _ in entries])
            seconds = self._clock.left * share
            chosen = updates or self._length(trials, seconds)
            admitted = self._clock.admitted(trials(chosen), seconds, self._executor.workers)
            # There is always something to be told, and what is promising goes on as long as it can.
            can = share >= _ROUND_SHARE and self._clock.admitted(trials(chosen)[:1], self._clock.left)
            if not admitted and (not updates or can):
                admitted = 1
            return {"entries": admitted, "updates": chosen, "seconds": seconds}

        key = self._race_key | {"round": name}
        plan = self._remembered("plan", key, planned)
        if plan["updates"] < min(_LEAST_UPDATES, self._updates):
            self._warnings.append(
                f"--probe-time allows fewer than {_LEAST_UPDATES} updates a probe: "
                "the accuracies say little; allow more time"
            )
        run = trials(plan["updates"])[: plan["entries"]]
        ended = self._recall("round", key)
        if ended is not None:
            run = [trial for trial in run if _trial_key(trial) in ended["trials"]]
        finished = []
        for probe in self._probes(run, max(plan["seconds"], self._clock.left * share)):
            self._judge(probe)
            finished.append(_trial_key(probe.trial))
        self._keep("round", key, {"trials": finished})
        if len(finished) < len(run):
            _log.debug("%s: %d of %d probes were left out", name, len(run) - len(finished), len(run))
        return plan["updates"] if finished else 0

    def _length(self, trials: Callable[[int], list[Trial]], seconds: float) -> int:
        """Updates of the opening's trainings: the most for which enough of them fit into the time."""
        for share, least in _LENGTHS:
            updates = min(max(self._updates // share, _LEAST_UPDATES), self._updates)
            few = trials(updates)[:least]
            if self._clock.admitted(few, seconds, self._executor.workers) == len(few):
                return updates
        return min(_LEAST_UPDATES, self._updates)

    def _probes(self, trials: Sequence[Trial], seconds: float) -> Iterator[Probe]:
        """Those in the store, then the others as they finish, while there is time."""
        missing = []
        for trial in trials:
            found = self._recall("probe", _trial_key(trial))
            if found is None:
                missing.append(trial)
                continue
            correct, retained = _bytes(found["correct"]), _bytes(found.get("retained"))
            self._clock.before += found["seconds"] / self._executor.workers
            self._probes_recalled += 1
            solved = tuple(
                Answers(bytes.fromhex(right), _bytes(old)) for right, old in found.get("solved", ())
            )
            times = [found[name] for name in _TIMES]
            probe = Probe(trial, correct, found["seconds"], found["failure"], retained, solved, *times)
            self._clock.learn(probe, now=False)
            yield probe
        end = self._clock.spent + seconds

        def in_time() -> Iterator[Trial]:
            for number, trial in enumerate(missing):
                # On a machine that others use, too, fewer are tried, but each round has its turn.
                if number and trial.learning_rate and self._clock.spent + self._clock.expected(trial) > end:
                    return
                self._tell(_named(trial))
                yield trial

        for probe in self._executor.run(in_time()):
            self._probes_run += 1
            self._clock.learn(probe, now=True)
            value = {
                "correct": _hex(probe.correct),
                "retained": _hex(probe.retained),
                "solved": [(each.correct.hex(), _hex(each.retained)) for each in probe.solved],
                "seconds": probe.seconds,
                "failure": probe.failure,
            } | {name: getattr(probe, name) for name in _TIMES}
            # What failed otherwise, for want of memory say, may go better another time.
            if probe.correct is not None or probe.failure == "diverged":
                self._keep("probe", _trial_key(probe.trial), value)
            yield probe

    def _judge(self, probe: Probe) -> None:
        """Keep what went well, and why it didn't."""
        one = probe.trial.candidate
        if probe.correct is not None:
            right = f"{100 * _best_of(self._judged_by_head([probe])).mean:.1f} % right"
            _log.debug("probed %s: %s, %.1f s", _named(probe.trial), right, probe.seconds)
            self._found.setdefault(one, []).append(probe)
            return
        _log.debug("probed %s: %s, %.1f s", _named(probe.trial), probe.failure, probe.seconds)
        known = self._found.get(one, [])
        kept = [each for each in known if not _says_too_little(each.trial, probe)]
        if kept:
            self._found[one] = kept
        else:
            self._found.pop(one, None)
            self._failures[one] = _failure(probe)

    def _standing(self, probes: Sequence[Probe]) -> list[Probe]:
        """Those that a training is judged by: the longest, at the best of their rates, of every seed."""
        if not probes:
            return []
        longest = max(probe.trial.updates for probe in probes)
        by_rate: dict[float | None, list[Probe]] = {}
        for probe in probes:
            if probe.trial.updates == longest:
                by_rate.setdefault(probe.trial.learning_rate, []).append(probe)
        return max(by_rate.values(), key=lambda found: _best_of(self._judged_by_head(found)).mean)

    def _judged_by_head(self, probes: Sequence[Probe]) -> dict[Features | None, Accuracy]:
        """The accuracy over all seeds of the network as it was trained, and with each head of the trials."""
        if not probes:
            return {}
        trial = probes[0].trial
        of_each = [(Answers(probe.correct or b"", probe.retained), *probe.solved) for probe in probes]
        return {
            head: self._accuracy(
                _summed([each.correct for each in answers]),
                _summed([each.retained for each in answers]),
                seeds=len(answers),
                learning_rate=trial.learning_rate,
                updates=trial.updates,
            )
            for head, answers in zip((None, *trial.heads), zip(*of_each, strict=True), strict=True)
        }

    def _accuracy(self, correct: bytes, retained: bytes | None, *, seeds: int = 1, **known: Any) -> Accuracy:
        """On the new data, in the metric, and on the old where there is some."""
        old = ACCURACY.of(retained, seeds=seeds) if retained else None
        return replace(self._metric.of(correct, seeds=seeds, **known), retained=old)

    def _time(self, candidates: Sequence[Candidate]) -> None:
        """Learn how long an update of the first few takes."""
        safe = (candidate for candidate in candidates if not self._executor.is_risky(candidate))
        for candidate in islice(dict.fromkeys(safe), max(_TIMED - len(self._clock.timed), 0)):

            def timed(candidate: Candidate = candidate) -> dict[str, Any]:
                self._tell(f"timing {candidate.id}")
                try:
                    with _threads(self._executor.threads):
                        setup, each = self._trainer.time_updates(candidate)
                except Exception:  # noqa: BLE001 - its probes will say why
                    setup = each = 0.0
                return {"setup_seconds": setup, "update_seconds": each}

            found = self._remembered("timing", {"candidate": candidate.id}, timed)
            self._clock.timed[candidate] = found["setup_seconds"], found["update_seconds"]

    def _tell(self, running: str) -> None:
        spent, seconds = self._clock.spent, self._clock.seconds
        self._report(spent / seconds if spent < seconds else 1.0, running)

    def _remembered(self, kind: str, key: Mapping[str, Any], find: Callable[[], dict[str, Any]]) -> Any:
        return self._store.remembered(kind, self._key | dict(key), find)

    def _recall(self, kind: str, key: Mapping[str, Any]) -> dict[str, Any] | None:
        return self._store.get(kind, self._key | dict(key))

    def _keep(self, kind: str, key: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        self._store.put(kind, self._key | dict(key), value)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with as many threads as whoever runs the probes has."""
    own = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(own)


def _best_of(by_head: Mapping[Features | None, Accuracy]) -> Accuracy:
    return max(by_head.values(), key=lambda accuracy: accuracy.mean)


def _says_too_little(trial: Trial, failed: Probe) -> bool:
    """Whether that a trial went well is no news, as the same failed later, trained as long or longer."""
    same = (trial.candidate, trial.learning_rate) == (failed.trial.candidate, failed.trial.learning_rate)
    longer = failed.trial.updates - trial.updates
    return same and (longer > 0 or (longer == 0 and failed.failure == "diverged"))


def _summed(answers: Sequence[bytes | None]) -> bytes:
    """How many of the seeds got each image right; nothing where they weren't asked."""
    return bytes(map(sum, zip(*(each or b"" for each in answers), strict=True)))


def _hex(answers: bytes | None) -> str | None:
    return None if answers is None else answers.hex()


def _bytes(answers: str | None) -> bytes | None:
    return None if answers is None else bytes.fromhex(answers)


def _trial_key(trial: Trial) -> dict[str, Any]:
    """All of the trial, in plain values."""
    return asdict(trial) | {"candidate": trial.candidate.id, "heads": list(trial.heads)}


def _named(trial: Trial) -> str:
    rate = "" if trial.learning_rate is None else f" at {trial.learning_rate:.2g}"
    return f"{trial.candidate.id}{rate}, {trial.updates} updates"


def _failure(probe: Probe) -> str:
    if probe.failure != "diverged":
        return f"its training failed: {probe.failure}"
    if probe.trial.learning_rate is None:
        return "diverged: the re-estimated statistics are not finite"
    return "diverged: the loss became NaN at every learning rate"


def _head_in(training: Candidate, candidate: Candidate) -> Features | None:
    """Which head the candidate has, other than the one that its training ends with."""
    head = head_of(candidate)
    return None if head == head_of(training) else head
