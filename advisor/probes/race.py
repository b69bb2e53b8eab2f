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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from advisor.errors import DataError
from advisor.methods import learning_rates
from advisor.methods.update import RECALIBRATION_SAMPLES
from advisor.paired import paired_gap
from advisor.probes.executor import Executor, InProcess
from advisor.probes.train import Probe, Trainer, Trial, accuracy_of, trained_as
from advisor.records import Accuracy, Candidate, Cost
from advisor.store import Store

Report = Callable[[float, str], None]  # fraction done, what is running
_Entry = tuple[Candidate, float]  # and a learning rate

_RUNGS = ("methods", "variants", "learning rates", "finalists")
_SHARES = (0.2, 0.25, 0.2, 0.35)  # of the time
_LEAST_KEPT = 4  # candidates that reach the last but one rung
_NEARBY = (1.0, 5**-0.5, 5**0.5)  # learning rates around the best: half a step of most methods' grids
_LEAST_UPDATES = 12  # a probe of fewer says nothing
_TELLING_UPDATES = 40  # more variants are admitted only where each can have as many
_EVALUATION_SHARE = 0.25  # of a rung's time, at most
_OVERHEAD_SHARE = 0.1  # copying models and attaching methods
_LEAST_SAMPLES = 40  # judged on fewer, nothing can be told apart


