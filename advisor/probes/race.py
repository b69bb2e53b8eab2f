"""The race: short fine-tunes of candidates, losers dropped early, inside a wall-clock budget.

Successive halving, always from scratch. Four rungs screen, all with the same number of updates: two
scouts at each of their learning rates, which tell whether the data asks for large steps or small ones;
the methods, whole and with half of the network trained, at rates like the scouts' best, those first that
did well elsewhere; the better ones' other settings and levers; the best of all at learning rates around
their best. Then the finalists are trained for as long as a real fine-tune, and those that can't be told
from the best of them again with other seeds, while there is time. A place in the next rung goes to the
most accurate of those that can't be told from the leader, then to the others; what is dearer and surely
worse is dropped.

What the clock decides is written into the store with what was found, so that a race that was killed
goes on as it was planned, and one that ended is only read.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice, zip_longest
from typing import Any, TypeVar

import torch

from advisor.errors import DataError
from advisor.interrupts import stoppable
from advisor.methods import get_method, learning_rates
from advisor.paired import paired_gap
from advisor.probes.executor import Executor, InProcess
from advisor.probes.train import (
    Answers,
    Probe,
    Trainer,
    Trial,
    accuracy_of,
    head_of,
    training_of,
)
from advisor.records import FEATURES, Accuracy, Candidate, Cost, Features
from advisor.store import Store
from advisor.training.update import reestimation_updates

_log = logging.getLogger(__name__)
Report = Callable[[float, str], None]  # fraction done, what is running
_Item = TypeVar("_Item")
_Entry = tuple[Candidate, float]  # and a learning rate

_RUNGS = ("scouts", "methods", "variants", "learning rates", "finalists", "second seed", "third seed")
_SHARES = (0.1, 0.28, 0.23, 0.3, 1.0, 1.0, 1.0)  # of the time that is left
_FINAL = _RUNGS.index("finalists")
_FINAL_SHARE = 0.35  # of all time: about what the others leave
_SCOUTS = 2
_LEAST_METHODS = 4  # that are screened, however short that must be
_LEAST_LEADERS, _TUNED, _FINALISTS = 2, 4, 8  # go on to the second, third and last rung
_SCREENING = 0.2  # of a whole fine-tune's updates
_WORTHWHILE = 1.5  # times the screening's updates: what a finalist must be trained for at least
_NEARBY = (5**-0.5, 5**0.5)  # learning rates around the best: half a step of most methods' grids
_LEAST_UPDATES = 12  # a probe of fewer says nothing
_EVALUATION_SHARE = 0.25  # of a screening probe's time, at most
_LEAST_SAMPLES = 40  # judged on fewer, nothing can be told apart
_TIMED = 3  # candidates, beforehand; what others take is told from FLOPs, then from their probes


@dataclass(frozen=True, slots=True)
class RaceResult:
    """What the race found, by candidate."""

    base: Accuracy | None  # the model as it is
    accuracies: Mapping[Candidate, Accuracy]
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
    min_retained: float | None = None,
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
        min_retained: accuracy on the old data; what is surely below it goes no further.
        store: where probes are looked for and kept.
        key: of the model, the data and the environment, in the store.
        executor: what runs the probes; None: this process.
        report: called before each probe.

    Raises:
        DataError: every probe of every candidate diverged.
    """
    racing = _Race(trainer, costs, seconds, updates, seed, min_retained, store, key or {}, executor, report)
    return racing.run(judge_base)


