"""Where images come from: folders of files, arrays, torchvision's datasets. Nothing is decoded yet."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from advisor.errors import DataError
from advisor.probes.pixels import Frame, Size, fit, pixels, with_channels, wrong_channels
from advisor.probes.survey import Survey, Unreadable, check_share, decoding, reason, survey

if TYPE_CHECKING:
    import numpy.typing as npt

    Labels = npt.NDArray[np.int64]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".gif", ".tif", ".tiff")
# The first one found is the held-out part; a test set is left alone where there is another.
_HELD_OUT_FOLDERS = ("val", "valid", "validation", "test")
# torchvision's "trainval" default contains "val", so here the test set comes first.
_HELD_OUT_SPLITS = ("test", "val", "valid")
_CHUNK = 256  # images converted at once
_FIRST = 20  # of a dataset's images, one of which must be readable
_LOOKED_AT = 16  # of a dataset's images, to tell their size where no file or array does

Failures = dict[int, str]  # place among the images asked for -> why that one can't be read


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Labelled images that are not decoded yet, without those that can't be."""

    labels: Labels
    read: Callable[[Labels, Frame], tuple[torch.Tensor, Failures]]  # indices (n,) -> (n, C, H, W) uint8
    name: Callable[[int], str]  # of the image at an index, for the user
    sizes: Callable[[int | None], frozenset[Size]]  # as they are, for a model that takes so many channels
    unreadable: tuple[Unreadable, ...] = ()

    @property
    def total(self) -> int:
        """How many there are, the unreadable ones included."""
        return len(self.labels) + len(self.unreadable)


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A source's images and classes."""

    source: str  # as typed
    class_names: tuple[str, ...]
    named: bool  # the names come from the data, not made up from label numbers
    train: Pool
    held_out: Pool | None = None  # None: to be split off the training pool

    @property
    def pools(self) -> tuple[Pool, ...]:
        """Both parts, where there are two."""
        return (self.train,) if self.held_out is None else (self.train, self.held_out)

    @property
    def unreadable(self) -> tuple[Unreadable, ...]:
        """What is left out."""
        return tuple(each for pool in self.pools for each in pool.unreadable)

    @property
    def total(self) -> int:
        """How many images there are, the unreadable ones included."""
        return sum(pool.total for pool in self.pools)


def find(source: str) -> Found:
    """The images and classes that a source holds; see `load_data`. Raises DataError."""
    found = _find(source)
    check_share(found.unreadable, found.total)
    return found


def find_unlabelled(source: str) -> Pool:
    """The images of a folder, in whatever folders below it, or of an .npz. Raises DataError."""
    path = existing(source)
    if path.is_dir():
        files = sorted(_images(path))
        if not files:
            raise DataError(f"{path} holds no images; add some ({', '.join(_SUFFIXES)})")
        pool = _file_pool({"": files}, path)
    elif path.suffix.lower() == ".npz":
        given = _npz_arrays(path, ("images",))["images"]
        images, kept = _checked_images(path, given)
        pool = _array_pool(images, np.zeros(len(images), np.int64), path, kept, len(given))
    else:
        raise DataError(f"{path} is neither a folder nor an .npz file; give a folder of images, or an .npz")
    check_share(pool.unreadable, pool.total)
    return pool


def _find(source: str) -> Found:
    if source == "digits":
        return _find_digits()
    if source.startswith("torchvision:"):
        return _find_torchvision(source)
    path = existing(source)
    if path.is_dir():
        return _find_folder(source, path)
    if path.suffix.lower() == ".npz":
        return _find_npz(source, path)
    raise DataError(
        f"{path} is neither a folder nor an .npz file; give a folder that holds one folder of "
        "images for each class, or an .npz with images and labels"
    )


def existing(text: str) -> Path:
    """The path, where something is there. Raises DataError."""
    try:
        path = Path(text).expanduser()
        if text.strip() and path.exists():
            return path
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, no such home
        pass
    raise DataError(f"data {text!r}: no such file or folder; check the path")


# Folders of image files


def _find_folder(source: str, root: Path) -> Found:
    parts = _split_folders(root)
    if parts is None:
        files = _files_by_class(root)
        return _whole(Found(source, tuple(files), True, _file_pool(files, root)))
    train, held_out = (_files_by_class(part) for part in parts)
    for name in sorted(train.keys() ^ held_out.keys()):
        has, lacks = parts if name in train else parts[::-1]
        raise DataError(
            f"class folder {name!r} is in {has} but not in {lacks}; both need the same class folders"
        )
    return _whole(Found(source, tuple(train), True, _file_pool(train, root), _file_pool(held_out, root)))


