"""A run that is killed again and again ends as one that never was: nothing lost, nothing trained twice."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import time
from contextlib import closing, contextmanager

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from advisor.store import Store
from tests.processes import ROOT, start_command

# With ample time no plan depends on the clock: every rung admits all and trains as long as it may.
ARGUMENTS = (
    *(
        "--input-size",
        "1x8x8",
        "--batch-size",
        "16",
        "--ranks",
        "2",
        "--methods",
        "recalibrate,head,norm,lora",
    ),
    *("--probe-time", "1h", "--epochs", "1", "--ram", "3MB", "--flops-budget", "--no-verify", "--seed", "3"),
)


@pytest.fixture(scope="module")
def situation(tmp_path_factory):
    """A small network, trained on digits, and noisy digits that it has not seen: two paths."""
    folder = tmp_path_factory.mktemp("situation")
    digits = load_digits()
    images = torch.from_numpy(digits.images / 16).float().unsqueeze(1)
    labels = torch.from_numpy(digits.target)
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for batch in torch.randperm(1400).repeat(6).split(32):
        optimizer.zero_grad()
        functional.cross_entropy(model(images[batch] * 2 - 1), labels[batch]).backward()
        optimizer.step()
    torch.save(model.eval(), folder / "model.pt")
    noisy = (images[1400:, 0] + 0.3 * torch.randn(397, 8, 8)).clamp(0, 1)
    np.savez(folder / "data.npz", images=noisy.numpy(), labels=digits.target[1400:])
    return folder / "model.pt", folder / "data.npz"


@pytest.fixture(scope="module")
def begin(situation):
    """Begins a run of `peft-advisor recommend`, in a process of its own."""
    model, data = situation
    paths = (model, "--data", data, "--store")
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

    def go(store, answer):
        return start_command("recommend", *paths, store, *ARGUMENTS, "--json", answer, cwd=ROOT, **silent)

    return go


def logged(path):
    """A store that logs by itself what is put into it, even what replaces the same."""
    Store(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("CREATE TABLE log (kind TEXT, id TEXT)")
        database.execute(
            "CREATE TRIGGER put AFTER INSERT ON results BEGIN INSERT INTO log VALUES (new.kind, new.id); END"
        )
    return path


def probes_put(path):
    """The id of every probe, in the order in which they were put."""
    with closing(sqlite3.connect(path, timeout=30)) as database:
        return [row[0] for row in database.execute("SELECT id FROM log WHERE kind = 'probe' ORDER BY rowid")]


@contextmanager
def watched(path):
    """How many probes were put: of one connection, as it is asked hundreds of times a second."""
    with closing(sqlite3.connect(path, timeout=30)) as database:
        asked = "SELECT count(*) FROM log WHERE kind = 'probe'"
        yield lambda: database.execute(asked).fetchone()[0]


def advice(answer):
    """What was advised and why, without how long it took."""
    found = json.loads(answer.read_text())
    del found["provenance"]
    for part in ("probe_seconds", "probes_run", "probes_recalled"):
        del found["data"][part]
    return found


@pytest.fixture(scope="module")
def undisturbed(begin, tmp_path_factory):
    """A run that nobody killed: the probes that it trained, and its answer."""
    folder = tmp_path_factory.mktemp("undisturbed")
    store = logged(folder / "store")
    with begin(store, folder / "answer.json") as run:
        assert run.wait() == 0
    return probes_put(store), folder / "answer.json"


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.long)])
def test_killed_again_and_again_the_advice_is_the_same_and_no_probe_is_trained_twice(
    begin, undisturbed, tmp_path, kills
):
    expected, answer = undisturbed
    assert len(expected) == len(set(expected)) > 20

    killed = logged(tmp_path / "killed")
    randomness = random.Random(0)
    # Anywhere from before the first probe to the last one, and at any moment of a probe.
    for after in sorted(randomness.choices(range(len(expected)), k=kills)):
        with watched(killed) as count, begin(killed, tmp_path / "killed.json") as run:
            while count() < after:
                time.sleep(0.002)
            time.sleep(randomness.uniform(0, 0.1))
            run.kill()
            assert run.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed.json").exists()
    before = len(probes_put(killed))
    with begin(killed, tmp_path / "killed.json") as run:
        assert run.wait() == 0

    assert probes_put(killed) == expected
    assert advice(tmp_path / "killed.json") == advice(answer)
    data = json.loads((tmp_path / "killed.json").read_text())["data"]
    assert (data["probes_recalled"], data["probes_run"]) == (before, len(expected) - before)
