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
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from advisor.costs import Estimator, Simulator
from advisor.methods import methods
from advisor.models.layers import take_census
from advisor.records import Candidate, Levers
from advisor.story.candidates import Proposals
from advisor.story.situation import Request
from measurements.memory_accuracy import PEERS, SIZE, mem_tracker
from measurements.plans import planned, random_plans
from measurements.tables import README, table, write_tables

BATCH = 8
PLANS = 200_000
SIMULATED = 24  # random plans of each model
RESULTS = Path(__file__).parent / "results" / "pricing.json"
OPTIONS = (
    *(Candidate("full"), Candidate("norm"), Candidate("bias")),
    *(Candidate.of("lora", {"rank": 4}, Levers()), Candidate.of("dora", {"rank": 4}, Levers())),
)


def price_everything(name: str) -> tuple[int, float]:
    """All that `recommend` prices without data or --ram: how many candidates, and seconds."""
    model = torchvision.models.get_model(name, weights=None)
    census = take_census(model, SIZE)
    known = methods()
    begun = time.perf_counter()
    simulator = Simulator(model, census)
    proposals = Proposals(simulator, census, batch_size=BATCH, allowed_bytes=None, images=0)
    count = 0
    for method in known.values():
        settings = list(method.settings(census, Request().ranks))
        if settings:
            count += len(list(proposals.of(method, settings, Levers())))
    return count, time.perf_counter() - begun


def every_candidate(name: str, repeats: int = 3) -> dict[str, Any]:
    """Each time in a new process, after its imports."""
    command = [sys.executable, "-m", "measurements.pricing", "--every", name]
    seconds = []
    for _ in range(repeats):
        count, took = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
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

    plans = random_plans(estimator, SIMULATED, rng)
    estimates = estimator(plans)
    simulator = Simulator(model, census, workspace=False)
    flops, saved = [], []
    for row, plan in enumerate(plans):
        if not estimates.trainable_parameters[row]:
            continue
        with planned(plan, OPTIONS) as candidate:
            cost = simulator.cost(candidate, BATCH)
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
    priced = [
        (
            *(row["model"], row["candidates"], f"{statistics.median(row['seconds']):.1f}"),
            f"{row['seconds'][0]:.1f} to {row['seconds'][-1]:.1f}",
        )
        for row in every
    ]
    simulated = []
    for row in single:
        first, following, theirs = (row[f"{key}_seconds"] for key in ("first", "next", "mem_tracker"))
        milliseconds = (f"{1e3 * seconds:.0f}" for seconds in (first, following, theirs))
        simulated.append((row["model"], *milliseconds, f"{first / theirs:.2f}", f"{following / theirs:.3f}"))
    estimated = [
        (
            *(row["model"], row["layers"], f"{row['build_seconds']:.1f}"),
            *(f"{row['plans_per_second']:,.0f}", row["plans"]),
            *(f"{row['flops_largest_error']:.2%}", f"{row['saved_largest_error']:.2%}"),
        )
        for row in plans
    ]
    compared = ("first / MemTracker", "next / MemTracker")
    off = ("FLOPs: most off", "saved: most off")
    return "\n\n".join(
        (
            table(("every candidate of", "candidates", "s, median", "fastest to slowest"), priced),
            table(("full, batch 8", "first, ms", "next, ms", "MemTracker, ms", *compared), simulated),
            table(("plans of", "layers", "table, s", "plans a second", "simulated", *off), estimated),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two models, printed, nothing written")
    parser.add_argument("--every", metavar="MODEL", help="price this model's candidates once, and time that")
    given = parser.parse_args()
    if given.every:
        print(*price_everything(given.every))
        return
    quick = given.quick
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
    write_tables(README, {"pricing": tables(every, single, plans)})


if __name__ == "__main__":
    main()
