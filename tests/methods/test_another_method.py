"""A method from outside, in one file: VeRA, whose frozen matrices all layers share, meets what ours meet."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from advisor.costs import Simulator
from advisor.costs.allocator import allocator_peak
from advisor.delivery.adapters import Recipe, load_adapter, save_adapter
from advisor.methods import get_method, methods, registered
from advisor.methods.base import Method
from advisor.models.layers import take_census
from advisor.parts.bypass import reparametrise
from advisor.probes import Trainer
from advisor.probes.picture import Conditions, Point, Seen, pictured, shipped_prior
from advisor.probes.race import race
from advisor.records import Candidate, Levers
from advisor.training.update import begin, update
from tests.methods.matrix import BATCH, SIZE, network
from tests.probes.test_train import dataset
from tests.probes.test_train import network as small_network

RANK = 32


class SharedProjection(nn.Module):
    """W' = W + b * B (d * A), with A and B the same for every layer."""

    def __init__(self, weight, down, up):
        super().__init__()
        self.rows, self.columns = weight.shape[0], weight[0].numel()
        self.register_buffer("down", down)  # (RANK, most columns)
        self.register_buffer("up", up)  # (most rows, RANK)
        self.d = nn.Parameter(torch.full((RANK, 1), 0.1))
        self.b = nn.Parameter(torch.zeros(self.rows, 1))

    def forward(self, weight):
        change = self.up[: self.rows] @ (self.d * self.down[:, : self.columns])
        return weight + (self.b * change).view_as(weight)


class VeRA(Method):
    """It states no order and no place in the race."""

    name, formula = "vera", "W' = W + Λb·B·Λd·A; b and d trained, A and B frozen"
    summary, source = "two scales for each layer on shared random matrices, and the head", "arXiv 2310.11454"
    learning_rates = (1e-3, 5e-3, 2e-2)

    def train(self, to):
        layers = [module for _, module in to.layers("standard", "grouped", "linear")]
        down = torch.randn(RANK, max(layer.weight[0].numel() for layer in layers))
        up = torch.randn(max(layer.weight.shape[0] for layer in layers), RANK)
        trained = to.head()
        for layer in layers:
            change = SharedProjection(layer.weight, down, up)
            reparametrise(layer, change)
            trained += change.parameters()
        return trained


@pytest.fixture(autouse=True)
def vera():
    with registered(VeRA()) as method:
        yield method


def test_it_comes_last_in_the_list():
    assert list(methods())[-1] == "vera"


def test_what_is_expected_of_it_is_what_methods_come_to_and_less_sure():
    known = [Point(Candidate(name), get_method(name).learning_rates[1]) for name in ("norm", "ssf", "full")]
    point = Point(Candidate("vera"), VeRA.learning_rates[1])
    seen, under = [Seen(each, 0.8, 200) for each in known], Conditions(blocks=3, batch_size=16)
    *of_others, of_it = pictured(seen, [*known, point], under, shipped_prior(under.world))
    assert of_it.mean == pytest.approx(0.8, abs=0.05)
    assert all(of_it.high - of_it.low > each.high - each.low for each in of_others)


def test_its_frozen_matrices_are_priced_once_and_shipped_once():
    torch.manual_seed(0)
    model = network()
    census = take_census(model, SIZE)
    candidate = Candidate("vera", levers=Levers(update="per-parameter"))
    cost = Simulator(model, census).cost(candidate, BATCH)
    trainable, optimizer = begin(copy.deepcopy(model), census, candidate, 1e-3)
    images, labels = torch.randn(BATCH, *SIZE), torch.arange(BATCH) % 5
    update(trainable, optimizer, images, labels)
    assert cost.peak_memory_bytes == pytest.approx(
        allocator_peak(trainable, optimizer, images, labels), rel=0.001
    )
    matrices = 4 * RANK * (288 + 32)
    assert sum(t.numel() * t.element_size() for t in trainable.additions.values()) == matrices
    statistics = 2 * 4 * (16 + 16 + 32 + 32)
    assert cost.delta_bytes == matrices + 4 * cost.trainable_parameters + statistics


def test_its_adapter_comes_back_with_the_matrices_it_was_trained_with(tmp_path):
    torch.manual_seed(0)
    model = network().eval()
    census = take_census(model, SIZE)
    trainable, optimizer = begin(copy.deepcopy(model), census, Candidate("vera"), 1e-2)
    for _ in range(3):
        update(trainable, optimizer, torch.randn(BATCH, *SIZE), torch.arange(BATCH) % 5)
    save_adapter(tmp_path, trainable, Recipe.of(model, Candidate("vera"), census))
    x = torch.randn(3, *SIZE)
    torch.manual_seed(99)  # loading draws other matrices, which are overwritten
    with torch.no_grad():
        trained = trainable.model.eval()(x)
        assert torch.equal(load_adapter(model, tmp_path)(x), trained)
        merged = methods()["vera"].merge(trainable.model)
        torch.testing.assert_close(merged(x), trained, rtol=0, atol=1e-5)


def test_it_is_probed():
    model = small_network()
    trainer = Trainer(model, take_census(model, dataset().train.images.shape[1:]), dataset(), 4)
    simulator = Simulator(model, trainer.census)
    candidates = [Candidate(name) for name in ("vera", "full", "head", "norm", "bias", "ssf")]
    costs = {candidate: simulator.cost(candidate, 4) for candidate in candidates}
    found = race(trainer, costs, seconds=6.0, updates=8, seed=0)
    assert Candidate("vera") in found.accuracies