@dataclass(frozen=True, slots=True)
class RaceResult:
    """What the race found, by candidate."""

    base: Accuracy | None  # the model as it is
    accuracies: Mapping[Candidate, Accuracy]
    failures: Mapping[Candidate, str]  # why a candidate has no accuracy
    seconds: float  # of this run and of the probes that it found in the store
    warnings: tuple[str, ...]
    probes_run: int  # now, not found in the store


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
        self._executor, self._report = executor or InProcess(trainer), report
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
        self._speeds: dict[Candidate, float] = {}  # seconds of an update
        self._start = time.perf_counter()
        self._recalled_seconds = 0.0  # that probes found in the store once took
        self._probes_run = 0
        self._stopped = False

    def run(self, judge_base: bool) -> RaceResult:
        base = None
        try:
            per_image, base_correct = self._base()
            base = accuracy_of(base_correct) if judge_base else None
            self._run_rungs(per_image)
        except KeyboardInterrupt:
            self._warnings.append("interrupted: what was found until then is all that is known")
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
        )

    def _base(self) -> tuple[float, bytes]:
        """Seconds to classify one image, and which held-out ones the model classifies right as it is."""

        def judged() -> dict[str, Any]:
            self._tell("the model as it is")
            few = min(32, len(self._trainer.dataset.validation))
            fastest = float("inf")
            for _ in range(3):  # the first pass compiles kernels
                start = time.perf_counter()
                self._trainer.judge_base(few)
                fastest = min(fastest, time.perf_counter() - start)
            samples = self._affordable_samples(fastest / few, _LEAST_KEPT, _SHARES[-1] * self._seconds)
            right = self._trainer.judge_base(samples)
            return {"seconds_per_image": fastest / few, "correct": right.hex()}

        found = self._remembered("base", {"seconds": self._seconds}, judged)
        return found["seconds_per_image"], bytes.fromhex(found["correct"])

    def _run_rungs(self, per_image: float) -> None:
        samples = self._affordable_samples(per_image, _LEAST_KEPT, _SHARES[-1] * self._seconds)
        self._judge_untrained(samples)
        entries = self._opening()
        for rung, name in enumerate(_RUNGS):
            if not entries or self._stopped:
                return

            def planned(rung: int = rung, entries: list[_Entry] = entries) -> dict[str, Any]:
                return self._plan(rung, entries, samples, per_image)

            plan = self._remembered("plan", self._race_key | {"rung": name}, planned)
            trials = [
                Trial(candidate, rate, plan["updates"], plan["samples"], self._seed)
                for candidate, rate in entries[: plan["entries"]]
            ]
            probes = self._run_rung(name, trials)
            best = self._judge(probes, last=name == _RUNGS[-1])
            if not self._stopped:
                entries = self._promoted(rung, best)

    def _judge_untrained(self, samples: int) -> None:
        """One probe for each candidate that has no learning rate."""
        images = min(len(self._trainer.dataset.train), RECALIBRATION_SAMPLES)
        updates = max(images // self._trainer.batch_size, 1)
        trials = [
            Trial(candidate, None, updates, samples, 0)
            for candidate in self._costs
            if not learning_rates(candidate)
        ]
        self._judge(list(self._probes(trials)), last=True)

    def _opening(self) -> list[_Entry]:
        """Each method's plainest middle setting, at each of its learning rates."""
        return [(c, rate) for c in _middles(list(self._costs)) for rate in learning_rates(c)]

    def _plan(self, rung: int, entries: Sequence[_Entry], samples: int, per_image: float) -> dict[str, int]:
        """How many entries get how many updates and held-out samples, in the time that the rung has."""
        seconds = self._left() * _SHARES[rung] / sum(_SHARES[rung:]) * self._executor.workers
        training = seconds * (1 - _EVALUATION_SHARE - _OVERHEAD_SHARE)
        self._time(candidate for candidate, _ in entries)
        speeds = [self._speed(candidate) for candidate, _ in entries]
        admitted = len(entries)
        if _RUNGS[rung] == "variants":
            while admitted > _LEAST_KEPT and sum(speeds[:admitted]) * _TELLING_UPDATES > training:
                admitted -= 1
        elif _RUNGS[rung] == "finalists":
            # Few that train for as long as the real thing tell more than many that don't.
            while admitted > 2 and sum(speeds[:admitted]) * self._updates > training:
                admitted -= 1
        updates = int(training / sum(speeds[:admitted]))
        if updates < _LEAST_UPDATES and rung == 0:
            self._warnings.append(
                f"--probe-time allows fewer than {_LEAST_UPDATES} updates a probe: "
                "the accuracies say little; allow more time"
            )
        most = self._updates if rung == len(_RUNGS) - 1 else max(self._updates // 2 ** (3 - rung), 1)
        return {
            "entries": admitted,
            "updates": min(max(updates, _LEAST_UPDATES // 3), most),
            "samples": samples
            if rung == len(_RUNGS) - 1
            else min(samples, self._affordable_samples(per_image, admitted, seconds)),
        }

    def _run_rung(self, name: str, trials: Sequence[Trial]) -> list[Probe]:
        """The rung's probes: where it once ended, those that it had then."""
        key = self._race_key | {"rung": name}
        ended = self._recall("rung", key)
        if ended is not None:
            trials = [trial for trial in trials if _trial_key(trial) in ended["trials"]]
        probes = list(self._probes(trials))
        self._keep("rung", key, {"trials": [_trial_key(probe.trial) for probe in probes]})
        if len(probes) < len(trials):
            self._warnings.append(
                f"updates took longer than at first: {len(trials) - len(probes)} of the {len(trials)} "
                f"probes of the rung of {name} were left out; allow more --probe-time, or leave the "
                "machine alone"
            )
        return probes

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
            yield Probe(trial, correct, found["seconds"], found["failure"])

        def in_time() -> Iterator[Trial]:
            for number, trial in enumerate(missing):
                expected = trial.updates * self._speeds.get(trial.candidate, 0.0)
                if number and trial.learning_rate is not None and self._left() < expected:
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
            if probe.trial.learning_rate is not None and probe.trial.updates:
                self._speeds[candidate] = probe.seconds / probe.trial.updates
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

    def _time(self, candidates: Iterator[Candidate]) -> None:
        """Learn how long an update takes, of one candidate of each method."""
        for candidate in dict.fromkeys(candidates):
            if any(known.method == candidate.method for known in self._speeds):
                continue

            def timed(candidate: Candidate = candidate) -> dict[str, Any]:
                self._tell(f"timing {candidate.id}")
                try:
                    return {"seconds": self._trainer.seconds_per_update(candidate)}
                except Exception:  # noqa: BLE001 - its probes will say why
                    return {"seconds": 0.0}

            self._speeds[candidate] = self._remembered("timing", _candidate_key(candidate), timed)["seconds"]

    def _speed(self, candidate: Candidate) -> float:
        """Seconds of an update: known, or by the FLOPs of one of the same method."""
        if candidate in self._speeds:
            return max(self._speeds[candidate], 1e-6)
        alike = next(known for known in self._speeds if known.method == candidate.method)
        share = self._costs[candidate].flops.total / self._costs[alike].flops.total
        return max(self._speeds[alike] * share, 1e-6)

    def _affordable_samples(self, per_image: float, probes: int, seconds: float) -> int:
        """How many held-out samples that many probes can be judged on."""
        affordable = int(seconds * _EVALUATION_SHARE / (per_image * max(probes, 1)))
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


def _trial_key(trial: Trial) -> dict[str, Any]:
    return {"trial": asdict(trial)}


def _candidate_key(candidate: Candidate) -> dict[str, Any]:
    return {"candidate": asdict(candidate)}


def _named(trial: Trial) -> str:
    rate = "" if trial.learning_rate is None else f" at {trial.learning_rate:.2g}"
    return f"{trial.candidate.id}{rate}, {trial.updates} updates"


def _failure(probe: Probe) -> str:
    if probe.failure != "diverged":
        return f"its training failed: {probe.failure}"
    if probe.trial.learning_rate is None:
        return "diverged: the re-estimated statistics are not finite"
    return "diverged: the loss became NaN at every learning rate"


def _middles(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Each method's middle setting with the fewest levers."""
    by_method: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_method.setdefault(candidate.method, []).append(candidate)
    middles = []
    for group in by_method.values():
        fewest = min(len(candidate.levers.described()) for candidate in group)
        plainest = [c for c in group if len(c.levers.described()) == fewest]
        middles.append(plainest[len(plainest) // 2])
    return middles


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
