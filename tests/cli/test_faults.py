"""A disk that is full or read-only, a clock that jumps, weights that are NaN: one line, and nothing half."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager

import pytest
import torch

from advisor.store import Store
from tests.cli.test_cli import one_line
from tests.processes import ROOT

resource = pytest.importorskip("resource")

ASKED = ("--input-size", "1x8x8", "--methods", "head,norm,lora", "--ranks", "2", "--ram", "3MB")
ASKED = (*ASKED, "--epochs", "2", "--probe-time", "20s")

# In a mount namespace of its own: a small file system, on which the rest happens.
_SMALL = """
import json, os, subprocess, sys
folder, size, mode, command = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
if mode == "ro":
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
done = subprocess.run([sys.executable, "-m", "advisor", *command], capture_output=True, text=True)
left = {}
for parent, _, names in os.walk(folder):
    for name in names:
        with open(os.path.join(parent, name), "rb") as file:
            left[os.path.relpath(os.path.join(parent, name), folder)] = file.read().decode("latin1")
print(json.dumps([done.returncode, done.stderr, left]))
"""


def on_a_small_disk(folder, size, mode, *command, cwd):
    """The exit code, what it said, and what there is then: content by name."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("needs a mount namespace")
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", _SMALL, folder, size, mode, *map(str, command)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": tempfile.gettempdir()},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a mount namespace")
@pytest.mark.parametrize("mode", ["full", "ro"])
@pytest.mark.parametrize("size", ["16k", "64k", "256k", "1m"])
def test_disk_full_or_read_only(folder, tmp_path, size, mode, figure):
    disk = tmp_path / "disk"
    disk.mkdir()
    outputs = ("--json", disk / "o.json", "--report", disk / "r.html", "--store", disk / "store.sqlite")
    command = ("recommend", "model.pt", "--data", "new-data.npz", *ASKED, *outputs)
    code, said, left = on_a_small_disk(disk, size, mode, *command, cwd=folder)
    assert code in (0, 1, 2)
    assert "Traceback" not in said
    assert "unexpected" not in said
    assert code == 0 or "error: " in said
    strange = [name for name in left if not name.startswith(("o.json", "r.html", "store.sqlite"))]
    assert strange == []
    if "o.json" in left:
        json.loads(left["o.json"])
    if "r.html" in left:
        assert left["r.html"].rstrip().endswith("</html>")
    figure(
        f"faults: disk {'read-only' if mode == 'ro' else 'full'}, {size}: half-written files",
        0,
        0,
        of=len(left),
    )


@contextmanager
def files_of_at_most(size):
    """While it lasts, writing more to a file fails, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


COSTS = ("--input-size", "1x8x8", "--methods", "head", "--no-verify", "--data", "new-data.npz")
COSTS = (*COSTS, "--no-probe", "--ram", "3MB")


def test_what_there_was_outlives_a_disk_that_is_full(run, tmp_path):
    asked = ("recommend", "model.pt", *COSTS, "--report", tmp_path / "r.html")
    assert run(*asked, "--no-store")[0] == 0
    before = (tmp_path / "r.html").read_bytes()
    with files_of_at_most(60_000):  # the store's first pages fit, neither the report nor the advice does
        more = ("--methods", "norm,head", "--json", tmp_path / "o.json", "--store", tmp_path / "store.sqlite")
        code, stdout, err = run(*asked, *more)
    assert code == 2
    errors = [line for line in err.splitlines() if "error: " in line]
    assert len(errors) == 2
    assert all("can't be written (File too large)" in line for line in errors)
    assert "Use " in stdout  # the answer is given all the same
    assert "! the store " in stdout
    assert (tmp_path / "r.html").read_bytes() == before
    names = {path.name for path in tmp_path.iterdir()}
    assert {name for name in names if not name.startswith("store.sqlite")} == {"r.html"}
    with Store(tmp_path / "store.sqlite") as store:
        assert not store.trouble
        list(store)


def test_training_on_a_full_disk_says_so_and_goes_on_once_there_is_room(run, tmp_path):
    assert run("recommend", "model.pt", *COSTS, "--no-store", "--json", tmp_path / "o.json")[0] == 0
    out = tmp_path / "tuned"
    asked = ("apply", "model.pt", tmp_path / "o.json", "--output", out, "--epochs", 1)
    with files_of_at_most(3000):
        code, _, err = run(*asked)
    assert code == 2
    assert "the checkpoint can't be written (the disk seems to be full); make room" in one_line(err)
    assert not list(out.glob("*"))
    assert not list(out.glob(".*"))
    assert run(*asked)[0] == 0
    assert (out / "adapter.safetensors").exists()


@pytest.mark.parametrize("jump", [-86400.0, 86400.0])
def test_a_clock_that_jumps_changes_nothing(run, monkeypatch, tmp_path, jump):
    """Set by hand or by the network in the middle of a run, by a day for each look."""
    looks = iter(range(10**9))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump * next(looks))
    asked = (
        "recommend",
        "model.pt",
        "--data",
        "new-data.npz",
        *ASKED,
        "--probe-time",
        "2s",
        "--no-verify",
    )
    files = ("--store", tmp_path / "store.sqlite", "--json", tmp_path / "o.json")
    begun = time.monotonic()
    code, _, err = run(*asked, *files)
    assert code == 0, err
    assert time.monotonic() - begun < 120
    assert json.loads((tmp_path / "o.json").read_text())["recommended"]
    code, _, err = run(*asked, *files)
    assert code == 0, err
    with Store(tmp_path / "store.sqlite") as store:
        assert list(store)
        assert not store.trouble


def test_weights_that_are_nan_are_told_in_a_line(run, folder, tmp_path):
    model = torch.load(folder / "model.pt", weights_only=False)
    weights = model.state_dict() if hasattr(model, "state_dict") else model
    first = next(name for name, value in weights.items() if value.is_floating_point())
    weights[first].view(-1)[0] = float("nan")
    torch.save(model, tmp_path / "nan.pt")
    code, out, err = run("recommend", tmp_path / "nan.pt", "--data", "new-data.npz", *ASKED, "--no-store")
    assert code == 2
    assert not out
    assert "NaN" in one_line(err) or "not finite" in one_line(err)
    assert first in one_line(err)
