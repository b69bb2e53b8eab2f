"""Images that are arrays: of an .npz, or of scikit-learn's digits."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.lib import format  # noqa: A004

from advisor.data.parts import PARTS
from advisor.data.pixels import Frame, Size, fit, with_channels, wrong_channels
from advisor.data.pools import Failures, Found, Pool, class_names_of
from advisor.data.survey import Unreadable, check_share
from advisor.errors import DataError
from advisor.system.files import opened

if TYPE_CHECKING:
    import numpy.typing as npt

    Labels = npt.NDArray[np.int64]

_CHUNK = 256  # images converted at once
# What arrays are called: of MNIST, of MedMNIST, of Keras, and in many a script.
_KINDS = {
    "images": {"images", "image", "imgs", "x", "data"},
    "labels": {"labels", "label", "y", "targets", "target"},
}
_WHITE = 255
_TWICE = 1.5 / 255  # white, once it is divided twice
_ROUNDING = 1e-4  # resampling may overshoot by as much


def find_npz(source: str, path: Path) -> Found:
    """The images of an .npz: with `images`, `labels` and perhaps `class_names`, or as others call them.

    Of names such as `x_train`, `y_train`, `val_images` and `val_labels`, the parts are known, too.
    """
    arrays = npz_arrays(path)
    parts = [(arrays[images], arrays[labels]) for images, labels in _parts(path, list(arrays))]
    return find_arrays(source, path, parts, arrays.get("class_names"))


def find_arrays(
    source: str,
    where: object,
    parts: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]],
    names: npt.NDArray[Any] | None = None,
) -> Found:
    """The images of arrays.

    Args:
        where: what errors name.
        parts: images and their labels: to train on and, where there are two, held out.
        names: of the classes, where something tells them.

    Raises:
        DataError: their shapes, ranges or labels can't be used.
    """
    read = [_labelled(where, images, labels) for images, labels in parts]
    notes = tuple(dict.fromkeys(note for part in read for note in part.notes))
    listed, places, is_named = joined_labels(where, [part.labels for part in read], names)
    pools = [
        array_pool(part.images, labels[part.kept], where, part.kept, part.total)
        for part, labels in zip(read, places, strict=True)
    ]
    return Found(source, listed, is_named, pools[0], pools[1] if len(pools) > 1 else None, notes)


def joined_labels(
    where: object, parts: Sequence[npt.NDArray[Any]], names: npt.NDArray[Any] | Sequence[str] | None
) -> tuple[tuple[str, ...], list[Labels], bool]:
    """The classes of all parts, each part's labels as indices into them, and whether they have names.

    Args:
        parts: of each part the labels, as `checked_labels` gives them.
        names: of the classes, where something tells them.
    """
    if parts[0].dtype.kind == "U":
        known = np.unique(np.concatenate(parts))
        names = known if names is None or set(known) - {*names} else np.asarray(names)
        order = {name: place for place, name in enumerate(names.tolist())}
        parts = [np.asarray([order[label] for label in part.tolist()]) for part in parts]
    listed, joined = class_names_of(where, np.concatenate(parts).astype(np.int64), names)
    return listed, np.split(joined, np.cumsum([len(part) for part in parts])[:-1]), names is not None


@dataclass(frozen=True, slots=True)
class _Labelled:
    images: npt.NDArray[Any]  # those that are whole
    labels: npt.NDArray[Any]  # of all: int64, or text
    kept: Labels
    total: int
    notes: tuple[str, ...]


def _labelled(path: object, images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> _Labelled:
    whole, kept, notes = checked_images(path, images)
    checked = checked_labels(path, labels)
    if len(images) != len(checked):
        raise DataError(
            f"{path}: {len(images)} images but {len(checked)} labels; every image needs one label"
        )
    return _Labelled(whole, checked, kept, len(images), notes)


def _parts(path: Path, keys: Sequence[str]) -> list[tuple[str, str]]:
    """The arrays that hold images and their labels: of the training part, then of what is held out."""
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        words = re.findall(r"[a-z]+", key.casefold())
        kinds = {kind for kind, known in _KINDS.items() if set(words) & known}
        others = [word for word in words if not any(word in known for known in _KINDS.values())]
        part = PARTS.get(others[0]) if others else "train"
        if len(kinds) == 1 and len(others) <= 1 and part is not None:
            found.setdefault(part, {}).setdefault(kinds.pop(), key)
    pairs = {part: (of["images"], of["labels"]) for part, of in found.items() if len(of) == len(_KINDS)}
    if "train" not in pairs:
        held = ", ".join(list(keys)[:5]) or "nothing"
        raise DataError(
            f"{path} has no arrays of images and labels that go together (it holds {held}); save them as "
            "images and labels, or x_train, y_train, x_val, y_val"
        )
    held_out = pairs.get("val", pairs.get("test"))
    return [pairs["train"], *([held_out] if held_out is not None else [])]


def npz_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """All arrays of the file, by name. Raises DataError."""
    try:
        with opened(path) as file, np.load(file, allow_pickle=False) as archive:
            for stored in archive.zip.infolist():
                _check_shape(archive.zip, stored)
            return {name: np.asanyarray(archive[name]) for name in archive}
    except Exception as error:  # whatever zip, zlib and numpy raise on a damaged file
        if "Object arrays" in str(error):
            raise DataError(
                f"{path} holds object arrays, which could run code when loaded; "
                "save arrays of numbers and strings"
            ) from error
        raise DataError(
            f"{path} is not a readable .npz file ({type(error).__name__}); write it with numpy.savez"
        ) from error


def _check_shape(archive: zipfile.ZipFile, stored: zipfile.ZipInfo) -> None:
    """Refuse an array that is to be larger than what is stored of it: numpy takes that memory at once."""
    with archive.open(stored) as file:
        version = format.read_magic(file)
        read = format.read_array_header_1_0 if version == (1, 0) else format.read_array_header_2_0
        shape, _, dtype = read(file)
    if math.prod(shape) * dtype.itemsize > stored.file_size:
        raise ValueError("an array is cut short")


def unlabelled_images(path: Path) -> npt.NDArray[Any]:
    """The images of an .npz, whatever else it holds. Raises DataError."""
    arrays = npz_arrays(path)
    found = [name for name in arrays if name.casefold() in _KINDS["images"]]
    if not found:
        held = ", ".join(list(arrays)[:5]) or "nothing"
        raise DataError(f"{path} has no array 'images' (it holds {held}); save it under that name")
    return arrays[found[0]]


def checked_images(
    path: object, images: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], Labels, tuple[str, ...]]:
    """The images that are whole, as bytes or in [0, 1]; their positions; what was made of them, in words.

    Raises:
        DataError: the range tells that they would be seen wrong.
    """
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(
            f"{path}: images has shape {images.shape}; "
            "it must be (N, H, W), (N, H, W, C) or (N, C, H, W), none of them 0"
        )
    kept = np.arange(len(images))
    if images.dtype.kind == "b":
        return images.astype(np.uint8) * np.uint8(255), kept, ()
    if images.dtype.kind not in "uif":
        raise DataError(
            f"{path}: images are {images.dtype}; save them as uint8 (0 to 255) or as floats in [0, 1]"
        )
    if images.dtype.kind == "f":
        kept = np.flatnonzero(np.isfinite(images).all(axis=tuple(range(1, images.ndim))))
        if len(kept) < len(images):
            check_share(_not_finite(kept, len(images)), len(images), f"{path}: ")
            images = images[kept]
    black, white, notes = span(path, images.dtype, float(images.min()), float(images.max()))
    if images.dtype.kind in "ui":
        return images.astype(np.uint8, copy=False), kept, notes
    if (black, white) != (0, 1):
        images = (images - np.float32(black)) / np.float32(white - black)
    return images, kept, notes


def span(
    where: object, dtype: np.dtype[Any], low: float, high: float
) -> tuple[float, float, tuple[str, ...]]:
    """Which values are black and white, and in words what was taken for granted.

    Args:
        low: the least value of all images.
        high: the greatest.

    Raises:
        DataError: the range tells that they would be seen wrong.
    """
    if dtype.kind == "b":
        return 0, 1, ()
    if dtype.kind in "ui":
        if low < 0 or high > _WHITE:
            raise DataError(
                f"{where}: images are {dtype} from {low:g} to {high:g}; save them as uint8, 0 to 255"
            )
        if 0 < high <= 1:
            raise DataError(
                f"{where}: every pixel is 0 or 1, which is black of 255: were they divided by 255 before "
                "they became whole numbers? Save them before that; black and white ones, times 255"
            )
        return 0, _WHITE, ()
    if 0 < high <= _TWICE:
        raise DataError(
            f"{where}: images range from {low:g} to {high:g}, which is black: were they divided by 255 "
            "twice? Save floats in [0, 1]"
        )
    if low >= 0 and high <= 1 + _ROUNDING:
        return 0, 1, ()
    if low >= 0 and high <= _WHITE + _ROUNDING:
        return 0, _WHITE, (f"floats from {low:g} to {high:g} are taken as 0 to 255",)
    if low >= -1 - _ROUNDING and high <= 1 + _ROUNDING:
        return -1, 1, (f"floats from {low:g} to {high:g} are taken as -1 to 1",)
    raise DataError(
        f"{where}: images range from {low:g} to {high:g}; floats must be in [0, 1]: undo their "
        "normalisation, or leave it out of the transform"
    )


def checked_labels(path: object, labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """One class for each image: a number, or a text. Raises DataError."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.dtype.kind in "buif":
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()):
            raise DataError(
                f"{path}: labels has shape {labels.shape}, and its rows are not one 1 among zeros; "
                "give one class for each image"
            )
        labels = labels.argmax(1)
    if labels.ndim != 1:
        raise DataError(
            f"{path}: labels has shape {labels.shape}; it must be (N,): one class number for each image"
        )
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    if labels.dtype.kind == "U":
        return labels
    if labels.dtype.kind not in "buif" or not np.equal(np.mod(labels, 1), 0).all():
        raise DataError(f"{path}: labels are {labels.dtype}; save whole numbers, labels.astype(int)")
    whole = labels.astype(np.int64)
    if len(whole) and whole.min() < 0:
        negative = int((whole < 0).sum())
        raise DataError(
            f"{path}: {negative:,} of {len(whole):,} labels are negative, such as {whole.min()}; "
            "class numbers start at 0: leave out the images that have no class"
        )
    return whole


