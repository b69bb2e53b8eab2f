"""Study: how much accuracy is lost by following the advice on real networks and photos.

    python -m measurements.photos --data PHOTOS           # hours, resumable; --only truth, --only advice
    python -m measurements.photos --data PHOTOS --quick   # one small task, < 5 minutes

A task is a network with ImageNet weights and photos. Its truth: every candidate of a stated set, trained to
the end at each of its learning rates, and judged on photos that trained nothing, with its own head and with
heads solved in closed form. Then the advisor, which has seen none of it, gets the network, the photos and a
budget, and its pick is trained to the end as it advised: regret is the best feasible candidate's accuracy
less the pick's. Each finished task is written into results/photos.json at once, the tables into README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advisor.costs import keep_freed_memory
from advisor.methods import get_method, learning_rates
from advisor.parts.closed_form import solvable
from advisor.probes import Trial, executor_for
from advisor.probes.train import Probe
from advisor.records import Candidate, Census, Levers
from advisor.store import Store, default_path
from measurements.photo_advice import advised, summarise, tables
from measurements.photo_tasks import Prepared, Size, Task
from measurements.tables import README, write_tables
from measurements.truth import say, share, trained

RESULTS = Path(__file__).parent / "results" / "photos.json"
TASKS = (
    Task("lite0", "clothing", given=500),
    Task("lite0", "clothing", epochs=20),
    Task("lite0", "grocery", given=600),
    Task("lite0", "clothing", given=500, shift="motion-blur:4"),
    Task("mobilenet", "clothing", given=500),
    Task("mobilenet", "grocery", given=600),
    Task("lite0", "grocery", reported=False),
)
QUICK_TASK = Task("lite0", "clothing", given=60, epochs=1)
QUICK = Size(
    side=96,
    judging=100,
    seeds=1,
    budgets=("loose",),
    probe_seconds=10.0,
    methods=("full", "head", "ridge"),
)
FROZEN = Levers(statistics="frozen")  # those of batches of eight hurt
# What whoever has no advisor tries; each with its own head, and with those that can be solved for it.
TRAININGS: tuple[Callable[[int], Candidate], ...] = (
    lambda blocks: Candidate.of("ridge", {"features": "last"}, Levers()),
    lambda blocks: Candidate.of("ridge", {"features": "last"}, Levers(statistics="reestimated")),
    lambda blocks: Candidate("head"),
    lambda blocks: Candidate("full", levers=replace(FROZEN, scope=blocks // 2)),
    lambda blocks: Candidate.of("lora", {"rank": 8}, replace(FROZEN, scope=blocks // 2)),
    lambda blocks: Candidate("norm", levers=FROZEN),
    lambda blocks: Candidate("full", levers=FROZEN),
    lambda blocks: Candidate("full"),
    lambda blocks: Candidate("ssf", levers=FROZEN),
    lambda blocks: Candidate.of("lora", {"rank": 8}, FROZEN),
    lambda blocks: Candidate.of("galore", {"rank": 4}, FROZEN),
)
QUICK_TRAININGS = (0, 2, 7)


def answering(training: Candidate, census: Census) -> tuple[Candidate, ...]:
    """The candidates that one training answers for: with its own head first, then each solved one.

    Of a head that is trained alone, nothing would be left.
    """
    method, levers = get_method(training.method), training.levers
    if method.solves(dict(training.setting)) is not None:
        return tuple(Candidate.of(method.name, {"features": of}, levers) for of in solvable(census))
    if method.only_head:
        return (training,)
    solved = [replace(training, levers=replace(levers, head=f"ridge-{of}")) for of in solvable(census)]  # type: ignore[arg-type]
    return (training, *solved)


def truth(task: Prepared, numbers: Sequence[int], executor: Any) -> dict[str, Any]:
    """What every candidate comes to, at each of its learning rates; several seeds of the best ones."""
    trainings = [TRAININGS[number](len(task.census.blocks)) for number in numbers]
    rates = {training: learning_rates(training) or (None,) for training in trainings}
    wanted = [(training, rate, 0) for training in trainings for rate in rates[training]]
    while True:
        found = _found(task, wanted, executor)
        ranked = sorted(_tried(task, trainings, found), key=lambda row: -row["accuracy"])
        more = [
            (row["training"], row["learning_rate"], seed)
            for row in ranked[:3]
            for seed in range(task.size.seeds if row["learning_rate"] else 1)
            if (row["training"], row["learning_rate"], seed) not in wanted
        ]
        if not more:
            break
        wanted += dict.fromkeys(more)
    rows = []
    for row in _tried(task, trainings, found):
        costs = task.costs(row.pop("of"), is_trained=row["learning_rate"] is not None)
        rows.append({name: value for name, value in row.items() if name != "training"} | costs)
    return {
        "reported": task.task.reported,
        "given": len(task.dataset.train),
        "judged_on": task.counted,
        "base": task.base_accuracy(),
        "seconds": sum(value["seconds"] for value in found.values()),
        "truth": rows,
    }


_Wanted = tuple[Candidate, float | None, int]  # a training, its learning rate, a seed


def _found(task: Prepared, wanted: Sequence[_Wanted], executor: Any) -> dict[_Wanted, dict[str, Any]]:
    def trial(of: _Wanted) -> Trial:
        training, rate, seed = of
        return task.trial(training, rate, seed, heads=len(answering(training, task.census)) > 1)

    def record(probe: Probe) -> dict[str, Any]:
        candidates = answering(probe.trial.candidate, task.census)
        answers = [answers.correct for answers in probe.solved]
        if len(candidates) > len(answers):  # its own head is one of them
            answers = [probe.correct or b"", *answers]
        correct = dict(zip((candidate.id for candidate in candidates), answers, strict=False))
        return {
            "accuracy": max((share(right[: task.counted]) for right in answers), default=0.0),
            "correct": {name: np.packbits(list(right)).tobytes().hex() for name, right in correct.items()},
            "accuracies": {name: share(right[: task.counted]) for name, right in correct.items()},
            "on_the_rest": {name: share(right[task.counted :]) for name, right in correct.items()},
            "seconds": probe.seconds,
            "judging_seconds": probe.judging_seconds,
            "failure": probe.failure,
        }

    trials = {of: trial(of) for of in wanted}
    kept = trained(list(trials.values()), executor, task.store, task.trial_key, record)
    return {of: kept[of_it] for of, of_it in trials.items()}


def _tried(
    task: Prepared, trainings: Sequence[Candidate], found: Mapping[_Wanted, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A row of each candidate: at its best learning rate the mean over the seeds, at the others one."""
    rows = []
    for training in trainings:
        first = {rate: value for (of, rate, seed), value in found.items() if of == training and not seed}
        for candidate in answering(training, task.census):
            name = candidate.id
            by_rate = {rate: value["accuracies"].get(name, 0.0) for rate, value in first.items()}
            best = max(by_rate, key=lambda rate: by_rate[rate])
            seeds = [value for (of, rate, _), value in found.items() if of == training and rate == best]
            accuracies = [value["accuracies"].get(name, 0.0) for value in seeds]
            row = {
                "of": candidate,
                "training": training,
                "candidate": name,
                "learning_rate": best,
                "accuracy": statistics.fmean(accuracies),
                "accuracies": accuracies,
                "by_rate": {f"{rate:g}": value for rate, value in by_rate.items() if rate},
                "seconds": statistics.fmean(value["seconds"] - value["judging_seconds"] for value in seeds),
            }
            if task.of_other_visits:
                of_same = [value["on_the_rest"].get(name, 0.0) for value in seeds]
                row["accuracy_on_same_visits"] = statistics.fmean(of_same)
            rows.append(row)
    return rows


