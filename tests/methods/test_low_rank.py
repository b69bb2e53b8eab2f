"""Ranks, caps and closed-form parameter counts of LoRA and DoRA."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advisor.methods import get_method
from advisor.models.layers import take_census
from advisor.parts.low_rank import (
    Factor,
    LowRank,
    output_norms,
    over_outputs,
    plan_layer,
    product,
)
from advisor.records import Layer


def layer(kind, weight_shape, groups=1):
    return Layer("x", kind, "", 0, 1, weight_shape, tuple(weight_shape[2:]), groups)


def test_rank_is_capped_where_the_adapter_would_cost_more_than_the_weight():
    # 8 -> 8 channels, 3x3: 576 weights; a rank costs 8*9 + 8 = 80.
    assert plan_layer(layer("standard", (8, 8, 3, 3)), 7, "kernel").rank == 7
    capped = plan_layer(layer("standard", (8, 8, 3, 3)), 8, "kernel")
    assert (capped.form, capped.rank) == ("low-rank", 7)
    assert "rank 8 capped at 7" in capped.note


def test_a_weight_smaller_than_any_adapter_is_trained_itself():
    plan = plan_layer(layer("pointwise", (4, 1, 1, 1)), 4, "kernel")
    assert plan.form == "kernel"
    assert "would cost more" in plan.note


@pytest.mark.parametrize(("rank", "expected"), [(1, 4), (4, 4), (7, 4), (8, 8)])
def test_grouped_ranks_are_multiples_of_the_groups(rank, expected):
    assert plan_layer(layer("grouped", (64, 16, 3, 3), groups=4), rank, "kernel").rank == expected


def test_depthwise_forms_and_break_even():
    depthwise = layer("depthwise", (32, 1, 3, 3), groups=32)
    assert plan_layer(depthwise, 4, "kernel").form == "kernel"
    assert plan_layer(depthwise, 4, "skip").form == "skip"
    assert plan_layer(depthwise, 4, "factor").rank == 4
    # Break-even C k^2 / (C + k^2) = 288 / 41 = 7.02.
    assert plan_layer(depthwise, 8, "factor").rank == 7


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_parameters_in_closed_form(groups):
    conv = nn.Conv2d(8, 12, 3, groups=groups)
    low_rank = LowRank(conv, 4, 1.0)
    assert sum(p.numel() for p in low_rank.parameters()) == (4 // groups) * (8 * 9 + 12)
    depthwise = nn.Conv2d(8, 8, 3, groups=8)
    assert sum(p.numel() for p in Factor(depthwise, 3, 1.0).parameters()) == 3 * (8 + 9)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_product_is_the_block_diagonal_matrix_product(groups):
    conv = nn.Conv2d(8, 12, 3, groups=groups)
    low_rank = LowRank(conv, 4, 1.0)
    nn.init.normal_(low_rank.up.weight)
    down, up = low_rank.down.weight, low_rank.up.weight
    change = product(down, up, conv)
    assert change.shape == conv.weight.shape
    o, r = 12 // groups, 4 // groups
    for output in range(12):
        group = output // o
        expected = sum(up[output, q, 0, 0] * down[group * r + q] for q in range(r))
        torch.testing.assert_close(change[output], expected)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_norm_is_that_of_each_output_channels_true_weight(groups):
    conv = nn.Conv2d(4, 6, 3, groups=groups)
    torch.testing.assert_close(output_norms(conv.weight, conv), conv.weight.flatten(1).norm(dim=1))
    transposed = nn.ConvTranspose2d(4, 6, 3, groups=groups)
    norms = output_norms(transposed.weight, transposed)
    rows, columns = 4 // groups, 6 // groups
    for channel in range(6):
        group = channel // columns
        own = transposed.weight[group * rows : (group + 1) * rows, channel % columns]
        torch.testing.assert_close(norms[channel], own.norm())
    spread = over_outputs(norms, transposed.weight, transposed)
    divided = transposed.weight / spread
    torch.testing.assert_close(output_norms(divided, transposed), torch.ones(6))


def test_the_caps_are_told():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    census = take_census(model, (3, 8, 8))
    trainable = get_method("lora").attach(model, census, {"rank": 64})
    assert any("capped at 3" in note for note in trainable.notes)
