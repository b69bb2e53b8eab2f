"""The user's images: found, split once into training and held-out, read at the input size."""

from __future__ import annotations

import difflib
import inspect
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F

from advisor.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image

    Labels = npt.NDArray[np.int64]

Size = tuple[int, int, int]  # (C, H, W)

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".gif", ".tif", ".tiff")
# The first one found is the held-out part; a test set is left alone where there is another.
_HELD_OUT_FOLDERS = ("val", "valid", "validation", "test")
# torchvision's "trainval" default contains "val", so here the test set comes first.
_HELD_OUT_SPLITS = ("test", "val", "valid")
_HELD_OUT_SHARE = 0.3
_CHUNK = 256  # images converted at once


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Mean and standard deviation of images in [0, 1], per channel; one value serves all."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImages:
    """Images that stay in RAM as bytes."""

    images: torch.Tensor  # (N, C, H, W) uint8, at the model's input size
    labels: torch.Tensor  # (N,) int64

    def __len__(self) -> int:
        """How many."""
        return len(self.labels)

    @classmethod
    def joined(cls, *parts: LabelledImages) -> LabelledImages:
        """All of them, in order."""
        images, labels = [part.images for part in parts], [part.labels for part in parts]
        return cls(torch.cat(images), torch.cat(labels))

    def batch(self, indices: torch.Tensor, normalisation: Normalisation) -> tuple[torch.Tensor, torch.Tensor]:
        """The images at `indices` (B,), normalised float32 (B, C, H, W), and their labels (B,)."""
        mean = torch.tensor(normalisation.mean).view(-1, 1, 1)
        std = torch.tensor(normalisation.std).view(-1, 1, 1)
        images = self.images[indices].float().div_(255).sub_(mean).div_(std)
        return images, self.labels[indices]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Two disjoint sets of labelled images.

    As loaded, a label is an index into `class_names`. Both sets are ordered so that any first part
    of them holds the classes in nearly the same proportions as the whole.
    """

    source: str  # as typed
    class_names: tuple[str, ...]  # where not `named`: the label numbers found, ascending
    train: LabelledImages
    validation: LabelledImages
    normalisation: Normalisation
    named: bool  # the names come from the data, not made up from label numbers
    is_split_drawn: bool = False  # the data came without a split of its own
    retained: LabelledImages | None = None  # old data, to tell what is forgotten; labels: the model's outputs
    unlabelled: LabelledImages | None = None  # more for methods that look at no labels; every label is -1


def load_data(
    source: str,
    input_size: Size,
    *,
    normalisation: Normalisation | None = None,
    max_train: int = 2048,
    max_validation: int = 1000,
    seed: int = 0,
) -> Dataset:
    """Read a sample of the data and hold out a part of it, stratified by class.

    The sample depends on the data and `seed` alone. Where the data comes with its own split, that
    is kept; else 30 %, at most `max_validation` images, are held out. Each class is in both parts
    at least once, even where that takes more images than the limits name. Only the sampled images
    are decoded.

    Args:
        source: a folder of class folders, or one with such folders in `train/` and `val/` (or
            `test/`); an `.npz` with `images`, `labels` and perhaps `class_names`;
            `torchvision:NAME:/path`; `digits`.
        input_size: the model's, (C, H, W). Images of other sizes have their shorter side resized
            to it and are cropped in the centre.
        normalisation: None: ImageNet's for three channels, 0.5 for any other number.

    Raises:
        DataError: the data is missing, unreadable or doesn't fit the model.
    """
    normalisation = _checked(normalisation or default_normalisation(input_size[0]), input_size[0])
    found = _find(source, input_size)
    _check_classes(source, found)
    if found.held_out is None:
        train, validation = _split(found.train.labels, max_train, max_validation, seed)
        held_out = found.train
    else:
        held_out = found.held_out
        train = _sample(found.train.labels, max_train, seed)
        validation = _sample(held_out.labels, max_validation, seed)
    return Dataset(
        source=source,
        class_names=found.class_names,
        train=_labelled(found.train, train),
        validation=_labelled(held_out, validation),
        normalisation=normalisation,
        named=found.named,
        is_split_drawn=found.held_out is None,
    )


def load_unlabelled(
    source: str, input_size: Size, *, apart_from: str, most: int = 2048, seed: int = 0
) -> LabelledImages:
    """Read a sample of images that nobody has labelled; their labels are -1.

    Args:
        source: a folder with images, in whatever folders below it, or an `.npz` with `images`.
        input_size: the model's, (C, H, W), as for `load_data`.
        apart_from: the labelled data. None of its images may be among these: what is judged on an image
            must not have learned from it.
        most: how many at most; the sample depends on the images and `seed` alone.

    Raises:
        DataError: the images are missing, unreadable or don't fit the model.
    """
    path = _existing(source)
    labelled = Path(apart_from).expanduser().resolve()
    if labelled.exists() and (
        path.resolve().is_relative_to(labelled) or labelled.is_relative_to(path.resolve())
    ):
        raise DataError(f"{path} holds images of the labelled data, {apart_from}; give others")
    if path.is_dir():
        files = sorted(_images(path))
        if not files:
            raise DataError(f"{path} holds no images; add some ({', '.join(_SUFFIXES)})")
        pool = _file_pool({"": files}, path, input_size)
    elif path.suffix.lower() == ".npz":
        images = _checked_images(path, _npz_arrays(path, ("images",))["images"])
        labels = np.zeros(len(images), np.int64)
        pool = _array_pool(images, labels, _channel_axis(path, images.shape, input_size[0]), input_size, path)
    else:
        raise DataError(f"{path} is neither a folder nor an .npz file; give a folder of images, or an .npz")
    sampled = np.random.default_rng(seed).permutation(len(pool.labels))[:most]
    return LabelledImages(pool.read(sampled), torch.full((len(sampled),), -1))


def default_normalisation(channels: int) -> Normalisation:
    """ImageNet's for 3 channels; 0.5 and 0.5 for any other number."""
    if channels == 3:
        return Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return Normalisation((0.5,) * channels, (0.5,) * channels)