def study(
    tasks: Sequence[Task],
    size: Size,
    numbers: Sequence[int],
    data: Path,
    kept: Path,
    results: Path,
    *,
    only: str | None = None,
) -> None:
    """Find out each task's truth that the results lack, then what is advised; all of it is written at once.

    Args:
        only: `truth` or `advice`.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with Store(kept / "photos.sqlite") as store:
        for task in tasks:
            known = read(results).get("tasks", {}).get(task.name, {})
            if ("truth" in known) if only == "truth" else only == "advice" and "truth" not in known:
                continue
            say(task.name)
            prepared = Prepared(task, size, data, kept, store)
            with executor_for("here", prepared.trainer) as executor:
                if "truth" not in known:
                    known = truth(prepared, numbers, executor)
                    write(results, size, {task.name: known})
                if only != "truth":
                    said = advised(prepared, known["truth"], executor, threads)
                    write(results, size, {task.name: {"advice": said}})
    write(results, size, {})


def read(results: Path) -> dict[str, Any]:
    return json.loads(results.read_text()) if results.exists() else {}


def write(results: Path, size: Size, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Put what was found of tasks beside what is there, and sum it up anew."""
    before = read(results).get("tasks", {})
    tasks = {name: before.get(name, {}) | found.get(name, {}) for name in {**before, **found}}
    order = [task.name for task in TASKS]
    tasks = dict(sorted(tasks.items(), key=lambda one: order.index(one[0]) if one[0] in order else -1))
    content = {"torch": torch.__version__.split("+")[0], "size": asdict(size), "summary": summarise(tasks)}
    part = results.with_suffix(".part")
    part.write_text(in_lines(content | {"tasks": tasks}, 4) + "\n")
    part.replace(results)


def in_lines(value: Any, levels: int, indent: str = "") -> str:
    """As JSON, each part on a line of its own down to so many levels."""
    if not levels or not value or not isinstance(value, dict | list):
        return json.dumps(value)
    deeper = indent + " "
    if isinstance(value, dict):
        parts = [f"{json.dumps(name)}: {in_lines(part, levels - 1, deeper)}" for name, part in value.items()]
    else:
        parts = [in_lines(part, levels - 1, deeper) for part in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n{deeper}" + f",\n{deeper}".join(parts) + f"\n{indent}{closing}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of clothing/ and grocery/")
    parser.add_argument("--quick", action="store_true", help="one small task, printed, nothing written")
    parser.add_argument("--only", choices=("truth", "advice"), help="advice: of tasks whose truth is known")
    parser.add_argument("--task", default="", help="only those whose names hold this")
    parser.add_argument(
        "--kept", type=Path, default=default_path().parent / "photos", help="where finished work is kept"
    )
    given = parser.parse_args()
    keep_freed_memory()
    if given.quick:  # updates so small gain nothing by a second thread, which others may hold up
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) if given.quick else given.kept
        kept.mkdir(parents=True, exist_ok=True)
        results = kept / RESULTS.name if given.quick else RESULTS
        if given.quick:
            where = (given.data, kept, results)
            study([QUICK_TASK], QUICK, QUICK_TRAININGS, *where, only=given.only)
        else:
            tasks = [task for task in TASKS if given.task in task.name]
            study(tasks, Size(), range(len(TRAININGS)), given.data, kept, results, only=given.only)
        found = read(results)
    texts = tables(found["tasks"], found["summary"])
    print("\n\n".join(texts.values()))
    print("\n" + json.dumps({name: value for name, value in found["summary"].items() if name != "rules"}))
    if not given.quick:
        write_tables(README, texts)


if __name__ == "__main__":
    main()
