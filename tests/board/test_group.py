"""A bundle in a control group with a board's memory: it runs to its end within what was asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from advisor import recommend
from advisor.board.export import export
from advisor.delivery.apply import Application

# Where groups are made, and the file of a group's limit, in the kernel's two versions of them.
VERSIONS = ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max"))
SIZE = (3, 64, 64)


@pytest.fixture
def group():
    """Runs a command in a group that holds so many bytes; its exit code and what it said."""
    for root, name in VERSIONS:
        own = root / f"peft-advisor-{os.getpid()}"
        try:
            own.mkdir()
        except OSError:
            continue
        if os.access(own / name, os.W_OK):
            break
        own.rmdir()
    else:
        pytest.skip("no control group of memory can be made here: it needs Linux, and root")

    def run(size, *command):
        (own / name).write_text(str(size))
        enter = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(own / "cgroup.procs")]
        done = subprocess.run([*enter, *command], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    yield run
    own.rmdir()


@pytest.fixture
def bundle(tmp_path):
    """A fine-tune with 20 MB for an update besides the runtime, its photos, and all memory together."""
    random = np.random.default_rng(0)
    for number in range(40):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, SIZE[::-1], dtype=np.uint8)).save(path)
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model, photos = tmp_path / "model.pt", tmp_path / "photos"
    torch.save(nn.Sequential(*layers, nn.Linear(32, 2)), model)
    asked = {"data": photos, "input_size": SIZE, "probe_seconds": None, "verify": False, "methods": "full"}
    runtime = recommend(str(model), ram="10GB", ram_includes_runtime=True, **asked).runtime.bytes
    whole = runtime + 20_000_000
    advice = recommend(str(model), ram=whole, ram_includes_runtime=True, **asked)
    exported = export(str(model), advice, Application(tmp_path / "bundle", epochs=1))
    kernels = advice.evaluations[0].cost.kernels * advice.budget.kernel_bytes
    assert exported.promised_bytes == 20_000_000 - kernels  # what they take is the runtime's
    return tmp_path / "bundle" / "finetune.py", photos, whole


def test_it_runs_to_its_end_in_the_memory_that_was_asked_for(group, bundle, tmp_path):
    script, photos, whole = bundle
    command = (sys.executable, str(script), str(photos), "--output", str(tmp_path / "tuned"))
    code, said = group(whole, *command)
    assert code == 0, said
    assert "held-out photos right" in said
    # The group holds: a fraction of that is not even enough for PyTorch.
    code, _ = group(whole // 10, *command)
    assert code == -signal.SIGKILL


@pytest.mark.long
def test_the_advice_itself_runs_in_little_memory(group, tmp_path):
    random = np.random.default_rng(0)
    for number in range(80):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        light = 90 * (number % 2)
        Image.fromarray(random.integers(light, light + 160, (224, 224, 3), dtype=np.uint8)).save(path)
    asked = (
        "--data",
        tmp_path / "photos",
        "--input-size",
        "3x224x224",
        "--ram",
        "1GB",
        "--probe-time",
        "30s",
    )
    told = ("--ram-includes-runtime", "--no-store", "--json", tmp_path / "advice.json")
    command = (sys.executable, "-m", "advisor", "recommend", "torchvision:mobilenet_v2")
    code, said = group(1_500_000_000, *command, *map(str, (*asked, *told)))
    assert code == 0, said
    assert (tmp_path / "advice.json").exists()
