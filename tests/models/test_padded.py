"""Convolutions that only pad first: told by what they compute, whatever they are called."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from advisor.models.layers import is_plain, take_census, uses_weight_as_is
from advisor.models.padded import FirstPadding, first_padding, pad_first, pad_itself, pad_once
from tests.padding import ByLayer, BySize

SAME = FirstPadding(None)


class Causal(nn.Conv1d):
    def forward(self, x):
        return super().forward(F.pad(x, (self.dilation[0] * (self.kernel_size[0] - 1), 0)))


class Spelt(nn.Conv2d):
    """Just the convolution, in its own words."""

    def _conv_forward(self, x, weight, bias):
        return torch.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (BySize(3, 8, 3, stride=2), SAME),
        (BySize(12, 24, (3, 5), stride=(1, 2), dilation=2, groups=4, bias=False), SAME),
        (BySize(6, 6, 7, stride=3, groups=6), SAME),
        (BySize(8, 8, 3), FirstPadding((1, 1, 1, 1))),
        (BySize(8, 8, 1), FirstPadding((0, 0, 0, 0))),
        (ByLayer(3, 8, 3, stride=2, around=(0, 1, 0, 1)), FirstPadding((0, 1, 0, 1))),
        (ByLayer(3, 8, (5, 3), stride=2, padding=1, around=(0, 1, 1, 2)), FirstPadding((0, 1, 1, 2))),
        (Causal(4, 4, 3, dilation=2), FirstPadding((4, 0))),
        (Spelt(3, 4, 3, padding=1), FirstPadding((0, 0, 0, 0))),
    ],
)
def test_what_is_padded_first(layer, expected):
    assert first_padding(layer) == expected
    assert uses_weight_as_is(layer)
    assert not is_plain(layer)
    for size in (9, 10, 31):
        x = torch.randn(2, layer.in_channels, *[size + 3, size][: len(layer.kernel_size)])
        y = layer(x)
        plain = {1: F.conv1d, 2: F.conv2d}[x.ndim - 2]
        geometry = layer.stride, layer.padding, layer.dilation, layer.groups
        torch.testing.assert_close(plain(pad_first(layer, x), layer.weight, layer.bias, *geometry), y)
        pad_once(layer)
        torch.testing.assert_close(layer(x), y)
        pad_itself(layer)
        torch.testing.assert_close(layer(x), y)
        assert not layer._forward_pre_hooks


class Doubled(BySize):
    def forward(self, x):
        return super().forward(x) * 2


class Twice(BySize):
    def forward(self, x):
        return super().forward(x) + super().forward(x)


class Reflected(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1), mode="reflect"))


class Ones(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1), value=1.0))


class Cropped(nn.Conv2d):
    def forward(self, x):
        return super().forward(x[..., 1:, 1:])


class Otherwise(BySize):
    """Pads in training only."""

    def forward(self, x):
        return super().forward(x) if self.training else F.conv2d(x, self.weight, self.bias, self.stride)


class Counting(BySize):
    """Holds what can't be compared."""

    def __init__(self, *args):
        super().__init__(*args)
        self.seen = {}


class Standardised(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class Strided(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, 2)


@pytest.mark.parametrize(
    "kind",
    [
        *(Doubled, Twice, Reflected, Ones, Cropped, Otherwise, Counting, Standardised, Strided),
        *(nn.Conv2d, nn.ConvTranspose2d),
    ],
)
def test_what_does_more_is_left_alone(kind):
    layer = kind(4, 8, 3)
    assert first_padding(layer) is None
    assert uses_weight_as_is(layer) == is_plain(layer)


def test_timms_layers():
    timm = pytest.importorskip("timm.layers")
    assert first_padding(timm.Conv2dSame(3, 8, 3, stride=2)) == SAME
    for kind in (timm.StdConv2d, timm.StdConv2dSame, timm.ScaledStdConv2d, timm.ScaledStdConv2dSame):
        assert first_padding(kind(4, 8, 3)) is None
        assert not uses_weight_as_is(kind(4, 8, 3))


def test_it_is_known_of_a_layer_without_values_and_costs_no_random_numbers():
    before = torch.get_rng_state()
    assert first_padding(BySize(8, 8, 5, stride=5, device="meta")) == SAME
    assert torch.equal(torch.get_rng_state(), before)
    with FakeTensorMode():
        assert first_padding(BySize(8, 8, 6, stride=5)) == SAME
    with torch.device("meta"):
        assert first_padding(BySize(8, 8, 7, stride=5)) == SAME


def test_layers_that_differ_in_a_plain_value_have_verdicts_of_their_own():
    class Child(nn.Module):
        def __init__(self, by):
            super().__init__()
            self.by = by

        def forward(self, x):
            return F.pad(x, [self.by] * 4)

    class Holds(nn.Conv2d):
        def __init__(self, by):
            super().__init__(3, 4, 3)
            self.pad = Child(by)

        def forward(self, x):
            return super().forward(self.pad(x))

    assert [first_padding(Holds(by)).around for by in (1, 2)] == [(1,) * 4, (2,) * 4]


def test_the_census_takes_them_for_what_they_are():
    model = nn.Sequential(BySize(3, 8, 3, stride=2), nn.Flatten(), nn.Linear(8 * 25, 2))
    assert take_census(model, (3, 9, 10)).layers[0].layer_type == "standard"