@dataclass(frozen=True, slots=True, eq=False)
class _Pool:
    """Labelled images that are not decoded yet."""

    labels: Labels
    read: Callable[[Labels], torch.Tensor]  # indices (n,) -> (n, C, H, W) uint8 at the input size


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    class_names: tuple[str, ...]
    named: bool
    train: _Pool
    held_out: _Pool | None = None  # None: to be split off the training pool


def _find(source: str, size: Size) -> _Found:
    if source == "digits":
        return _find_digits(size)
    if source.startswith("torchvision:"):
        return _find_torchvision(source, size)
    path = _existing(source)
    if path.is_dir():
        return _find_folder(path, size)
    if path.suffix.lower() == ".npz":
        return _find_npz(path, size)
    raise DataError(
        f"{path} is neither a folder nor an .npz file; give a folder that holds one folder of "
        "images for each class, or an .npz with images and labels"
    )


def _existing(text: str) -> Path:
    try:
        path = Path(text).expanduser()
        if text.strip() and path.exists():
            return path
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, no such home
        pass
    raise DataError(f"data {text!r}: no such file or folder; check the path")


def _checked(normalisation: Normalisation, channels: int) -> Normalisation:
    for name, values in (("mean", normalisation.mean), ("std", normalisation.std)):
        if len(values) not in (1, channels):
            raise DataError(
                f"the normalisation's {name} has {len(values)} values, the model takes {channels} "
                f"channels; give {channels} or 1"
            )
        if not all(math.isfinite(value) for value in values):
            raise DataError(f"the normalisation's {name} {values} must be finite")
    if min(normalisation.std) <= 0:
        raise DataError(f"the normalisation's std {normalisation.std} must be greater than 0")
    return normalisation


