"""Datasets of the user's own: any objects with a length that give an image and its class at an index."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from advisor.data.arrays import channel_axis, checked_labels, find_arrays, joined_labels, span
from advisor.data.parts import part_of
from advisor.data.pixels import Frame, Size, pixels, with_channels, wrong_channels
from advisor.data.pools import Failures, Found, Pool, decoded
from advisor.data.survey import Unreadable, reason
from advisor.errors import DataError
from advisor.models.named_code import call, named_object, stdout_to_stderr
from advisor.names import listed

if TYPE_CHECKING:
    import numpy.typing as npt

    Labels = npt.NDArray[np.int64]

_LOOKED_AT = 16  # of a dataset's images, to tell their range and sizes
_IMAGES = ("image", "img", "pixel_values", "images", "x")  # in an item that is a dict
_LABELS = ("label", "labels", "target", "class", "y")


def find_object(source: str) -> Found:
    """The images of `package.module:name` or `file.py:name`: of a dataset, or of what a function returns.

    Raises:
        DataError: it can't be imported, fails, or is neither a dataset nor a dict of them.
    """
    _, named = named_object(source, DataError)
    found = named if _is_dataset(named) else call(source, named, DataError) if callable(named) else named
    return find_given(source, found)


def find_given(source: str, given: Any) -> Found:
    """The images of a dataset or loader, of two or three (train, val, test), or of a dict of them.

    Of arrays, too: in place of a dataset a tuple of images and labels.

    Raises:
        DataError: it is nothing of the kind, or can't be read.
    """
    arrays = _arrays(given)
    if arrays is not None:
        return find_arrays(source, source, arrays)
    parts, notes = _parts(source, given)
    with stdout_to_stderr():
        read = [_Items(source, part) for part in parts]
    names = read[0].class_names
    class_names, labels, is_named = joined_labels(source, [part.labels for part in read], names)
    pools = [part.pool(of_part) for part, of_part in zip(read, labels, strict=True)]
    said = tuple(dict.fromkeys((*notes, *(note for part in read for note in part.notes))))
    return Found(source, class_names, is_named, pools[0], pools[1] if len(pools) > 1 else None, said)


def kept_paths(dataset: Any) -> list[str] | None:
    """The image files, in order, where the dataset keeps a list of them."""
    for attribute in ("samples", "_samples", "_image_files", "_images", "images", "imgs", "paths", "files"):
        kept = _kept(dataset, attribute)
        if not isinstance(kept, list) or len(kept) != len(dataset):
            continue
        paths = [item[0] if isinstance(item, tuple) and item else item for item in kept]
        if all(isinstance(path, str | os.PathLike) for path in paths):
            return [os.fspath(path) for path in paths]
    return None


def _is_dataset(found: Any) -> bool:
    return not isinstance(found, type) and hasattr(found, "__getitem__") and hasattr(found, "__len__")


def _arrays(given: Any) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] | None:
    """Images and labels, to train on and, where there are some, held out; None: they are no arrays."""
    parts = given if isinstance(given, Mapping) else {"train": given}
    by_part = {part_of(str(name)): part for name, part in parts.items()}
    used = [by_part.get("train"), by_part.get("val", by_part.get("test"))]
    pairs = [part for part in used if part is not None]
    if used[0] is None or not all(map(_is_pair, pairs)):
        return None
    return [(_plain_array(images), _plain_array(labels)) for images, labels in pairs]


def _is_pair(part: Any) -> bool:
    """Whether it is a tuple of images and their labels."""
    if not isinstance(part, tuple | list) or len(part) != 2:
        return False
    images, labels = part
    return isinstance(images, torch.Tensor | np.ndarray) and isinstance(
        labels, torch.Tensor | np.ndarray | list | tuple
    )


def _plain_array(given: Any) -> npt.NDArray[Any]:
    return given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)


def _parts(source: str, found: Any) -> tuple[list[Any], tuple[str, ...]]:
    """The training part and, where there is one, what is held out; how that was told, in words."""
    if isinstance(found, tuple) and 2 <= len(found) <= 3 and all(map(_is_dataset, found)):
        found = dict(zip(("train", "val", "test"), found, strict=False))
    if not isinstance(found, Mapping):
        return [_checked(source, found)], ()
    by_part = {part_of(str(name)): name for name in found}
    if "train" not in by_part:
        raise DataError(
            f"{source} gives a dict of {listed([str(name) for name in found])}; one of them must be called "
            "train, and may have val or test beside it"
        )
    held_out = by_part.get("val", by_part.get("test"))
    used = [by_part["train"], *([held_out] if held_out is not None else [])]
    others = [str(name) for name in found if name not in used]
    notes = (f"left alone of {source}: {listed(others)}",) if others else ()
    return [_checked(source, found[name]) for name in used], notes


def _checked(source: str, found: Any) -> Any:
    """A dataset; that of a loader, which may shuffle it."""
    inner: Any = found.dataset if isinstance(found, torch.utils.data.DataLoader) else found
    if not _is_dataset(inner) or isinstance(inner, str | bytes):
        raise DataError(
            f"{source} gives a {type(inner).__name__}; it must be a torch.utils.data.Dataset with a length, "
            "or a dict of them such as {'train': ..., 'val': ...}"
        )
    if not len(inner):
        raise DataError(f"{source} gives a dataset without images; check the folder that it reads")
    return inner


@dataclass(slots=True, eq=False)
class _Items:
    """What a dataset's items are, told by looking at some of them."""

    source: str
    dataset: Any
    labels: npt.NDArray[Any] = field(init=False)  # of those that can be had: numbers, or text
    class_names: Sequence[str] | None = field(init=False)
    notes: tuple[str, ...] = field(init=False, default=())
    _failed: Failures = field(init=False, default_factory=dict)
    _range: tuple[float, float] = field(init=False, default=(0.0, 1.0))  # black and white, of floats
    _sizes: list[tuple[int, ...]] = field(init=False, default_factory=list)  # of the images looked at

    def __post_init__(self) -> None:
        places = list(range(0, len(self.dataset), max(len(self.dataset) // _LOOKED_AT, 1)))[:_LOOKED_AT]
        seen = {place: item for place in places if (item := self._item(place)) is not None}
        if not seen:
            why = next(iter(self._failed.values()))
            raise DataError(f"{self.source}: its images can't be read: {why}; check the dataset")
        self._look([image for image, _ in seen.values()])
        self._look_twice(*next(iter(seen.items())))
        values = self._values({place: label for place, (_, label) in seen.items()})
        self.labels = checked_labels(self.source, np.asarray(values))
        self.class_names = next(
            (known for name in ("classes", "class_names", "categories") if (known := self._names(name))), None
        )

    def pool(self, labels: Labels) -> Pool:
        """Its images, of these classes; the labels are of those alone that can be had."""
        positions = [place for place in range(len(self.dataset)) if place not in self._failed]
        paths = kept_paths(self.dataset)
        root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""  # noqa: PTH120

        def name(place: int) -> str:
            return os.path.relpath(paths[place], root) if paths else f"image {place}"

        def open_one(index: int, frame: Frame) -> torch.Tensor:
            with stdout_to_stderr():
                image, _ = _split(self.source, self.dataset[positions[index]])
            return self._pixels(image, frame.size[0])

        return Pool(
            labels,
            # One thread: some datasets keep an open file between the calls.
            lambda indices, frame: decoded(open_one, indices, frame, workers=1),
            name=lambda index: name(positions[index]),
            sizes=lambda channels: frozenset(self._size(shape, channels) for shape in self._sizes),
            unreadable=tuple(Unreadable(name(place), why) for place, why in sorted(self._failed.items())),
        )

    def _item(self, place: int) -> tuple[Any, Any] | None:
        """The image and the class at a place; None where the dataset fails there."""
        try:
            return _split(self.source, self.dataset[place])
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001 - each dataset raises its own
            self._failed[place] = reason(error)
            return None

    def _look(self, images: Sequence[Any]) -> None:
        arrays = [_array(self.source, image) for image in images]
        self._sizes = [each.shape for each in arrays]
        low, high = (float(least([least(each) for each in arrays])) for least in (np.min, np.max))
        black, white, notes = span(self.source, arrays[0].dtype, low, high)
        self._range, self.notes = (black, white), notes

    def _look_twice(self, place: int, item: tuple[Any, Any]) -> None:
        again = self._item(place)
        if again is None:
            return
        first, second = (_array(self.source, image) for image in (item[0], again[0]))
        if not np.array_equal(first, second):
            note = (
                f"{self.source} gives another image each time it is asked for the same one: leave what is "
                "random out of its transform, or what is held out is changed, too"
            )
            self.notes = (*self.notes, note)

    def _values(self, seen: Mapping[int, Any]) -> list[Any]:
        """The classes of all images; without decoding them, where the dataset keeps a list of them."""
        for attribute in ("targets", "labels", "_labels", "y"):
            kept = _kept(self.dataset, attribute)
            if kept is None or len(kept) != len(self.dataset):
                continue
            plain = [_plain(value) for value in kept]
            if all(np.array_equal(plain[place], label) for place, label in seen.items()):
                return [value for place, value in enumerate(plain) if place not in self._failed]
        found = []
        for place in range(len(self.dataset)):
            item = (None, seen[place]) if place in seen else self._item(place)
            if item is not None:
                found.append(item[1])
        return found

    def _names(self, attribute: str) -> list[str] | None:
        known = getattr(self.dataset, attribute, None)
        inner = getattr(self.dataset, "dataset", None)  # of a Subset
        known = getattr(inner, attribute, None) if known is None else known
        if isinstance(known, list | tuple) and known and all(isinstance(name, str) for name in known):
            return list(known)
        return None

    def _size(self, shape: tuple[int, ...], channels: int | None) -> Size:
        axis = channel_axis(self.source, (1, *shape), 3 if channels is None else channels)
        if axis is None:
            return 1, shape[0], shape[1]
        sides = [side for place, side in enumerate(shape, 1) if place != axis]
        return shape[axis - 1], sides[0], sides[1]

    def _pixels(self, image: Any, channels: int) -> torch.Tensor:
        """(channels, h, w) uint8."""
        if hasattr(image, "getbands"):
            return pixels(image, channels)
        array = _array(self.source, image)
        if array.dtype != np.uint8:
            black, white = self._range
            whole = ((array.astype(np.float32) - black) / (white - black)).clip(0, 1)
            array = np.rint(whole * 255).astype(np.uint8)
        axis = channel_axis(self.source, (1, *array.shape), channels)
        array = array[None] if axis is None else np.moveaxis(array, axis - 1, 0)
        if array.shape[0] != channels and (array.shape[0], channels) not in ((1, 3), (3, 1)):
            raise wrong_channels(self.source, (1, *array.shape), channels)
        return with_channels(torch.from_numpy(np.ascontiguousarray(array))[None], channels)[0]


def _split(source: str, item: Any) -> tuple[Any, Any]:
    """An item's image and class."""
    if isinstance(item, Mapping):
        image, label = (next((item[key] for key in keys if key in item), None) for keys in (_IMAGES, _LABELS))
        if image is not None and label is not None:
            return image, _plain(label)
    elif isinstance(item, tuple | list) and len(item) >= 2:
        return item[0], _plain(item[1])
    raise DataError(
        f"{source} gives a {type(item).__name__} for each image; it must be a tuple of the image and its "
        "class, or a dict with image and label"
    )


def _plain(label: Any) -> Any:
    """A number, a text, or an array of scores."""
    if isinstance(label, torch.Tensor | np.ndarray | np.generic):
        array = np.asarray(label)
        return array.item() if array.size == 1 else array
    return label


def _array(source: str, image: Any) -> npt.NDArray[Any]:
    """The image's values as they are given."""
    array = _plain_array(image)
    if array.ndim not in (2, 3) or array.dtype.kind not in "buif" or 0 in array.shape:
        raise DataError(
            f"{source} gives a {type(image).__name__} of shape {array.shape} for an image; it must be a PIL "
            "image, or an array or tensor (H, W), (H, W, C) or (C, H, W)"
        )
    return array


def _kept(dataset: Any, attribute: str) -> Any:
    """A list that the dataset keeps of its images; the right part of it, where it is a subset of another."""
    kept = getattr(dataset, attribute, None)
    if kept is None and isinstance(dataset, torch.utils.data.Subset):
        kept = _kept(dataset.dataset, attribute)
        return None if kept is None else [kept[index] for index in dataset.indices]
    return kept if hasattr(kept, "__len__") else None
