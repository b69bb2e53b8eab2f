"""What is recommended within a limit of memory runs within it: of random networks, under the kernel's cap."""

from __future__ import annotations

import os
import random
import sys

import pytest
import torch
from torch import nn

from advisor import recommend
from advisor.costs.measure import measure
from advisor.errors import AdvisorError
from advisor.models import take_census

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the cap is Linux's"),
]
RUNS = int(os.environ.get("LIMITS", "1000"))
NUMBERS = 64  # bytes: a number that a tensor is multiplied with becomes one of 8, which no operator shows
METHODS = ("full", "head", "norm", "bias", "lora", "dora", "adapter", "ssf", "ia3", "lite-residual", "sparse")


def convolution(drawn, inputs, outputs):
    """Of any type, with a norm layer or none, and an activation."""
    kind = drawn.choice(("standard", "pointwise", "depthwise", "grouped"))
    size, stride = (1 if kind == "pointwise" else 3), drawn.choice((1, 1, 2))
    groups = {"depthwise": inputs, "grouped": 4}.get(kind, 1)
    made = inputs if kind == "depthwise" else outputs
    yield nn.Conv2d(inputs, made, size, stride, size // 2, groups=groups, bias=drawn.random() < 0.5)
    yield drawn.choice((nn.BatchNorm2d, nn.BatchNorm2d, lambda n: nn.GroupNorm(4, n), nn.Identity))(made)
    yield drawn.choice((nn.ReLU, nn.GELU, nn.SiLU, nn.Hardswish))()
    if made != outputs:
        yield nn.Conv2d(made, outputs, 1)


class Around(nn.Module):
    """A block with a way around it."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        y = self.layers(x)
        return x + y if x.shape == y.shape else y


def network(drawn):
    width, sizes = drawn.choice((8, 16, 32)), []
    for _ in range(drawn.randint(1, 5)):
        sizes.append(width)
        width = drawn.choice((width, width, 2 * width if width < 64 else width))
    blocks = [
        Around(*convolution(drawn, before, after))
        for before, after in zip(sizes, [*sizes[1:], width], strict=True)
    ]
    stem = (nn.Conv2d(3, sizes[0], 3, drawn.choice((1, 2)), 1), nn.BatchNorm2d(sizes[0]), nn.ReLU())
    last = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, drawn.randint(2, 20)))
    return nn.Sequential(*stem, *blocks, *last)


def recommended(drawn, model, asked):
    """A candidate within a random limit that not all keep, that limit, and what it was promised to take."""
    everything = recommend(model, **asked)
    peaks = sorted(each.cost.peak_memory_bytes for each in everything.evaluations if each.cost is not None)
    ram = round(drawn.uniform(peaks[0], peaks[-1]))
    found = recommend(model, ram=ram, **asked)
    return next(each for each in found.evaluations if each.candidate.id == found.recommended), ram


def test_what_is_recommended_runs_under_the_cap(figure, tmp_path):
    drawn = random.Random(0)
    killed, above, refused, done = [], [], 0, 0
    while done < RUNS:
        torch.manual_seed(done)
        model, side = network(drawn), drawn.choice((16, 24, 32, 48))
        batch = drawn.choice((2, 4, 8, 16))
        asked = {
            "input_size": (3, side, side),
            "batch_size": batch,
            "methods": tuple(drawn.sample(METHODS, 2)),
            "ranks": (drawn.choice((2, 4, 8)),),
            "probe_seconds": None,
            "verify": False,
            "store": tmp_path / "store.sqlite",  # what is asked twice is priced once
        }
        try:
            chosen, ram = recommended(drawn, model, asked)
        except AdvisorError:  # none of the methods has anything to train there
            refused += 1
            assert refused < RUNS
            continue
        census = take_census(model, asked["input_size"])
        found = measure(model, census, chosen.candidate, batch, allowed_bytes=ram, timing_seconds=0)
        done += 1
        told = f"{chosen.candidate.id} of network {done - 1}"
        if not found.survived or found.cap_bytes is None:
            killed.append(f"{told}: {found.failure}")
        if found.peak_memory_bytes > chosen.cost.peak_memory_bytes + NUMBERS:
            above.append(f"{told}: {found.peak_memory_bytes} > {chosen.cost.peak_memory_bytes}")
    print(*killed, *above, sep="\n")
    of = f"{RUNS} random networks, inputs, batches and budgets"
    figure("limits of memory: recommended candidates that the cap killed", len(killed), 0, of=of)
    figure(
        "limits of memory: peaks above what was promised, %", round(100 * len(above) / RUNS, 2), 1.0, of=of
    )
