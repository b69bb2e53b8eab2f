"""(IA)^3 and SSF: what they compute, what folding into the BatchNorm saves, what they leave alone."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from advisor.costs.simulate import simulate
from advisor.delivery.adapters import Recipe, load_adapter, save_adapter
from advisor.methods import get_method
from advisor.models.layers import take_census
from advisor.records import Candidate
from advisor.training.update import begin, update
from tests.methods.test_contract import Standardised

NAMES = ("ia3", "ssf")
SIZE = (4, 9, 9)

# Every kind of layer, with the size of its input.
LAYERS = {
    "standard": (nn.Conv2d(4, 6, 3), SIZE),
    "no bias": (nn.Conv2d(4, 6, 3, bias=False), SIZE),
    "flat, dilated, reflected": (
        nn.Conv2d(4, 6, (1, 3), padding=(0, 2), dilation=2, padding_mode="reflect"),
        SIZE,
    ),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), SIZE),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, bias=False), SIZE),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), SIZE),
    "grouped transposed": (nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), SIZE),
    "1d": (nn.Conv1d(4, 6, 3), (4, 9)),
    "3d": (nn.Conv3d(4, 6, 3), (4, 5, 5, 5)),
    "linear": (nn.Linear(4, 6), (4,)),
    "linear without bias": (nn.Linear(4, 6, bias=False), (4,)),
}


def with_head(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*copy.deepcopy(layers), nn.Flatten(), nn.LazyLinear(3))


def attached(name: str, model: nn.Module, size: tuple[int, ...] = SIZE):
    """The method attached, its scales and shifts no longer at their start; the state before."""
    census = take_census(model, size)
    base = copy.deepcopy(model).eval()
    trainable = get_method(name).attach(model, census, {})
    with torch.no_grad():
        for parameter in trainable.parameters.values():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return base, trainable


def scale_and_shift(trainable, name: str, path: str, channels: int):
    """s and t of the layer at `path`."""
    parameters = trainable.parameters
    scale = parameters[f"{path}.parametrizations.weight.0.scale"]
    if name == "ia3":
        return scale, torch.zeros(channels)
    return scale, parameters.get(f"{path}.parametrizations.bias.0.shift", parameters.get(f"{path}.bias"))


def by_channel(values: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, *[1] * (y.ndim - 2))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("layer", "size"), LAYERS.values(), ids=LAYERS.keys())
def test_a_layers_output_is_scaled_and_shifted_and_merging_is_exact(name, layer, size):
    torch.manual_seed(0)
    base, trainable = attached(name, with_head(layer), size)
    x = torch.randn(2, *size)
    with torch.no_grad():
        y = base[0](x)
        scale, shift = scale_and_shift(trainable, name, "0", y.shape[1])
        assert scale.shape == shift.shape == (y.shape[1],)
        expected = by_channel(scale, y) * y + by_channel(shift, y)
        torch.testing.assert_close(trainable.model[0](x), expected, rtol=1e-5, atol=1e-6)
        adapted = trainable.model(x)
        merged = get_method(name).merge(trainable.model)
        assert (merged(x) - adapted).abs().max() <= 1e-5
    assert type(merged[0]) is type(layer)
    assert set(dict(merged[0].named_parameters())) <= {"weight", "bias"}
    assert (merged[0].bias is None) == (layer.bias is None and name == "ia3")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_before_a_batchnorm_the_scale_acts_on_its_output(name, training):
    torch.manual_seed(0)
    model = with_head(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6))
    nn.init.normal_(model[1].weight)
    nn.init.normal_(model[1].bias)
    base, trainable = attached(name, model)
    assert not any(path.startswith("0.") for path in trainable.parameters)
    x = torch.randn(5, *SIZE)
    base.train(training)
    trainable.model.train(training)
    with torch.no_grad():
        y = base[1](base[0](x))
        scale, shift = scale_and_shift(trainable, name, "1", 6)
        expected = by_channel(scale, y) * y + by_channel(shift, y)
        torch.testing.assert_close(trainable.model[1](trainable.model[0](x)), expected)


@pytest.mark.parametrize("name", NAMES)
def test_folded_it_saves_no_more_activations_than_training_the_norms(name):
    """But for one scaled gamma for each BatchNorm, whatever the batch."""
    model = with_head(
        *(nn.Conv2d(4, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24), nn.ReLU()),
    )
    census = take_census(model, SIZE)
    for batch in (2, 16):
        norm = simulate(model, census, Candidate("norm"), batch)
        folded = simulate(model, census, Candidate(name), batch)
        assert folded.memory.activations - norm.memory.activations == 4 * (16 + 24)
        assert folded.inference_flops_ratio == 1.0
        assert folded.uncounted_operators == ()


def test_parameters_in_closed_form():
    model = with_head(
        *(
            nn.Conv2d(4, 16, 3),
            nn.BatchNorm2d(16),
            nn.Conv2d(16, 8, 3),
            nn.ConvTranspose2d(8, 6, 3, groups=2),
        ),
    )
    census = take_census(model, SIZE)
    head = sum(parameter.numel() for parameter in model[-1].parameters())
    counted = {name: simulate(model, census, Candidate(name), 2).trainable_parameters for name in NAMES}
    assert counted == {"ia3": 16 + 8 + 6 + head, "ssf": 2 * (16 + 8 + 6) + head}


@pytest.mark.parametrize("name", NAMES)
def test_every_scale_and_shift_gets_a_gradient(name):
    torch.manual_seed(0)
    model = with_head(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False))
    nn.init.normal_(model[1].bias)
    trainable, optimizer = begin(model, take_census(model, SIZE), Candidate(name), 1e-2)
    update(trainable, optimizer, torch.randn(4, *SIZE), torch.tensor([0, 1, 2, 0]))
    for path, parameter in trainable.parameters.items():
        assert parameter.grad is not None, path
        assert parameter.grad.abs().max() > 1e-6, path


def test_a_bias_that_ssf_made_reloads(tmp_path):
    torch.manual_seed(0)
    model = with_head(nn.Conv2d(4, 6, 3, bias=False), nn.ReLU())
    census = take_census(model, SIZE)
    base, trainable = attached("ssf", model)
    save_adapter(tmp_path, trainable, Recipe.of(base, Candidate("ssf"), census))
    again = load_adapter(base, tmp_path)
    x = torch.randn(2, *SIZE)
    with torch.no_grad():
        assert torch.equal(again(x), trainable.model(x))


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_that_computes_its_weight_is_scaled_by_its_batchnorm_or_not_at_all(name):
    _, trainable = attached(name, with_head(Standardised(4, 6, 3), nn.BatchNorm2d(6), Standardised(6, 4, 3)))
    assert {path.split(".")[0] for path in trainable.parameters} == {"1", "4"}
    assert trainable.notes == ("2: not adapted: Standardised computes its weight, which may cancel a scale",)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", [nn.BatchNorm2d(6, affine=False), nn.InstanceNorm2d(6)])
def test_a_norm_without_a_scale_would_cancel_one_before_it(name, norm):
    _, trainable = attached(name, with_head(nn.Conv2d(4, 6, 3), norm))
    assert set(trainable.parameters) == {"3.weight", "3.bias"}
    assert trainable.notes == ("0: not adapted: 1 cancels a scale and has none of its own",)


@pytest.mark.parametrize("name", NAMES)
def test_other_norms_leave_the_scale_to_the_layer(name):
    _, trainable = attached(name, with_head(nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6)))
    assert {path.split(".")[0] for path in trainable.parameters} == {"0", "3"}


@pytest.mark.parametrize("name", NAMES)
def test_only_what_the_census_lists_is_trained(name):
    model = with_head(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4))
    census = take_census(model, SIZE)
    later = replace(census, layers=tuple(layer for layer in census.layers if layer.name in ("2", "3", "5")))
    without_norm = replace(census, layers=tuple(layer for layer in census.layers if layer.name in ("2", "5")))
    trainable = get_method(name).attach(copy.deepcopy(model), later, {})
    assert {path.split(".")[0] for path in trainable.parameters} == {"3", "5"}
    trainable = get_method(name).attach(model, without_norm, {})
    assert {path.split(".")[0] for path in trainable.parameters} == {"5"}
    assert "not to be trained" in trainable.notes[0]


@pytest.mark.parametrize("name", NAMES)
def test_it_needs_a_head_and_a_layer_before_it(name):
    alone = take_census(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (4,))
    assert list(get_method(name).settings(alone, (4,))) == []
    two = take_census(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), (4,))
    assert list(get_method(name).settings(two, (4,))) == [{}]
    assert list(get_method(name).settings(replace(two, head=None), (4,))) == []


@pytest.mark.parametrize(
    ("name", "setting"), [("ia3", {}), ("ssf", {}), ("dora", {"rank": 2}), ("lora", {"rank": 2})]
)
def test_layers_that_share_a_weight_merge_each_for_itself(name, setting):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4, bias=False), nn.Linear(4, 3))
    model[2].weight = model[0].weight
    trainable = get_method(name).attach(model, take_census(model, (4,)), setting)
    x = torch.randn(5, 4)
    with torch.no_grad():
        for parameter in trainable.parameters.values():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        adapted = model(x)
        assert (get_method(name).merge(model)(x) - adapted).abs().max() <= 1e-5
