"""Study: per-layer plans against uniform candidates where memory or FLOPs are short.

    python -m measurements.allocation --data CIFAR --models CHECKPOINTS           # hours, resumable
    python -m measurements.allocation --data CIFAR --models CHECKPOINTS --quick   # one small task

On tasks that the study of regret does not report on, the plans that the solver finds within each budget are
trained to the end, and so are uniform candidates, each at its best learning rate, judged on images that
nobody has seen. Also how long the solver takes, on tables of torchvision's networks and random benefits.
Writes results/allocation.json and the tables in README.md.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from advisor.costs import Estimator
from advisor.methods.plan import option
from advisor.models.layers import take_census
from advisor.probes import executor_for
from advisor.records import Candidate, Levers
from advisor.solver.allocate import Resource, allocate
from advisor.store import Store
from advisor.story.plans import CODES, Planner
from measurements.advice import truth
from measurements.regret import CifarSize, Prepared, Task
from measurements.tables import README, table, write_tables
from measurements.truth import cifar_parser, say, share

RESULTS = Path(__file__).parent / "results" / "allocation.json"
TASKS = (
    Task("mobilenet", "fog:4"),
    Task("resnet20", "gaussian-noise:3"),
    Task("resnet32", "motion-blur:3"),
)
SIZE = CifarSize(batch=32, images=960, tests=1000, seeds=2)
QUICK = CifarSize(batch=32, images=240, tests=200, epochs=1, seeds=1)
RAM, FLOPS = 0.3, 0.6  # of what full fine-tuning takes
REESTIMATED = Levers(statistics="reestimated")
MICRO = (8, 4)  # batches in parts train the same where statistics are frozen
SOLVED = ("mobilenet_v2", "resnet50", "efficientnet_b0", "densenet121")
SHARES = (0.1, 0.3, 0.6)


def uniform(blocks: int) -> list[Candidate]:
    """What somebody tries who is short of memory or FLOPs."""
    half, micro = replace(REESTIMATED, scope=blocks // 2), Levers(micro_batch=MICRO[0])
    many = [
        Candidate(name, levers=levers) for name in ("full", "norm") for levers in (half, REESTIMATED, micro)
    ]
    return [*many, Candidate("head", levers=REESTIMATED)]


def plans(task: Prepared, ram: float, flops: float) -> dict[str, list[Candidate]]:
    """By what is short, with either policy for statistics; and where benefits are not relative to weights."""
    light = Levers(checkpoint=True, update="per-parameter")
    limits = {"memory": (light, ram, np.inf), "flops": (Levers(), np.inf, flops)}
    found: dict[str, list[Candidate]] = {}
    for relative in (True, False):
        planner = Planner(
            lambda candidate: task.simulator.cost(candidate, task.size.batch),
            *(task.trainer.model, task.census, task.dataset, task.size.batch),
            relative=relative,
        )
        for name, asked in limits.items():
            plan = planner.best(*asked)
            if plan is not None and (relative or name == "flops"):
                other = replace(plan, levers=replace(plan.levers, statistics="reestimated"))
                found[name if relative else f"{name}, absolute"] = [plan, other]
    return found


def least_memory(task: Prepared, row: Mapping[str, Any]) -> int:
    """Of an update that trains the same: in parts where statistics are frozen, or run again."""
    candidate = Candidate.parse(row["candidate"])
    least = [row["peak_memory_bytes"], row["checkpointed_memory_bytes"]]
    if candidate.levers.statistics == "reestimated":
        for size in MICRO:
            parts = replace(candidate, levers=replace(candidate.levers, micro_batch=size))
            least.append(task.simulator.cost(parts, task.size.batch).peak_memory_bytes)
    return min(least)


def study(
    tasks: Sequence[Task], size: CifarSize, data: Path, models: Path, kept: Path
) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    store, found = Store(kept / "allocation.sqlite"), []
    for task in tasks:
        say(task.name)
        prepared = Prepared(task, size, data, models, kept, store)
        full = prepared.simulator.cost(Candidate("full"), size.batch)
        ram, flops = RAM * full.peak_memory_bytes, FLOPS * full.flops.total
        planned = plans(prepared, ram, flops)
        others = uniform(len(prepared.census.blocks))
        wanted = dict.fromkeys([*(plan for named in planned.values() for plan in named), *others])
        with executor_for("local", prepared.trainer) as executor:
            found_of = truth(prepared, list(wanted), executor)["truth"]
        names = {candidate.id for candidate in wanted}
        rows = {row["candidate"]: row for row in found_of if row["candidate"] in names}
        for row in rows.values():
            row["least_memory_bytes"] = least_memory(prepared, row)
        found.append(
            {
                "task": task.name,
                "base": share(prepared.judged_base()),
                "rows": rows,
                "cases": cases(rows, [each.id for each in others], planned, ram, flops),
            }
        )
    return found


def cases(
    rows: Mapping[str, Mapping[str, Any]],
    others: Sequence[str],
    planned: Mapping[str, Sequence[Candidate]],
    ram: float,
    flops: float,
) -> dict[str, dict[str, Any]]:
    """The best of each kind, by what is short."""
    found = {}
    for name, taken, limit in (("memory", "least_memory_bytes", ram), ("flops", "flops", flops)):
        fitting = [rows[each] for each in others if rows[each][taken] <= limit]
        # Those whose batch runs whole, checkpointed or not.
        least = "checkpointed_memory_bytes" if name == "memory" else taken
        at_once = [row for row in fitting if row[least] <= limit and "@micro" not in row["candidate"]]
        absolute = [rows[plan.id] for plan in planned.get(f"{name}, absolute", [])]
        found[name] = {
            "limit": limit,
            "uniform": best(fitting)["candidate"],
            "uniform_whole_batch": best(at_once)["candidate"] if at_once else None,
            "plan": best([rows[plan.id] for plan in planned[name]])["candidate"],
            "absolute": best(absolute)["candidate"] if absolute else None,
        }
    return found


def best(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return max(rows, key=lambda row: row["accuracy"])


def solving(name: str) -> dict[str, Any]:
    """How long one plan takes, at several budgets, with benefits that differ as gradients do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torchvision.models.get_model(name, weights=None)
    census = take_census(model, (3, 64, 64))
    costs = Estimator(model, census, [option(code) for code in CODES], 8).table
    allowed = costs.parameters > 0
    allowed[:, 0] = True
    random = np.random.default_rng(0)
    benefit = np.sort(random.random(allowed.shape), 1) * random.lognormal(0, 2, (len(allowed), 1))
    benefit[:, 0] = 0
    again = costs.saved_again_bytes.astype(float)
    most_saved = np.where(allowed, costs.saved_bytes[1], 0).max(1).sum() + again.sum()
    most_flops = np.where(allowed, costs.flops[1], 0).max(1).sum()
    seconds = []
    for part in SHARES:
        memory = Resource(costs.saved_bytes.astype(float), again, part * most_saved)
        flops = Resource(costs.flops.astype(float), np.zeros_like(again), (1 / 3 + part * 2 / 3) * most_flops)
        for resources in ([memory], [flops], [memory, flops]):
            begun = time.process_time()  # other work on the machine doesn't count
            allocate(benefit, allowed, costs.leads_to, resources)
            seconds.append(time.process_time() - begun)
    return {
        "model": name,
        "layers": len(allowed),
        "options": len(CODES) + 1,
        "median_seconds": statistics.median(seconds),
        "largest_seconds": max(seconds),
    }


