"""The race: short fine-tunes of candidates, each chosen by what is known so far, inside a wall-clock budget.

One probe after the other (for each worker one): what needs no training (re-estimated statistics, heads in
closed form), or the candidate, learning rate and length whose answer promises most for its work
(`acquisition`), by one picture of all candidates (`picture`), which begins with what other tasks have taught.
What needs no training comes first, as far as it takes little of the time. Where there is time for many,
trainings run for a while at first, and go on from there; where there is not, to their ends alone. There is
always time kept to train what leads for as long as any, and the race ends where nothing is worth its time
any more.

What the clock decides is written into the store with what was found, so that a race that was killed
goes on as it was planned, and one that ended is only read.
"""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from advisor.errors import DataError
from advisor.methods import learning_rates
from advisor.models.fingerprint import fingerprint
from advisor.probes.acquisition import Option, chosen
from advisor.probes.clock import Clock
from advisor.probes.executor import Executor, InProcess
from advisor.probes.findings import Findings
from advisor.probes.judging import ACCURACY, Metric
from advisor.probes.picture import Belief, Conditions, Picture, Seen, expit
from advisor.probes.train import TIMES, Answers, Probe, Trainer, Trial
from advisor.records import NOT_PROBED, Accuracy, Candidate, Cost, Estimate
from advisor.store import Store
from advisor.system.interrupts import stoppable
from advisor.training.loop import head_of
from advisor.training.update import reestimation_updates

_log = logging.getLogger(__name__)
Report = Callable[[float, str], None]  # fraction done, what is running
Lead = Callable[[Candidate, Estimate], None]

