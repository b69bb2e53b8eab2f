"""TENT: what it lowers, what it doesn't look at, and what it leaves alone."""

from __future__ import annotations

import math

import torch
from torch import nn

from advisor.costs.simulate import simulate
from advisor.methods.tent import entropy
from advisor.models.layers import take_census
from advisor.records import Candidate
from advisor.training.update import begin, update

SIZE = (2, 8, 8)


def network():
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(6, 3))


def tuned(labels, updates=20):
    model = network()
    trainable, optimizer = begin(model, take_census(model, SIZE), Candidate("tent"), 1e-2)
    images = torch.randn(16, *SIZE, generator=torch.Generator().manual_seed(1)) * 2 + 1
    losses = [update(trainable, optimizer, images, labels).item() for _ in range(updates)]
    return trainable, losses


def test_entropy_is_that_of_the_softmax():
    rows = [[0.1, 2.0, -1.0], [0.0, 0.0, 0.0], [800.0, 0.0, -800.0]]
    expected = 0.0
    for row in rows:
        powers = [math.exp(value - max(row)) for value in row]
        shares = [power / sum(powers) for power in powers]
        expected -= sum(share * math.log(share) for share in shares if share) / len(rows)
    found = entropy(torch.tensor(rows, dtype=torch.float64), torch.tensor([0, 1, 2]))
    assert math.isclose(found.item(), expected, rel_tol=1e-9)


def test_it_gets_surer_and_never_looks_at_labels():
    first, losses = tuned(torch.zeros(16, dtype=torch.int64))
    assert losses[-1] < losses[0]
    other, _ = tuned(torch.arange(16) % 3)
    for name, tensor in first.delta().items():
        assert torch.equal(tensor, other.delta()[name])
    assert set(first.parameters) == {"1.weight", "1.bias"}


def test_it_costs_what_norm_does_but_for_the_head():
    model = network()
    census = take_census(model, SIZE)
    tent, norm = (simulate(model, census, Candidate(name), 8) for name in ("tent", "norm"))
    assert tent.trainable_parameters == 12
    assert tent.trainable_parameters < norm.trainable_parameters
    assert tent.flops.total < norm.flops.total
    assert not tent.uncounted_operators