def _check_classes(source: str, found: _Found) -> None:
    names = found.class_names
    counts = np.bincount(found.train.labels, minlength=len(names))
    present = np.flatnonzero(counts)
    if len(present) < 2:
        only = f"only one class, {names[present[0]]!r}" if len(present) else "no images"
        raise DataError(f"data {source}: {only}; a classifier needs images of two classes or more")
    if found.held_out is None:
        alone = [names[label] for label in present if counts[label] == 1]
        if alone:
            raise DataError(
                f"data {source}: class {alone[0]!r} has a single image, so none can be held out "
                f"({len(alone)} such classes); add images to it or remove it"
            )
        return
    held_out = set(found.held_out.labels.tolist())
    for label in sorted(held_out ^ set(present.tolist())):
        has, lacks = ("held-out", "training") if label in held_out else ("training", "held-out")
        raise DataError(
            f"data {source}: class {names[label]!r} has {has} images but no {lacks} ones; "
            "add some or remove the class"
        )


# The split


def _split(labels: Labels, most_train: int, most_held_out: int, seed: int) -> tuple[Labels, Labels]:
    """Disjoint indices to train on and to hold out. Each class present must have two images."""
    members = _shuffled_members(labels, seed)
    total = min(most_held_out, int(_HELD_OUT_SHARE * len(labels)))
    shares = _shares([len(indices) for indices in members], total, reserve=1)
    held_out = [indices[:share] for indices, share in zip(members, shares, strict=True)]
    rest = [indices[share:] for indices, share in zip(members, shares, strict=True)]
    return _first(rest, most_train), _interleaved(held_out)


def _sample(labels: Labels, most: int, seed: int) -> Labels:
    return _first(_shuffled_members(labels, seed), most)


def _first(members: Sequence[Labels], most: int) -> Labels:
    shares = _shares([len(indices) for indices in members], most, reserve=0)
    return _interleaved([indices[:n] for indices, n in zip(members, shares, strict=True)])


def _shuffled_members(labels: Labels, seed: int) -> list[Labels]:
    generator = np.random.default_rng(seed)
    return [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]


def _shares(counts: Sequence[int], total: int, reserve: int) -> list[int]:
    """`total` spread over the classes in proportion, by largest remainder.

    Each class gets at least one and leaves `reserve` over.
    """
    spare = [count - 1 - reserve for count in counts]
    rest = min(max(total - len(counts), 0), sum(spare))
    divided = [divmod(rest * extra, max(sum(spare), 1)) for extra in spare]
    shares = [1 + whole for whole, _ in divided]
    by_remainder = sorted(range(len(counts)), key=lambda index: -divided[index][1])
    for index in by_remainder[: rest - sum(whole for whole, _ in divided)]:
        shares[index] += 1
    return shares


def _interleaved(members: Sequence[Labels]) -> Labels:
    """The classes' indices merged so that every first part of the result is nearly stratified."""
    places = np.concatenate([(np.arange(len(m)) + 0.5) / len(m) for m in members])
    merged: Labels = np.concatenate(members)[np.argsort(places, kind="stable")]
    return merged


def _labelled(pool: _Pool, indices: Labels) -> LabelledImages:
    return LabelledImages(pool.read(indices), torch.from_numpy(pool.labels[indices]))


# Folders of image files


def _find_folder(root: Path, size: Size) -> _Found:
    parts = _split_folders(root)
    if parts is None:
        files = _files_by_class(root)
        return _Found(tuple(files), True, _file_pool(files, root, size))
    train, held_out = (_files_by_class(part) for part in parts)
    for name in sorted(train.keys() ^ held_out.keys()):
        has, lacks = parts if name in train else parts[::-1]
        raise DataError(
            f"class folder {name!r} is in {has} but not in {lacks}; both need the same class folders"
        )
    pools = (_file_pool(files, root, size) for files in (train, held_out))
    return _Found(tuple(train), True, *pools)


