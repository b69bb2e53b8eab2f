"""What PyTorch makes for convolutions' shapes: counted for each shape and direction, and as large as told."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from advisor.costs import Simulator
from advisor.costs.kernels import PASSES
from advisor.device.program import program
from advisor.models import take_census
from advisor.records import Candidate

SIZE = (3, 16, 16)


def network():
    """Three shapes of convolutions, one of them twice, and one of one tap."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


def kernels(text, batch_size):
    model = network()
    cost = Simulator(model, take_census(model, SIZE)).cost(Candidate.parse(text), batch_size)
    return cost.kernels


@pytest.mark.parametrize(
    ("candidate", "batch_size", "of_updates"),
    [
        # Each shape forward and for its weights, all but the first for its input.
        ("full", 16, 3 + 3 + 2),
        ("head", 16, 3),
        # Of few images, the one of one tap is a product, for which nothing is made.
        ("full", 4, 2 + 2 + 1),
        ("full@micro-4", 16, 2 + 2 + 1),
        ("head", 4, 2),
    ],
)
def test_each_shape_and_direction_has_one(candidate, batch_size, of_updates):
    assert kernels(candidate, batch_size) == of_updates + 3 * PASSES


_GROWTH = """
import json
import torch
from torch import nn
import measure_device

def run(widths):
    for width in widths:
        for kernel, groups in ((3, 1), (3, width), (1, 1)):
            layer = nn.Conv2d(width, width, kernel, stride=2, groups=groups)
            layer(torch.ones(16, width, 13, 13, requires_grad=True)).sum().backward()

measure_device.give_back_freed_memory()
told = measure_device.runtime()
run([200])
before = measure_device.resident()
run(range(24, 104, 8))
print(json.dumps([(measure_device.resident() - before) / (3 * 3 * 10), told["kernel_bytes"]]))
"""


def test_they_take_what_the_runtime_says(tmp_path):
    # Of shapes that it was not measured on, in a process that holds no tensor any more.
    (tmp_path / "measure_device.py").write_text(program())
    done = subprocess.run(
        [sys.executable, "-c", _GROWTH], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    grown, told = json.loads(done.stdout)
    assert told == pytest.approx(grown, rel=0.5)
    assert 10_000 < told < 500_000
