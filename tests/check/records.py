"""Snapshots for tests, made by hand."""

from __future__ import annotations

from advisor.check.records import Checked, Figures, LayerFigures, Snapshot
from advisor.records import Budget

HERE, ELSEWHERE = "torch 2.15.0, this processor", "torch 2.10.0, another processor"
FIGURES = Figures(trainable_parameters=1000, delta_bytes=4000, update_flops=2_000_000, peak_bytes=1_000_000)
LAYERS = {
    "features.0": LayerFigures("standard", (16, 3, 3, 3), 432, 1_000_000, 600_000),
    "features.1": LayerFigures("norm", (16,), 32, 200_000, 100_000),
    "head": LayerFigures("linear", (5, 16), 85, 800_000, 200_000),
    "other": LayerFigures("other", (), 0, 0, 100_000),
}


def snapshot(**changes):
    given = {
        "budget": Budget(ram_bytes=2_000_000),
        "options": {"model": "nets:build", "batch-size": "8"},
        "recommended": "norm",
        "figures": FIGURES,
        "layers": LAYERS,
        "machine_peak_bytes": {HERE: 1_100_000},
        "of_tensors": "norm",
    }
    return Snapshot(**{**given, **changes})


def checked(now=None, **changes):
    now = now or snapshot()
    given = {"machine": HERE, "fits": now.recommended is not None, "answer": "On cost alone, use norm."}
    return Checked(now, **{**given, **changes})
