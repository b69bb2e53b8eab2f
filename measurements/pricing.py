"""Study: how long pricing takes: every candidate, one simulation, and plans from the per-layer table.

    python -m measurements.pricing           # about 2 minutes
    python -m measurements.pricing --quick   # two models, under 1 minute

Times vary with the machine; ratios are of one run. Writes results/pricing.json and the tables in README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from advisor.costs import Estimator, Simulator
from advisor.methods import get_method, methods, register
from advisor.methods.base import merge_attached, plain_optimizer, train_only
from advisor.models.layers import take_census
from advisor.records import Candidate, Levers
from measurements.memory_accuracy import PEERS, README, SIZE, mem_tracker

BATCH = 8
PLANS = 200_000
SIMULATED = 24  # random plans of each model
RESULTS = Path(__file__).parent / "results" / "pricing.json"
OPTIONS = (
    *(Candidate("full"), Candidate("norm"), Candidate("bias")),
    *(Candidate.of("lora", {"rank": 4}, Levers()), Candidate.of("dora", {"rank": 4}, Levers())),
)

EVERY = """
import sys, time, torchvision
from advisor.advise import Request
from advisor.candidates import Proposals
from advisor.costs import Simulator
from advisor.methods import methods
from advisor.models.layers import take_census
from advisor.records import Levers
model = torchvision.models.get_model(sys.argv[1], weights=None)
census = take_census(model, (3, 224, 224))
known = methods()
begun = time.perf_counter()
simulator = Simulator(model, census)
proposals = Proposals(simulator, census, batch_size=8, allowed_bytes=None, images=0)
count = 0
for method in known.values():
    settings = list(method.settings(census, Request().ranks))
    if settings:
        count += len(list(proposals.of(method, settings, Levers())))
print(count, time.perf_counter() - begun)
"""


def every_candidate(name: str, repeats: int = 3) -> dict[str, Any]:
    """All that `recommend` prices without data or --ram, each time in a new process, after its imports."""
    seconds = []
    for _ in range(repeats):
        run = subprocess.run([sys.executable, "-c", EVERY, name], capture_output=True, text=True, check=True)
        count, took = run.stdout.split()[-2:]
        seconds.append(float(took))
    return {"model": name, "candidates": int(count), "seconds": sorted(seconds)}


def one_simulation(name: str) -> dict[str, Any]:
    """The first of a model, which asks every operator once, the next ones, and MemTracker's."""
    model = torchvision.models.get_model(name, weights=None)
    census = take_census(model, SIZE)
    simulator = Simulator(model, census)

    def timed() -> float:
        begun = time.perf_counter()
        simulator.cost(Candidate("full"), BATCH)
        return time.perf_counter() - begun

    first = timed()
    return {
        "model": name,
        "first_seconds": first,
        "next_seconds": statistics.median(timed() for _ in range(7)),
        "mem_tracker_seconds": statistics.median(mem_tracker(model, BATCH)[1] for _ in range(3)),
    }


@register
class Planned:
    """A method for this study alone: in each layer, what the plan says."""

    name, learns_classes, learning_rates = "planned", True, (1e-3,)
    summary = formula = source = ""
    optimizer = staticmethod(plain_optimizer)
    merge = staticmethod(merge_attached)
    plan: Any = None

    def settings(self, *_: object) -> list[Any]:
        return []

    def attach(self, model, census, setting):
        trained = []
        listed = {layer.name for layer in census.layers}
        for number, option in enumerate(OPTIONS, 1):
            choices = zip(census.layers, self.plan, strict=True)
            chosen = {layer.name: layer for layer, choice in choices if choice == number}
            part = replace(census, layers=tuple(chosen.values()))
            attached = get_method(option.method).attach(model, part, dict(option.setting))
            trained += [p for name, p in attached.parameters.items() if owner(name, listed) in chosen]
        return train_only(model, trained, "updated", setting)


def owner(parameter: str, layers: set[str]) -> str:
    """The layer that holds the parameter, or that it was attached to."""
    path = parameter.rpartition(".")[0]
    while path not in layers:
        path = path.rpartition(".")[0]
    return path