def _split_folders(root: Path) -> tuple[Path, Path] | None:
    """The training and the held-out folder; None where the folders in `root` are the classes."""
    folders = {folder.name.casefold(): folder for folder in _folders(root)}
    train = folders.get("train")
    if train is None or not any(_has_images(folder) for folder in _folders(train)):
        return None  # a class may be named "train", too: its images lie right in it
    for name in _HELD_OUT_FOLDERS:
        if name in folders:
            return train, folders[name]
    if len(folders) == 1:
        raise DataError(
            f"{root} holds train/ but no val/ or test/; give {train} to have a part of it held out"
        )
    return None


def _files_by_class(root: Path) -> dict[str, list[str]]:
    """Class name -> its image files, both in an order that doesn't depend on the file system."""
    folders = {folder.name: folder for folder in _folders(root)}
    if not folders:
        images = sum(path.suffix.lower() in _SUFFIXES for path in _entries(root))
        what = f"holds {images} images but no class folders" if images else "holds no class folders"
        raise DataError(f"{root} {what}; put the images into one folder for each class")
    names = sorted(folders)
    if all(re.fullmatch(r"[0-9]{1,18}", name) for name in names):
        names.sort(key=int)
    files = {name: sorted(_images(folders[name])) for name in names}
    empty = [name for name, paths in files.items() if not paths]
    if empty:
        raise DataError(
            f"class folder {root / empty[0]} holds no images ({len(empty)} such folders); "
            f"add some ({', '.join(_SUFFIXES)}) or remove it"
        )
    return files


def _entries(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder} can't be read: {error.strerror}; check its permissions") from error


def _folders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir()]


def _has_images(folder: Path) -> bool:
    return next(_images(folder), None) is not None


def _images(folder: Path) -> Iterator[str]:
    # Plain strings: making 50,000 Paths takes a second.
    def refuse(error: OSError) -> NoReturn:
        raise DataError(f"{error.filename} can't be read: {error.strerror}; check its permissions") from error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and name.lower().endswith(_SUFFIXES):
                yield f"{parent}{os.sep}{name}"


def _file_pool(files: dict[str, list[str]], root: Path, size: Size) -> _Pool:
    if size[0] not in (1, 3):
        raise DataError(
            f"wrong channels: image files have 1 or 3, the model takes {size[0]}; "
            f"give an .npz with {size[0]}-channel images"
        )
    paths = [path for of_class in files.values() for path in of_class]
    labels = np.repeat(np.arange(len(files)), [len(of_class) for of_class in files.values()])

    def open_file(index: int) -> torch.Tensor:
        from PIL import Image

        with Image.open(paths[index]) as image:
            # A large JPEG is decoded at 1/2, 1/4 or 1/8, never below twice the size that is needed.
            image.draft(None, (2 * size[2], 2 * size[1]))
            return _pixels(image, size[0])

    def read(indices: Labels) -> torch.Tensor:
        workers = min(8, os.cpu_count() or 1)
        return _decode(open_file, indices, size, lambda i: os.path.relpath(paths[i], root), workers)

    return _Pool(labels.astype(np.int64), read)


def _decode(
    open_one: Callable[[int], torch.Tensor],
    indices: Labels,
    size: Size,
    name: Callable[[int], str],
    workers: int,
) -> torch.Tensor:
    """All the images or, where some can't be read, one error for them together."""
    from PIL import Image

    images = torch.empty(len(indices), *size, dtype=torch.uint8)
    failures: list[tuple[str, str]] = []

    def decode(job: tuple[int, int]) -> None:
        place, index = job
        try:
            images[place] = _fit(open_one(index)[None], size)[0]
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001 - decoders raise anything from struct.error to SyntaxError
            failures.append((name(index), _reason(error)))

    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # such as a palette's transparency, which is dropped anyway
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        list(pool.map(decode, enumerate(indices.tolist())))
    if failures:
        first, reason = min(failures)
        raise DataError(
            f"{first} can't be read: {reason} "
            f"({len(failures)} of {len(indices)} sampled images can't); replace or remove them"
        )
    return images


