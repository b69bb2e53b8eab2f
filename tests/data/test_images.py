"""Every image as a person sees it, and a word where others would have shown the network something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from advisor.data.loading import load_data
from advisor.data.pixels import pixels
from advisor.data.sources import find
from advisor.records import Framing

SIDE = 8


def picture() -> np.ndarray:
    """Upper left corner bright, on dark."""
    pixels = np.full((SIDE, SIDE, 3), 30, np.uint8)
    pixels[:4, :4] = 200
    return pixels


def folder(root: Path, save, count: int = 2) -> Path:
    for name in "ab":
        (root / name).mkdir(parents=True)
        for index in range(count):
            save(root / name / str(index))
    return root


def read(root: Path, **options) -> np.ndarray:
    """The first image, (H, W, 3)."""
    return load_data(str(root), (3, SIDE, SIDE), **options).train.images[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_it_is_turned_as_its_exif_says(tmp_path, orientation, suffix):
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }

    def save(path: Path) -> None:
        stored, exif = Image.fromarray(picture()), Image.Exif()
        if orientation in turns:
            stored = stored.transpose(turns[orientation])
        exif[0x0112] = orientation
        exact = {"lossless": True} if suffix == ".webp" else {}
        stored.save(path.with_suffix(suffix), exif=exif, **exact)

    root = folder(tmp_path, save)
    assert np.abs(read(root).astype(int) - picture()).max() < 40  # a JPEG loses some
    assert any("turned" in line for line in find(str(root)).said) == (orientation > 1)


def test_sides_are_those_that_are_seen(tmp_path):
    def save(path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (16, 8)).save(path.with_suffix(".jpg"), exif=exif)

    assert find(str(folder(tmp_path, save))).train.sizes(3) == {(3, 16, 8)}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_the_transparent_is_white(tmp_path, mode):
    def save(path: Path) -> None:
        alpha = np.zeros((SIDE, SIDE), np.uint8)
        alpha[:4, :4] = 255
        image = Image.fromarray(np.dstack([np.zeros((SIDE, SIDE, 3), np.uint8), alpha]))
        if mode == "P":
            image = Image.fromarray((alpha // 255).astype(np.uint8), "L").convert("P")
            image.putpalette([0, 0, 0, 0, 0, 0] + [0, 0, 0] * 254)
            image.save(path.with_suffix(".png"), transparency=0)
        else:
            image.convert(mode).save(path.with_suffix(".png"))

    root = folder(tmp_path, save)
    seen = read(root)
    assert seen[:4, :4].max() == 0
    assert seen[4:].min() == 255
    assert any("transparent" in line for line in find(str(root)).said)


def test_of_an_opaque_alpha_channel_nothing_is_said(tmp_path):
    root = folder(
        tmp_path, lambda path: Image.new("RGBA", (8, 8), (9, 9, 9, 255)).save(path.with_suffix(".png"))
    )
    assert find(str(root)).said == ()


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_grey_of_more_bits_by_its_range(tmp_path, bits, suffix):
    def save(path: Path) -> None:
        values = (picture()[..., 0].astype(np.uint16) << (bits - 8)).astype(np.uint16)
        Image.fromarray(values).save(path.with_suffix(suffix))

    root = folder(tmp_path, save)
    assert np.abs(read(root).astype(int) - picture()).max() <= 1
    assert any("more than 8 bits" in line for line in find(str(root)).said)


def test_the_first_frame_of_what_moves(tmp_path):
    def save(path: Path) -> None:
        more = [Image.new("RGB", (SIDE, SIDE))]
        Image.fromarray(picture()).save(path.with_suffix(".gif"), save_all=True, append_images=more)

    root = folder(tmp_path, save)
    assert np.abs(read(root).astype(int) - picture()).max() < 10
    assert any("animated" in line for line in find(str(root)).said)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif(tmp_path):
    root = folder(
        tmp_path, lambda path: Image.fromarray(picture()).save(path.with_suffix(".avif"), quality=95)
    )
    assert np.abs(read(root).astype(int) - picture()).max() < 60


def test_channels_in_the_order_that_is_asked_for(tmp_path):
    root = folder(
        tmp_path, lambda path: Image.new("RGB", (SIDE, SIDE), (1, 2, 3)).save(path.with_suffix(".png"))
    )
    assert read(root)[0, 0].tolist() == [1, 2, 3]
    assert read(root, framing=Framing(order="bgr"))[0, 0].tolist() == [3, 2, 1]


def test_a_wide_image_squashed_keeps_what_lies_at_its_sides(tmp_path):
    def save(path: Path) -> None:
        pixels = np.zeros((SIDE, 4 * SIDE, 3), np.uint8)
        pixels[:, :SIDE] = 255
        Image.fromarray(pixels).save(path.with_suffix(".png"))

    root = folder(tmp_path, save)
    assert read(root).max() == 0
    assert read(root, framing=Framing(mode="squash"))[:, 0].min() > 200


def test_an_image_of_very_many_pixels_is_halved_first_and_shows_the_same():
    wide = Image.new("L", (9000, 5000))
    wide.paste(255, (0, 0, 4500, 5000))
    found = pixels(wide, 3)
    assert found.shape == (3, 2500, 4500)
    assert (found[:, :, :2249] == 255).all()
    assert (found[:, :, 2251:] == 0).all()
    assert pixels(Image.new("L", (40_000, 1000)), 1).shape == (1, 1000, 40_000)  # nothing to spare