class _Race:
    def __init__(
        self,
        trainer: Trainer,
        costs: Mapping[Candidate, Cost],
        seconds: float,
        updates: int,
        seed: int,
        min_retained: float | None,
        store: Store | None,
        key: Mapping[str, Any],
        executor: Executor | None,
        report: Report,
    ) -> None:
        self._trainer, self._seconds, self._updates, self._seed = trainer, seconds, updates, seed
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
            "min_retained": min_retained,
        }
        self._min_retained = min_retained
        self._accuracies: dict[Candidate, Accuracy] = {}  # with the best of its heads
        self._of_heads: dict[Candidate, dict[Features | None, Accuracy]] = {}
        self._failures: dict[Candidate, str] = {}
        self._warnings: list[str] = []
        solves = any(head is not None for heads in self._alike.values() for head in heads)
        self._pace = _Pace(self._costs, len(trainer.dataset.train) if solves else 0)
        self._start = time.perf_counter()
        self._screening: tuple[int, int] | None = None  # updates and held-out images of a probe
        self._screened: dict[Candidate, Probe] = {}  # the best of each candidate
        self._finalists: tuple[int, int] | None = None  # likewise of a finalist's training
        self._trained: dict[Candidate, list[Probe]] = {}  # each finalist's, by seed
        self._recalled_seconds = 0.0  # that probes found in the store once took
        self._probes_run = self._probes_recalled = 0

    def run(self, judge_base: bool) -> RaceResult:
        base = None
        try:
            with stoppable():
                correct, retained = self._base()
                base = _accuracy(correct, retained) if judge_base else None
                self._run_rungs(len(correct))
        except KeyboardInterrupt:
            self._warnings.append("interrupted: what was found until then is all that is known")
        self._warnings += self._executor.losses
        self._settle_for_screened()
        if self._costs and not self._accuracies and any("diverged" in f for f in self._failures.values()):
            raise DataError(
                "every probe diverged (the loss became NaN): check the images' range and --mean/--std, "
                "and that the model's weights are finite"
            )
        for candidate in self._costs:
            if candidate not in self._accuracies:
                self._failures.setdefault(
                    candidate, "not probed: --probe-time is too short for every candidate"
                )
        return RaceResult(
            base,
            {
                candidate: replace(found, finalist=self._accuracies[one].finalist)
                for one, heads in self._of_heads.items()
                if one in self._accuracies
                for head, found in heads.items()
                for candidate in self._alike[one].get(head, ())
            },
            {
                candidate: why
                for one, why in self._failures.items()
                for each in self._alike[one].values()
                for candidate in each
            },
            self._spent(),
            tuple(self._warnings),
            self._probes_run,
            self._probes_recalled,
        )

    def _settle_for_screened(self) -> None:
        """Where no finalist was trained, what was screened is all that is known: it is judged alike."""
        trained = {c: a for c, a in self._accuracies.items() if a.learning_rate is not None}
        if not trained or any(accuracy.finalist for accuracy in trained.values()):
            return
        self._accuracies |= {c: replace(accuracy, finalist=True) for c, accuracy in trained.items()}
        updates = max(accuracy.updates for accuracy in trained.values())
        self._warnings.append(
            f"there was no time to train a finalist for as long as a real fine-tune: accuracies are those "
            f"after {updates:,} of its {self._updates:,} updates; allow more --probe-time"
        )

    def _base(self) -> tuple[bytes, bytes | None]:
        """Which held-out, and old, images the model classifies right: of as many as finalists get."""
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
            self._pace.per_image = fastest / few
            affordable = int(_EVALUATION_SHARE * _FINAL_SHARE * self._seconds * few / fastest)
            samples = min(len(self._trainer.dataset.validation), max(affordable, _LEAST_SAMPLES))
            right = self._trainer.judge_base(samples)
            retained = self._trainer.judge_base_retained(samples)
            return {"seconds_per_image": fastest / few, "correct": right.hex(), "retained": _hex(retained)}

        found = self._remembered("base", {"seconds": self._seconds}, judged)
        self._pace.per_image = found["seconds_per_image"]
        return bytes.fromhex(found["correct"]), _bytes(found.get("retained"))

    def _run_rungs(self, samples: int) -> None:
        self._judge_untrained(samples)
        opening = self._opening()
        # Middle rates first: where there is no time to scout, they are all that is tried.
        entries = _by_turns([(c, rate) for rate in _nearest_first(c, 0)] for c in opening[:_SCOUTS])
        for rung in range(len(_RUNGS)):
            probes = self._run_rung(rung, entries, samples, opening) if entries else []
            entries = self._promoted(rung, probes, opening)

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
        self._judged(trials, last=True)

    def _heads(self, training: Candidate) -> tuple[Features, ...]:
        return tuple(head for head in FEATURES if head in self._alike[training])

    def _opening(self) -> list[Candidate]:
        """Each method whole and with half of the network trained, the promising first (`Method.opening`)."""
        candidates = [c for c in self._costs if learning_rates(c)]
        whole = _middles(c for c in candidates if not c.levers.scope)
        half = _widest(c for c in candidates if c.levers.scope)
        whole.sort(key=lambda c: get_method(c.method).opening[0])
        half.sort(key=lambda c: get_method(c.method).opening[1])
        return _by_turns([whole, half])

    def _plan(
        self, rung: int, entries: Sequence[_Entry], samples: int, opening: Sequence[Candidate]
    ) -> dict[str, int]:
        """How many of the entries get how many updates and held-out images, in the time of the rung."""
        candidates = [candidate for candidate, _ in entries]
        self._time(candidates)
        left = self._left() * self._executor.workers
        seconds = left * _SHARES[rung]
        if self._screening is None:
            updates = min(max(round(_SCREENING * self._updates), _LEAST_UPDATES), self._updates)
            samples = min(samples, self._pace.affordable_samples(candidates[0], updates))
            seconds = left * (_SHARES[0] + (1 - _SHARES[0]) * _SHARES[1])
            # All that is screened has as many updates: enough for the methods that come next, too.
            least = opening[_SCOUTS:_LEAST_METHODS]
            affordable = self._pace.updates([*candidates, *least], samples, seconds)
            admitted = len(entries)
            if affordable < min(_LEAST_UPDATES, updates):
                admitted = len(opening[:_SCOUTS])
                affordable = self._pace.updates([*candidates[:admitted], *least], samples, seconds)
            updates = min(max(affordable, _LEAST_UPDATES // 3), updates)
        elif rung < _FINAL:
            updates, samples = self._screening
            admitted = self._admitted(candidates, updates, samples, seconds)
        elif self._finalists is not None:
            updates, samples = self._finalists
            admitted = self._admitted(candidates, updates, samples, seconds, least=0)
        else:
            admitted = self._admitted(candidates, self._updates, samples, seconds)
            affordable = self._pace.updates(candidates[:admitted], samples, seconds)
            updates = min(affordable, self._updates)
            # A finalist that trains hardly longer than it did would say less than what is known.
            if updates < min(_WORTHWHILE * self._screening[0], self._updates):
                admitted = 0
        return {"entries": admitted, "updates": updates, "samples": samples}

    def _admitted(
        self, candidates: Sequence[Candidate], updates: int, samples: int, seconds: float, *, least: int = 1
    ) -> int:
        """How many of the first there is time for."""
        admitted = len(candidates)
        while admitted > least and self._pace.updates(candidates[:admitted], samples, seconds) < updates:
            admitted -= 1
        return admitted

    def _run_rung(
        self, rung: int, entries: Sequence[_Entry], samples: int, opening: Sequence[Candidate]
    ) -> list[Probe]:
        """Probe as many of the entries as there is time for; if the rung once ended, those of then."""
        name = _RUNGS[rung]
        key = self._race_key | {"rung": name}
        plan = self._remembered("plan", key, lambda: self._plan(rung, entries, samples, opening))
        if rung == 0:
            self._screening = plan["updates"], plan["samples"]
            if plan["updates"] < min(_LEAST_UPDATES, self._updates):
                self._warnings.append(
                    f"--probe-time allows fewer than {_LEAST_UPDATES} updates a probe: "
                    "the accuracies say little; allow more time"
                )
        elif rung == _FINAL:
            self._finalists = plan["updates"], plan["samples"]
        seed = self._seed + max(rung - _FINAL, 0)
        trials = [
            Trial(candidate, rate, plan["updates"], plan["samples"], seed, self._heads(candidate))
            for candidate, rate in entries[: plan["entries"]]
        ]
        ended = self._recall("rung", key)
        if ended is not None:
            trials = [trial for trial in trials if _trial_key(trial) in ended["trials"]]
        probes = self._judged(trials, last=rung >= _FINAL)
        self._keep("rung", key, {"trials": [_trial_key(probe.trial) for probe in probes]})
        if len(probes) < len(trials):
            self._warnings.append(
                f"updates took longer than at first: {len(trials) - len(probes)} of the {len(trials)} "
                f"probes of the rung of {name} were left out; allow more --probe-time, or leave the "
                "machine alone"
            )
        return probes

    def _judged(self, trials: Sequence[Trial], *, last: bool) -> list[Probe]:
        """The trials' probes in their order, judged even if interrupted."""
        finished: dict[Trial, Probe] = {}
        try:
            for probe in self._probes(trials):
                finished[probe.trial] = probe
                right = f"{_score(probe):.1%} right" if probe.correct is not None else probe.failure
                _log.debug("probed %s: %s, %.1f s", _named(probe.trial), right, probe.seconds)
        finally:
            probes = [finished[trial] for trial in trials if trial in finished]
            self._judge(probes, last=last)
        return probes

    def _probes(self, trials: Sequence[Trial]) -> Iterator[Probe]:
        """Those in the store, then the others as they finish, while there is time."""
        missing = []
        for trial in trials:
            found = self._recall("probe", _trial_key(trial))
            if found is None:
                missing.append(trial)
                continue
            correct, retained = _bytes(found["correct"]), _bytes(found.get("retained"))
            self._recalled_seconds += found["seconds"] / self._executor.workers
            self._probes_recalled += 1
            solved = tuple(
                Answers(bytes.fromhex(right), _bytes(old)) for right, old in found.get("solved", ())
            )
            yield Probe(trial, correct, found["seconds"], found["failure"], retained, solved)

        def in_time() -> Iterator[Trial]:
            for number, trial in enumerate(missing):
                if number and trial.learning_rate and self._left() < self._pace.expected(trial):
                    return
                self._tell(_named(trial))
                yield trial

        for probe in self._executor.run(in_time()):
            self._probes_run += 1
            self._pace.learn(probe)
            value = {
                "correct": _hex(probe.correct),
                "retained": _hex(probe.retained),
                "solved": [(each.correct.hex(), _hex(each.retained)) for each in probe.solved],
                "seconds": probe.seconds,
                "failure": probe.failure,
            }
            # What failed otherwise, for want of memory say, may go better another time.
            if probe.correct is not None or probe.failure == "diverged":
                self._keep("probe", _trial_key(probe.trial), value)
            yield probe

    def _judge(self, probes: Sequence[Probe], *, last: bool) -> None:
        """Each candidate's best probe is its accuracy, a finalist's those of all seeds."""
        for probe in probes:
            candidate, correct = probe.trial.candidate, probe.correct
            if correct is None:
                # Shorter training that went well says too little; so does another seed's where this diverged.
                if last and (probe.failure == "diverged" or candidate not in self._trained):
                    self._accuracies.pop(candidate, None)
                if candidate not in self._accuracies:
                    self._failures[candidate] = _failure(probe)
                continue
            if last:
                found = self._trained.setdefault(candidate, [])
                found.append(probe)
            else:
                best = max(self._screened.get(candidate, probe), probe, key=_score)
                self._screened[candidate] = best
                found = [best]
            self._failures.pop(candidate, None)
            accuracies = {
                head: _accuracy(
                    _summed([each.correct for each in answers]),
                    _summed([each.retained for each in answers]),
                    seeds=len(answers),
                    learning_rate=found[0].trial.learning_rate,
                    updates=found[0].trial.updates,
                    finalist=last,
                )
                for head, answers in zip(
                    (None, *probe.trial.heads), zip(*map(_answers, found), strict=True), strict=True
                )
            }
            self._of_heads[candidate] = accuracies
            self._accuracies[candidate] = max(
                (accuracies[head] for head in self._alike[candidate]), key=lambda accuracy: accuracy.mean
            )

    def _promoted(self, rung: int, probes: Sequence[Probe], opening: Sequence[Candidate]) -> list[_Entry]:
        """The next rung's entries, the most promising first."""
        if rung >= _FINAL:
            trained = {c: a for c, a in self._accuracies.items() if c in self._trained and a.learning_rate}
            order = _by_promise({c: trained[c] for c in self._costs if c in trained})
            alike = [c for c in order if not _surely_better(trained[order[0]], trained[c])]
            return [(c, trained[c].learning_rate or 0.0) for c in alike] if len(alike) > 1 else []
        if rung == 0:
            step = self._preferred_step(probes)
            return _by_turns([(c, rate) for rate in _nearest_first(c, step)] for c in opening[_SCOUTS:])
        screened = {c: self._accuracies[c] for c in self._costs if c in self._screened}  # in order of cost
        order = _by_promise(self._undominated(self._keeping(screened)))
        rate_of = {c: screened[c].learning_rate or 0.0 for c in order}
        if rung == 1:
            leaders = order[: max(-(-len(order) // 3), _LEAST_LEADERS)]
            unseen = [c for c in self._costs if c not in screened]
            unseen.sort(key=lambda c: -math.inf if c.levers.scope is None else -c.levers.scope)  # whole first
            entries: dict[Candidate, float] = {}
            for candidate, rate in _by_turns(
                [(c, rate_of[one]) for c in unseen if c.method == one.method] for one in leaders
            ):
                entries.setdefault(candidate, rate)
            return list(entries.items())
        if rung == 2:
            return [(c, float(f"{rate_of[c] * factor:.2g}")) for c in order[:_TUNED] for factor in _NEARBY]
        return [(c, rate_of[c]) for c in order[:_FINALISTS]]

    def _preferred_step(self, probes: Sequence[Probe]) -> int:
        """How far from the middle of their grids the scouts' best learning rate is, in steps of a grid."""
        scores: dict[int, list[float]] = {}
        for probe in probes:
            rates = learning_rates(probe.trial.candidate)
            step = rates.index(probe.trial.learning_rate) - rates.index(_middle(rates))
            retained = accuracy_of(probe.retained) if probe.retained else None
            scores.setdefault(step, []).append(0.0 if self._forgets(retained) else _score(probe))
        most = max(map(len, scores.values()), default=0)
        tried = {step: sum(each) for step, each in scores.items() if len(each) == most}
        return max(sorted(tried, key=abs), key=lambda step: tried[step], default=0)

    def _keeping(self, screened: dict[Candidate, Accuracy]) -> dict[Candidate, Accuracy]:
        """Without those that surely forget too much, unless all do: longer training forgets more."""
        kept = {c: accuracy for c, accuracy in screened.items() if not self._forgets(accuracy.retained)}
        return kept or screened

    def _forgets(self, retained: Accuracy | None) -> bool:
        least = self._min_retained
        return least is not None and retained is not None and retained.high < least

    def _undominated(self, screened: Mapping[Candidate, Accuracy]) -> dict[Candidate, Accuracy]:
        """Without those that another one beats in memory, FLOPs and, surely, in accuracy."""

        def beaten(candidate: Candidate) -> bool:
            own = self._costs[candidate]
            return any(
                cost.peak_memory_bytes <= own.peak_memory_bytes
                and cost.flops.total <= own.flops.total
                and _surely_better(screened[other], screened[candidate])
                for other in screened
                if other != candidate and (cost := self._costs[other])
            )

        return {candidate: accuracy for candidate, accuracy in screened.items() if not beaten(candidate)}

    def _time(self, candidates: Iterable[Candidate]) -> None:
        """Learn how long an update of the first few takes."""
        safe = (candidate for candidate in candidates if not self._executor.is_risky(candidate))
        for candidate in islice(dict.fromkeys(safe), max(_TIMED - len(self._pace.timed), 0)):

            def timed(candidate: Candidate = candidate) -> dict[str, Any]:
                self._tell(f"timing {candidate.id}")
                try:
                    with _threads(self._executor.threads):
                        setup, each = self._trainer.time_updates(candidate)
                except Exception:  # noqa: BLE001 - its probes will say why
                    setup = each = 0.0
                return {"setup_seconds": setup, "update_seconds": each}

            found = self._remembered("timing", {"candidate": candidate.id}, timed)
            self._pace.timed[candidate] = found["setup_seconds"], found["update_seconds"]

    def _spent(self) -> float:
        return time.perf_counter() - self._start + self._recalled_seconds

    def _left(self) -> float:
        return max(self._seconds - self._spent(), 0.0)

    def _tell(self, running: str) -> None:
        spent = self._spent()
        self._report(spent / self._seconds if spent < self._seconds else 1.0, running)

    def _remembered(self, kind: str, key: Mapping[str, Any], find: Callable[[], dict[str, Any]]) -> Any:
        found = self._recall(kind, key)
        if found is None:
            found = find()
            self._keep(kind, key, found)
        return found

    def _recall(self, kind: str, key: Mapping[str, Any]) -> dict[str, Any] | None:
        return self._store.get(kind, self._key | dict(key))

    def _keep(self, kind: str, key: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        self._store.put(kind, self._key | dict(key), value)


class _Pace:
    """How long probes take on this machine."""

    def __init__(self, costs: Mapping[Candidate, Cost], solved_on: int) -> None:
        """`solved_on`: how many images a head is solved on after a probe's training; 0: none is."""
        self._solved_on = solved_on
        self._fronts: set[tuple[Any, ...]] = set()  # whose outputs are there: no probe waits for them again
        self.per_image = 0.0  # seconds to classify one
        self.timed: dict[Candidate, tuple[float, float]] = {}  # seconds before the first update, and of one
        self._costs = costs

    def expected(self, trial: Trial) -> float:
        """Seconds of the trial."""
        setup, each = self._of(trial.candidate)
        return setup + trial.updates * each + self.judging(trial.samples, solves=bool(trial.heads))

    def judging(self, samples: int, *, solves: bool) -> float:
        """Seconds to judge a network, its heads solved before if it has any."""
        return (samples + self._solved_on * solves) * self.per_image

    def updates(self, candidates: Sequence[Candidate], samples: int, seconds: float) -> int:
        """How many updates each of the candidates can have."""
        setups, each = (sum(part) for part in zip(*map(self._of, candidates), strict=True))
        left = seconds - setups - len(candidates) * self.judging(samples, solves=True)
        return max(int(left / max(each, 1e-6)), 0)

    def affordable_samples(self, candidate: Candidate, updates: int) -> int:
        """How many held-out images a probe of so many updates can be judged on."""
        training = updates * self._of(candidate)[1]
        share = _EVALUATION_SHARE / (1 - _EVALUATION_SHARE)
        return max(int(share * training / max(self.per_image, 1e-9)), _LEAST_SAMPLES)

    def learn(self, probe: Probe) -> None:
        """Expect of the candidate, and of those like it, what its probe took."""
        trial = probe.trial
        if probe.correct is not None and trial.learning_rate is not None:
            setup = self.timed.pop(trial.candidate, (0.0, 0.0))[0]
            self.timed[trial.candidate] = max(setup, probe.setup_seconds), probe.update_seconds
        if probe.correct is not None:
            self._fronts.add(_front(trial.candidate))

    def _of(self, candidate: Candidate) -> tuple[float, float]:
        """The candidate's times, or by FLOPs those of the most alike, the last one first."""
        if not self.timed:
            return 0.0, 0.0
        setup, each = self._like(candidate)
        return (0.0 if _front(candidate) in self._fronts else setup), each

    def _like(self, candidate: Candidate) -> tuple[float, float]:
        if candidate in self.timed:
            return self.timed[candidate]
        alike = max(
            reversed(self.timed),
            key=lambda known: (
                known.method == candidate.method,
                known.levers.cached_prefix == candidate.levers.cached_prefix,
            ),
        )
        setup, each = self.timed[alike]
        return setup, each * self._costs[candidate].flops.total / self._costs[alike].flops.total


def _front(candidate: Candidate) -> tuple[Any, ...]:
    """What runs once for all candidates that have the same."""
    levers = candidate.levers
    return levers.scope if levers.cached_prefix != "no" else None, levers.statistics == "reestimated"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with as many threads as whoever runs the probes has."""
    own = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(own)


def _accuracy(correct: bytes, retained: bytes | None, *, seeds: int = 1, **known: Any) -> Accuracy:
    """On the new data, and on the old where there is some."""
    old = accuracy_of(retained, seeds=seeds) if retained else None
    return replace(accuracy_of(correct, seeds=seeds, **known), retained=old)


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


def _middles(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Each method's middle setting with the fewest levers."""
    middles = []
    for group in _by_method(candidates):
        fewest = min(len(candidate.levers.described()) for candidate in group)
        middles.append(_middle([c for c in group if len(c.levers.described()) == fewest]))
    return middles


def _widest(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Of each method, the one that trains the most blocks, with the fewest other levers."""
    return [
        max(group, key=lambda c: (c.levers.scope or 0, -len(c.levers.described())))
        for group in _by_method(candidates)
    ]


def _by_method(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.method, []).append(candidate)
    return list(groups.values())


def _middle(items: Sequence[_Item]) -> _Item:
    return items[len(items) // 2]


def _nearest_first(candidate: Candidate, step: int) -> list[float]:
    """The candidate's learning rates, the one so many steps above the middle of its grid first."""
    rates = learning_rates(candidate)
    preferred = len(rates) // 2 + step
    return sorted(rates, key=lambda rate: abs(rates.index(rate) - preferred))


def _by_turns(lists: Iterable[Sequence[_Item]]) -> list[_Item]:
    """The first of each, then the second of each, and so on."""
    return [item for turn in zip_longest(*lists) for item in turn if item is not None]


def _by_promise(screened: Mapping[Candidate, Accuracy]) -> list[Candidate]:
    """Those that can't be told from the most accurate, by accuracy; then the others.

    Can't be told: the paired interval of the difference holds zero. `screened` is in order of cost,
    which decides ties.
    """
    by_accuracy = sorted(screened, key=lambda candidate: screened[candidate].mean, reverse=True)
    if not by_accuracy:
        return []
    leader = screened[by_accuracy[0]]
    return sorted(by_accuracy, key=lambda candidate: _surely_better(leader, screened[candidate]))


def _surely_better(one: Accuracy, other: Accuracy) -> bool:
    return paired_gap(one, other)[0] > 0


def _answers(probe: Probe) -> tuple[Answers, ...]:
    """Of the network as it was trained, then with each of the trial's heads."""
    return Answers(probe.correct or b"", probe.retained), *probe.solved


def _score(probe: Probe) -> float:
    """The share of right answers, with the best of its heads."""
    return max(sum(each.correct) / max(len(each.correct), 1) for each in _answers(probe))


def _head_in(training: Candidate, candidate: Candidate) -> Features | None:
    """Which head the candidate has, other than the one that its training ends with."""
    head = head_of(candidate)
    return None if head == head_of(training) else head
