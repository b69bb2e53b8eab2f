"""The census: layer types, calls, and weights counted once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advisor.errors import ModelError
from advisor.models.layers import is_plain, layer_type, logits, take_census


def test_layer_types():
    assert layer_type(nn.Conv2d(3, 8, 3)) == "standard"
    assert layer_type(nn.Conv2d(3, 8, (1, 3))) == "standard"
    assert layer_type(nn.Conv2d(3, 8, 1)) == "pointwise"
    assert layer_type(nn.Conv2d(8, 8, 3, groups=8)) == "depthwise"
    assert layer_type(nn.Conv2d(8, 16, 3, groups=8)) == "depthwise"
    assert layer_type(nn.Conv2d(8, 16, 3, groups=4)) == "grouped"
    assert layer_type(nn.Conv2d(8, 16, 1, groups=4)) == "grouped"
    assert layer_type(nn.Conv2d(1, 8, 3, groups=1)) == "standard"
    assert layer_type(nn.ConvTranspose2d(8, 8, 3, groups=8)) == "transposed"
    assert layer_type(nn.Conv1d(4, 4, 3, groups=4)) == "depthwise"
    assert layer_type(nn.Linear(3, 3)) == "linear"
    assert layer_type(nn.BatchNorm2d(3)) == layer_type(nn.LayerNorm(3)) == "norm"
    assert layer_type(nn.GroupNorm(1, 3)) == layer_type(nn.InstanceNorm2d(3)) == "norm"
    assert layer_type(nn.Embedding(3, 3)) == "other"


class Reuses(nn.Module):
    """One convolution called twice, one weight tied to two layers, one layer never called."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.alias = self.twice
        self.one = nn.Linear(4, 4, bias=False)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.one.weight
        self.unused = nn.Linear(4, 9)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.alias(self.twice(self.stem(x)))
        return self.head(self.tied(self.one(x.mean((2, 3)))))


def test_reused_modules_are_called_twice_and_counted_once():
    model = Reuses()
    census = take_census(model, (3, 8, 8))
    layers = {layer.name: layer for layer in census.layers}
    assert "alias" not in layers
    assert layers["twice"].calls == 2
    assert layers["twice"].parameters == 4 * 4 * 9
    assert layers["one"].parameters + layers["tied"].parameters == 16
    assert layers["unused"].calls == 0
    assert census.head == "head"
    assert census.classes == 5
    assert sum(layer.parameters for layer in census.layers) == census.parameters
    assert census.parameters == sum(p.numel() for p in model.parameters())


def test_output_positions_are_counted_over_all_calls():
    layers = {layer.name: layer for layer in take_census(Reuses(), (3, 8, 8)).layers}
    assert layers["stem"].output_positions == 64
    assert layers["twice"].output_positions == 2 * 64
    assert layers["head"].output_positions == 1
    assert layers["unused"].output_positions == 0
    strided = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
        nn.Flatten(2),
        nn.Linear(36, 5),  # on 6 tokens
        nn.BatchNorm1d(6),
        nn.Flatten(),
        nn.Linear(30, 2),
    )
    positions = [layer.output_positions for layer in take_census(strided, (3, 8, 8)).layers]
    assert positions == [9, 36, 6, 0, 1]


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.LazyConv2d(4, 3)
        self.later = None
        self.head = nn.LazyLinear(6)

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        if self.later is None:
            self.later = nn.Linear(4, 4)
        return self.head(self.later(x))


def test_lazily_built_modules_are_counted_as_they_become():
    census = take_census(Lazy(), (2, 8, 8))
    kinds = {layer.name: (layer.layer_type, layer.parameters) for layer in census.layers}
    assert kinds["conv"] == ("standard", 4 * 2 * 9 + 4)
    assert kinds["later"] == ("linear", 20)
    assert census.head == "head"


def test_a_one_by_one_convolution_can_be_the_head():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert take_census(model, (3, 8, 8)).head == "1"


def test_the_census_leaves_modes_and_statistics_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    take_census(model, (3, 8, 8))
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


class Follows(nn.Module):
    """Normalisation layers behind convolutions, in every way that a network can wire them."""

    def __init__(self):
        super().__init__()
        for name in ("direct", "dropped", "changed", "added", "read", "first", "second", "again"):
            self.add_module(name, nn.Conv2d(3, 3, 1))
            self.add_module(f"{name}_norm", nn.BatchNorm2d(3))
        self.grouped, self.grouped_norm = nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3)
        self.dropout, self.relu = nn.Dropout(), nn.ReLU()
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        x = self.direct_norm(self.direct(x))
        x = self.dropped_norm(self.dropout(self.dropped(x)))
        x = self.changed_norm(self.changed(x).relu_())
        x = self.added_norm(self.added(x) + x)
        y = self.read(x)
        x = self.read_norm(y) + self.relu(y)
        x = self.first_norm(self.first(x))
        x = self.first_norm(self.second(x))
        for _ in range(2):
            x = self.again_norm(self.again(x))
        x = self.grouped_norm(self.grouped(x))
        return self.head(x.mean((2, 3)))


def test_the_norm_that_follows_a_layer_reads_its_very_output_alone_and_always():
    followed_by = {layer.name: layer.followed_by for layer in take_census(Follows(), (3, 4, 4)).layers}
    assert {name: norm for name, norm in followed_by.items() if norm} == {
        "direct": "direct_norm",
        "dropped": "dropped_norm",
        "again": "again_norm",  # called twice, each time followed by the same
        "grouped": "grouped_norm",
    }


def test_what_is_not_a_classifier_is_refused():
    with pytest.raises(ModelError, match="not a classifier"):
        take_census(nn.Conv2d(3, 4, 3), (3, 8, 8))


def test_a_wrong_input_size_is_named():
    with pytest.raises(ModelError, match=r"3x8x8 image.*--input-size"):
        take_census(nn.Sequential(nn.Flatten(), nn.Linear(5, 2)), (3, 8, 8))


def test_logits_of_wrapped_outputs():
    tensor = torch.zeros(2, 3)
    assert logits((tensor, None)) is tensor
    with pytest.raises(ModelError, match="dict"):
        logits({"out": tensor})


def test_plain_layers_are_torchs_own():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    assert is_plain(nn.Conv2d(3, 4, 3))
    assert is_plain(nn.Linear(3, 4))
    assert not is_plain(Standardised(3, 4, 3))
    assert not is_plain(nn.BatchNorm2d(3))


def test_an_image_larger_than_memory_is_refused():
    for side in (10**6, 2**40):
        with pytest.raises(ModelError, match=f"one image of 3x{side}x{side} takes more memory"):
            take_census(nn.Conv2d(3, 8, 3), (3, side, side))
    with pytest.raises(ModelError, match="one 1x2x2 image, which takes more memory"):
        take_census(Greedy(), (1, 2, 2))


class Greedy(nn.Flatten):
    """Asks for more than any machine has."""

    def forward(self, x):
        return super().forward(x) * torch.empty(2**50)
