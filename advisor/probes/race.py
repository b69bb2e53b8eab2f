"""The race: short fine-tunes of candidates, each chosen by what is known so far, inside a wall-clock budget.

First what needs no training: the model as it is, re-estimated statistics, heads in closed form. Then one
training after the other (for each worker one): the candidate, learning rate and length whose answer promises
most for its work (`acquisition`), by one picture of all candidates (`picture`), which begins with what other
tasks have taught. A training goes on from where a shorter one was. There is always time kept to train what
leads for as long as any, and the race ends where nothing is worth its time any more.

What the clock decides is written into the store with what was found, so that a race that was killed
goes on as it was planned, and one that ended is only read.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from advisor.errors import DataError
from advisor.interrupts import stoppable
from advisor.methods import learning_rates
from advisor.probes.acquisition import Option, chosen
from advisor.probes.clock import Clock
from advisor.probes.executor import Executor, InProcess
from advisor.probes.judging import ACCURACY, Metric
from advisor.probes.picture import Picture, Point, Seen, expit, pictured, shipped_prior, whole
from advisor.probes.train import Answers, Probe, Trainer, Trial, head_of, training_of
from advisor.records import FEATURES, Accuracy, Candidate, Cost, Estimate, Features
from advisor.store import Store
from advisor.training.update import reestimation_updates

_log = logging.getLogger(__name__)
Report = Callable[[float, str], None]  # fraction done, what is running

_LEAST_UPDATES = 12  # a probe of fewer says nothing
_PART, _PARTS = 4, 3  # trainings run for a sixteenth, a quarter, all of the longest
_LONGEST_SHARE = 0.5  # of the time, that the quickest may take to be trained for the longest
_JUDGING_SHARE = 0.1  # of all time, at most, for one network's held-out images
_LEAST_SAMPLES = 40  # judged on fewer, nothing can be told apart
_NO_TIME = "--probe-time is too short for every candidate"
_NO_PROMISE = "by what was probed it would hardly be better"
_TIMES = ("setup_seconds", "update_seconds", "judging_seconds")  # of a probe
_TIMED = 3  # trainings, beforehand; what others take is told from FLOPs, then from their probes


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
        solved_on = len(trainer.dataset.train) if solves else 0
        self._clock = Clock(seconds, self._costs, trainer.batch_size, solved_on)
        self._found: dict[Candidate, list[Probe]] = {}  # what went well, by what is trained
        self._failures: dict[Candidate, str] = {}
        self._ended = _NO_TIME  # why no more was tried
        self._barred: dict[Candidate, float] = {}  # learning rates from which on a training fails
        self._warnings: list[str] = []
        self._probes_run = self._probes_recalled = 0

    def run(self, judge_base: bool, unaffordable: Sequence[Candidate]) -> RaceResult:
        base = None
        try:
            with stoppable():
                correct, retained = self._base()
                base = self._accuracy(correct, retained) if judge_base else None
                self._run_trials(len(correct))
        except KeyboardInterrupt:
            self._warnings.append("interrupted: what was found until then is all that is known")
        self._warnings += self._executor.losses
        if self._costs and not self._found and any("diverged" in f for f in self._failures.values()):
            raise DataError(
                "every probe diverged (the loss became NaN): check the images' range and --mean/--std, "
                "and that the model's weights are finite"
            )
        accuracies, predicted = self._told(self._accuracies(), unaffordable)
        for one in self._costs:
            if one not in self._found:
                self._failures.setdefault(one, f"not probed: {self._ended}")
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

    def _told(
        self, found: dict[Candidate, Accuracy], unaffordable: Sequence[Candidate]
    ) -> tuple[dict[Candidate, Accuracy], dict[Candidate, Estimate]]:
        """The finalists' accuracies by all that is known, and what each other candidate would come to.

        Of many that are judged on few images the best is the luckiest, too: what all others say of it
        makes up for that. The others are told at the best of their learning rates.
        """
        seen, wanted = self._seen(), dict[Point, list[Candidate]]()
        if not seen:
            return found, {}
        for one, heads in self._alike.items():
            for head, candidates in heads.items():
                for candidate in candidates:
                    accuracy = found.get(candidate)
                    if accuracy is not None and accuracy.finalist:
                        wanted.setdefault(self._point(one, accuracy, head), []).append(candidate)
                    else:
                        self._want(candidate, wanted)
        for candidate in unaffordable:
            self._want(candidate, wanted)
        blocks = len(self._trainer.census.blocks)
        estimates = pictured(seen, list(wanted), blocks, self._trainer.batch_size, shipped_prior())
        told, predicted = dict(found), dict[Candidate, Estimate]()
        for estimate, candidates in zip(estimates, wanted.values(), strict=True):
            for candidate in candidates:
                accuracy = found.get(candidate)
                if accuracy is not None and accuracy.finalist:
                    told[candidate] = replace(
                        accuracy, mean=estimate.mean, low=estimate.low, high=estimate.high, seen=accuracy.mean
                    )
                elif candidate not in predicted or estimate.mean > predicted[candidate].mean:
                    predicted[candidate] = estimate
        return told, predicted

    def _seen(self) -> list[Seen]:
        """What every probe found, with each of its heads."""
        return [
            Seen(
                self._point(one, accuracy, head),
                accuracy.mean,
                accuracy.effective_samples or accuracy.samples,
            )
            for one, probes in self._found.items()
            for probe in probes
            for head, accuracy in self._judged_by_head([probe]).items()
        ]

    def _point(self, one: Candidate, accuracy: Accuracy, head: Features | None) -> Point:
        """Where in the picture the accuracy is."""
        rate = accuracy.learning_rate
        return Point(one, rate, 1.0 if rate is None else accuracy.updates / self._updates, head)

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

    def _run_trials(self, samples: int) -> None:
        """What needs no training, then one training after the other, for as long as they are worth it."""
        self._judge_untrained(samples)
        trained = [one for one in self._costs if learning_rates(one)]
        if not trained:
            return
        self._plan(samples)
        if self._lengths[-1] < min(_LEAST_UPDATES, self._updates):
            self._warnings.append(
                f"--probe-time allows fewer than {_LEAST_UPDATES} updates a probe: "
                "the accuracies say little; allow more time"
            )
        shares = dict.fromkeys([*(length / self._updates for length in self._lengths), 1.0])
        points = [
            Point(one, rate, share, head)
            for one in self._costs
            for rate in learning_rates(one) or (None,)
            for share in (shares if rate is not None else (1.0,))
            for head in (None, *self._heads(one))
        ]
        self._picture = Picture(
            points, len(self._trainer.census.blocks), self._trainer.batch_size, shipped_prior()
        )
        for step in itertools.count():
            if not self._step(step, samples):
                return

    def _plan(self, samples: int) -> None:
        """For how many updates trainings may run: the longest that there is time for, and parts of it."""

        def planned() -> dict[str, Any]:
            self._time()
            longest = self._updates
            shortest = min(_LEAST_UPDATES, self._updates)
            while longest > shortest and self._quickest(longest, samples) > _LONGEST_SHARE * self._clock.left:
                longest = max(longest // _PART, shortest)
            lengths = [longest]
            while lengths[0] >= _PART * _LEAST_UPDATES and len(lengths) < _PARTS:
                lengths.insert(0, lengths[0] // _PART)
            return {"lengths": lengths}

        self._lengths = self._remembered("plan", self._race_key, planned)["lengths"]

    def _quickest(self, updates: int, samples: int) -> float:
        """Seconds of so many updates of the quickest of those that were timed."""
        return min(
            self._clock.expected(Trial(one, learning_rates(one)[0], updates, samples, 0, self._heads(one)))
            for one in self._clock.timed
        )

    def _step(self, number: int, samples: int) -> bool:
        """Run what promises most now, one training for each worker; False: nothing is worth its time."""

        def planned() -> dict[str, Any]:
            trials = self._next(samples)
            in_time = any(option.seconds <= self._clock.left for option in self._options(samples))
            return {"trials": [_trial_key(trial) for trial in trials], "in_time": in_time}

        plan = self._remembered("step", self._race_key | {"step": number}, planned)
        self._ended = _NO_PROMISE if plan["in_time"] else _NO_TIME
        trials = [_trial_of(key) for key in plan["trials"]]
        for probe in self._probes(trials):
            self._judge(probe)
        return bool(trials)

    def _next(self, samples: int) -> list[Trial]:
        """For each worker a training; what is under way is taken to answer what is expected of it."""
        seen, trials = self._seen(), list[Trial]()
        for _ in range(self._executor.workers):
            belief = self._picture.given(seen)
            options = [o for o in self._options(samples) if o.name not in trials]
            left = self._clock.left if self._found_any() else math.inf
            option = chosen(belief, options, self._finals(), samples, left)
            if option is None:
                break
            trials.append(option.name)
            seen += [
                Seen(self._picture.points[row], expit(float(belief.means[row])), samples)
                for row in option.rows
            ]
        return trials

    def _found_any(self) -> bool:
        """Whether any training was run: there is always something to be told."""
        return any(self._trained(one) for one in self._found)

    def _options(self, samples: int) -> list[Option]:
        """All trainings that can be run now, each for longer than it was."""
        found = []
        for one in self._costs:
            done = {p.trial.learning_rate: p.trial.updates for p in self._trained(one)}
            for rate in learning_rates(one):
                if self._is_barred(one, rate):
                    continue
                for updates in self._lengths:
                    if updates <= done.get(rate, 0):
                        continue
                    trial = Trial(one, rate, updates, samples, self._seed, self._heads(one))
                    found.append(
                        Option(
                            trial,
                            self._rows(one, rate, updates / self._updates),
                            self._rows(one, rate, 1.0),
                            self._clock.expected(trial),
                            self._clock.work(trial),
                            is_last=updates == self._lengths[-1],
                        )
                    )
        return found

    def _rows(self, one: Candidate, rate: float | None, share: float) -> tuple[int, ...]:
        heads = (None, *self._heads(one))
        return tuple(self._picture.rows[Point(one, rate, share, head)] for head in heads)

    def _is_barred(self, one: Candidate, rate: float) -> bool:
        """Whether the training failed, at this learning rate or, if it diverged, at a lower one."""
        return rate >= self._barred.get(one, math.inf)

    def _finals(self) -> list[int]:
        """The points that may be chosen in the end: of candidates that there are, none that forgets too much.

        Unless all do: longer training forgets more.
        """
        found = [
            (one, self._picture.rows[point])
            for one, heads in self._alike.items()
            for head in heads
            for point in whole(one, head)
            if point.rate is None or not self._is_barred(one, point.rate)
            if one in self._found or point.rate is not None
        ]
        kept = [row for one, row in found if not self._forgets(one)]
        return kept or [row for _, row in found]

    def _forgets(self, one: Candidate) -> bool:
        """Whether it was seen to be surely below the least accuracy on the old data."""
        standing = self._standing(self._found.get(one, ()))
        if self._min_retained is None or not standing:
            return False
        by_head = self._judged_by_head(standing)
        old = [by_head[head].retained for head in self._alike[one] if head in by_head]
        return all(each is not None and each.high < self._min_retained for each in old)

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
        for probe in self._probes(trials):
            self._judge(probe)

    def _heads(self, training: Candidate) -> tuple[Features, ...]:
        return tuple(head for head in FEATURES if head in self._alike[training])

    def _probes(self, trials: Sequence[Trial]) -> Iterator[Probe]:
        """Those in the store, then the others as they finish."""
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

        def begun() -> Iterator[Trial]:
            for trial in missing:
                self._tell(_named(trial))
                yield trial

        for probe in self._executor.run(begun()):
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
        worst = probe.trial.learning_rate if probe.failure == "diverged" else None
        self._barred[one] = min(worst or 0.0, self._barred.get(one, math.inf))
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

    def _time(self) -> None:
        """Learn how long an update takes of those with the least and the most FLOPs, and between."""
        trained = [one for one in self._costs if learning_rates(one) and not self._executor.is_risky(one)]
        trained.sort(key=lambda one: self._costs[one].flops.total)
        places = (
            {round(part * (len(trained) - 1) / (_TIMED - 1)) for part in range(_TIMED)} if trained else ()
        )
        for candidate in [trained[place] for place in sorted(places)]:

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


def _trial_of(key: Mapping[str, Any]) -> Trial:
    return Trial(**dict(key) | {"candidate": Candidate.parse(key["candidate"]), "heads": tuple(key["heads"])})


def _named(trial: Trial) -> str:
    rate = "" if trial.learning_rate is None else f" at {trial.learning_rate:.2g}"
    return f"{trial.candidate.id}{rate}, {trial.updates} updates"


def _failure(probe: Probe) -> str:
    if probe.failure != "diverged":
        return f"its training failed: {probe.failure}"
    if probe.trial.learning_rate is None:
        return "diverged: the re-estimated statistics are not finite"
    return f"diverged: the loss became NaN at a learning rate of {probe.trial.learning_rate:.2g}"


def _head_in(training: Candidate, candidate: Candidate) -> Features | None:
    """Which head the candidate has, other than the one that its training ends with."""
    head = head_of(candidate)
    return None if head == head_of(training) else head