def _reason(error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"it is larger than {Image.MAX_IMAGE_PIXELS} pixels, which may be a decompression bomb"
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# Arrays


def _find_npz(path: Path, size: Size) -> _Found:
    arrays = _npz_arrays(path, ("images", "labels"), ("class_names",))
    images, labels = (
        _checked_images(path, arrays["images"]),
        _checked_labels(path, arrays["labels"]),
    )
    if len(images) != len(labels):
        raise DataError(f"{path}: {len(images)} images but {len(labels)} labels; every image needs one label")
    names, labels = _class_names(path, labels, arrays.get("class_names"))
    axis = _channel_axis(path, images.shape, size[0])
    return _Found(names, "class_names" in arrays, _array_pool(images, labels, axis, size, path))


def _npz_arrays(path: Path, needed: Sequence[str], others: Sequence[str] = ()) -> dict[str, npt.NDArray[Any]]:
    """The arrays of these names: all that are needed, and those of the others that are there."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            for name in needed:
                if name not in archive:
                    keys = ", ".join(list(archive)[:5]) or "nothing"
                    raise DataError(
                        f"{path} has no array {name!r} (it holds {keys}); save it under that name"
                    )
            return {name: archive[name] for name in (*needed, *others) if name in archive}
    except DataError:
        raise
    except Exception as error:  # whatever zip, zlib and numpy raise on a damaged file
        if "Object arrays" in str(error):
            raise DataError(
                f"{path} holds object arrays, which could run code when loaded; "
                "save arrays of numbers and strings"
            ) from error
        raise DataError(
            f"{path} is not a readable .npz file ({type(error).__name__}); write it with numpy.savez"
        ) from error


def _checked_images(path: Path, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(
            f"{path}: images has shape {images.shape}; "
            "it must be (N, H, W), (N, H, W, C) or (N, C, H, W), none of them 0"
        )
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise DataError(
            f"{path}: images are {images.dtype}; save them as uint8 (0 to 255) or as floats in [0, 1]"
        )
    low, high = float(images.min()), float(images.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(f"{path}: images hold NaN or infinite values; remove or repair those images")
    if low < 0 or high > 1 + 1e-4:  # resampling may overshoot 1 by rounding
        hint = "divide them by 255" if low >= 0 else "undo their normalisation"
        raise DataError(f"{path}: images range from {low:g} to {high:g}; floats must be in [0, 1]: {hint}")
    return images


def _checked_labels(path: Path, labels: npt.NDArray[Any]) -> Labels:
    if labels.ndim != 1:
        raise DataError(
            f"{path}: labels has shape {labels.shape}; it must be (N,): one class number for each image"
        )
    if labels.dtype.kind not in "iu":
        raise DataError(f"{path}: labels are {labels.dtype}; save whole numbers, labels.astype(int)")
    whole = labels.astype(np.int64)
    if len(whole) and whole.min() < 0:
        raise DataError(f"{path}: labels hold {whole.min()}; class numbers start at 0")
    return whole


def _class_names(
    where: object, labels: Labels, names: npt.NDArray[Any] | Sequence[str] | None
) -> tuple[tuple[str, ...], Labels]:
    """The classes' names, and the labels as indices into them."""
    if names is None:
        values, compact = np.unique(labels, return_inverse=True)
        return tuple(str(value) for value in values.tolist()), compact.astype(np.int64)
    array = np.asarray(names)
    if array.ndim != 1 or array.dtype.kind != "U":
        raise DataError(f"{where}: class_names must be a list of strings, one for each class")
    listed = tuple(str(name) for name in array.tolist())
    if len(labels) and labels.max() >= len(listed):
        raise DataError(
            f"{where}: {len(listed)} class_names, but a label is {labels.max()}; "
            "name every class, in the order of the labels from 0"
        )
    if len(set(listed)) < len(listed):
        twice = next(name for name in listed if listed.count(name) > 1)
        raise DataError(f"{where}: class_names holds {twice!r} twice; give each class its own name")
    return listed, labels


def _channel_axis(where: object, shape: tuple[int, ...], channels: int) -> int | None:
    """Which axis holds the channels: as many as the model's, else 1 or 3, else at most 4."""
    if len(shape) == 3:
        return None
    for allowed in ({channels}, {1, 3}, {1, 2, 3, 4}):
        axes = [axis for axis in (3, 1) if shape[axis] in allowed]
        if axes:
            return axes[0]  # channels last where both would do
    raise _wrong_channels(where, shape, channels)


def _wrong_channels(where: object, shape: tuple[int, ...], channels: int) -> DataError:
    return DataError(
        f"{where}: wrong channels: images of shape {tuple(shape[1:])} can't be used with a model "
        f"that takes {channels}; give images with {channels}, or the right --input-size CxHxW"
    )


def _array_pool(
    images: npt.NDArray[Any], labels: Labels, axis: int | None, size: Size, where: object
) -> _Pool:
    found = 1 if axis is None else images.shape[axis]
    if found != size[0] and (found, size[0]) not in ((1, 3), (3, 1)):
        raise _wrong_channels(where, images.shape, size[0])

    def read(indices: Labels) -> torch.Tensor:
        out = torch.empty(len(indices), *size, dtype=torch.uint8)
        for start in range(0, len(indices), _CHUNK):
            chunk = images[indices[start : start + _CHUNK]]
            if chunk.dtype != np.uint8:
                chunk = np.rint(chunk.astype(np.float32).clip(0, 1) * 255).astype(np.uint8)
            chunk = chunk[:, None] if axis is None else np.moveaxis(chunk, axis, 1)
            tensor = _with_channels(torch.from_numpy(np.ascontiguousarray(chunk)), size[0])
            out[start : start + _CHUNK] = _fit(tensor, size)
        return out

    return _Pool(labels, read)


def _find_digits(size: Size) -> _Found:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), 0 to 16
    names = tuple(str(name) for name in digits.target_names)
    return _Found(names, True, _array_pool(images, digits.target.astype(np.int64), None, size, "digits"))


