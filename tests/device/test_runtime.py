"""What the runtime takes: measured once in a process of its own, kept, counted in where that is asked for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from advisor import recommend
from advisor.device import runtime
from advisor.device.program import program
from advisor.errors import InputError
from advisor.store import Store


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


ASKED = {"input_size": (3, 16, 16), "batch_size": 4, "methods": "head,norm", "probe_seconds": None}


@pytest.fixture(scope="module")
def measured():
    with Store(None) as store:
        here = runtime.HereRuntime(store)
        return here.footprint()


def test_it_is_that_of_a_process_that_holds_torch_and_an_update(measured):
    bare = subprocess.run(
        [sys.executable, "-c", "print(open('/proc/self/status').read())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    interpreter = next(int(line.split()[1]) * 1024 for line in bare.splitlines() if line.startswith("VmRSS"))
    assert 5 * interpreter < measured.bytes < 3_000_000_000


def test_it_is_kept_in_the_store(tmp_path, measured, monkeypatch):
    with Store(tmp_path / "store") as store:
        assert runtime.HereRuntime(store).footprint() == measured
    monkeypatch.setattr(runtime, "_measured", {})
    with Store(tmp_path / "store") as store:
        again = runtime.HereRuntime(store)
        assert again._process is None
        assert again.footprint() == measured


def test_the_answer_says_it_first(measured):
    found = recommend(network(), ram="1GB", **ASKED)
    assert found.runtime.where == "here"
    assert found.runtime.bytes == measured.bytes + 4 * 3 * 16 * 16  # the batch's images on their way
    assert " for the runtime, " in found.answer
    assert found.budget.runtime_overhead_bytes == 0


def test_counted_in_it_leaves_the_update_less(measured):
    room = measured.bytes + 600_000
    found = recommend(network(), ram=room, ram_includes_runtime=True, verify=False, **ASKED)
    assert found.budget.runtime_overhead_bytes == found.runtime.bytes
    chosen = found.evaluation(found.recommended).cost
    # One convolution: forward, and in passes of two more sizes; of `norm`, which its gradient must reach.
    assert chosen.kernels >= 3
    whole = chosen.peak_memory_bytes + found.runtime.bytes + chosen.kernels * measured.kernel_bytes
    assert whole == chosen.peak_memory_bytes + found.runtime.beside(chosen)
    assert whole <= room
    with pytest.raises(InputError, match=r"^the runtime alone .* takes \d+ MB here, more than --ram 1.00 MB"):
        recommend(network(), ram="1MB", ram_includes_runtime=True, **ASKED)


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({}, "give it, too"),
        ({"ram": "1GB", "runtime_overhead": "100MB"}, "give one"),
    ],
)
def test_what_makes_no_sense_is_refused(limits, told):
    with pytest.raises(InputError, match=told):
        recommend(network(), ram_includes_runtime=True, **limits, **ASKED)


def test_the_program_is_one_file_that_imports_nothing_of_ours(tmp_path):
    text = program()
    assert "advisor" not in "\n".join(line for line in text.splitlines() if "import" in line)
    (tmp_path / "measure_device.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-I", "measure_device.py", "--runtime"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["runtime_bytes"] > 0
