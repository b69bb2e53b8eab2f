"""Small pictures of what was found: JPEG files of a few kB with names, whatever the images are."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advisor.data import load_data
from advisor.data.pictures import SIDE, picture

MOST_BYTES = 6000
rng = np.random.default_rng(0)


def photo() -> Image.Image:
    """Smooth, as photos are: (90, 120) pixels."""
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8))
    return small.resize((120, 90), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "L"), (2, "L")])
def test_a_picture_is_a_small_jpeg(channels: int, mode: str) -> None:
    made = picture("a", torch.from_numpy(rng.integers(0, 256, (channels, 40, 60)).astype(np.uint8)))
    with Image.open(io.BytesIO(made.jpeg)) as read:
        assert (read.format, read.size, read.mode) == ("JPEG", (SIDE, SIDE), mode)
    assert len(made.jpeg) < MOST_BYTES


def test_what_lies_in_two_classes_is_shown_side_by_side(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for n in range(8):
            photo().save(tmp_path / name / f"{n}.png")
    twin = Image.open(tmp_path / "cat" / "3.png")
    twin.save(tmp_path / "dog" / "twin.png")
    found = {each.kind: each for each in load_data(str(tmp_path), (3, 32, 32)).findings}
    shown = found["two-classes"].pictures
    assert [each.caption for each in shown] == list(found["two-classes"].files)
    assert {each.caption for each in shown} == {"cat/3.png", "dog/twin.png"}
    pixels = [np.asarray(Image.open(io.BytesIO(each.jpeg)), np.float64) for each in shown]
    assert np.abs(pixels[0] - pixels[1]).mean() < 1  # the same image
    assert all(len(each.jpeg) < MOST_BYTES for each in shown)