# torchvision's datasets


def _find_torchvision(source: str, size: Size) -> _Found:
    _, name, root = (*source.split(":", 2), "", "")[:3]
    kind = _dataset_class(name)
    if not root.strip():
        raise DataError(f"data {source}: no path; write torchvision:{name}:/path/to/the/downloaded/data")
    folder = _existing(root)
    parameters = inspect.signature(kind).parameters
    options: dict[str, Any] = {"root": str(folder)}
    if "download" in parameters:
        options["download"] = False  # some download by default
    if "train" in parameters:
        train = _build(kind, options | {"train": True})
        held_out = _build(kind, options | {"train": False})
    else:
        train = _build(kind, options)
        held_out = _held_out_split(kind, options) if "split" in parameters else None

    parts = [part for part in (train, held_out) if part is not None]
    labels = [_targets(part, name) for part in parts]
    known = getattr(train, "classes", None) or getattr(train, "categories", None)
    # ImageNet's classes are tuples of synonyms.
    names = [str(item[0]) if isinstance(item, tuple) else str(item) for item in known or ()]
    # The names are an attribute of the dataset's own making; numbers are right in any case.
    usable = len(set(names)) == len(names) > max(int(part.max(initial=0)) for part in labels)
    class_names, joined = _class_names(source, np.concatenate(labels), names if usable else None)
    pools = [
        _Pool(of_part, partial(_read_dataset, part, size))
        for part, of_part in zip(parts, np.split(joined, [len(labels[0])]), strict=False)
    ]
    return _Found(class_names, usable, *pools)


