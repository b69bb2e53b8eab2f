"""Adapters: where they find room. What all methods promise is in test_contract."""

from __future__ import annotations

import pytest
from torch import nn

from advisor.errors import InputError
from advisor.methods import get_method
from advisor.methods.adapter import LinearAdapter, bottleneck
from advisor.models.layers import take_census
from advisor.parts.bypass import bypass_of


def attached(model, setting):
    get_method("adapter").attach(model, take_census(model, (3, 4, 4)), setting)
    return [name for name, module in model.named_modules() if bypass_of(module) is not None]


def test_no_adapter_is_larger_than_what_it_stands_beside():
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 1, 1), nn.Flatten(), nn.Linear(16, 3))
    assert attached(model, {"kind": "conv", "reduction": 4}) == ["0"]


def test_a_model_without_room_for_an_adapter_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(InputError, match="no convolution has room"):
        attached(model, {"kind": "conv", "reduction": 4})


@pytest.mark.parametrize(("padding", "fits"), [((1, 1), True), ((1, 0), False), ((0, 1), False)])
def test_a_1x1_beside_a_convolution_needs_the_same_pixels_on_both_axes(padding, fits):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=padding), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    if fits:
        assert attached(model, {"kind": "parallel"}) == ["0"]
    else:
        with pytest.raises(InputError, match="no convolution has room"):
            attached(model, {"kind": "parallel"})


def test_linear_layers_have_adapters_too_but_never_the_head():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.GELU(), nn.Linear(32, 16), nn.Linear(16, 3))
    assert attached(model, {"kind": "linear", "reduction": 8}) == ["1", "3"]
    assert [tuple(bypass_of(model[place])[0].weight.shape) for place in (1, 3)] == [(6, 48), (4, 32)]


@pytest.mark.parametrize(
    ("channels", "reduction", "hidden"), [(32, 8, 4), (30, 8, 3), (7, 2, 1), (3, 8, 1), (12, 1, 12)]
)
def test_a_bottleneck_divides_the_channels_and_is_never_empty(channels, reduction, hidden):
    assert bottleneck(channels, reduction) == hidden
    assert LinearAdapter(nn.Linear(channels, 5), reduction)[0].out_features == max(channels // reduction, 1)


def test_only_a_head_is_no_place_for_an_adapter():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    kinds = [
        setting["kind"] for setting in get_method("adapter").settings(take_census(model, (3, 4, 4)), (4,))
    ]
    assert kinds == ["conv", "parallel"]
