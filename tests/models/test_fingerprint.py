"""What tells models, and the code that runs them, apart."""

from __future__ import annotations

import importlib.util
import sys

import torch
from torch import fx, nn

import advisor.models
from advisor.models import fingerprint
from advisor.models.fingerprint import code_fingerprint, model_fingerprint


def defined_in(path, name, body):
    """A module of a class that is defined in such a file."""
    path.write_text(
        f"from torch import nn\n\nclass Own(nn.Sequential):\n    def forward(self, x):\n        {body}\n"
    )
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.Own(nn.Linear(2, 2))


def test_code_follows_the_files_that_define_the_model(tmp_path):
    first = defined_in(tmp_path / "one.py", "own_one", "return self[0](x)")
    same = defined_in(tmp_path / "two.py", "own_two", "return self[0](x)")
    other = defined_in(tmp_path / "three.py", "own_three", "return self[0](x) * 2")
    assert code_fingerprint(first) == code_fingerprint(same)
    assert code_fingerprint(first) != code_fingerprint(other)
    assert code_fingerprint(first) != code_fingerprint(first, advisor.models)
    assert code_fingerprint(first, fingerprint) == code_fingerprint(same, fingerprint)


def test_code_follows_a_graph():
    class Plain(nn.Module):
        def forward(self, x):
            return x + 1

    class Twice(nn.Module):
        def forward(self, x):
            return x + 2

    plain, twice = fx.symbolic_trace(Plain()), fx.symbolic_trace(Twice())
    assert repr(plain) == repr(twice).replace("Twice", "Plain")
    assert code_fingerprint(plain) != code_fingerprint(twice)


def test_weights_tell_models_apart_and_counters_do_not():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    before = model_fingerprint(model)
    model[1].num_batches_tracked += 1
    assert model_fingerprint(model) == before
    model[1].running_mean += 1
    assert model_fingerprint(model) != before
