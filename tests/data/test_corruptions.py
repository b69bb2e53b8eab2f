"""Corruptions: what they keep, and that they get worse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_sample_image

from advisor.data import corrupt, load_data, parse_corruption
from advisor.data.corruptions import KINDS, Corruption, corrupted
from advisor.errors import InputError


def photograph(side: int, channels: int = 3) -> torch.Tensor:
    """Parts of a real photograph, shrunk: (4, C, side, side)."""
    whole = torch.from_numpy(np.array(load_sample_image("china.jpg"))).permute(2, 0, 1)[:channels]
    parts = whole[:, :400, :640].unfold(1, 200, 200).unfold(2, 320, 320).flatten(1, 2).transpose(0, 1)
    small = torch.nn.functional.interpolate(parts.float(), size=(side, side), mode="area")
    return small.round().to(torch.uint8)


@given(
    st.sampled_from(KINDS),
    st.integers(1, 5),
    st.integers(0, 3),
    st.sampled_from([1, 3, 4]),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(0, 9),
)
@settings(deadline=None, max_examples=60)
def test_shape_type_and_original_are_kept_and_a_seed_repeats(kind, severity, count, channels, size, seed):
    images = torch.randint(0, 256, (count, channels, *size), dtype=torch.uint8)
    before = images.clone()
    once = corrupted(images, Corruption(kind, severity), seed)
    assert once.shape == images.shape
    assert once.dtype == torch.uint8
    assert torch.equal(images, before)
    assert once.data_ptr() != images.data_ptr() or not count
    assert torch.equal(once, corrupted(images, Corruption(kind, severity), seed))


@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize("kind", KINDS)
def test_the_severest_is_farther_from_the_photograph_than_the_mildest(kind, side):
    images = photograph(side)
    distances = [
        (corrupted(images, Corruption(kind, severity), 0).float() - images.float()).abs().mean().item()
        for severity in range(1, 6)
    ]
    assert min(distances) > 0
    # Fewer pixels lie elsewhere: at 32 pixels the distance says little about how much is left.
    assert distances[-1] > distances[0] or (kind == "pixelate" and side == 32)


CIFAR_10_C = """brightness contrast defocus-blur elastic-transform fog frost gaussian-blur gaussian-noise
glass-blur impulse-noise jpeg motion-blur pixelate saturate shot-noise snow spatter speckle-noise
zoom-blur"""


def test_every_corruption_of_cifar_10_c_is_there():
    assert sorted(KINDS) == CIFAR_10_C.split()
    for kind in KINDS:
        assert parse_corruption(kind) == Corruption(kind, 3)
        assert parse_corruption(f"{kind}:5") == Corruption(kind, 5)


@pytest.mark.parametrize("side", [32, 96, 224])
@pytest.mark.parametrize("kind", ["speckle-noise", "elastic-transform"])
def test_each_severity_is_farther_from_the_photograph_than_the_one_before(kind, side):
    images = photograph(side)
    distances = [
        (corrupted(images, Corruption(kind, severity), 0).float() - images.float()).abs().mean().item()
        for severity in range(1, 6)
    ]
    assert distances == sorted(distances)


@pytest.mark.parametrize("kind", ["frost", "spatter", "glass-blur", "elastic-transform"])
def test_each_image_is_hit_elsewhere_and_another_seed_hits_elsewhere(kind):
    images = photograph(32)[:1].repeat(2, 1, 1, 1)
    once, again = (corrupted(images, Corruption(kind, 3), seed) for seed in (0, 1))
    assert not torch.equal(once[0], once[1])
    assert not torch.equal(once, again)


def test_saturate_keeps_value_and_grey_and_needs_colours():
    image = torch.tensor([[200, 150, 100], [90, 90, 90]], dtype=torch.uint8).view(2, 3, 1, 1)
    paler, fuller = (corrupted(image, Corruption("saturate", severity), 0) for severity in (1, 5))
    assert paler[0].flatten().tolist() == [200, 185, 170]  # a saturation of 0.5 becomes 0.15
    assert fuller[0].flatten().tolist() == [200, 100, 0]
    assert torch.equal(fuller[1], image[1])
    with pytest.raises(InputError, match=r"saturate:3: it changes colours, and these images have 1 channel;"):
        corrupt(load_data("digits", (1, 8, 8)), parse_corruption("saturate"), 0)
    assert corrupt(load_data("digits", (3, 8, 8)), parse_corruption("saturate"), 0).train is not None


def test_frost_and_water_brighten_mud_darkens():
    grey = torch.full((2, 3, 64, 64), 128, dtype=torch.uint8)
    frost, water, mud = (
        corrupted(grey, Corruption(*what), 0).int() for what in (("frost", 1), ("spatter", 1), ("spatter", 4))
    )
    assert frost.min() >= 128
    assert frost[:, 2].float().mean() > frost[:, 0].float().mean()  # bluish
    assert water.min() == 128 < water.max()
    assert mud.max() == 128 > mud.min()


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("glas-blur:2", "glass-blur"),
        ("Gaussian_Noise", "gaussian-noise"),
        ("elastic", "elastic-transform"),
        ("jpeg_compression", "jpeg"),
    ],
)
def test_an_unknown_kind_is_guessed(text, meant):
    with pytest.raises(InputError, match=f"did you mean {meant}\\? The kinds are"):
        parse_corruption(text)


def test_pixelate_leaves_fewer_pixels():
    image = corrupted(photograph(32), Corruption("pixelate", 5), 0)
    assert len(image[0].flatten(0, 1).unique(dim=1).T) == int(32 * 0.65)  # distinct columns


def test_noise_has_the_deviation_that_it_says():
    grey = torch.full((1, 3, 48, 48), 128, dtype=torch.uint8)
    noisy = corrupted(grey, parse_corruption("gaussian-noise:3"), 0).float() / 255
    assert noisy.std() == pytest.approx(0.08, rel=0.05)
    hit = corrupted(grey, parse_corruption("impulse-noise:5"), 0) != 128
    assert hit.float().mean() == pytest.approx(0.07, rel=0.1)


@pytest.mark.parametrize("kind", [*(kind for kind in KINDS if kind.endswith("-blur")), "elastic-transform"])
def test_a_blur_keeps_what_is_all_alike(kind):
    grey = torch.full((2, 1, 20, 20), 77, dtype=torch.uint8)
    assert torch.equal(corrupted(grey, Corruption(kind, 5), 0), grey)


def test_brightness_keeps_the_hue():
    image = torch.tensor([100, 50, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    brighter = corrupted(image, Corruption("brightness", 5), 0).flatten().float()
    assert brighter[0] == pytest.approx(100 + 0.3 * 255, abs=1)
    assert brighter[1] / brighter[0] == pytest.approx(0.5, abs=0.01)
    assert brighter[2] == 0


def test_training_and_held_out_images_are_corrupted_each_with_their_own_noise():
    data = load_data("digits", (1, 8, 8))
    data = replace(data, validation=data.train.labelled(data.train.labels))
    shifted = corrupt(data, parse_corruption("gaussian-noise"), seed=1)
    assert not torch.equal(shifted.train.images, data.train.images)
    assert not torch.equal(shifted.train.images, shifted.validation.images)
    assert torch.equal(shifted.train.labels, data.train.labels)
    assert shifted.source == "digits, rehearsing gaussian-noise:3"


@pytest.mark.parametrize("text", ["", "rain:3", "fog:0", "fog:6", "fog:", "fog:x", "fog:3:1"])
def test_what_is_not_known_is_refused(text):
    with pytest.raises(InputError, match="--rehearse"):
        parse_corruption(text)