def _dataset_class(name: str) -> Callable[..., Any]:
    from torchvision import datasets

    kind = getattr(datasets, name, None) if name in datasets.__all__ else None
    if kind is None:
        near = difflib.get_close_matches(name.upper(), datasets.__all__, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "such as CIFAR10, MNIST, SVHN, STL10"
        raise DataError(f"torchvision has no dataset {name!r}; {hint}")
    first, *others = inspect.signature(kind).parameters.values()
    needed = [p.name for p in others if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if first.name != "root" or needed:
        lacking = f"it also needs {', '.join(needed)}" if needed else "it is not read from a folder"
        raise DataError(
            f"torchvision's {name} can't be used here: {lacking}; "
            "save its images as an .npz or in class folders"
        )
    found: Callable[..., Any] = kind
    return found


def _held_out_split(kind: Callable[..., Any], options: dict[str, Any]) -> Any | None:
    for split in _HELD_OUT_SPLITS:
        try:
            return _build(kind, options | {"split": split})
        except DataError as error:
            if not isinstance(error.__cause__, ValueError):  # ValueError: not one of its splits
                raise
    return None


def _build(kind: Callable[..., Any], options: dict[str, Any]) -> Any:
    try:
        return kind(**options)
    except Exception as error:  # each dataset raises its own
        name, root = getattr(kind, "__name__", ""), options["root"]
        if isinstance(error, ImportError):
            raise DataError(f"torchvision's {name} needs a package: {_reason(error)}; install it") from error
        raise DataError(
            f"torchvision's {name} was not found in {root} ({_reason(error).split('. ')[0]}); "
            "download it first, or give the folder that holds it"
        ) from error


def _targets(dataset: Any, name: str) -> Labels:
    """The labels, without decoding the images where the dataset keeps a list of them."""
    try:
        first = dataset[0][1]
        for attribute in ("targets", "labels", "_labels", "y"):
            kept = getattr(dataset, attribute, None)
            if kept is not None and len(kept) == len(dataset):
                targets = np.asarray(kept)
                if targets.ndim == 1 and targets[0] == first:
                    break
        else:
            targets = np.asarray([dataset[index][1] for index in range(len(dataset))])
    except Exception as error:  # each dataset raises its own
        raise DataError(f"torchvision's {name} can't be read: {_reason(error)}; check its files") from error
    if targets.ndim != 1 or targets.dtype.kind not in "iu" or targets.min() < 0:
        raise DataError(f"torchvision's {name} is not an image classification dataset; use one that is")
    return targets.astype(np.int64)


def _read_dataset(dataset: Any, size: Size, indices: Labels) -> torch.Tensor:
    def open_one(index: int) -> torch.Tensor:
        return _pixels(dataset[index][0], size[0])

    # One thread: some datasets keep an open file between the calls.
    return _decode(open_one, indices, size, lambda index: f"image {index}", workers=1)


# Pixels


def _pixels(image: Image.Image, channels: int) -> torch.Tensor:
    """A decoded image as (channels, h, w) uint8, converted as PIL does."""
    from PIL import Image

    if channels not in (1, 3):
        raise _wrong_channels("image files", (0, len(image.getbands()), *image.size[::-1]), channels)
    if image.mode.startswith("I;16"):  # PIL would clip everything above 255 to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("it has 32 bits a pixel; save it with 8 or 16")
    array = np.array(image.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(array).reshape(*array.shape[:2], channels).permute(2, 0, 1)


def _with_channels(images: torch.Tensor, channels: int) -> torch.Tensor:
    """(N, 1 or 3, h, w) uint8 with as many channels as asked for."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    # ITU-R 601-2 luminance in PIL's integers, so that arrays and files of the same image agree.
    red, green, blue = images.to(torch.int32).unbind(1)
    luminance = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return luminance.to(torch.uint8).unsqueeze(1)


def _fit(images: torch.Tensor, size: Size) -> torch.Tensor:
    """(N, C, h, w) uint8 -> (N, C, H, W): the shorter side resized, then the centre cropped.

    The crop comes first: the same pixels for less work, and a long thin image can't fill the RAM.
    """
    height, width = images.shape[2:]
    if (height, width) == size[1:]:
        return images
    scale = max(size[1] / height, size[2] / width)
    rows = max(min(height, round(size[1] / scale)), 1)
    columns = max(min(width, round(size[2] / scale)), 1)
    top, left = (height - rows) // 2, (width - columns) // 2
    cropped = images[:, :, top : top + rows, left : left + columns]
    if (rows, columns) == size[1:]:
        return cropped
    return F.interpolate(cropped, size=size[1:], mode="bilinear", antialias=True)
