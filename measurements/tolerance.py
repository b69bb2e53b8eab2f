"""Study: what the tolerance gives away, and what it saves, on the committed truths of the regret study.

    python -m measurements.tolerance

Each candidate of results/regret.json is observed as on 432 held-out images: its true accuracy, and chance.
The solver's own rule then picks under three budgets a task. Two trained candidates are taken to disagree on
a tenth of the images. Regret is that against the best candidate that fits; costs are shares of those of the
most accurate one as observed. Prints the table; takes seconds.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from advisor.solver.choose import expected_gap
from measurements.tables import table
from measurements.truth import budgets, fits

RESULTS = Path(__file__).parent / "results" / "regret.json"
IMAGES, DISAGREEING, DRAWS = 432, 0.1, 300
TOLERANCES = (0.0, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02)


def given_away(tolerance: float) -> tuple[float, float, float, float]:
    """Mean and 95th percentile of the regret in points; memory and FLOPs as mean shares."""
    random, error = np.random.default_rng(0), float(np.sqrt(DISAGREEING / IMAGES))
    regrets, memory, flops = [], [], []
    for task in json.loads(RESULTS.read_text())["tasks"]:
        for budget in budgets(task["truth"]).values() if task["reported"] else ():
            rows = [row for row in task["truth"] if fits(row, budget)]
            rows.sort(key=lambda row: (row["peak_memory_bytes"], row["flops"]))
            true = np.array([row["accuracy"] for row in rows])
            for _ in range(DRAWS):
                seen = true + random.normal(0, error / np.sqrt(2), len(true))
                stairs = [n for n in range(len(rows)) if n == 0 or seen[n] > seen[:n].max()]
                best = stairs[-1]
                chosen = next(n for n in stairs if expected_gap(seen[best] - seen[n], error) <= tolerance)
                regrets.append(100 * (true.max() - true[chosen]))
                memory.append(rows[chosen]["peak_memory_bytes"] / rows[best]["peak_memory_bytes"])
                flops.append(rows[chosen]["flops"] / rows[best]["flops"])
    shares = float(np.mean(memory)), float(np.mean(flops))
    return float(np.mean(regrets)), float(np.quantile(regrets, 0.95)), *shares


if __name__ == "__main__":
    heads = ("tolerance, points", "mean regret", "95th percentile", "memory", "FLOPs")
    rows = [
        (f"{100 * tolerance:g}", f"{mean:.2f}", f"{p95:.2f}", f"{memory:.0%}", f"{flops:.0%}")
        for tolerance in TOLERANCES
        for mean, p95, memory, flops in [given_away(tolerance)]
    ]
    print(table(heads, rows))
