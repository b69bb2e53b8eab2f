"""Each of the awkward modules is advised on rightly, or refused in one line that says what to do."""

from __future__ import annotations

import copy
import re
import warnings

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from advisor import AdvisorError, load_model, recommend
from advisor.costs import Simulator
from advisor.costs.allocator import allocator_peak
from advisor.methods import get_method
from advisor.models import load_module, take_census
from advisor.models.layers import logits
from advisor.records import MULTIPLY_ADD_TYPES, Candidate
from advisor.training.update import begin, update
from tests.zoo.networks import CLASSES, SIZE, ZOO

METHODS = ("full", "head", "norm", "recalibrate", "tent", "bias", "ridge", "lora", "ssf")
QUESTION = {"input_size": SIZE, "batch_size": 2, "methods": METHODS, "ranks": (2,), "store": None}
QUESTION |= {"probe_seconds": None, "verify": False}
# What attaches: everywhere, in the layer's weights, beside them.
TRIED = (Candidate("full"), Candidate("ssf"), Candidate("lora", (("rank", 2),)))

every = pytest.mark.parametrize("name", ZOO)
advised = pytest.mark.parametrize("name", [name for name, odd in ZOO.items() if not odd.refused])


def built(name):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that quantising, tracing and older norms are deprecated
        return ZOO[name].build()


def scores(model, images):
    """The same whatever random numbers it takes."""
    torch.manual_seed(1)
    with torch.no_grad():
        return logits(model.eval()(images))


@every
def test_it_is_advised_on_or_refused(name):
    odd, model = ZOO[name], built(name)
    classes = {id(module): type(module) for module in model.modules()}
    if odd.refused:
        with pytest.raises(AdvisorError, match=odd.refused) as refused:
            recommend(model, **QUESTION)
        assert "\n" not in str(refused.value)
        return
    found = recommend(model, **QUESTION)
    assert found.recommended
    told = (*found.warnings, *found.assumed, *found.not_applicable.values())
    assert not any("itself failed" in line for line in told), told
    assert not odd.says or any(re.search(odd.says, line) for line in told), told
    methods = {evaluation.candidate.method for evaluation in found.evaluations}
    assert set(odd.has) <= methods
    assert not set(odd.has_not) & methods
    assert {evaluation.cost.fidelity for evaluation in found.evaluations} == set(odd.fidelity)
    # The module is the user's, and stays as it was.
    assert all(classes[id(module)] is type(module) for module in model.modules() if id(module) in classes)


@advised
def test_its_census_and_costs_are_right(name):
    odd = ZOO[name]
    model = load_module(built(name)).module
    census = take_census(model, SIZE)
    layers = {layer.name: layer for layer in census.layers}
    assert census.head == odd.head
    assert {key: (layers[key].layer_type, layers[key].calls) for key in odd.layers} == odd.layers
    assert sum(layer.parameters for layer in census.layers) == census.parameters
    assert census.parameters == sum(parameter.numel() for parameter in model.parameters())

    simulator = Simulator(model, census)
    counter = FlopCounterMode(display=False)  # right on forward passes
    with counter, torch.no_grad():
        model.eval()(torch.zeros(1, *SIZE))
    forward = simulator.forward_flops()
    of_layers = sum(forward.get(kind, 0) for kind in MULTIPLY_ADD_TYPES)
    if odd.functions:
        assert of_layers <= sum(forward.values()) >= counter.get_total_flops()
    else:
        assert of_layers == counter.get_total_flops()
    if odd.memory and "full" in odd.has:
        candidate = Candidate("full")
        copied = copy.deepcopy(model)
        trainable, optimizer = begin(copied, census, candidate, 1e-3)
        images, labels = torch.randn(2, *SIZE), torch.zeros(2, dtype=torch.int64)
        measured = allocator_peak(trainable, optimizer, images, labels)
        assert simulator.cost(candidate, 2).peak_memory_bytes == pytest.approx(measured, rel=0.01)


@advised
def test_methods_attach_train_and_merge(name):
    odd = ZOO[name]
    base = load_module(built(name)).module
    census = take_census(base, SIZE)
    images, labels = torch.randn(2, *SIZE), torch.arange(2) % (census.classes or 1)
    before = scores(base, images)
    for candidate in TRIED:
        if candidate.method not in odd.has:
            continue
        model = copy.deepcopy(base)
        trainable, optimizer = begin(model, census, candidate, 1e-2)
        torch.testing.assert_close(scores(model, images), before, rtol=0, atol=odd.close)
        trainable.train_mode()
        was = {key: tensor.clone() for key, tensor in trainable.delta().items()}
        loss = update(trainable, optimizer, images, labels)
        assert torch.isfinite(loss)
        assert any(not torch.equal(tensor, was[key]) for key, tensor in trainable.delta().items())
        trained = scores(model, images)
        merged = get_method(candidate.method).merge(model)
        torch.testing.assert_close(scores(merged, images), trained, rtol=1e-5, atol=odd.close)
        assert merged.state_dict().keys() == base.state_dict().keys()


def test_a_factory_may_give_what_is_in_wrappers(tmp_path):
    code = """
import torch
from torch import nn
from torch.nn.utils import parametrizations

def build():
    body = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.Flatten())
    return torch.compile(nn.Sequential(torch.compile(body), nn.Linear(800, 5)))
"""
    (tmp_path / "own.py").write_text(code)
    loaded = load_model(f"{tmp_path / 'own.py'}:build")
    assert list(loaded.module.state_dict()) == ["0.0.bias", "0.0.weight", "1.weight", "1.bias"]
    assert loaded.module(torch.zeros(1, *SIZE)).shape == (1, CLASSES)
    assert any("weights that 0.0 computed" in line for line in loaded.assumed)


def test_there_are_enough_of_them():
    assert len(ZOO) >= 40
