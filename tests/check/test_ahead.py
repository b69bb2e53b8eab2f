"""A second process prices the same candidates from the other end: sooner, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch import nn

from advisor.check.ahead import priced_ahead
from advisor.check.configuration import one_model
from advisor.check.price import Pricer
from advisor.costs import Simulator
from advisor.models import take_census
from advisor.records import Candidate

ROOT = Path(__file__).parents[2]
# In a process that has run no backward pass, as the check's own is: a fork can run them only then.
_SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from advisor.check.configuration import one_model
from advisor.check.price import Pricer
from advisor.costs import Simulator

priced = []
cost = Simulator.cost
def counted(self, candidate, size):
    priced.append(candidate)
    return cost(self, candidate, size)

Simulator.cost = counted
given = {"ram": "350kB", "methods": "full,norm,bias,lora"}
found = Pricer(ahead=True).price(one_model(sys.argv[1], given, Path.cwd()).targets[0])
print(len(priced))
print(found)
"""
_NET = """
from torch import nn

def build():
    parts = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(4)]
    front = nn.Sequential(nn.Conv2d(3, 8, 3), *parts, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(front, nn.Linear(8, 5))

build.input_size = (3, 16, 16)
"""


def test_what_is_found_is_told():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    candidate = Candidate("head")
    cost = Simulator(model, take_census(model, (3, 8, 8))).cost(candidate, 2)
    with priced_ahead(lambda found: found(candidate, cost)) as told:
        end = time.monotonic() + 60
        while not (pairs := told()):
            assert time.monotonic() < end
        assert pairs == [(candidate, cost)]


@pytest.mark.parametrize(
    "work", [lambda found: 1 / 0, lambda found: os._exit(3), lambda found: time.sleep(600)]
)
def test_one_that_fails_or_hangs_is_no_loss(work):
    start = time.monotonic()
    with priced_ahead(work) as told:
        assert told() == []
    assert time.monotonic() - start < 60


def test_with_one_core_nothing_is_started(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    with priced_ahead(lambda found: found(Candidate("head"), None)) as told:
        time.sleep(0.2)
        assert told() == []


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="it takes two cores")
def test_the_answer_is_the_same_with_fewer_prices_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(_NET)
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, "net:build"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    here, found = done.stdout.rstrip("\n").split("\n", 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    priced = []
    cost = Simulator.cost
    monkeypatch.setattr(Simulator, "cost", lambda self, *asked: priced.append(asked) or cost(self, *asked))
    given = {"ram": "350kB", "methods": "full,norm,bias,lora"}
    assert str(Pricer().price(one_model("net:build", given, tmp_path).targets[0])) == found
    assert int(here) < len(priced)