def tables(solved: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    time_heads = ("network", "layers", "options", "s, median", "s, most")
    times = [
        (r["model"], r["layers"], r["options"], f"{r['median_seconds']:.2f}", f"{r['largest_seconds']:.2f}")
        for r in solved
    ]
    parts = {"allocation_solver": table(time_heads, times)}
    uniform_heads = ("best uniform", "", "of whole batches", "")
    heads = ("task", "as it is", "short of", *uniform_heads, "best plan", "", "absolute benefits")
    rows = []
    for task in found:
        for name, case in task["cases"].items():
            cells = [task["task"], f"{100 * task['base']:.1f}", name]
            for who in ("uniform", "uniform_whole_batch", "plan"):
                cells += [f"`{named(case[who])}`", _accuracy(task, case[who])] if case[who] else ["-", ""]
            rows.append((*cells, _accuracy(task, case["absolute"]) if case["absolute"] else "-"))
    parts["allocation"] = table(heads, rows)
    return parts


def named(text: str) -> str:
    return Candidate.parse(text).short


def _accuracy(task: Mapping[str, Any], candidate: str) -> str:
    return f"{100 * task['rows'][candidate]['accuracy']:.1f}"


def main() -> None:
    given = cifar_parser(__doc__, "allocation").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) if given.quick else given.kept
        kept.mkdir(parents=True, exist_ok=True)
        solved = [solving(name) for name in (SOLVED[:1] if given.quick else SOLVED)]
        where = (given.data, given.models, kept)
        found = study(TASKS[:1], QUICK, *where) if given.quick else study(TASKS, SIZE, *where)
    made = tables(solved, found)
    print(*made.values(), sep="\n\n")
    if not given.quick:
        content = {"torch": torch.__version__.split("+")[0], "size": asdict(SIZE), "solver": solved}
        RESULTS.write_text(json.dumps(content | {"tasks": found}, indent=1) + "\n")
        write_tables(README, made)


if __name__ == "__main__":
    main()
