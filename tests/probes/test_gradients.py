"""What each option captures of the gradients: against gradients taken by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advisor.data.loading import Dataset, LabelledImages
from advisor.data.pixels import Normalisation
from advisor.methods.plan import option
from advisor.methods.sparse import TrainedChannels
from advisor.models.layers import take_census
from advisor.probes import captured

SIZE = (3, 8, 8)
BATCH = 8
CODES = ("norm", "bias", "sparse0.25", "lora1", "lora2", "lora64", "full")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.GroupNorm(2, 8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, groups=2), nn.ConvTranspose2d(16, 8, 2, groups=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)),
    )


@pytest.fixture(scope="module")
def found():
    model = network()
    census = take_census(model, SIZE)
    images = torch.randint(0, 256, (BATCH, *SIZE), dtype=torch.uint8)  # one batch: its order doesn't matter
    part = LabelledImages(images, torch.arange(BATCH) % 4)
    data = Dataset("made", tuple("abcd"), part, part, Normalisation((0.5,) * 3, (0.5,) * 3), named=True)
    options = [option(code) for code in CODES]
    energies = captured(model, census, data, BATCH, options, relative=False)
    shares = captured(model, census, data, BATCH, options)

    moved = copy.deepcopy(model).train()
    F.cross_entropy(moved(images.float() / 255 * 2 - 1), part.labels).backward()
    named = {layer.name: number for number, layer in enumerate(census.layers)}
    return model, moved, named, energies, shares


def of(found, name, code):
    _, _, named, energies, _ = found
    return energies[named[name], 1 + CODES.index(code)]


def test_all_of_a_layer_is_its_gradient_s_squared_norm(found):
    model, moved, named, energies, shares = found
    for name, place in named.items():
        parameters = list(moved.get_submodule(name).parameters())
        expected = sum(float(p.grad.square().sum()) for p in parameters)
        assert energies[place, -1] == pytest.approx(expected, rel=1e-3)
        size = sum(float(p.detach().square().sum()) for p in model.get_submodule(name).parameters())
        assert shares[place, -1] * size == pytest.approx(expected, rel=1e-3)
        assert energies[place, 0] == 0
    assert energies[named["0"], -1] > 0


def test_a_bypass_captures_the_largest_singular_values(found):
    moved = found[1]
    gradient = moved[0].weight.grad.flatten(1)
    values = np.square(np.linalg.svd(gradient.numpy(), compute_uv=False))
    assert of(found, "0", "lora1") == pytest.approx(values[0], rel=1e-3)
    assert of(found, "0", "lora2") == pytest.approx(values[:2].sum(), rel=1e-3)
    # A rank that would cost more than the weight is capped: it captures most, and never more than all.
    whole = float(gradient.square().sum())
    assert of(found, "0", "lora2") < of(found, "0", "lora64") <= whole * (1 + 1e-4)


def test_in_groups_each_has_its_share_of_the_rank(found):
    moved = found[1]
    plain = moved[6].weight.grad.unflatten(0, (2, -1)).flatten(2)
    turned = moved[7].weight.grad.unflatten(0, (2, -1)).transpose(1, 2).flatten(2)
    for name, by_group in (("6", plain), ("7", turned)):
        values = np.square(np.linalg.svd(by_group.numpy(), compute_uv=False))
        assert of(found, name, "lora2") == pytest.approx(values[:, 0].sum(), rel=1e-3)


def test_a_depthwise_kernel_is_trained_itself(found):
    assert of(found, "3", "lora2") == pytest.approx(of(found, "3", "full"))


def test_norms_biases_and_channels_capture_their_own(found):
    moved = found[1]
    assert of(found, "1", "norm") == of(found, "1", "full") > 0
    assert of(found, "0", "bias") == pytest.approx(float(moved[0].bias.grad.square().sum()), rel=1e-3)
    assert of(found, "3", "bias") == 0
    chosen = TrainedChannels(moved[0], 0.25).outputs
    expected = float(moved[0].weight.grad[chosen].square().sum())
    assert of(found, "0", "sparse0.25") == pytest.approx(expected, rel=1e-3)


def test_the_model_is_left_untouched(found):
    assert all(parameter.grad is None for parameter in found[0].parameters())