def _whole(found: Found) -> Found:
    """Itself, unless too many images or all of a class can't be read."""
    check_share(found.unreadable, found.total)
    for pool in found.pools:
        for label in np.flatnonzero(np.bincount(pool.labels, minlength=len(found.class_names)) == 0):
            first = pool.unreadable[0]
            raise DataError(
                f"class folder {found.class_names[label]!r} holds no image that can be read ({first.name} "
                f"can't: {first.reason}); add some or remove it"
            )
    return found


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


def _file_pool(files: dict[str, list[str]], root: Path) -> Pool:
    paths = [path for of_class in files.values() for path in of_class]
    labels = np.repeat(np.arange(len(files)), [len(of_class) for of_class in files.values()])
    surveyed = survey(paths, lambda position: os.path.relpath(paths[position], root))
    paths, labels = [paths[position] for position in surveyed.readable], labels[list(surveyed.readable)]

    def open_file(index: int, frame: Frame) -> torch.Tensor:
        from PIL import Image

        with Image.open(paths[index]) as image:
            # A large JPEG is decoded at 1/2, 1/4 or 1/8, never below twice the size that is needed.
            image.draft(None, (2 * frame.resized[1], 2 * frame.resized[0]))
            return pixels(image, frame.size[0])

    def read(indices: Labels, frame: Frame) -> tuple[torch.Tensor, Failures]:
        if frame.size[0] not in (1, 3):
            raise DataError(
                f"wrong channels: image files have 1 or 3, the model takes {frame.size[0]}; "
                f"give an .npz with {frame.size[0]}-channel images"
            )
        return _decode(open_file, indices, frame)

    return Pool(
        labels.astype(np.int64),
        read,
        name=lambda index: os.path.relpath(paths[index], root),
        sizes=lambda _: surveyed.sizes,
        unreadable=surveyed.unreadable,
    )


def _decode(
    open_one: Callable[[int, Frame], torch.Tensor], indices: Labels, frame: Frame, workers: int | None = None
) -> tuple[torch.Tensor, Failures]:
    images = torch.zeros(len(indices), *frame.size, dtype=torch.uint8)
    failures: Failures = {}

    def decode(job: tuple[int, int]) -> None:
        place, index = job
        try:
            images[place] = fit(open_one(index, frame)[None], frame)[0]
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001 - decoders raise anything from struct.error to SyntaxError
            failures[place] = reason(error)

    with decoding(workers) as pool:
        list(pool.map(decode, enumerate(indices.tolist())))
    return images, failures


# Arrays


def _find_npz(source: str, path: Path) -> Found:
    arrays = _npz_arrays(path, ("images", "labels"), ("class_names",))
    count = len(arrays["images"])
    (images, kept), labels = _checked_images(path, arrays["images"]), _checked_labels(path, arrays["labels"])
    if count != len(labels):
        raise DataError(f"{path}: {count} images but {len(labels)} labels; every image needs one label")
    names, labels = _class_names(path, labels[kept], arrays.get("class_names"))
    return Found(source, names, "class_names" in arrays, _array_pool(images, labels, path, kept, count))


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


def _checked_images(path: Path, images: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Labels]:
    """The images that are whole, and their positions."""
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(
            f"{path}: images has shape {images.shape}; "
            "it must be (N, H, W), (N, H, W, C) or (N, C, H, W), none of them 0"
        )
    if images.dtype == np.uint8:
        return images, np.arange(len(images))
    if images.dtype.kind != "f":
        raise DataError(
            f"{path}: images are {images.dtype}; save them as uint8 (0 to 255) or as floats in [0, 1]"
        )
    kept = np.flatnonzero(np.isfinite(images).all(axis=tuple(range(1, images.ndim))))
    if len(kept) < len(images):
        check_share(_not_finite(kept, len(images)), len(images), f"{path}: ")
        images = images[kept]
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1 + 1e-4:  # resampling may overshoot 1 by rounding
        hint = "divide them by 255" if low >= 0 else "undo their normalisation"
        raise DataError(f"{path}: images range from {low:g} to {high:g}; floats must be in [0, 1]: {hint}")
    return images, kept


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
    raise wrong_channels(where, shape, channels)


def _array_pool(
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
        axis = _channel_axis(where, images.shape, channels)
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
        axis = _channel_axis(where, images.shape, 3 if channels is None else channels)
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


def _find_digits() -> Found:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), 0 to 16
    names = tuple(str(name) for name in digits.target_names)
    return Found("digits", names, True, _array_pool(images, digits.target.astype(np.int64), "digits"))


# torchvision's datasets


