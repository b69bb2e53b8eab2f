"""Sparse update: the gradient of the chosen channels is the full one's, at the fraction of its cost."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn

from advisor.costs.simulate import simulate
from advisor.delivery.adapters import Recipe, attach_adapter
from advisor.methods import get_method
from advisor.methods.sparse import CHILD, TrainedChannels, share
from advisor.models.layers import take_census
from advisor.parts.low_rank import output_norms
from advisor.records import Candidate, Levers
from advisor.training.update import begin, update
from tests.methods.test_contract import SIZE, Standardised, network

LAYERS = {
    "standard": (nn.Conv2d(6, 8, 3, padding=1, bias=False), (6, 9, 9)),
    "strided, dilated, flat": (nn.Conv2d(6, 8, (1, 3), stride=2, dilation=2, padding=(0, 2)), (6, 9, 9)),
    "reflect": (nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), (6, 9, 9)),
    "circular, grouped": (nn.Conv2d(6, 24, 3, padding=1, padding_mode="circular", groups=3), (6, 9, 9)),
    "same, even kernel": (nn.Conv2d(6, 8, 2, padding="same"), (6, 9, 9)),
    "grouped, few outputs each": (nn.Conv2d(16, 24, 3, groups=8), (16, 9, 9)),
    "depthwise": (nn.Conv2d(16, 16, 3, groups=16), (16, 9, 9)),
    "depthwise, two each": (nn.Conv2d(8, 16, 3, groups=8), (8, 9, 9)),
    "transposed": (nn.ConvTranspose2d(6, 8, 3, stride=2, output_padding=1, dilation=2), (6, 5, 5)),
    "transposed, grouped": (nn.ConvTranspose2d(6, 16, 3, groups=2), (6, 5, 5)),
    "transposed, depthwise": (nn.ConvTranspose2d(16, 16, 3, groups=16), (16, 5, 5)),
    "1d": (nn.Conv1d(6, 8, 3), (6, 9)),
    "3d": (nn.Conv3d(6, 8, 2), (6, 4, 4, 4)),
    "linear": (nn.Linear(6, 8), (6,)),
    "linear on tokens": (nn.Linear(6, 8), (5, 6)),
    "no plain weight": (Standardised(6, 8, 3), (6, 9, 9)),
}


class Wrapped(nn.Module):
    """One layer before a head, pooled over whatever axes it has."""

    def __init__(self, layer: nn.Module, outputs: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(outputs, 3)

    def forward(self, x):
        y = self.layer(x)
        channel = -1 if isinstance(self.layer, nn.Linear) else 1
        return self.head(y.square().movedim(channel, 1).flatten(2).mean(2) if y.ndim > 2 else y.square())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS.keys())
def test_gradients_are_those_of_full_training(layer, shape):
    torch.manual_seed(0)
    outputs = getattr(layer, "out_channels", None) or layer.out_features
    full = Wrapped(copy.deepcopy(layer), outputs)
    sparse = copy.deepcopy(full)
    census = take_census(sparse, shape)
    get_method("sparse").attach(sparse, census, {"fraction": 0.25})
    x = torch.randn(2, *shape)
    of_full, of_sparse = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = sparse(of_sparse), full(of_full)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(of_sparse.grad, of_full.grad)
    channels = next(module for module in sparse.modules() if isinstance(module, TrainedChannels))
    whole = channels.by_output(full.layer.weight.grad, channels.groups)
    torch.testing.assert_close(channels.rows.grad, whole[channels.outputs])
    assert channels.rows.shape[0] == pytest.approx(outputs / 4, abs=1)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS.keys())
def test_merging_writes_the_channels_into_the_weight(layer, shape):
    torch.manual_seed(0)
    outputs = getattr(layer, "out_channels", None) or layer.out_features
    model = Wrapped(copy.deepcopy(layer), outputs)
    base = copy.deepcopy(model)
    trainable = get_method("sparse").attach(model, take_census(model, shape), {"fraction": 0.25})
    with torch.no_grad():
        for parameter in trainable.parameters.values():
            parameter.add_(torch.randn_like(parameter))
    x = torch.randn(2, *shape)
    adapted = model(x)
    merged = get_method("sparse").merge(model)
    torch.testing.assert_close(merged(x), adapted, rtol=0, atol=1e-5)
    assert set(merged.state_dict()) == set(base.state_dict())
    assert "forward" not in vars(merged.layer)


@pytest.mark.parametrize(
    ("each", "groups", "fraction", "expected"),
    [
        (64, 1, 0.125, (1, 8)),
        (3, 1, 0.125, (1, 1)),
        (8, 4, 0.125, (4, 1)),
        (4, 32, 0.125, (4, 4)),  # too few outputs in a group: whole groups
        (1, 96, 0.125, (12, 1)),
        (1, 4, 0.125, (1, 1)),
    ],
)
def test_how_many_channels(each, groups, fraction, expected):
    assert share(each, groups, fraction) == expected


def test_the_largest_channels_of_each_group_are_chosen():
    conv = nn.Conv2d(4, 16, 3, groups=2)
    channels = TrainedChannels(conv, 0.25)
    norms = output_norms(conv.weight.detach(), conv).view(2, 8)
    expected = sorted(int(i) for i in norms.topk(2, dim=1).indices[0])
    assert channels.outputs[:2].tolist() == expected
    assert ((channels.outputs >= 8) == torch.tensor([False, False, True, True])).all()


@pytest.mark.parametrize(
    ("name", "setting"), [("sparse", {"fraction": 0.125}), ("lite-residual", {"reduction": 2})]
)
def test_attaching_and_training_need_no_values(name, setting):
    model = network().to("meta")
    census = take_census(network(), SIZE)
    with torch.device("meta"):
        trainable, optimizer = begin(model, census, Candidate.of(name, setting, Levers()), 1e-3)
        update(trainable, optimizer, torch.zeros(2, *SIZE), torch.zeros(2, dtype=torch.int64))
    assert all(parameter.grad.is_meta for parameter in trainable.parameters.values())


def test_only_layers_of_the_census_are_trained():
    model = network()
    census = take_census(model, SIZE)
    census = replace(census, layers=tuple(layer for layer in census.layers if layer.name in ("6", "18")))
    for name in ("sparse", "lite-residual"):
        copied = copy.deepcopy(model)
        setting = {"sparse": {"fraction": 0.25}, "lite-residual": {"reduction": 2}}[name]
        trainable = get_method(name).attach(copied, census, setting)
        assert {parameter.split(".")[0] for parameter in trainable.parameters} <= {"6", "18"}


def test_the_choice_is_shipped_and_wins_over_a_new_one(tmp_path):
    """Reloading onto weights that would be ranked otherwise still trains and fills the same channels."""
    model = network()
    census = take_census(model, SIZE)
    base = copy.deepcopy(model)
    candidate = Candidate.of("sparse", {"fraction": 0.25}, Levers())
    trainable = get_method("sparse").attach(model, census, {"fraction": 0.25})
    chosen = model[0].get_submodule(CHILD).outputs
    assert f"0.{CHILD}.outputs" in trainable.delta()
    recipe = Recipe.of(base, candidate, census)
    with torch.no_grad():
        base[0].weight[chosen] *= 1e-3  # the least of all now; their trained values are in the file
    again = attach_adapter(base, recipe, trainable.delta())
    assert torch.equal(again.model[0].get_submodule(CHILD).outputs, chosen)
    x = torch.randn(2, *SIZE)
    assert torch.equal(again.model.eval()(x), trainable.model.eval()(x))


@pytest.mark.parametrize("fraction", [0.125, 0.25])
def test_weight_gradients_cost_the_fraction(fraction):
    model = torchvision.models.mobilenet_v2(weights=None)
    census = take_census(model, (3, 64, 64))
    full = simulate(model, census, Candidate("full"), 2)
    sparse = simulate(model, census, Candidate.of("sparse", {"fraction": fraction}, Levers()), 2)
    for kind in ("standard", "pointwise", "depthwise"):
        part, whole = sparse.by_layer_type[kind].flops, full.by_layer_type[kind].flops
        assert part.weight_gradient == pytest.approx(fraction * whole.weight_gradient, rel=0.03)
        assert part.forward == whole.forward
        assert part.input_gradient == whole.input_gradient
    bodies = sparse.trainable_parameters - 1_281_000, full.trainable_parameters - 1_281_000
    assert bodies[0] == pytest.approx(fraction * bodies[1], rel=0.03)
    states = sparse.memory.optimizer_state - 8 * 1_281_000, full.memory.optimizer_state - 8 * 1_281_000
    assert states[0] == pytest.approx(fraction * states[1], rel=0.03)
    assert sparse.inference_flops_ratio == 1
    assert sparse.uncounted_operators == ()


def test_a_linear_layers_phases_are_told_apart():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    census = take_census(model, (8,))
    full = simulate(model, census, Candidate("full"), 5).flops
    sparse = simulate(model, census, Candidate.of("sparse", {"fraction": 0.25}, Levers()), 5).flops
    assert sparse.input_gradient == full.input_gradient
    head = 2 * 5 * 16 * 4 + 5 * 4
    assert sparse.weight_gradient == 2 * 5 * (8 * 4 + 16 * 4) + head


def test_a_linear_layer_may_be_followed_by_an_activation_in_place():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    census = take_census(model, (3, 2, 2))
    trainable, optimizer = begin(model, census, Candidate.of("sparse", {"fraction": 0.5}, Levers()), 1e-2)
    assert (
        update(trainable, optimizer, torch.randn(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64)) is not None
    )
