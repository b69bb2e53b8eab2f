"""LoHa and LoKr: their changes against the formulas, element by element; caps and parameter counts."""

from __future__ import annotations

import copy
from dataclasses import replace
from math import prod

import pytest
import torch
from torch import nn

from advisor.methods import get_method
from advisor.methods.loha import HadamardProduct
from advisor.methods.lokr import KroneckerProduct, factorization, plan_kronecker
from advisor.models.layers import layer_type, take_census
from advisor.parts.low_rank import plan_product, product
from advisor.records import Candidate, Layer, Levers
from advisor.training.update import begin, update

LAYERS = {
    "standard": nn.Conv2d(4, 6, 3),
    "flat": nn.Conv2d(4, 6, (1, 3)),
    "grouped": nn.Conv2d(8, 12, 3, groups=2),
    "pointwise": nn.Conv2d(4, 6, 1),
    "one dimension": nn.Conv1d(4, 6, 3),
    "three dimensions": nn.Conv3d(4, 6, 2),
    "transposed": nn.ConvTranspose2d(4, 6, 3),
    "transposed, grouped": nn.ConvTranspose2d(8, 12, 3, groups=2),
    "linear": nn.Linear(4, 6),
}
each_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())


def element(change: torch.Tensor, layer: nn.Module, output: int, inner: int, tap: int) -> torch.Tensor:
    """The change of the weight with which `output` reads input `inner` of its group, at one tap."""
    if isinstance(layer, nn.Linear):
        return change[output, inner]
    if isinstance(layer, nn.ConvTranspose2d):
        group, column = divmod(output, layer.out_channels // layer.groups)
        return change[group * (layer.in_channels // layer.groups) + inner, column].flatten()[tap]
    return change[output, inner].flatten()[tap]


def sizes(layer: nn.Module) -> tuple[int, int, int]:
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features, 1
    return layer.out_channels, layer.in_channels // layer.groups, prod(layer.kernel_size)


@each_layer
def test_loha_is_the_elementwise_product_of_two_low_rank_products(layer):
    change = HadamardProduct(layer, 2, 0.5)
    assert not change.weight_change(layer).any()
    nn.init.normal_(change.second.up.weight)
    with torch.no_grad():
        first = product(change.first.down.weight, change.first.up.weight, layer)
        second = product(change.second.down.weight, change.second.up.weight, layer)
        assert change.weight_change(layer).shape == layer.weight.shape
        torch.testing.assert_close(change.weight_change(layer), 0.5 * first * second)


@pytest.mark.parametrize(("layer", "rank"), [(nn.Linear(64, 64), 8), (nn.Conv2d(64, 64, 3, groups=4), 16)])
def test_lohas_first_product_has_entries_of_variance_one(layer, rank):
    """So that the second moves the weight as far in an update as LoRA's would."""
    torch.manual_seed(0)
    change = HadamardProduct(layer, rank, 1.0)
    first = product(change.first.down.weight, change.first.up.weight, layer)
    assert float(first.detach().std()) == pytest.approx(1, rel=0.15)


@each_layer
@pytest.mark.parametrize("rank", [1, 100], ids=["low-rank", "whole"])
def test_lokr_is_the_kronecker_product(layer, rank):
    change = KroneckerProduct(layer, rank, 0.5)
    assert not change.weight_change(layer).any()
    for parameter in change.parameters():
        nn.init.normal_(parameter)
    with torch.no_grad():
        changed = change.weight_change(layer)
        right = change.up @ change.down if rank == 1 else change.right
    assert changed.shape == layer.weight.shape
    outputs, inputs, taps = sizes(layer)
    k, n = right.shape[0], right.shape[1] // taps
    assert (outputs, inputs) == (change.left.shape[0] * k, change.left.shape[1] * n)
    for output in range(outputs):
        for inner in range(inputs):
            for tap in range(taps):
                column = inner % n * taps + tap
                expected = 0.5 * change.left[output // k, inner // n] * right[output % k, column]
                torch.testing.assert_close(element(changed, layer, output, inner, tap), expected)


@pytest.mark.parametrize(
    ("dimension", "factors"),
    [(1, (1, 1)), (2, (1, 2)), (12, (3, 4)), (16, (4, 4)), (127, (1, 127)), (128, (8, 16)), (360, (18, 20))],
)
def test_a_dimension_is_split_near_its_root(dimension, factors):
    assert factorization(dimension) == factors


def layer_record(kind, weight_shape, groups=1):
    return Layer("x", kind, "", 0, 1, weight_shape, tuple(weight_shape[2:]), groups)


def test_loha_is_capped_at_half_of_loras_ranks():
    # 8 -> 8 channels, 3x3: 576 weights; a rank costs 2 (8*9 + 8) = 160.
    record = layer_record("standard", (8, 8, 3, 3))
    assert plan_product(record, 3, products=2).rank == 3
    capped = plan_product(record, 4, products=2)
    assert capped.rank == 3
    assert "rank 4 capped at 3" in capped.note
    assert plan_product(layer_record("linear", (3, 3)), 1, products=2).form == "kernel"


def test_lokr_holds_its_second_factor_whole_from_break_even_on():
    # 64 = 8 x 8 twice: C is (8, 8), D (8, 8 * 9): 576 parameters, or 80 for each rank.
    record = layer_record("standard", (64, 64, 3, 3))
    low = plan_kronecker(record, 7)
    assert (low.form, low.rank, low.note) == ("low-rank", 7, "")
    whole = plan_kronecker(record, 8)
    assert "rank 8: its factor held whole, 576 parameters" in whole.note
    layer = nn.Conv2d(64, 64, 3)
    assert sum(p.numel() for p in KroneckerProduct(layer, low.rank, 1.0).parameters()) == 64 + 7 * 80
    assert sum(p.numel() for p in KroneckerProduct(layer, whole.rank, 1.0).parameters()) == 64 + 576


def test_lokr_without_factors_is_capped_or_leaves_the_weight_to_be_trained():
    # 7 and 5 are primes: C is one number, D as large as the weight: 35 against 12 for each rank.
    capped = plan_kronecker(layer_record("linear", (7, 5)), 4)
    assert (capped.form, capped.rank) == ("low-rank", 2)
    assert "rank 4 capped at 2" in capped.note
    change = KroneckerProduct(nn.Linear(5, 7), capped.rank, 1.0)
    assert sum(p.numel() for p in change.parameters()) == 1 + 2 * 12
    assert plan_kronecker(layer_record("pointwise", (5, 1, 1, 1)), 4).form == "kernel"


@each_layer
@pytest.mark.parametrize("rank", [1, 2, 4, 64])
def test_no_adapter_outgrows_its_weight(layer, rank):
    record = layer_record(layer_type(layer), layer.weight.shape, getattr(layer, "groups", 1))
    plans = (
        (plan_product(record, rank, products=2), HadamardProduct),
        (plan_kronecker(record, rank), KroneckerProduct),
    )
    for plan, change in plans:
        assert plan.form in ("low-rank", "kernel")
        if plan.form == "low-rank":
            held = sum(parameter.numel() for parameter in change(layer, plan.rank, 1.0).parameters())
            assert held <= layer.weight.numel()


@pytest.mark.parametrize("name", ["loha", "lokr"])
@each_layer
def test_it_learns_and_merges_on_every_kind_of_layer(layer, name):
    torch.manual_seed(0)
    channels = sizes(layer)[1] * getattr(layer, "groups", 1)
    size = (channels, *[5 for _ in getattr(layer, "kernel_size", ())])
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        features = layer(torch.zeros(1, *size)).numel()
    base = nn.Sequential(layer, nn.Flatten(), nn.Linear(features, 3))
    model = copy.deepcopy(base)
    census = take_census(model, size)
    trainable, optimizer = begin(model, census, Candidate.of(name, {"rank": 1}, Levers()), 1e-2)
    assert all(key.startswith(("0.parametrizations.", "2.")) for key in trainable.parameters)
    for _ in range(3):
        update(trainable, optimizer, torch.randn(6, *size), torch.randint(0, 3, (6,)))
    x = torch.randn(4, *size)
    with torch.no_grad():
        adapted = model(x)
        merged = get_method(name).merge(model)
        assert not torch.equal(merged[0].weight, base[0].weight)
        assert (merged(x) - adapted).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["loha", "lokr"])
def test_depthwise_kernels_are_trained_themselves(name):
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(72, 2))
    census = take_census(model, (8, 5, 5))
    trainable = get_method(name).attach(model, census, {"rank": 2})
    assert sorted(trainable.parameters) == ["0.weight", "2.bias", "2.weight"]


@pytest.mark.parametrize("name", ["loha", "lokr", "dora", "lora"])
def test_layers_that_the_census_leaves_out_stay_frozen(name):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    census = take_census(model, (3, 5, 5))
    scope = replace(census, layers=tuple(layer for layer in census.layers if layer.name != "0"))
    trainable = get_method(name).attach(model, scope, {"rank": 2})
    assert {key.split(".")[0] for key in trainable.parameters} == {"1", "3"}
    assert not any(parameter.requires_grad for parameter in model[0].parameters())


def test_lohas_products_are_made_again_and_not_held():
    layer = nn.Conv2d(16, 16, 3)
    change = HadamardProduct(layer, 2, 1.0)
    held = []

    def keep(tensor):
        held.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        changed = change.weight_change(layer)
    changed.sum().backward()
    assert max(held, default=0) < layer.weight.numel()
    assert change.second.up.weight.grad.any()