def channel_axis(where: object, shape: tuple[int, ...], channels: int) -> int | None:
    """Which axis of (N, ...) holds the channels: as many as the model's, else 1 or 3, else at most 4."""
    if len(shape) == 3:
        return None
    for allowed in ({channels}, {1, 3}, {1, 2, 3, 4}):
        axes = [axis for axis in (3, 1) if shape[axis] in allowed]
        if axes:
            return axes[0]  # channels last where both would do
    raise wrong_channels(where, shape, channels)


def array_pool(
    images: npt.NDArray[Any],
    labels: Labels,
    where: object,
    kept: Labels | None = None,
    total: int | None = None,
) -> Pool:
    """`kept`: the images' positions among the `total` that there were; None: all are there."""
    positions = np.arange(len(images)) if kept is None else kept
    unreadable = _not_finite(positions, len(images) if total is None else total)

    def read(indices: Labels, frame: Frame) -> tuple[torch.Tensor, Failures]:
        channels = frame.size[0]
        axis = channel_axis(where, images.shape, channels)
        found = 1 if axis is None else images.shape[axis]
        if found != channels and (found, channels) not in ((1, 3), (3, 1)):
            raise wrong_channels(where, images.shape, channels)
        out = torch.empty(len(indices), *frame.size, dtype=torch.uint8)
        for start in range(0, len(indices), _CHUNK):
            chunk = images[indices[start : start + _CHUNK]]
            if chunk.dtype != np.uint8:
                chunk = np.rint(chunk.astype(np.float32).clip(0, 1) * 255).astype(np.uint8)
            chunk = chunk[:, None] if axis is None else np.moveaxis(chunk, axis, 1)
            tensor = with_channels(torch.from_numpy(np.ascontiguousarray(chunk)), channels)
            out[start : start + _CHUNK] = fit(tensor, frame)
        return out, {}

    def sizes(channels: int | None) -> frozenset[Size]:
        axis = channel_axis(where, images.shape, 3 if channels is None else channels)
        if axis is None:
            return frozenset({(1, *images.shape[1:])})
        sides = [side for place, side in enumerate(images.shape) if place not in (0, axis)]
        return frozenset({(images.shape[axis], sides[0], sides[1])})

    return Pool(labels, read, lambda index: f"image {positions[index]}", sizes, unreadable)


def _not_finite(kept: Labels, total: int) -> tuple[Unreadable, ...]:
    missing = np.setdiff1d(np.arange(total), kept)
    return tuple(
        Unreadable(f"image {place}", "it holds NaN or infinite values") for place in missing.tolist()
    )


def find_digits() -> Found:
    """The 8x8 digits that scikit-learn comes with."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), 0 to 16
    names = tuple(str(name) for name in digits.target_names)
    return Found("digits", names, True, array_pool(images, digits.target.astype(np.int64), "digits"))
