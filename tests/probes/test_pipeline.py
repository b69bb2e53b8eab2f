"""Whether the world has shifted, or the images are read otherwise than the network was trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from advisor.data.loading import load_data
from advisor.data.pixels import Frame, Normalisation
from advisor.data.sources import find
from advisor.probes.pipeline import misread
from advisor.probes.scenarios import situate
from advisor.records import Framing
from advisor.store import Store

SIZE = (3, 8, 8)
COLOURS = {"blue": (20, 20, 220), "green": (20, 200, 20), "red": (230, 20, 20)}
PLAIN = Normalisation((0.0,), (1.0,))
USUAL = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Hue(nn.Module):
    """Knows colours where images come in [0, 1], red first; where they are not, it says something else."""

    def __init__(self, order: tuple[int, ...] = (2, 1, 0)) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        with torch.no_grad():
            self.head.weight.copy_(10 * torch.eye(3)[list(order)])
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = ((x >= 0) & (x <= 1)).flatten(1).all(1)
        return torch.where(inside[:, None], self.head(x.mean((2, 3))), torch.tensor([1.0, 0.0, 0.0]))


def folder(root: Path, width: int = 8, place: int | None = None) -> str:
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for index in range(30):
            pixels = np.full((8, width, 3), 90, np.uint8)
            at = slice(None) if place is None else slice(place, place + 8)
            pixels[:, at] = np.clip(np.array(colour) + random.integers(-15, 15, 3), 0, 255)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return str(root)


def found_in(source, model, normalisation=PLAIN, framing=None, names=None, store=None):
    found = find(source)
    data = load_data(found, SIZE)
    situation = situate(data, 3, model_class_names=names)
    return misread(model, found, Frame(SIZE, framing or Framing()), normalisation, situation, 0, store)


def test_of_images_that_are_read_right_nothing_is_said(tmp_path):
    assert found_in(folder(tmp_path), Hue()) is None


def test_another_range(tmp_path):
    finding = found_in(folder(tmp_path), Hue(), USUAL)
    assert finding.weight == "error"
    assert "with --mean 0,0,0 --std 1,1,1 the model as it is gets 100 %" in finding.text


def test_of_arrays_it_is_remembered_too(tmp_path):
    """No files tell whether they have changed: their pixels do."""
    random = np.random.default_rng(0)
    labels = np.arange(90) % 3
    noise = random.integers(-15, 15, (90, 1, 1, 3))
    images = np.clip(np.array(list(COLOURS.values()))[labels][:, None, None] + noise, 0, 255)
    images = np.broadcast_to(images, (90, 8, 8, 3)).astype(np.uint8)
    with Store(tmp_path / "store.sqlite") as store:
        first, again = (found_in((images, labels), Hue(), USUAL, store=store) for _ in range(2))
        assert first.weight == "error"
        assert again == first
        assert found_in((255 - images, labels), Hue(), PLAIN, store=store) != first


def test_another_order_of_the_channels(tmp_path):
    names = tuple(COLOURS)
    assert "--channels bgr" in found_in(folder(tmp_path), Hue((0, 1, 2)), names=names).text


def test_another_order_of_the_classes(tmp_path):
    text = found_in(folder(tmp_path), Hue((1, 0, 2))).text
    assert "--classes green,red,blue" in text


def test_what_a_crop_cuts_off(tmp_path):
    """All of the colour lies at the side of a wide image."""
    source = folder(tmp_path, width=32, place=0)
    model = Hue()
    model.head.bias.data = torch.tensor([0.0, 0.0, 0.2])
    finding = found_in(source, model)
    assert "--resize squash" in finding.text or "--resize pad" in finding.text


class Lying(nn.Module):
    """Tells whether the upper half is lighter than the lower, or the left one than the right."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[1.0, 1, -1, -1], [1.0, -1, 1, -1]]))
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.adaptive_avg_pool2d(x.mean(1), 2).flatten(1))


@pytest.mark.parametrize("is_seen_turned", [True, False])
def test_images_that_are_turned_or_not_in_training(tmp_path, is_seen_turned):
    random, turn = np.random.default_rng(0), Image.Exif()
    turn[0x0112] = 6  # to be seen, a quarter to the right
    for name, axis in (("left", 1), ("up", 0)):
        (tmp_path / name).mkdir()
        for index in range(40):
            pixels = random.integers(0, 60, (8, 8, 3)).astype(np.uint8)
            pixels.swapaxes(0, axis)[:4] += 150
            image = Image.fromarray(pixels)
            stored = image.transpose(Image.Transpose.ROTATE_90) if index % 2 and is_seen_turned else image
            stored.save(tmp_path / name / f"{index}.png", exif=turn if index % 2 else Image.Exif())
    found, model = find(str(tmp_path)), Lying()
    situation = situate(load_data(found, SIZE), 2, model_class_names=("up", "left"))
    wrong, right = ("stored", "exif") if is_seen_turned else ("exif", "stored")
    for orientation in (wrong, right):
        frame = Frame(SIZE, Framing(orientation=orientation))
        told = misread(model, found, frame, PLAIN, situation, 0, None)
        assert (told is None) == (orientation == right)
        assert told is None or f"with --orientation {right} the model as it is gets 100 %" in told.text


def test_a_network_that_is_merely_bad_is_left_to_fine_tuning(tmp_path):
    model = Hue()
    nn.init.normal_(model.head.weight)
    model.head.bias.data = torch.tensor([100.0, 0.0, 0.0])  # always blue
    assert found_in(folder(tmp_path), model) is None


def test_new_classes_say_nothing_of_the_reading(tmp_path):
    found = find(folder(tmp_path))
    situation = situate(load_data(found, SIZE), 5)
    assert situation.head_replaced
    assert misread(Hue(), found, Frame(SIZE), USUAL, situation, 0, None) is None


def test_it_is_remembered(tmp_path, monkeypatch):
    source, model = folder(tmp_path / "data"), Hue()
    with Store(tmp_path / "store") as store:
        first = found_in(source, model, USUAL, store=store)
        monkeypatch.setattr(Hue, "forward", lambda *_: pytest.fail("it was asked again"))
        assert found_in(source, model, USUAL, store=store) == first
        assert replace(first, text="") != first