_LEAST_UPDATES = 12  # a probe of fewer says nothing
_PART, _PARTS = 4, 3  # trainings run for a sixteenth, a quarter, all of the longest
_MANY = 8  # trainings for as long as any: with less time than they take, parts of some cost too many others
_LONGEST_SHARE = 0.5  # of the time, that the quickest may take to be trained for the longest
_FREE_SHARE = 0.1  # of all time: for what needs no training, before anything else
_JUDGING_SHARE = 0.1  # of all time, at most, for one network's held-out images
_LEAST_SAMPLES = 40  # judged on fewer, nothing can be told apart
_NO_TIME = "allow more --probe-time"
_NO_PROMISE = "by what was tried, little is to be gained"
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
    new_head: bool = False,
    metric: Metric = ACCURACY,
    min_retained: float | None = None,
    unaffordable: Sequence[Candidate] = (),
    store: Store | None = None,
    key: Mapping[str, Any] | None = None,
    executor: Executor | None = None,
    report: Report = lambda fraction, running: None,
    lead: Lead = lambda candidate, estimate: None,
) -> RaceResult:
    """Probe the candidates for about `seconds` of wall clock.

    Args:
        costs: of those that the budget admits, cheapest first: of equally accurate ones, the cheaper goes
            before.
        updates: of a whole fine-tune: what the finalists train for, if there is time.
        new_head: the model knows none of the classes: its own accuracy means nothing.
        metric: what counts as accuracy on the held-out samples.
        min_retained: accuracy on the old data; what is surely below it goes no further.
        unaffordable: what the budget doesn't admit: predicted, and never probed.
        store: where probes are looked for and kept.
        key: of the model, the data and the environment, in the store.
        executor: what runs the probes; None: this process.
        report: called before each probe.
        lead: called with what would be chosen if nothing else were probed, and what it would come to.

    Raises:
        DataError: every probe of every candidate diverged.
    """
    racing = _Race(
        *(trainer, costs, seconds, updates, seed, metric, min_retained, new_head, store, key or {}),
        *(executor, report, lead),
    )
    return racing.run(unaffordable)


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
        new_head: bool,
        store: Store | None,
        key: Mapping[str, Any],
        executor: Executor | None,
        report: Report,
        lead: Lead,
    ) -> None:
        self._trainer, self._updates, self._seed = trainer, updates, seed
        self._store, self._key = store or Store(None), dict(key)
        self._executor = executor or InProcess(trainer, lambda _: False)
        self._report, self._lead = report, lead
        self._new_head = new_head
        census, images = trainer.census, len(trainer.dataset.train)
        conditions = Conditions(
            *(len(census.blocks), trainer.batch_size, new_head),
            side=min(census.input_size[1:], default=0),
            images=images,
        )
        self._found = Findings(costs, census, conditions, updates, metric, min_retained)
        self._race_key = {
            "race": self._found.key(),
            "seconds": seconds,
            "updates": updates,
            "seed": seed,
            "metric": metric.name,
            "min_retained": min_retained,
            "prior": fingerprint(repr(self._found.prior), []),
        }
        self._metric = metric
        self._clock = Clock(
            seconds,
            self._found.costs,
            trainer.batch_size,
            images,
            trainer.trainings,
        )
        self._ended = _NO_TIME  # why no more was tried
        self._warnings: list[str] = []
        self._probes_run = self._probes_recalled = 0
        self._free_seconds = 0.0  # that what needs no training has taken

    def run(self, unaffordable: Sequence[Candidate]) -> RaceResult:
        base = None
        try:
            with stoppable():
                steps = self._steps()
                if not self._new_head:
                    base = self._base(steps[-1])
                self._run_trials(steps)
        except KeyboardInterrupt:
            self._warnings.append("interrupted: what was found until then is all that is known")
        self._warnings += self._executor.losses
        if self._found.all_diverged:
            raise DataError(
                "every probe diverged (the loss became NaN): check the images' range and --mean/--std, "
                "and that the model's weights are finite"
            )
        longest = self._found.longest()
        if 0 < longest < self._updates:
            self._warnings.append(
                f"there was no time to train for as long as a real fine-tune: accuracies are those after "
                f"{longest:,} of its {self._updates:,} updates; allow more --probe-time"
            )
        accuracies, predicted = self._found.told(unaffordable)
        return RaceResult(
            base,
            accuracies,
            predicted,
            self._found.failures(f"{NOT_PROBED}{self._ended}"),
            self._clock.spent,
            tuple(self._warnings),
            self._probes_run,
            self._probes_recalled,
        )

    def _steps(self) -> tuple[int, ...]:
        """On how many of the held-out images probes may be judged: at first, and where more is worth it."""
        parts = 1 if self._trainer.dataset.retained is None else 2

        def timed() -> dict[str, Any]:
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
            most = max(affordable, least)
            steps = [step for step in self._trainer.steps if step <= most]
            return {"seconds_per_image": fastest / few, "steps": steps or [min(most, self._trainer.steps[0])]}

        key = {"seconds": self._clock.seconds, "metric": self._metric.name}
        found = self._remembered("steps", key, timed)
        self._clock.seconds_per_image = found["seconds_per_image"]
        return tuple(found["steps"])

    def _base(self, samples: int) -> Accuracy:
        """The model as it is."""

        def judged() -> dict[str, Any]:
            right = self._trainer.judge_base(samples)
            return {"correct": right.hex(), "retained": _hex(self._trainer.judge_base_retained(samples))}

        found = self._remembered("base", {"samples": samples}, judged)
        return self._found.judged(bytes.fromhex(found["correct"]), _bytes(found["retained"]))

    def _run_trials(self, steps: Sequence[int]) -> None:
        """One after the other, for as long as they are worth it."""
        lengths = self._planned_lengths(steps[0])
        if lengths and lengths[-1] < min(_LEAST_UPDATES, self._updates):
            self._warnings.append(
                f"--probe-time allows fewer than {_LEAST_UPDATES} updates a probe: "
                "the accuracies say little; allow more time"
            )
        picture = self._found.picture(lengths)
        for step in itertools.count():
            belief = picture.given(self._found.seen())
            leading = self._found.leading(picture, belief)
            if leading is not None:
                self._lead(*leading)
            plan = self._remembered(
                "step", self._race_key | {"step": step}, partial(self._next, picture, belief, lengths, steps)
            )
            self._ended = _NO_PROMISE if plan["in_time"] else _NO_TIME
            if not plan["trials"]:
                return
            for probe in self._probes([_trial_of(key) for key in plan["trials"]]):
                self._judge(probe)

    def _planned_lengths(self, samples: int) -> list[int]:
        """For how many updates trainings may run: the most that there is time for, and parts of them."""
        if not any(map(learning_rates, self._found.costs)):
            return []

        def planned() -> dict[str, Any]:
            self._time()
            longest, shortest = self._updates, min(_LEAST_UPDATES, self._updates)
            while (
                longest > shortest
                and self._seconds(longest, samples, min) > _LONGEST_SHARE * self._clock.left
            ):
                longest = max(longest // _PART, shortest)
            lengths = [longest]
            few = self._seconds(longest, samples, statistics.median) * _MANY > self._clock.left
            while not few and lengths[0] >= _PART * _LEAST_UPDATES and len(lengths) < _PARTS:
                lengths.insert(0, lengths[0] // _PART)
            return {"lengths": lengths}

        return list(self._remembered("plan", self._race_key, planned)["lengths"])

    def _seconds(self, updates: int, samples: int, of: Callable[[Iterable[float]], float]) -> float:
        """Of so many updates of the quickest, say, of those that were timed; 0 where none may be run here."""
        each = [
            self._clock.expected(
                Trial(one, learning_rates(one)[0], updates, samples, 0, self._found.heads(one))
            )
            for one in self._clock.timed
        ]
        return of(each) if each else 0.0

    def _next(
        self, picture: Picture, belief: Belief, lengths: Sequence[int], steps: Sequence[int]
    ) -> dict[str, Any]:
        """For each worker a training; what is under way is taken to answer what is expected of it."""
        seen, trials = self._found.seen(), list[Trial]()
        rates = self._rates(picture, belief)
        finals = [picture.rows[p] for p in self._found.finals() if p.rate in rates[p.training]]
        options = self._options(picture, rates, lengths, steps)
        left = self._clock.left
        if not seen and options:  # there is always something to be told
            left = max(left, min(option.seconds for option in options))
        while len(trials) < self._executor.workers:
            if trials:
                belief = picture.given(seen)
            option = _free(options, min(_FREE_SHARE * self._clock.seconds - self._free_seconds, left))
            option = option or chosen(belief, options, finals, left) or _free(options, left)
            if option is None:
                break
            trials.append(option.name)
            options.remove(option)
            seen += [
                Seen(picture.points[row], expit(float(belief.means[row])), option.name.samples)
                for row in option.rows
            ]
        in_time = any(option.seconds <= self._clock.left for option in options)
        return {"trials": [_trial_key(trial) for trial in trials], "in_time": in_time}

    def _rates(self, picture: Picture, belief: Belief) -> dict[Candidate, list[float | None]]:
        """Of each training the learning rates that may be run; None: it has none.

        Those that were tried; of the others the one that is expected to be best. Too large a rate ruins what
        it trains, and is uncertain for that: to the picture, which knows nothing of the side, a hope.
        """
        found = {}
        for one in self._found.costs:
            rates: tuple[float | None, ...] = learning_rates(one) or (None,)
            rates = tuple(rate for rate in rates if not self._found.fails_at(one, rate))
            hopes = {
                rate: belief.means[list(picture.rows_of(one, rate, 1.0, self._found.heads(one)))].max()
                for rate in rates
                if self._found.last(one, rate) is None
            }
            best = max(hopes, key=hopes.__getitem__, default=None)
            found[one] = [rate for rate in rates if rate not in hopes or rate == best]
        return found

    def _options(
        self,
        picture: Picture,
        rates: Mapping[Candidate, Sequence[float | None]],
        lengths: Sequence[int],
        steps: Sequence[int],
    ) -> list[Option]:
        """All trials that can be run now: each is for longer than what was run, or judged on more images."""
        found = []
        for one, rate in ((one, rate) for one, open_to_it in rates.items() for rate in open_to_it):
            heads, done = self._found.heads(one), self._found.last(one, rate)
            ends = picture.rows_of(one, rate, 1.0, heads)
            of_one = [self._untrained_updates(one)] if rate is None else lengths
            for updates, samples in _further(done, of_one, steps):
                trial = Trial(one, rate, updates, samples, self._seed, heads)
                rows = picture.rows_of(one, rate, updates / self._updates if rate else 1.0, heads)
                seconds, work = self._clock.expected(trial), self._clock.work(trial)
                is_last = updates == of_one[-1] and (done is None or done.updates < updates)
                found.append(Option(trial, rows, ends, seconds, work, is_last, samples))
        return found

    def _untrained_updates(self, candidate: Candidate) -> int:
        """Of a candidate without a learning rate."""
        if head_of(candidate) is not None:
            return 0
        return reestimation_updates(len(self._trainer.images_for(candidate)), self._trainer.batch_size)

    def _judge(self, probe: Probe) -> None:
        came = probe.failure or f"{100 * self._found.best_mean(probe):.1f} % right"
        _log.debug("probed %s: %s, %.1f s", _named(probe.trial), came, probe.seconds)
        self._found.add(probe)
        if probe.trial.learning_rate is None:
            self._free_seconds += probe.seconds

    def _probes(self, trials: Sequence[Trial]) -> Iterator[Probe]:
        """Those in the store, then the others as they finish."""
        missing = []
        for trial in trials:
            found = self._recall("probe", _trial_key(trial))
            if found is None:
                missing.append(trial)
                continue
            correct, margins = _bytes(found["correct"]), bytes.fromhex(found["margins"])
            self._clock.before += found["seconds"] / self._executor.workers
            self._probes_recalled += 1
            solved = tuple(
                Answers(bytes.fromhex(right), bytes.fromhex(clear), _bytes(old))
                for right, clear, old in found["solved"]
            )
            known = found["seconds"], found["failure"], margins, _bytes(found["retained"]), solved
            probe = Probe(trial, correct, *known, *(found[name] for name in TIMES))
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
                "margins": probe.margins.hex(),
                "solved": [
                    (each.correct.hex(), each.margins.hex(), _hex(each.retained)) for each in probe.solved
                ],
                "seconds": probe.seconds,
                "failure": probe.failure,
            } | {name: getattr(probe, name) for name in TIMES}
            # What failed otherwise, for want of memory say, may go better another time.
            if probe.correct is not None or probe.failure == "diverged":
                self._keep("probe", _trial_key(probe.trial), value)
            yield probe

    def _time(self) -> None:
        """Learn how long an update takes of those with the least and the most FLOPs, and between."""
        trained = [
            one for one in self._found.costs if learning_rates(one) and not self._executor.is_risky(one)
        ]
        trained.sort(key=lambda one: self._found.costs[one].flops.total)
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


def _hex(answers: bytes | None) -> str | None:
    return None if answers is None else answers.hex()


def _bytes(answers: str | None) -> bytes | None:
    return None if answers is None else bytes.fromhex(answers)


def _trial_key(trial: Trial) -> dict[str, Any]:
    """All of the trial, in plain values."""
    return asdict(trial) | {"candidate": trial.candidate.id, "heads": list(trial.heads)}


def _trial_of(key: Mapping[str, Any]) -> Trial:
    return Trial(**dict(key) | {"candidate": Candidate.parse(key["candidate"]), "heads": tuple(key["heads"])})


def _further(done: Trial | None, lengths: Sequence[int], steps: Sequence[int]) -> list[tuple[int, int]]:
    """For how many updates, and judged on how many images, a training can be run that came so far."""
    rest = [step for step in steps if done is not None and step > done.samples][:1]
    longer = [(updates, steps[0]) for updates in lengths if done is None or updates > done.updates]
    if done is not None and not longer:
        return [(done.updates, step) for step in rest]
    return longer


def _free(options: Sequence[Option], seconds: float) -> Option | None:
    """What needs no training and takes no longer: whoever asked expects to be told, whatever it promises."""
    able = (each for each in options if each.seconds <= seconds)
    return next((each for each in able if each.is_last and each.name.learning_rate is None), None)


def _named(trial: Trial) -> str:
    rate = "" if trial.learning_rate is None else f" at {trial.learning_rate:.2g}"
    return f"{trial.candidate.id}{rate}, {trial.updates} updates"