def _find_torchvision(source: str) -> Found:
    _, name, root = (*source.split(":", 2), "", "")[:3]
    kind = _dataset_class(name)
    if not root.strip():
        raise DataError(f"data {source}: no path; write torchvision:{name}:/path/to/the/downloaded/data")
    folder = existing(root)
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
    targets = [_targets(part, name) for part in parts]
    surveys = [
        _survey_dataset(part, folder, failed) for part, (_, failed) in zip(parts, targets, strict=True)
    ]
    labels = [of_part[list(look.readable)] for (of_part, _), look in zip(targets, surveys, strict=True)]
    known = getattr(train, "classes", None) or getattr(train, "categories", None)
    # ImageNet's classes are tuples of synonyms.
    names = [str(item[0]) if isinstance(item, tuple) else str(item) for item in known or ()]
    # The names are an attribute of the dataset's own making; numbers are right in any case.
    usable = len(set(names)) == len(names) > max(int(part.max(initial=0)) for part in labels)
    class_names, joined = _class_names(source, np.concatenate(labels), names if usable else None)
    pools = [
        _dataset_pool(*each) for each in zip(parts, np.split(joined, [len(labels[0])]), surveys, strict=False)
    ]
    return Found(source, class_names, usable, *pools)


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
            raise DataError(f"torchvision's {name} needs a package: {reason(error)}; install it") from error
        raise DataError(
            f"torchvision's {name} was not found in {root} ({reason(error).split('. ')[0]}); "
            "download it first, or give the folder that holds it"
        ) from error


def _targets(dataset: Any, name: str) -> tuple[Labels, Failures]:
    """The labels, without decoding the images where the dataset keeps a list of them; -1 where one fails."""
    failed: Failures = {}

    def label(index: int) -> Any:
        try:
            return dataset[index][1]
        except Exception as error:  # noqa: BLE001 - each dataset raises its own
            failed[index] = reason(error)
            return -1

    try:
        place, first = next(
            (index, found) for index in range(min(_FIRST, len(dataset))) if (found := label(index)) != -1
        )
    except StopIteration:
        why = next(iter(failed.values()), "it is empty")
        raise DataError(f"torchvision's {name} can't be read: {why}; check its files") from None
    for attribute in ("targets", "labels", "_labels", "y"):
        kept = getattr(dataset, attribute, None)
        if kept is not None and len(kept) == len(dataset):
            targets = np.asarray(kept)
            if targets.ndim == 1 and targets[place] == first:
                lacking = np.zeros(0, np.int64)
                break
    else:
        targets = np.asarray([label(index) for index in range(len(dataset))])
        lacking = np.asarray(sorted(failed), np.int64)
    if targets.ndim != 1 or targets.dtype.kind not in "iu" or np.delete(targets, lacking).min() < 0:
        raise DataError(f"torchvision's {name} is not an image classification dataset; use one that is")
    return targets.astype(np.int64), failed


def _survey_dataset(dataset: Any, root: Path, failed: Failures) -> Survey:
    """Which images can be read, as far as the dataset's files tell, and their sizes."""
    paths = _paths(dataset)
    if paths is None:
        whole = tuple(index for index in range(len(dataset)) if index not in failed)
        unreadable = tuple(Unreadable(f"image {index}", why) for index, why in sorted(failed.items()))
        return Survey(whole, unreadable, frozenset())
    look = survey(paths, lambda position: os.path.relpath(paths[position], root))
    # What looks whole may still have failed.
    also = sorted(failed.keys() & set(look.readable))
    unreadable = tuple(Unreadable(os.path.relpath(paths[index], root), failed[index]) for index in also)
    whole = tuple(index for index in look.readable if index not in failed)
    return Survey(whole, (*look.unreadable, *unreadable), look.sizes)


def _paths(dataset: Any) -> list[str] | None:
    """The image files, in order, where the dataset keeps a list of them."""
    for attribute in ("samples", "_samples", "_image_files", "_images", "images"):
        kept = getattr(dataset, attribute, None)
        if not isinstance(kept, list) or len(kept) != len(dataset):
            continue
        paths = [item[0] if isinstance(item, tuple) and item else item for item in kept]
        if all(isinstance(path, str | os.PathLike) for path in paths):
            names = [os.fspath(path) for path in paths]
            if any(map(os.path.isfile, names[:_FIRST])):  # else they are of the dataset's own making
                return names
    return None


def _sizes_of(dataset: Any, indices: Sequence[int]) -> Iterator[Size]:
    """Of a few images: a dataset without a list of files mostly holds one array."""
    for index in indices[:: max(len(indices) // _LOOKED_AT, 1)]:
        with contextlib.suppress(Exception):  # each dataset raises its own
            image = dataset[index][0]
            yield 1 if image.mode == "L" else 3, image.height, image.width


def _dataset_pool(dataset: Any, labels: Labels, look: Survey) -> Pool:
    def open_one(index: int, frame: Frame) -> torch.Tensor:
        return pixels(dataset[look.readable[index]][0], frame.size[0])

    return Pool(
        labels,
        # One thread: some datasets keep an open file between the calls.
        lambda indices, frame: _decode(open_one, indices, frame, workers=1),
        name=lambda index: f"image {look.readable[index]}",
        sizes=lambda _: look.sizes or frozenset(_sizes_of(dataset, look.readable)),
        unreadable=look.unreadable,
    )
