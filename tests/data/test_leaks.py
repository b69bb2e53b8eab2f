"""What belongs together is on one side of a split; what lies on both sides, or in two classes, is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from advisor.data.loading import Dataset, LabelledImages, load_data
from advisor.data.splits import split_groups
from advisor.data.twins import series
from advisor.errors import DataError
from advisor.probes.folds import _spread, fold_count
from advisor.store import Store

RGB = (3, 16, 16)


def scene(number: int) -> np.ndarray:
    """A picture that is like no other."""
    coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return coarse.repeat(4, 0).repeat(4, 1)


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def noisy(pixels: np.ndarray, seed: int, by: float = 3) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, by, pixels.shape)
    return (pixels + noise).clip(0, 255).astype(np.uint8)


def sides(data: Dataset) -> tuple[set[int], set[int]]:
    """Which scenes are in each part, told by their pixels."""
    known = {number: scene(number).astype(int) for number in range(200)}

    def told(part: LabelledImages) -> set[int]:
        images = part.images.permute(0, 2, 3, 1).numpy().astype(int)
        return {min(known, key=lambda n: np.abs(known[n] - image).mean()) for image in images}

    return told(data.train), told(data.validation)


def bursts(root: Path, count: int = 20, frames: int = 6, name: str = "video{:03}_frame{:03}.png") -> Path:
    for number in range(count):
        for frame in range(frames):
            save(noisy(scene(number), frame), root / "ab"[number % 2] / name.format(number, frame))
    return root


@pytest.mark.parametrize("name", ["video{:03}_frame{:03}.png", "{:03}{:03}.png"], ids=["by name", "by looks"])
def test_frames_of_one_video_are_held_out_together(tmp_path, name):
    data = load_data(str(bursts(tmp_path, name=name)), RGB)
    train, held_out = sides(data)
    assert not train & held_out
    assert len(train | held_out) == 20
    assert 0.2 * 120 <= len(data.validation) <= 0.3 * 120
    assert {finding.kind for finding in data.findings} & {"groups", "copies"}


def test_copies_are_held_out_together_with_or_without_a_store(tmp_path):
    for number in range(20):
        for copy in ("", "_copy1", "_copy2"):
            save(scene(number), tmp_path / "data" / "ab"[number % 2] / f"{number}{copy}.png")
    with Store(tmp_path / "store") as store:
        for kept in (None, store, store):
            train, held_out = sides(load_data(str(tmp_path / "data"), RGB, store=kept))
            assert not train & held_out


def test_a_pattern_of_names_tells_what_belongs_together(tmp_path):
    for number in range(24):
        save(scene(number), tmp_path / "ab"[number % 2] / f"{number // 4}-{number}.png")
    data = load_data(str(tmp_path), RGB, grouping=r"(\d+)-")
    train, held_out = sides(data)
    assert not {number // 4 for number in train} & {number // 4 for number in held_out}


@pytest.mark.parametrize(("pattern", "said"), [("(", "no regular expression"), ("visit", "matches none")])
def test_a_wrong_pattern(tmp_path, pattern, said):
    with pytest.raises(DataError, match=said):
        load_data(str(bursts(tmp_path)), RGB, grouping=pattern)


def test_independent_images_are_split_as_ever(tmp_path):
    for number in range(40):
        save(scene(number), tmp_path / "ab"[number % 2] / f"{number}.png")
    data = load_data(str(tmp_path), RGB)
    assert data.train.groups is None
    assert data.findings == ()
    assert len(data.validation) == 12


def test_copies_on_both_sides_of_a_given_split_are_not_judged_on(tmp_path):
    for number in range(40):
        save(scene(number), tmp_path / "train" / "ab"[number % 2] / f"{number}.png")
    for number in range(30, 60):  # ten of them are known
        save(noisy(scene(number), number), tmp_path / "val" / "ab"[number % 2] / f"{number}.png")
    data = load_data(str(tmp_path), RGB)
    train, held_out = sides(data)
    assert not train & held_out
    assert len(held_out) == 20
    [finding] = data.findings
    assert (finding.kind, finding.weight) == ("leak", "warning")
    assert finding.text.startswith("10 of 30 held-out images")
    assert all(name.startswith("val/") for name in finding.files)


def test_a_given_split_of_copies_alone_is_an_error_that_is_told(tmp_path):
    for part in ("train", "val"):
        for number in range(12):
            save(scene(number), tmp_path / part / "ab"[number % 2] / f"{number}.png")
    with Store(tmp_path / "store") as store:
        data = load_data(str(tmp_path), RGB, store=store)
        with torch.inference_mode():  # whoever judges looks at them first
            assert len(data.validation.images) == 12
    [finding] = data.findings
    assert finding.weight == "error"
    assert "12 of 12" in finding.text


def test_images_of_two_classes_are_named(tmp_path):
    for number in range(20):
        save(scene(number), tmp_path / "ab"[number % 2] / f"{number}.png")
    save(scene(0), tmp_path / "b" / "again.png")
    findings = load_data(str(tmp_path), RGB).findings
    [torn] = [finding for finding in findings if finding.kind == "two-classes"]
    assert set(torn.files) == {"a/0.png", "b/again.png"}


def test_folds_keep_together_what_belongs_together(tmp_path):
    data = load_data(str(bursts(tmp_path)), RGB)
    folds = fold_count(data)
    assert folds > 1
    images, fold_of = _spread(data, folds)
    for group in images.groups.unique():
        assert len(fold_of[images.groups == group].unique()) == 1


@pytest.mark.parametrize(
    ("names", "tells"),
    [
        ([f"v{n // 5}_f{n % 5}.png" for n in range(40)], True),
        ([f"{n}.png" for n in range(40)], False),
        ([f"IMG_{n:04}.jpg" for n in range(40)], False),
        ([f"cat.{n}.jpg" if n < 20 else f"dog.{n}.jpg" for n in range(40)], False),
    ],
)
def test_names_tell_of_series_only_where_there_are_several(names, tells):
    labels = np.arange(40) // 20
    groups = series(names, labels)
    assert (groups is not None) == tells
    if groups is not None:
        assert len(np.unique(groups)) == 8


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_group_is_torn_and_no_class_is_lost(data):
    classes = data.draw(st.integers(2, 4))
    of_class = data.draw(st.lists(st.integers(2, 8), min_size=classes, max_size=classes))
    labels, groups = [], []
    for label, count in enumerate(of_class):
        for number in range(count):
            size = data.draw(st.integers(1, 5))
            labels += [label] * size
            groups += [100 * label + number] * size
    labels, groups = np.array(labels), np.array(groups)
    train, held_out = split_groups(labels, groups, 1000, 1000, data.draw(st.integers(0, 9)))
    assert sorted([*train, *held_out]) == list(range(len(labels)))
    assert not set(groups[train]) & set(groups[held_out])
    assert set(labels[train]) == set(labels[held_out]) == set(range(classes))