def table_against_simulation(name: str) -> dict[str, Any]:
    """Random plans: how many a second, and how far from their own simulation."""
    model = torchvision.models.get_model(name, weights=None)
    census = take_census(model, SIZE)
    begun = time.perf_counter()
    estimator = Estimator(model, census, OPTIONS, BATCH)
    built = time.perf_counter() - begun
    rng = np.random.default_rng(0)
    layers, options = estimator.trains.shape
    many = rng.integers(0, options, (PLANS, layers))
    estimator(many[:1000])
    begun = time.perf_counter()
    estimator(many)
    rate = PLANS / (time.perf_counter() - begun)

    # From hardly anything trained to everything, starting anywhere.
    shares, starts = rng.random(SIMULATED), rng.integers(0, layers, SIMULATED)
    plans = np.where(rng.random((SIMULATED, layers)) < shares[:, None], many[:SIMULATED], 0)
    plans[np.arange(layers) < starts[:, None]] = 0
    estimates = estimator(plans)
    simulator = Simulator(model, census, workspace=False)
    flops, saved = [], []
    for row, plan in enumerate(plans):
        if not estimates.trainable_parameters[row]:
            continue
        methods()["planned"].plan = plan  # type: ignore[attr-defined]
        cost = simulator.cost(Candidate("planned"), BATCH)
        if cost.trainable_parameters != estimates.trainable_parameters[row]:
            raise AssertionError(f"{name}: {cost.trainable_parameters} parameters are trained")
        flops.append(abs(estimates.flops[row] / cost.flops.total - 1))
        truth = sum(each.saved_bytes for each in cost.by_layer_type.values())
        saved.append(abs(estimates.saved_bytes[row] / truth - 1))
    return {
        "model": name,
        "layers": layers,
        "build_seconds": built,
        "plans_per_second": rate,
        "plans": len(flops),
        "flops_largest_error": max(flops),
        "saved_largest_error": max(saved),
    }


def tables(every: list[Any], single: list[Any], plans: list[Any]) -> str:
    lines = ["| every candidate of | candidates | s, median | fastest to slowest |", "|---|---|---|---|"]
    for row in every:
        low, middle, high = row["seconds"][0], statistics.median(row["seconds"]), row["seconds"][-1]
        lines.append(f"| {row['model']} | {row['candidates']} | {middle:.1f} | {low:.1f} to {high:.1f} |")
    lines += [
        "",
        "| full, batch 8 | first, ms | next, ms | MemTracker, ms | first / MemTracker | next / MemTracker |",
        "|---|---|---|---|---|---|",
    ]
    for row in single:
        first, following, theirs = (row[f"{key}_seconds"] for key in ("first", "next", "mem_tracker"))
        lines.append(
            f"| {row['model']} | {1e3 * first:.0f} | {1e3 * following:.0f} | {1e3 * theirs:.0f} "
            f"| {first / theirs:.2f} | {following / theirs:.3f} |"
        )
    lines += [
        "",
        "| plans of | layers | table, s | plans a second | simulated | FLOPs: most off | saved: most off |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in plans:
        lines.append(
            f"| {row['model']} | {row['layers']} | {row['build_seconds']:.1f} "
            f"| {row['plans_per_second']:,.0f} | {row['plans']} "
            f"| {row['flops_largest_error']:.2%} | {row['saved_largest_error']:.2%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two models, printed, nothing written")
    quick = parser.parse_args().quick
    names = PEERS[:2] if quick else PEERS
    every = [every_candidate(name) for name in (names[:1] if quick else ("mobilenet_v2", "resnet18"))]
    single = [one_simulation(name) for name in names]
    planned = names if quick else (*PEERS, "densenet121", "vit_b_16", "swin_t")
    plans = [table_against_simulation(name) for name in planned]
    print(tables(every, single, plans))
    if quick:
        return
    content = {
        "torch": torch.__version__.split("+")[0],
        "threads": torch.get_num_threads(),
        "every_candidate": every,
        "one_simulation": single,
        "plans": plans,
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    head, _, rest = README.read_text().partition("<!-- pricing -->")
    tail = rest.partition("<!-- /pricing -->")[2]
    README.write_text(f"{head}<!-- pricing -->\n\n{tables(every, single, plans)}\n\n<!-- /pricing -->{tail}")


if __name__ == "__main__":
    main()
