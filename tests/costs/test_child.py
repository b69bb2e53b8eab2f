"""What goes wrong with a run in the child process says nothing against the answer; what is needed decides."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch import nn

from advisor import Budget, Request, recommend
from advisor.costs import Simulator
from advisor.costs import measure as measuring
from advisor.costs.measure import measure
from advisor.models.layers import take_census
from advisor.records import Candidate
from tests.processes import run_command

ROOT = Path(__file__).parents[2]
SIZE = (1, 8, 8)
REQUEST = Request(input_size=SIZE, batch_size=4, methods=("head", "full"), ranks=(2,), probe_seconds=None)
NETWORK = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))

    def forward(self, x):
        return self.layers(x)
"""


class Elsewhere(nn.Sequential):
    """Works in this process; in another one its forward pass does what it is told."""

    def __init__(self, act):
        super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
        self.act, self.home = act, os.getpid()

    def forward(self, x):
        if os.getpid() != self.home:
            self.act()
        return super().forward(x)


class Handle:
    """As a lock or an open file is: it can't leave the process."""

    def __call__(self):
        pass

    def __deepcopy__(self, memo):
        return self

    def __reduce_ex__(self, protocol):
        raise TypeError("cannot pickle a handle")


def raise_something():
    raise ValueError("the licence server is away")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def end():
    sys.exit("no more")


def sleep():
    time.sleep(60)


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (raise_something, "ValueError: the licence server is away"),
        (die, "the child process died"),
        (end, "SystemExit: no more"),
        (sleep, "longer than 3 s"),
        (Handle(), "cannot pickle a handle"),
    ],
    ids=["raises", "dies", "exits", "hangs", "unpicklable"],
)
def test_what_fails_in_the_child_is_a_warning_beside_the_answer(act, why, monkeypatch):
    monkeypatch.setattr(measuring, "_TIMEOUT_SECONDS", 3 if act is sleep else 120)
    found = recommend(Elsewhere(act), Budget(), REQUEST)
    assert found.recommended is not None
    chosen = found.evaluation(found.recommended)
    assert chosen.measured is None
    assert chosen.fits
    (warning,) = found.warnings
    assert f"{found.recommended} was not run" in warning
    assert why in warning
    assert "\n" not in warning


def test_a_machine_that_starts_no_process_is_a_warning(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    found = recommend(Elsewhere(raise_something), Budget(), REQUEST)
    assert found.recommended is not None
    assert "/no/such/python" in found.warnings[0]


def test_a_class_of_a_script_is_run(tmp_path):
    (tmp_path / "script.py").write_text(
        NETWORK
        + """
from advisor import Budget, Request, recommend

if __name__ == "__main__":
    request = Request(input_size=(1, 8, 8), methods=("head",), probe_seconds=None)
    found = recommend(Net(), Budget(ram_bytes=10_000_000), request)
    print(found.evaluation(found.recommended).measured.survived, found.warnings)
"""
    )
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "True ()\n", done.stderr


def run_script(*arguments, cwd):
    """As the installed script does, whose import path lacks the current folder."""
    return subprocess.run(
        [sys.executable, "-P", "-c", "import advisor.cli; advisor.cli.main()", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("run", [run_command, run_script])
def test_a_factory_of_the_current_folder_is_run(tmp_path, run):
    (tmp_path / "mine.py").write_text(NETWORK)
    asked = ("recommend", "mine:Net", "--input-size", "1x8x8", "--methods", "head", "--ram", "10MB")
    done = run(*asked, "--json", "-", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["candidates"][0]["measured"]["survived"]
    assert not [warning for warning in found["warnings"] if "was not run" in warning]


@pytest.fixture(scope="module")
def tiny():
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )
    census = take_census(model, (3, 16, 16))
    peak = Simulator(model, census).cost(Candidate("full"), 4).peak_memory_bytes
    return (model, census, Candidate("full"), 4), peak


def test_what_fits_by_a_few_bytes_survives(tiny):
    """The runtime's own fluctuation is no reason; without an allowance this one failed 20 times of 20."""
    arguments, peak = tiny
    for _ in range(3):
        found = measure(*arguments, allowed_bytes=peak + 256, timing_seconds=0)
        assert found.survived, found.failure


def test_what_is_over_by_a_few_bytes_does_not(tiny):
    arguments, peak = tiny
    found = measure(*arguments, allowed_bytes=peak - 256, timing_seconds=0)
    assert not found.survived
    assert "allocator's peak was" in found.failure


@pytest.fixture(scope="module")
def larger():
    """Of tensors that each are mapped apart: under a cap below what the process has, none can be made."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)),
    )
    census = take_census(model, (3, 32, 32))
    peak = Simulator(model, census).cost(Candidate("full"), 4).peak_memory_bytes
    return model, census, peak


def test_where_the_runtime_takes_more_there_is_another_run(larger, monkeypatch):
    model, census, peak = larger
    allowances = []
    capped = measuring._capped

    def counted(job, allowed, allowance, waiting):
        allowances.append(allowance)
        return capped(job, allowed, allowance, waiting)

    monkeypatch.setattr(measuring, "_capped", counted)
    monkeypatch.setattr(measuring, "_ALLOWANCE", -64 * 2**20)
    found = measure(model, census, Candidate("full"), 4, allowed_bytes=peak + 4096, timing_seconds=0)
    assert found.survived, found.failure
    assert allowances == [-64 * 2**20, measuring._LARGE_ALLOWANCE]


def test_a_failure_that_is_the_runtimes_rejects_nothing(larger, monkeypatch):
    model, _, peak = larger
    monkeypatch.setattr(measuring, "_ALLOWANCE", -64 * 2**20)
    monkeypatch.setattr(measuring, "_LARGE_ALLOWANCE", -64 * 2**20)
    request = Request(input_size=(3, 32, 32), batch_size=4, methods=("full",), probe_seconds=None)
    found = recommend(model, Budget(ram_bytes=peak + 4096), request)
    chosen = found.evaluation(found.recommended)
    assert chosen.fits
    assert chosen.measured.survived
    assert chosen.measured.cap_bytes is None
    assert "held to it" not in found.answer
    (warning,) = found.warnings
    assert "ran without the hard limit" in warning
