"""DoRA's two forms: the same function and the same gradients, each where it holds less."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from advisor.delivery.adapters import Recipe, load_adapter, save_adapter
from advisor.methods import get_method
from advisor.methods.dora import DoRABypass, DoRAWeight, bypass_holds_less
from advisor.models.layers import take_census
from advisor.parts.bypass import add_bypass, bypass_of, merge_attached, reparametrise
from advisor.parts.low_rank import output_norms, over_outputs
from advisor.records import Candidate, Layer, Levers
from advisor.training.update import begin, update

LAYERS = {
    "standard": (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 7, 7)),
    "no bias": (nn.Conv2d(4, 6, 3, bias=False), (2, 4, 7, 7)),
    "strided, dilated": (nn.Conv2d(4, 6, 3, stride=2, dilation=2), (2, 4, 9, 9)),
    "grouped, flat, reflect": (
        nn.Conv2d(4, 6, (1, 3), groups=2, padding=(0, 1), padding_mode="reflect"),
        (2, 4, 7, 7),
    ),
    "one dimension": (nn.Conv1d(4, 6, 3), (2, 4, 9)),
    "three dimensions": (nn.Conv3d(4, 6, 2), (2, 4, 4, 4, 4)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 5)),
    "linear on tokens": (nn.Linear(5, 6), (2, 3, 5)),
}


def both_forms(layer: nn.Module):
    """The layer in each form, with the same A, B and m, none of them where it started."""
    torch.manual_seed(1)
    beside, inside = copy.deepcopy(layer), copy.deepcopy(layer)
    bypass = DoRABypass(beside, 2)
    nn.init.normal_(bypass.low_rank.up.weight, std=0.3)
    bypass.magnitude.data *= torch.rand_like(bypass.magnitude) + 0.5
    weight = DoRAWeight(inside, 2)
    weight.load_state_dict(bypass.state_dict())
    for module in (beside, inside):
        module.requires_grad_(False)
    add_bypass(beside, bypass)
    reparametrise(inside, weight)
    return (beside, bypass), (inside, weight)


@pytest.mark.parametrize(("layer", "size"), LAYERS.values(), ids=LAYERS.keys())
def test_both_forms_have_the_same_outputs_and_gradients(layer, size):
    results = []
    x = torch.randn(size)
    for module, change in both_forms(layer):
        change.requires_grad_(True)
        own = x.clone().requires_grad_()
        output = module(own)
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        results.append([output, own.grad, *(p.grad for _, p in sorted(change.named_parameters()))])
    assert len(results[0]) == 5
    for beside, inside in zip(*results, strict=True):
        torch.testing.assert_close(beside, inside, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layer", "size"), LAYERS.values(), ids=LAYERS.keys())
def test_both_forms_compute_the_formula_and_merge(layer, size):
    x = torch.randn(size)
    forms = both_forms(layer)
    _, bypass = forms[0]
    with torch.no_grad():
        direction = layer.weight + bypass.low_rank.weight_change(layer)
        expected = copy.deepcopy(layer)
        gain = bypass.magnitude / output_norms(direction, layer)
        expected.weight.copy_(direction * over_outputs(gain, direction, layer))
        for module, _ in forms:
            torch.testing.assert_close(module(x), expected(x), rtol=0, atol=1e-5)
            merged = merge_attached(module)
            assert type(merged) is type(layer)
            assert sorted(merged.state_dict()) == sorted(layer.state_dict())
            assert (merged(x) - expected(x)).abs().max() <= 1e-5


@pytest.mark.parametrize("form", [0, 1], ids=["bypass", "weight"])
def test_a_channel_of_zeros_returns_its_bias_and_stays_finite(form):
    layer = nn.Conv2d(3, 4, 3)
    layer.weight.data[1] = 0
    module, change = both_forms(layer)[form]
    nn.init.zeros_(change.low_rank.up.weight)
    change.requires_grad_(True)
    output = module(torch.randn(8, 3, 6, 6))
    output.square().sum().backward()
    assert torch.equal(output[:, 1], layer.bias[1].expand_as(output[:, 1]))
    assert change.magnitude.grad[1] == 0
    assert all(parameter.grad.isfinite().all() for parameter in change.parameters())


def test_the_form_follows_from_what_each_holds():
    # 2 * 16 * 16 * 9 = 4608 elements for two weights; 8 * P * (16 + 4) = 160 P for the outputs.
    def layer(positions, calls=1):
        return Layer("x", "standard", "", 0, calls, (16, 16, 3, 3), (3, 3), output_positions=positions)

    assert bypass_holds_less(layer(28), 4)
    assert not bypass_holds_less(layer(29), 4)
    assert bypass_holds_less(layer(2 * 28, calls=2), 4)
    transposed = Layer("x", "transposed", "", 0, 1, (16, 8, 3, 3), (3, 3), groups=2, output_positions=14)
    assert bypass_holds_less(transposed, 2)  # 8 * 14 * (16 + 2) = 2016 < 2304 = 2 * 16 * 8 * 9
    assert not bypass_holds_less(transposed, 5)  # 8 * 14 * (16 + 5) = 2352


class Standardised(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(6)),
        *(nn.Conv2d(8, 32, 2), nn.BatchNorm2d(32), nn.ReLU()),
        *(Standardised(32, 32, 1), nn.Flatten(), nn.Linear(32, 5)),
    )


def test_each_layer_gets_its_form_and_a_saved_adapter_finds_it_again(tmp_path):
    torch.manual_seed(0)
    model = network()
    base = copy.deepcopy(model)
    census = take_census(model, (3, 14, 14))
    candidate = Candidate.of("dora", {"rank": 2}, Levers())
    trainable, optimizer = begin(model, census, candidate, 1e-2)
    assert [bypass_of(model[i]) is not None for i in (0, 4, 7)] == [False, True, False]
    assert [nn.utils.parametrize.is_parametrized(model[i]) for i in (0, 4, 7)] == [True, False, True]
    for _ in range(3):
        update(trainable, optimizer, torch.randn(6, 3, 14, 14), torch.randint(0, 5, (6,)))

    x = torch.randn(4, 3, 14, 14)
    save_adapter(tmp_path, trainable, Recipe.of(base, candidate, census))
    with torch.no_grad():
        adapted = model.eval()(x)
        assert (adapted - base.eval()(x)).abs().max() > 1e-3
        again = load_adapter(base, tmp_path)
        assert torch.equal(again(x), adapted)
        merged = get_method("dora").merge(model)
        assert (merged(x) - adapted).abs().max() <= 1e-5
    assert [type(module) for module in merged.modules()] == [type(module) for module in base.modules()]
