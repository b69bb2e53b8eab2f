"""What every method promises, over the whole registry and over every kind of layer."""

from __future__ import annotations

import copy
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from advisor.errors import InputError
from advisor.methods import get_method, methods, register
from advisor.models.layers import take_census
from advisor.records import Candidate, Levers
from advisor.training.update import begin, solve_head, update
from tests.padding import ByLayer, BySize

SIZE = (3, 10, 10)


class Standardised(nn.Conv2d):
    """A convolution that does not compute with its weight as it is."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


def network(kind=nn.Conv2d, **options) -> nn.Sequential:
    """Every layer type once; `options` change the middle convolution, and `kind` is its class."""
    middle = {"kernel_size": 3, "padding": 1, "groups": 1, "stride": 1} | options
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(kind(8, 16, **middle), nn.BatchNorm2d(16), nn.ReLU(inplace=True)),
        *(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24), nn.ReLU()),
        nn.ConvTranspose2d(24, 8, 3, stride=2, padding=1, output_padding=1, groups=2),
        Standardised(8, 8, 3),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 5)),
    )


NETWORKS = {
    "standard": {},
    "strided": {"stride": 2},
    "grouped": {"groups": 4},
    "depthwise": {"groups": 8},
    "dilated": {"dilation": 2, "padding": 2},
    "unpadded": {"padding": 0},
    "same": {"padding": "same"},
    "reflect": {"padding_mode": "reflect"},
    "circular": {"padding_mode": "circular", "groups": 2},
    "flat kernel": {"kernel_size": (1, 3), "padding": (0, 1)},
    "even kernel": {"kernel_size": 2, "padding": 0},
    "padded by size": {"kind": BySize, "stride": 2},
    "padded by size, dilated": {"kind": BySize, "kernel_size": 5, "dilation": 2, "groups": 4},
    "padded by size, depthwise": {"kind": BySize, "stride": 3, "groups": 8, "bias": False},
    "padded first": {"kind": ByLayer, "around": (0, 1, 1, 2), "stride": 2, "padding": 0, "kernel_size": 5},
    "padded twice": {"kind": ByLayer, "around": (2, 1, 0, 1), "stride": 2, "padding": 1},
}


if find_spec("timm"):  # an extra, which users may lack
    timm = import_module("timm.layers")
    NETWORKS["timm's, padded by size"] = {"kind": timm.Conv2dSame, "kernel_size": 3, "stride": 2}


@cache
def settled(*options):
    """A network with realistic statistics, and its census. Not to be changed."""
    torch.manual_seed(0)
    model = network(**dict(options)).train()
    for _ in range(3):
        model(torch.randn(8, *SIZE))
    return model.eval(), take_census(model, SIZE)


def trained(name: str, setting: dict, options: dict, updates: int = 2):
    """A network with realistic statistics, the method attached and trained for a few updates."""
    base, census = settled(*options.items())
    torch.manual_seed(1)
    candidate = Candidate.of(name, setting, Levers())
    trainable, optimizer = begin(copy.deepcopy(base), census, candidate, 1e-2)
    batches = [(torch.randn(6, *SIZE), torch.randint(0, 5, (6,))) for _ in range(updates)]
    for images, labels in batches:
        update(trainable, optimizer, images, labels)
    if trainable.solved is not None and batches:
        solve_head(trainable, census, batches)
    return base, trainable, census


def all_settings():
    census = take_census(network(), SIZE)
    for name, method in methods().items():
        for setting in method.settings(census, (2, 4)):
            yield pytest.param(name, dict(setting), id=Candidate.of(name, setting, Levers()).id)


ALL_SETTINGS = list(all_settings())


def test_the_methods_are_there_in_reading_order_and_described():
    known = [
        "full",
        "plan",
        "head",
        "ridge",
        "norm",
        "bias",
        "recalibrate",
        "tent",
        "lora",
        "dora",
        "loha",
        "lokr",
    ]
    known += ["galore", "adapter", "ia3", "ssf", "lite-residual", "sparse"]
    assert list(methods())[: len(known)] == known
    for method in methods().values():
        assert method.summary
        assert method.formula
        assert method.source
        trains = bool(method.learning_rates)
        assert not trains or len(method.learning_rates) >= 3
        assert list(method.learning_rates) == sorted(method.learning_rates)


def test_from_one_learning_rate_to_the_next_is_about_five_times():
    """As the picture of all candidates counts them."""
    for name in methods():
        for lower, higher in pairwise(get_method(name).learning_rates):
            assert 3.9 <= higher / lower <= 6.1, name


def test_biases_are_trained_where_one_layer_besides_the_head_has_one():
    for biases, expected in (((True, False), True), ((False, True), True), ((False, False), False)):
        layers = [nn.Conv2d(3, 3, 1, bias=bias) for bias in biases]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        assert get_method("bias").applies(take_census(model, SIZE)) == expected


def test_a_taken_name_is_refused():
    class Again(type(get_method("lora"))):
        pass

    with pytest.raises(ValueError, match="already registered"):
        register(Again)


def test_what_is_no_method_is_refused():
    class Other:
        name = "other"

    with pytest.raises(TypeError, match="no instance of"):
        register(Other)


def test_a_name_that_is_nearly_one_is_guessed():
    with pytest.raises(InputError, match="did you mean lora"):
        get_method("lorra")


@pytest.mark.parametrize(("name", "setting"), ALL_SETTINGS)
@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS.keys())
def test_it_starts_as_the_identity(name, setting, options):
    base, trainable, _ = trained(name, setting, options, updates=0)
    x = torch.randn(4, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(trainable.model.eval()(x), base(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "setting"), ALL_SETTINGS)
@pytest.mark.parametrize("options", [NETWORKS["padded by size"], NETWORKS["padded first"]])
def test_a_layer_that_pads_first_does_at_every_image_size_and_once_merged(name, setting, options):
    base, trainable, _ = trained(name, setting, options, updates=0)
    images = [torch.randn(2, 3, height, width) for height, width in ((9, 9), (10, 13), (16, 11))]
    with torch.no_grad():
        for x in images:
            torch.testing.assert_close(trainable.model.eval()(x), base(x), rtol=0, atol=1e-6)
    base, trainable, _ = trained(name, setting, options)
    with torch.no_grad():
        adapted = [trainable.model.eval()(x) for x in images]
        merged = get_method(name).merge(copy.deepcopy(trainable.model))
        for x, expected in zip(images, adapted, strict=True):
            torch.testing.assert_close(merged(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "setting"), ALL_SETTINGS)
@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS.keys())
def test_training_changes_outputs_and_merging_does_not(name, setting, options):
    base, trainable, _ = trained(name, setting, options)
    x = torch.randn(4, *SIZE)
    with torch.no_grad():
        adapted = trainable.model.eval()(x)
        assert (adapted - base(x)).abs().max() > 1e-4
        merged = get_method(name).merge(trainable.model)
        assert (merged(x) - adapted).abs().max() <= 1e-5
    is_wide = setting.get("features", "last") != "last"
    mergeable = setting.get("kind") not in ("conv", "linear") and name != "lite-residual" and not is_wide
    if mergeable:
        assert [type(m) for m in merged.modules()] == [type(m) for m in base.modules()]
        shapes = {name: tensor.shape for name, tensor in base.state_dict().items()}
        assert {name: tensor.shape for name, tensor in merged.state_dict().items()} == shapes


@pytest.mark.parametrize(("name", "setting"), ALL_SETTINGS)
def test_what_is_frozen_stays(name, setting):
    base, trainable, _ = trained(name, setting, {})
    moved = set(trainable.delta())
    after = trainable.model.state_dict()
    for key, before in base.state_dict().items():
        if key not in moved and key in after and "num_batches" not in key:
            assert torch.equal(after[key], before), key


@pytest.mark.parametrize(("name", "setting"), ALL_SETTINGS)
def test_the_delta_restores_the_adapted_outputs(name, setting):
    base, trainable, census = trained(name, setting, {"groups": 4})
    x = torch.randn(4, *SIZE)
    again, _ = begin(copy.deepcopy(base), census, Candidate.of(name, setting, Levers()), 0.0)
    missing = again.model.load_state_dict(trainable.delta(), strict=False)
    assert not missing.unexpected_keys
    with torch.no_grad():
        torch.testing.assert_close(again.model.eval()(x), trainable.model.eval()(x), rtol=0, atol=0)


def test_statistics_follow_the_methods_policy():
    expected = {"head": False, "recalibrate": True, "norm": True, "full": True, "lora": True}
    for name, moves in expected.items():
        base, trainable, _ = trained(name, {"rank": 2} if name == "lora" else {}, {})
        moved = not torch.equal(trainable.model[1].running_mean, base[1].running_mean)
        assert moved == moves, name


def test_recalibration_averages_the_batches_and_forgets_the_old_statistics():
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3), nn.Flatten(), nn.Linear(300, 2))
    model[0].running_mean.fill_(7.0)
    census = take_census(model, SIZE)
    trainable, optimizer = begin(model, census, Candidate("recalibrate"), 0.0)
    batches = [torch.randn(5, *SIZE) + shift for shift in (0.0, 1.0, 5.0)]
    for batch in batches:
        assert update(trainable, optimizer, batch, torch.zeros(5, dtype=torch.long)) is None
    expected = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(model[0].running_mean, expected, rtol=0, atol=1e-5)
    assert model[0].momentum == 0.3
    assert not any(parameter.requires_grad for parameter in model.parameters())


@given(
    groups=st.sampled_from([1, 2, 4, 8]),
    rank=st.integers(1, 32),
    kernel=st.sampled_from([1, 2, 3]),
    name=st.sampled_from(["lora", "dora", "loha", "lokr"]),
)
@settings(max_examples=30, deadline=None)
def test_merging_keeps_outputs_at_any_rank_and_grouping(groups, rank, kernel, name):
    _base, trainable, _ = trained(
        name, {"rank": rank}, {"groups": groups, "kernel_size": kernel, "padding": 0}
    )
    x = torch.randn(2, *SIZE)
    with torch.no_grad():
        adapted = trainable.model.eval()(x)
        merged = get_method(name).merge(trainable.model)
        assert (merged(x) - adapted).abs().max() <= 1e-5
