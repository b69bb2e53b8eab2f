"""Adapters as files: the same outputs after a round trip, statistics included."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from advisor.errors import ModelError
from advisor.methods.saved import load_adapter, save_adapter
from advisor.models.layers import take_census
from advisor.records import Candidate, Levers
from tests.methods.test_contract import ALL_SETTINGS, SIZE, network, trained


@pytest.mark.parametrize(("name", "setting"), ALL_SETTINGS)
def test_a_saved_adapter_reloads_to_the_same_outputs(tmp_path, name, setting):
    base, trainable, census = trained(name, setting, {"groups": 2})
    save_adapter(tmp_path / "a.safetensors", trainable, Candidate.of(name, setting, Levers()), census)
    again = load_adapter(copy.deepcopy(base), tmp_path / "a.safetensors")
    x = torch.randn(4, *SIZE)
    with torch.no_grad():
        assert torch.equal(again.model.eval()(x), trainable.model.eval()(x))


def test_an_adapter_with_more_classes_grows_the_head(tmp_path):
    base = network()
    grown = copy.deepcopy(base)
    grown[-1] = nn.Linear(12, 9)
    census = take_census(grown, SIZE)
    from advisor.methods import get_method

    trainable = get_method("head").attach(grown, census, {})
    save_adapter(tmp_path / "a.safetensors", trainable, Candidate("head"), census)
    again = load_adapter(base, tmp_path / "a.safetensors")
    assert torch.equal(again.model[-1].weight, grown[-1].weight)
    assert again.model[-1].out_features == 9


def test_another_models_adapter_is_refused(tmp_path):
    _, trainable, census = trained("lora", {"rank": 2}, {})
    save_adapter(tmp_path / "a.safetensors", trainable, Candidate.of("lora", {"rank": 2}, Levers()), census)
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    with pytest.raises(ModelError, match="another model"):
        load_adapter(other, tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [b"", b"not safetensors at all"])
def test_what_is_no_adapter_is_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ModelError, match="can't be read"):
        load_adapter(network(), tmp_path / "x")
    with pytest.raises(ModelError, match="can't be read"):
        load_adapter(network(), tmp_path / "missing")
