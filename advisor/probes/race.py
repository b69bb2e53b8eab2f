"""The race: short fine-tunes of candidates, losers dropped early, inside a wall-clock budget.

Successive halving in four rungs, each with fewer entries that train for longer, always from scratch:
the methods, each at its plainest middle setting and every learning rate; the better methods' other
settings and levers; the best of all, at learning rates around their best; and the finalists, for as
long as a real fine-tune. A place in the next rung goes to the most accurate, and to the cheapest that
may be as good; what is dearer and surely worse is dropped.

What the clock decides is written into the store with what was found, so that a race that was killed
goes on as it was planned, and one that ended is only read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any, TypeVar

from advisor.errors import DataError
from advisor.methods import learning_rates
from advisor.methods.update import RECALIBRATION_SAMPLES
from advisor.paired import paired_gap
from advisor.probes.executor import Executor, InProcess
from advisor.probes.train import Probe, Trainer, Trial, accuracy_of, trained_as
from advisor.records import Accuracy, Candidate, Cost
from advisor.store import Store

Report = Callable[[float, str], None]  # fraction done, what is running
_Item = TypeVar("_Item")
_Entry = tuple[Candidate, float]  # and a learning rate

_RUNGS = ("methods", "variants", "learning rates", "finalists")
_SHARES = (0.2, 0.25, 0.2, 0.35)  # of the time
_LEAST_KEPT = 4  # candidates that reach the last but one rung
_NEARBY = (1.0, 5**-0.5, 5**0.5)  # learning rates around the best: half a step of most methods' grids
_LEAST_UPDATES = 12  # a probe of fewer says nothing
_TELLING_UPDATES = 40  # more entries are admitted only where each can have as many
_EVALUATION_SHARE = 0.25  # of a rung's time, at most
_LEAST_SAMPLES = 40  # judged on fewer, nothing can be told apart


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
    store: Store | None = None,
    key: Mapping[str, Any] | None = None,
    executor: Executor | None = None,
    report: Report = lambda fraction, running: None,
) -> RaceResult:
    """Probe the candidates for about `seconds` of wall clock.

    Args:
        costs: of those that the budget admits, cheapest first: among those that may be as good as the
            best, cheaper ones are kept.
        updates: of a whole fine-tune: what the finalists train for, if there is time.
        judge_base: whether the model's own accuracy on the held-out samples means anything.
        store: where probes are looked for and kept.
        key: of the model, the data and the environment, in the store.
        executor: what runs the probes; None: this process.
        report: called after each probe.

    Raises:
        DataError: every probe of every candidate diverged.
    """
    racing = _Race(trainer, costs, seconds, updates, seed, store, key or {}, executor, report)
    return racing.run(judge_base)


class _Race:
    def __init__(
        self,
        trainer: Trainer,
        costs: Mapping[Candidate, Cost],
        seconds: float,
        updates: int,
        seed: int,
        store: Store | None,
        key: Mapping[str, Any],
        executor: Executor | None,
        report: Report,
    ) -> None:
        self._trainer, self._seconds, self._updates, self._seed = trainer, seconds, updates, seed
        self._store, self._key = store or Store(None), dict(key)
        self._executor, self._report = executor or InProcess(trainer, lambda _: False), report
        # Those that train alike are raced once.
        self._alike: dict[Candidate, list[Candidate]] = {}
        for candidate in costs:
            self._alike.setdefault(trained_as(candidate, trainer.census), []).append(candidate)
        self._costs = {one: costs[others[0]] for one, others in self._alike.items()}
        self._race_key = {
            "race": [one.id for one in self._costs],
            "seconds": seconds,
            "updates": updates,
            "seed": seed,
        }
        self._accuracies: dict[Candidate, Accuracy] = {}
        self._failures: dict[Candidate, str] = {}
        self._warnings: list[str] = []
        self._pace = _Pace(self._costs)
        self._start = time.perf_counter()
        self._recalled_seconds = 0.0  # that probes found in the store once took
        self._probes_run = self._probes_recalled = 0

    def run(self, judge_base: bool) -> RaceResult:
        base = None
        try:
            correct = self._base()
            base = accuracy_of(correct) if judge_base else None
            self._run_rungs(len(correct))
        except KeyboardInterrupt:
            self._warnings.append("interrupted: what was found until then is all that is known")
        self._warnings += self._executor.losses
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
            {other: found for one, found in self._accuracies.items() for other in self._alike[one]},
            {other: why for one, why in self._failures.items() for other in self._alike[one]},
            self._spent(),
            tuple(self._warnings),
            self._probes_run,
            self._probes_recalled,
        )

    def _base(self) -> bytes:
        """Which held-out images the model classifies right as it is: of as many as finalists get."""

        def judged() -> dict[str, Any]:
            self._tell("the model as it is")
            few = min(32, len(self._trainer.dataset.validation))
            fastest = float("inf")
            for _ in range(3):  # the first pass compiles kernels
                start = time.perf_counter()
                self._trainer.judge_base(few)
                fastest = min(fastest, time.perf_counter() - start)
            self._pace.per_image = fastest / few
            samples = self._affordable_samples(_LEAST_KEPT, _SHARES[-1] * self._seconds)
            right = self._trainer.judge_base(samples)
            return {"seconds_per_image": fastest / few, "correct": right.hex()}

        found = self._remembered("base", {"seconds": self._seconds}, judged)
        self._pace.per_image = found["seconds_per_image"]
        return bytes.fromhex(found["correct"])

    def _run_rungs(self, samples: int) -> None:
        self._judge_untrained(samples)
        entries = self._opening()
        for rung, name in enumerate(_RUNGS):
            if not entries:
                return

            def planned(rung: int = rung, entries: list[_Entry] = entries) -> dict[str, Any]:
                return self._plan(rung, entries, samples)

            plan = self._remembered("plan", self._race_key | {"rung": name}, planned)
            if plan["updates"] < _LEAST_UPDATES and rung == 0:
                self._warnings.append(
                    f"--probe-time allows fewer than {_LEAST_UPDATES} updates a probe: "
                    "the accuracies say little; allow more time"
                )
            trials = [
                Trial(candidate, rate, plan["updates"], plan["samples"], self._seed)
                for candidate, rate in entries[: plan["entries"]]
            ]
            entries = self._promoted(rung, self._run_rung(name, trials))

    def _judge_untrained(self, samples: int) -> None:
        """One probe for each candidate that has no learning rate."""
        images = min(len(self._trainer.dataset.train), RECALIBRATION_SAMPLES)
        updates = max(images // self._trainer.batch_size, 1)
        trials = [
            Trial(candidate, None, updates, samples, 0)
            for candidate in self._costs
            if not learning_rates(candidate)
        ]
        self._judged(trials, last=True)

    def _opening(self) -> list[_Entry]:
        """Each method's plainest middle setting: at its middle learning rate, then at the others."""
        each = ((c, learning_rates(c)) for c in _middles(self._costs))
        turns = zip_longest(*([(c, rate) for rate in _middle_first(rates)] for c, rates in each if rates))
        return [entry for turn in turns for entry in turn if entry is not None]

    def _plan(self, rung: int, entries: Sequence[_Entry], samples: int) -> dict[str, int]:
        """How many of the entries get how many updates and held-out images, in the time of the rung."""
        last = rung == len(_RUNGS) - 1
        self._time(candidate for candidate, _ in entries)
        seconds = self._left() * _SHARES[rung] / sum(_SHARES[rung:]) * self._executor.workers
        # A whole fine-tune of a few finalists tells more than parts of many.
        wanted = self._updates if last else _TELLING_UPDATES
        least = min(len(entries), 2 if last else _LEAST_KEPT)
        if rung == 0:
            least = len({candidate for candidate, _ in entries})
        admitted = len(entries)
        while True:
            judged = samples if last else min(samples, self._affordable_samples(admitted, seconds))
            updates = self._pace.updates([c for c, _ in entries[:admitted]], judged, seconds)
            if admitted <= least or updates >= wanted:
                break
            admitted -= 1
        most = max(self._updates // 2 ** (len(_RUNGS) - 1 - rung), 1)
        return {
            "entries": admitted,
            "updates": min(max(updates, _LEAST_UPDATES // 3), most),
            "samples": judged,
        }

    def _run_rung(self, name: str, trials: Sequence[Trial]) -> dict[Candidate, Probe]:
        """Each candidate's best probe; where the rung once ended, of those that it had then."""
        key = self._race_key | {"rung": name}
        ended = self._recall("rung", key)
        if ended is not None:
            trials = [trial for trial in trials if _trial_key(trial) in ended["trials"]]
        probes, best = self._judged(trials, last=name == _RUNGS[-1])
        self._pace.learn(probes)
        self._keep("rung", key, {"trials": [_trial_key(probe.trial) for probe in probes]})
        if len(probes) < len(trials):
            self._warnings.append(
                f"updates took longer than at first: {len(trials) - len(probes)} of the {len(trials)} "
                f"probes of the rung of {name} were left out; allow more --probe-time, or leave the "
                "machine alone"
            )
        return best

    def _judged(self, trials: Sequence[Trial], *, last: bool) -> tuple[list[Probe], dict[Candidate, Probe]]:
        """The trials' probes in their order, and each candidate's best, judged even if interrupted."""
        finished: dict[Trial, Probe] = {}
        try:
            for probe in self._probes(trials):
                finished[probe.trial] = probe
        finally:
            probes = [finished[trial] for trial in trials if trial in finished]
            best = self._judge(probes, last=last)
        return probes, best

    def _probes(self, trials: Sequence[Trial]) -> Iterator[Probe]:
        """Those in the store, then the others as they finish, while there is time."""
        missing = []
        for trial in trials:
            found = self._recall("probe", _trial_key(trial))
            if found is None:
                missing.append(trial)
                continue
            correct = None if found["correct"] is None else bytes.fromhex(found["correct"])
            self._recalled_seconds += found["seconds"] / self._executor.workers
            self._probes_recalled += 1
            yield Probe(trial, correct, found["seconds"], found["failure"])

        def in_time() -> Iterator[Trial]:
            for number, trial in enumerate(missing):
                if number and trial.learning_rate and self._left() < self._pace.expected(trial):
                    return
                self._tell(_named(trial))
                yield trial

        for probe in self._executor.run(in_time()):
            self._probes_run += 1
            value = {
                "correct": None if probe.correct is None else probe.correct.hex(),
                "seconds": probe.seconds,
                "failure": probe.failure,
            }
            # What failed otherwise, for want of memory say, may go better another time.
            if probe.correct is not None or probe.failure == "diverged":
                self._keep("probe", _trial_key(probe.trial), value)
            yield probe

    def _judge(self, probes: Sequence[Probe], *, last: bool) -> dict[Candidate, Probe]:
        """Each candidate's best probe, written down as its accuracy; why the others have none."""
        best: dict[Candidate, Probe] = {}
        for probe in probes:
            candidate = probe.trial.candidate
            known = best.get(candidate)
            if probe.correct is None:
                self._failures[candidate] = _failure(probe)
                self._accuracies.pop(candidate, None)  # shorter training that went well says too little
            elif known is None or _score(probe) > _score(known):
                best[candidate] = probe
        for candidate, probe in best.items():
            self._failures.pop(candidate, None)
            self._accuracies[candidate] = accuracy_of(
                probe.correct or b"",
                learning_rate=probe.trial.learning_rate,
                updates=probe.trial.updates,
                finalist=last,
            )
        # In order of cost, whatever finished first.
        return {candidate: best[candidate] for candidate in self._costs if candidate in best}

    def _promoted(self, rung: int, best: Mapping[Candidate, Probe]) -> list[_Entry]:
        """The next rung's entries, the most promising first."""
        contenders = self._undominated(best)
        order = _by_promise(contenders)
        if rung == 0:
            kept = order[: max(-(-len(order) // 2), _LEAST_KEPT)]
            rates = {one.method: best[one].trial.learning_rate for one in kept}
            groups = [[one, *(c for c in self._costs if c.method == one.method and c != one)] for one in kept]
            turns = [c for turn in zip_longest(*groups) for c in turn if c is not None]
            return [(c, rate) for c in turns if (rate := rates[c.method]) is not None]
        if rung == len(_RUNGS) - 1:
            return []
        kept = order[: max(len(order) // 8, _LEAST_KEPT)]
        around = _NEARBY if _RUNGS[rung + 1] == "learning rates" else (1.0,)
        return [
            (c, rate * factor) for c in kept for factor in around if (rate := best[c].trial.learning_rate)
        ]

    def _undominated(self, best: Mapping[Candidate, Probe]) -> dict[Candidate, Probe]:
        """Without those that another one beats in memory, FLOPs and, surely, in accuracy."""

        def beaten(candidate: Candidate) -> bool:
            own, accuracy = self._costs[candidate], accuracy_of(best[candidate].correct or b"")
            return any(
                cost.peak_memory_bytes <= own.peak_memory_bytes
                and cost.flops.total <= own.flops.total
                and paired_gap(accuracy_of(best[other].correct or b""), accuracy)[0] > 0
                for other in best
                if other != candidate and (cost := self._costs[other])
            )

        return {candidate: probe for candidate, probe in best.items() if not beaten(candidate)}

    def _time(self, candidates: Iterable[Candidate]) -> None:
        """Learn how long an update takes, of one candidate of each method."""
        for candidate in dict.fromkeys(candidates):
            if self._pace.knows(candidate) or self._executor.is_risky(candidate):
                continue

            def timed(candidate: Candidate = candidate) -> dict[str, Any]:
                self._tell(f"timing {candidate.id}")
                try:
                    setup, each = self._trainer.time_updates(candidate)
                except Exception:  # noqa: BLE001 - its probes will say why
                    setup = each = 0.0
                return {"setup_seconds": setup, "update_seconds": each}

            found = self._remembered("timing", {"candidate": candidate.id}, timed)
            self._pace.timed[candidate] = found["setup_seconds"], found["update_seconds"]

    def _affordable_samples(self, probes: int, seconds: float) -> int:
        """How many held-out samples that many probes can be judged on."""
        affordable = int(seconds * _EVALUATION_SHARE / (self._pace.per_image * max(probes, 1)))
        return min(len(self._trainer.dataset.validation), max(affordable, _LEAST_SAMPLES))

    def _spent(self) -> float:
        return time.perf_counter() - self._start + self._recalled_seconds

    def _left(self) -> float:
        return max(self._seconds - self._spent(), 0.0)

    def _tell(self, running: str) -> None:
        self._report(min(self._spent() / self._seconds, 1.0), running)

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

    def __init__(self, costs: Mapping[Candidate, Cost]) -> None:
        self.per_image = 0.0  # seconds to classify one
        self.timed: dict[Candidate, tuple[float, float]] = {}  # seconds before the first update, and of one
        self._costs = costs
        self._factor = 1.0  # what probes took against what was expected

    def knows(self, candidate: Candidate) -> bool:
        """Whether one of its method was timed."""
        return any(known.method == candidate.method for known in self.timed)

    def expected(self, trial: Trial) -> float:
        """Seconds of the trial."""
        setup, each = self._of(trial.candidate)
        return self._factor * (setup + trial.updates * each + trial.samples * self.per_image)

    def updates(self, candidates: Sequence[Candidate], samples: int, seconds: float) -> int:
        """How many updates each of the candidates can have."""
        setups, each = (sum(part) for part in zip(*map(self._of, candidates), strict=True))
        left = seconds / self._factor - setups - len(candidates) * samples * self.per_image
        return max(int(left / max(each, 1e-6)), 0)

    def learn(self, probes: Sequence[Probe]) -> None:
        """Expect what comes to be as much slower or faster as these were."""
        trained = [probe for probe in probes if probe.correct and self.knows(probe.trial.candidate)]
        expected = sum(self.expected(probe.trial) for probe in trained)
        if expected:
            self._factor *= sum(probe.seconds for probe in trained) / expected

    def _of(self, candidate: Candidate) -> tuple[float, float]:
        """The candidate's timing, or by FLOPs that of another one, of its method if there is one."""
        if candidate in self.timed:
            return self.timed[candidate]
        alike = sorted(self.timed, key=lambda known: known.method != candidate.method)
        if not alike:
            return 0.0, 0.0
        setup, each = self.timed[alike[0]]
        return setup, each * self._costs[candidate].flops.total / self._costs[alike[0]].flops.total


def _trial_key(trial: Trial) -> dict[str, Any]:
    """All of the trial, in plain values."""
    return asdict(trial) | {"candidate": trial.candidate.id}


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
    by_method: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_method.setdefault(candidate.method, []).append(candidate)
    middles = []
    for group in by_method.values():
        fewest = min(len(candidate.levers.described()) for candidate in group)
        plainest = [c for c in group if len(c.levers.described()) == fewest]
        middles.append(_middle(plainest))
    return middles


def _middle(items: Sequence[_Item]) -> _Item:
    return items[len(items) // 2]


def _middle_first(items: Sequence[_Item]) -> list[_Item]:
    middle = _middle(items)
    return [middle, *(item for item in items if item != middle)]


def _by_promise(best: Mapping[Candidate, Probe]) -> list[Candidate]:
    """In turn the most accurate that is left and the cheapest that may be as good as the best.

    `best` is in order of cost. May be as good: the paired interval of the difference holds zero.
    """
    by_accuracy = sorted(best, key=lambda candidate: _score(best[candidate]), reverse=True)
    if not by_accuracy:
        return []
    leader = accuracy_of(best[by_accuracy[0]].correct or b"")
    cheapest = [c for c in best if paired_gap(leader, accuracy_of(best[c].correct or b""))[0] <= 0]
    turns = [c for turn in zip_longest(by_accuracy, cheapest) for c in turn if c is not None]
    return list(dict.fromkeys(turns))


def _score(probe: Probe) -> float:
    return sum(probe.correct or b"") / max(len(probe.correct or b""), 1)
