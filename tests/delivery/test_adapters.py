"""Adapters as files: the same outputs after a round trip, statistics included; one line for what is wrong."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from advisor.delivery.adapters import HISTORY, RECIPE, TENSORS, Recipe, load_adapter, save_adapter
from advisor.errors import InputError
from advisor.methods import get_method
from advisor.models.layers import take_census
from advisor.records import Candidate, Levers
from advisor.training.update import attach
from tests.methods.test_contract import ALL_SETTINGS, SIZE, network, trained


def saved(folder, name="lora", setting=None):
    """An adapter in the folder; the base model, and the trained one."""
    setting = {"rank": 2} if setting is None else setting
    base, trainable, census = trained(name, setting, {"groups": 2})
    save_adapter(folder, trainable, Recipe.of(base, Candidate.of(name, setting, Levers()), census))
    return base, trainable.model.eval()


@pytest.mark.parametrize(("name", "setting"), ALL_SETTINGS)
def test_a_saved_adapter_reloads_to_the_same_outputs(tmp_path, name, setting):
    base, adapted = saved(tmp_path, name, setting)
    before = copy.deepcopy(base.state_dict())
    state = torch.get_rng_state()
    again = load_adapter(base, tmp_path)
    assert torch.equal(state, torch.get_rng_state())
    x = torch.randn(4, *SIZE)
    with torch.no_grad():
        assert torch.equal(again(x), adapted(x))
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_the_file_may_be_named_in_place_of_its_folder(tmp_path):
    base, adapted = saved(tmp_path)
    x = torch.randn(4, *SIZE)
    with torch.no_grad():
        assert torch.equal(load_adapter(base, tmp_path / TENSORS)(x), adapted(x))


class Versioned(nn.Sequential):
    """Takes no state that doesn't say its version, as torchvision's MNASNet doesn't."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others):
        if local_metadata.get("version") != 2:
            raise ValueError("of another version")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


def test_a_network_that_loads_no_state_without_a_version_takes_an_adapter(tmp_path):
    base = Versioned(*network())
    candidate, census = Candidate.of("norm", {}, Levers()), take_census(base, SIZE)
    trainable = attach(copy.deepcopy(base), census, candidate)
    with torch.no_grad():
        for parameter in trainable.parameters.values():
            parameter.add_(torch.randn(parameter.shape))
    save_adapter(tmp_path, trainable, Recipe.of(base, candidate, census))
    x = torch.randn(4, *SIZE)
    with torch.no_grad():
        assert torch.equal(load_adapter(base, tmp_path)(x), trainable.model.eval()(x))


def test_where_the_old_weights_were_kept_it_says_so(tmp_path):
    (tmp_path / HISTORY).write_text("{}")  # and nothing else, as finetune.py leaves it then
    with pytest.raises(InputError, match=r"its fine-tune kept the old weights, so it holds no new ones$"):
        load_adapter(network(), tmp_path)


def test_an_adapter_with_more_classes_grows_the_head(tmp_path):
    base = network()
    grown = copy.deepcopy(base)
    grown[-1] = nn.Linear(12, 9)
    census = take_census(grown, SIZE)
    trainable = get_method("head").attach(grown, census, {})
    recipe = replace(Recipe.of(base, Candidate("head"), census), base_classes=5)
    save_adapter(tmp_path, trainable, recipe)
    again = load_adapter(base, tmp_path)
    assert torch.equal(again[-1].weight, grown[-1].weight)
    assert again[-1].out_features == 9
    assert base[-1].out_features == 5


def test_other_weights_are_refused(tmp_path):
    base, _ = saved(tmp_path)
    with torch.no_grad():
        next(base.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(InputError, match=r"trained on other weights .*; give the model"):
        load_adapter(base, tmp_path)


@pytest.mark.parametrize("name", [TENSORS, RECIPE])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read"),
        (b"", "damaged|no JSON"),
        (b"{}", "damaged|not a recipe"),
        (b"[]", "damaged|not a recipe"),
    ],
)
def test_what_is_missing_or_damaged_is_one_line(tmp_path, name, content, message):
    base, _ = saved(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as found:
        load_adapter(base, tmp_path)
    assert name in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("method", "lorra", "can't be attached"),
        ("method", None, "method is wrong"),
        ("setting", {"rank": 1}, "doesn't fit recipe.json"),
        ("setting", {"rank": "x"}, "can't be attached"),
        ("levers", {"scope": "all"}, "can't be attached"),
        ("levers", 3, "is damaged"),
        ("input_size", [3, 8], "input_size is wrong"),
        ("input_size", 3, "is damaged"),
        ("classes", "5", "classes is wrong"),
    ],
)
def test_a_recipe_that_was_edited_is_one_line(tmp_path, key, value, message):
    base, _ = saved(tmp_path)
    document = json.loads((tmp_path / RECIPE).read_text())
    (tmp_path / RECIPE).write_text(json.dumps(document | {key: value}))
    with pytest.raises(InputError, match=message):
        load_adapter(base, tmp_path)
