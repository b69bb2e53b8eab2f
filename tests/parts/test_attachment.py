"""What a method gets to attach itself to, and what a method may not do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advisor.methods.base import Method
from advisor.models.layers import take_census
from advisor.parts.attachment import Attachment, hidden_tensors

SIZE = (3, 6, 6)


class WithASpare(nn.Module):
    """A classifier that holds a layer which it never calls."""

    def __init__(self):
        super().__init__()
        self.conv, self.spare = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.pool(self.conv(x).relu()).flatten(1))


def test_each_called_layer_but_the_head_is_offered_and_what_is_left_out_is_noted():
    model = WithASpare()
    to = Attachment(model, take_census(model, SIZE), {})
    assert [layer.name for layer, _ in to.layers("standard", "linear")] == ["conv"]
    assert to.notes == ["spare: not adapted: a forward pass never calls it"]


class Projection(nn.Module):
    """y = b * (M x) with M frozen: registered, or hidden where nobody sees it."""

    def __init__(self, layer, *, hidden):
        super().__init__()
        matrix = torch.randn(layer.out_features, layer.in_features)
        if hidden:
            self._matrix = (matrix,)
        else:
            self.register_buffer("matrix", matrix)
        self.gain = nn.Parameter(torch.zeros(layer.out_features, 1))

    def forward(self, weight):
        return weight + self.gain * (self._matrix[0] if hasattr(self, "_matrix") else self.matrix)


def projected(*, hidden):
    class Projected(Method):
        name, summary, formula, source, learning_rates = "projected", "", "", "", (1e-3, 1e-2, 1e-1)

        def train(self, to):
            for _, module in to.layers("linear"):
                change = Projection(module, hidden=hidden)
                nn.utils.parametrize.register_parametrization(module, "weight", change)
                yield change.gain

    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    return Projected().attach(model, take_census(model, (6,)), {})


def test_what_a_method_adds_and_does_not_train_is_shipped():
    trainable = projected(hidden=False)
    assert list(trainable.additions) == ["0.parametrizations.weight.0.matrix"]
    assert trainable.delta().keys() == trainable.additions.keys() | trainable.parameters.keys()
    assert not any("original" in name for name in trainable.additions)  # the model's own, by another name


def test_a_tensor_that_a_method_hides_is_refused():
    with pytest.raises(TypeError, match=r"Projection\._matrix holds a tensor.*register_buffer"):
        projected(hidden=True)


def test_hidden_tensors_are_found_in_containers_and_registered_ones_are_not():
    module = nn.BatchNorm2d(2)
    assert hidden_tensors(module) == []
    module.kept = {"deep": [(torch.ones(1),)]}
    assert hidden_tensors(module) == ["kept"]
