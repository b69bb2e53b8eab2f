"""What the studies of the advice share: trainings that are kept, budgets, and what fits them."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from advisor.costs import Simulator
from advisor.probes import Trial
from advisor.probes.train import Probe
from advisor.records import Budget, Candidate
from advisor.store import Store, default_path

Row = Mapping[str, Any]  # of one candidate: what it comes to, and what it costs


def cifar_parser(doc: str, name: str) -> argparse.ArgumentParser:
    """Of what the studies on CIFAR-10 take."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 JPEG: train/ and test/")
    parser.add_argument("--models", type=Path, required=True, help="the folder of the ResNets' checkpoints")
    parser.add_argument("--quick", action="store_true", help="one small task, printed, nothing written")
    parser.add_argument(
        "--kept", type=Path, default=default_path().parent / name, help="where finished work is kept"
    )
    return parser


def found_of_tasks(
    given: argparse.Namespace, results: Path, tasks: Sequence[Any], find: Callable[[Any, Path, Store], Any]
) -> dict[str, Any]:
    """What is found of each task, by name: of those that the results lack, now, and written at once.

    Args:
        given: of the command line; with `quick` nothing is kept.
        tasks: each with `name`, and `is_of_photos`: it is passed over where no photos are given.
        find: of a task, the folder where finished work is kept, and a store in it.
    """
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) if given.quick else given.kept
        kept.mkdir(parents=True, exist_ok=True)
        found = json.loads(results.read_text()) if results.exists() and not given.quick else {"tasks": {}}
        with Store(kept / f"{results.stem}.sqlite") as store:
            for task in tasks:
                if task.name in found["tasks"] or (task.is_of_photos and given.photos is None):
                    continue
                say(task.name)
                found["tasks"][task.name] = find(task, kept, store)
                if not given.quick:
                    results.write_text(in_lines(found, 4) + "\n")
    return found["tasks"]


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


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def share(correct: bytes | None) -> float:
    """Of right answers; 0 where the training failed."""
    return sum(correct) / len(correct) if correct else 0.0


def trained(
    trials: Sequence[Trial],
    executor: Any,
    store: Store,
    key: Callable[[Trial], dict[str, Any]],
    record: Callable[[Probe], dict[str, Any]],
) -> dict[Trial, dict[str, Any]]:
    """What is kept of each trial; one that nothing is kept of is run, and its record is kept at once.

    Args:
        record: with `accuracy` and `failure` in it.
    """
    found = {trial: store.get("truth", key(trial)) for trial in trials}
    for probe in executor.run(trial for trial, value in found.items() if value is None):
        value = record(probe)
        store.put("truth", key(probe.trial), value)
        found[probe.trial] = value
        rate = f"{probe.trial.learning_rate or 0:.2g}"
        came = value["failure"] or f"{value['accuracy']:.3f}"
        say(f"  {probe.trial.candidate.id} at {rate}: {came}, {probe.seconds:.0f} s")
    return {trial: value for trial, value in found.items() if value is not None}


def costs(simulator: Simulator, candidate: Candidate, batch_size: int, *, is_trained: bool) -> dict[str, Any]:
    """Of an update: and the least memory, as what runs blocks again in the backward pass trains the same."""
    cost = simulator.cost(candidate, batch_size)
    least = cost.peak_memory_bytes
    if is_trained:
        checkpointed = replace(candidate, levers=replace(candidate.levers, checkpoint=True))
        least = min(least, simulator.cost(checkpointed, batch_size).peak_memory_bytes)
    return {
        "trained_parameters": cost.trainable_parameters,
        "peak_memory_bytes": cost.peak_memory_bytes,
        "checkpointed_memory_bytes": least,
        "flops": cost.flops.total,
    }


def budgets(rows: Sequence[Row]) -> dict[str, Budget]:
    """None; memory that full fine-tuning doesn't fit; FLOPs that no gradient can reach the image with."""
    full = next(row for row in rows if row["candidate"] == "full")
    return {
        "loose": Budget(),
        "memory": Budget(ram_bytes=int(0.6 * full["peak_memory_bytes"])),
        "flops": Budget(flops=int(0.6 * full["flops"])),
    }


def fits(row: Row, budget: Budget, memory: str = "peak_memory_bytes") -> bool:
    return (budget.ram_bytes is None or row[memory] <= budget.ram_bytes) and (
        budget.flops is None or row["flops"] <= budget.flops
    )


def best_that_fits(rows: Sequence[Row], budget: Budget) -> Row:
    """Of all, checkpointed where that takes less memory; no budget that limits memory limits FLOPs."""
    fitting = [row for row in rows if fits(row, budget, "checkpointed_memory_bytes")]
    return max(fitting, key=lambda row: row["accuracy"])


def summed_up(regrets: Sequence[float]) -> dict[str, float]:
    return {
        "mean": statistics.fmean(regrets),
        "p95": float(np.quantile(regrets, 0.95)),
        "largest": max(regrets),
    }


def fixed_rules(rows: Sequence[Row], budget: Budget) -> dict[str, float]:
    """What each candidate would have come to wherever it fits, the head alone elsewhere."""
    head = next(row["accuracy"] for row in rows if row["candidate"] == "head")
    return {row["candidate"]: row["accuracy"] if fits(row, budget) else head for row in rows}


def best_of_others(regrets: Mapping[str, Mapping[str, Sequence[float]]]) -> list[float]:
    """Each task's regrets by the rule that has the least mean regret on all other tasks.

    Args:
        regrets: by rule, then by task.
    """
    found: list[float] = []
    tasks = list(dict.fromkeys(task for by_task in regrets.values() for task in by_task))
    for task in tasks if len(tasks) > 1 else ():

        def elsewhere(rule: str, without: str = task) -> float:
            others = [values for other, values in regrets[rule].items() if other != without]
            return statistics.fmean(value for values in others for value in values)

        found += regrets[min(regrets, key=elsewhere)][task]
    return found
