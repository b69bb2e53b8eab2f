"""`@pytest.mark.limit_finetune`: a test fails where its model can't be fine-tuned within limits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
TESTS = """
import unittest
import warnings

import pytest
import torch
from torch import nn

def build():
    front = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(front, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

limits = pytest.mark.limit_finetune
SIZE = {"input_size": "3x16x16", "methods": ["head", "norm"]}

@limits(ram="2MB", **SIZE)
def test_returned():
    return build()

@limits(ram="2MB", flops="1GFLOP", storage="1MB", model=build, **SIZE)
def test_made_by_a_function():
    pass

@limits(ram="2MB", model=build(), **SIZE)
@pytest.mark.parametrize("number", [1, 2])
def test_given(number, tmp_path):
    assert tmp_path.exists()

@limits(ram="2MB", candidate="norm@last-1", **SIZE)
def test_a_named_candidate():
    return build()

def test_without_the_mark():
    pass

@limits(ram="20kB", **SIZE)
def test_nothing_fits():
    return build()

@limits(flops="1kFLOP", **SIZE)
def test_flops():
    return build()

@limits(ram="60kB", candidate="norm", **SIZE)
def test_a_named_candidate_that_does_not_fit():
    return build()

@limits(ram="2MB", **SIZE)
def test_no_model():
    pass

@limits(ramm="2MB", **SIZE)
def test_unknown_limit():
    return build()

@limits(ram="2", **SIZE)
def test_no_unit():
    return build()

@limits("2MB")
def test_no_name():
    return build()

@limits(ram="2MB", **SIZE)
def test_no_such_file():
    return "no-such-file.pt"

@limits(ram="2MB", input_size="3x16x16", methods=["lorra"])
def test_unknown_method():
    return build()

@limits(ram="2MB", input_size="16")
def test_no_size():
    return build()

@limits(ram="2MB")
def test_that_fails_itself():
    assert 1 == 2

@limits(ram="2MB")
def test_that_skips_itself():
    pytest.skip("no camera")

@limits(batch_size=4, **SIZE)
def test_no_limit():
    return build()

@limits(ram="2MB")
def test_input_size_not_told():
    return build()

@limits(ram="2MB", **SIZE)
def test_no_torch_module():
    return 7

@limits(ram="2MB", **SIZE)
async def test_async():
    return build()

@limits(ram="2MB", input_size=(3, 16, 16), methods=["norm"])
class TestDevices:
    def test_large(self):
        return build()

    @limits(ram="20kB", **SIZE)
    def test_small(self):
        return build()

class TestOld(unittest.TestCase):
    @limits(ram="2MB", **SIZE)
    def test_of_unittest(self):
        return build()

class Warns(nn.Flatten):
    def forward(self, x):
        warnings.warn("old", DeprecationWarning)
        return super().forward(x)

@limits(ram="2MB", **SIZE)
def test_warns():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), Warns(), nn.Linear(4, 2))

NET = build().train()
THREADS = torch.get_num_threads()

@limits(ram="2MB", **SIZE)
def test_left_alone():
    return NET

def test_was_left_alone():
    assert NET.training
    assert all(each.requires_grad and each.grad is None for each in NET.parameters())
    assert int(NET[0][1].num_batches_tracked) == 0
    assert torch.get_num_threads() == THREADS
"""


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """Of each test its failure's message, or None; of a run as strict as can be."""
    folder = tmp_path_factory.mktemp("tests")
    (folder / "test_nets.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-W", "error", "--strict-markers", "--junitxml=out.xml"]
    command += ["-p", "no:cacheprovider", "-p", "advisor.pytest_plugin", "test_nets.py"]
    # Found by its name, wherever the package is installed, too: once is enough.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    cases = ElementTree.parse(folder / "out.xml").iter("testcase")
    found = {
        case.get("name"): next((part for part in case if part.tag in ("failure", "error")), None)
        for case in cases
    }
    return {name: None if failure is None else failure.text for name, failure in found.items()}


@pytest.mark.parametrize(
    "name",
    [
        *("returned", "made_by_a_function", "given[1]", "given[2]", "a_named_candidate", "without_the_mark"),
        *("large", "warns", "left_alone", "was_left_alone", "that_skips_itself"),
    ],
)
def test_what_fits_passes_however_the_model_is_given(failures, name):
    assert failures[f"test_{name}"] is None


def test_what_breaks_a_limit_fails_and_says_how(failures):
    first, second, _, *rows = failures["test_nothing_fits"].splitlines()
    assert first.startswith("limit_finetune: Nothing fits: the least memory that any candidate needs is ")
    assert "20.0 kB" in first
    assert second == "layers that hold the most at the peak, with what takes the least memory:"
    assert re.fullmatch(r"  0\.0 +standard +8x3x3x3 +[\d.]+ kB +[\d.]+ kFLOP +0", rows[0])
    assert "1.00 kFLOP" in failures["test_flops"]
    assert "layers that take the most FLOPs" in failures["test_flops"]
    named = failures["test_a_named_candidate_that_does_not_fit"].splitlines()[0]
    assert named.startswith("limit_finetune: norm does not fit: peak memory")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_model", "no model; return it from the test, or give the mark model=..."),
        ("unknown_limit", "ramm is unknown; did you mean ram?"),
        ("no_unit", "no unit"),
        ("no_name", 'takes limits by name, such as ram="128MB"'),
        ("no_such_file", "no-such-file.pt: does not exist"),
        ("unknown_method", "lorra"),
        ("no_size", "write channels x height x width"),
        ("no_limit", 'limits nothing; give ram=, flops= or storage=, such as ram="128MB"'),
        ("input_size_not_told", 'give input_size="CxHxW"'),
        ("no_torch_module", "the model is of type int; give a torch module"),
        ("async", "what an async test returns can't be taken; give the mark model=..."),
        ("of_unittest", "not for those of unittest.TestCase"),
    ],
)
def test_a_mistake_is_one_line(failures, name, words):
    assert failures[f"test_{name}"].startswith("limit_finetune: ")
    assert words in failures[f"test_{name}"]
    assert "\n" not in failures[f"test_{name}"]


def test_each_of_several_marks_must_be_met(failures):
    assert "20.0 kB" in failures["test_small"].splitlines()[0]


def test_a_test_that_fails_itself_is_told_as_ever(failures):
    assert "assert 1 == 2" in failures["test_that_fails_itself"]
    assert "limit_finetune" not in failures["test_that_fails_itself"].splitlines()[-1]


def test_a_run_without_the_mark_imports_no_torch():
    script = (
        "import sys, advisor.pytest_plugin\n"
        "assert 'torch' not in sys.modules and 'advisor.check' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
