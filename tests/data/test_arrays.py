"""Arrays as people save them: by whatever names, of whatever numbers; none becomes another image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from advisor.data.loading import load_data
from advisor.data.sources import find
from advisor.errors import DataError

RGB = (3, 8, 8)
PLAIN = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(20) % 4


def loaded(tmp_path, **arrays):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return load_data(str(path), RGB)


def all_of(data):
    """Images and class names, in an order that the split doesn't decide."""
    images = torch.cat([data.train.images, data.validation.images])
    names = [data.class_names[label] for part in (data.train, data.validation) for label in part.labels]
    return {image.numpy().tobytes(): name for image, name in zip(images, names, strict=True)}


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (PLAIN, LABELS),
        (PLAIN.transpose(0, 3, 1, 2), LABELS),
        (PLAIN.astype(np.int64), LABELS.astype(np.uint8)),
        (PLAIN.astype(np.float32), LABELS.astype(float)),
        (PLAIN / 255, LABELS[:, None]),
        (PLAIN / 127.5 - 1, np.eye(4)[LABELS]),
    ],
    ids=["bytes", "channels first", "whole numbers", "0 to 255", "0 to 1", "-1 to 1"],
)
def test_the_same_images_saved_otherwise_are_the_same_images(tmp_path, images, labels):
    assert all_of(loaded(tmp_path, images=images, labels=labels)) == all_of(
        loaded(tmp_path, images=PLAIN, labels=LABELS)
    )


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        (("x_train", "y_train"), ("x_test", "y_test")),
        (("train_images", "train_labels"), ("val_images", "val_labels")),
        (("X_train", "Y_train"), ("X_valid", "Y_valid")),
        (("images", "labels"), ("test_images", "test_labels")),
    ],
)
def test_parts_are_known_by_their_names(tmp_path, train, held_out):
    few = {held_out[0]: PLAIN[:8], held_out[1]: LABELS[:8]}
    data = loaded(tmp_path, **{train[0]: PLAIN, train[1]: LABELS}, **few)
    assert (len(data.train), len(data.validation)) == (20, 8)
    assert not data.is_split_drawn


def test_validation_comes_before_test(tmp_path):
    parts = {"train": 20, "val": 12, "test": 8}
    arrays = {f"{part}_images": PLAIN[:count] for part, count in parts.items()}
    data = loaded(tmp_path, **arrays, **{f"{part}_labels": LABELS[:n] for part, n in parts.items()})
    assert len(data.validation) == 12


@pytest.mark.parametrize("kind", ["U5", "S5"])
def test_labels_may_be_names(tmp_path, kind):
    names = np.array(["dog", "cat", "owl", "cow"])
    data = loaded(tmp_path, images=PLAIN, labels=names[LABELS].astype(kind))
    assert data.class_names == ("cat", "cow", "dog", "owl")
    assert data.named
    assert all_of(data)[PLAIN[1].transpose(2, 0, 1).tobytes()] == "cat"


def test_what_was_made_of_the_numbers_is_said(tmp_path):
    np.savez(tmp_path / "data.npz", images=PLAIN / 127.5 - 1, labels=LABELS)
    assert find(str(tmp_path / "data.npz")).said == ("floats from -1 to 1 are taken as -1 to 1",)


def test_two_classes_an_image_are_refused(tmp_path):
    with pytest.raises(DataError, match="one class for each image"):
        loaded(tmp_path, images=PLAIN, labels=np.ones((20, 4), int))
