"""Image files, in one folder for each class or in folders for nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch

from advisor.data.pixels import Frame, pixels
from advisor.data.pools import Failures, Found, Pool, decoded, digests
from advisor.data.survey import check_share, survey
from advisor.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    Labels = npt.NDArray[np.int64]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".gif", ".tif", ".tiff")
# The first one found is the held-out part; a test set is left alone where there is another.
_HELD_OUT_FOLDERS = ("val", "valid", "validation", "test")


def find_folder(source: str, root: Path) -> Found:
    """The images of class folders, or of class folders in `train/` and `val/` or `test/`."""
    parts = _split_folders(root)
    if parts is None:
        files = _files_by_class(root)
        return _whole(Found(source, tuple(files), True, file_pool(files, root)))
    train, held_out = (_files_by_class(part) for part in parts)
    for name in sorted(train.keys() ^ held_out.keys()):
        has, lacks = parts if name in train else parts[::-1]
        raise DataError(
            f"class folder {name!r} is in {has} but not in {lacks}; both need the same class folders"
        )
    return _whole(Found(source, tuple(train), True, file_pool(train, root), file_pool(held_out, root)))


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
        images = sum(path.suffix.lower() in SUFFIXES for path in _entries(root))
        what = f"holds {images} images but no class folders" if images else "holds no class folders"
        raise DataError(f"{root} {what}; put the images into one folder for each class")
    names = sorted(folders)
    if all(re.fullmatch(r"[0-9]{1,18}", name) for name in names):
        names.sort(key=int)
    files = {name: sorted(images_below(folders[name])) for name in names}
    empty = [name for name, paths in files.items() if not paths]
    if empty:
        raise DataError(
            f"class folder {root / empty[0]} holds no images ({len(empty)} such folders); "
            f"add some ({', '.join(SUFFIXES)}) or remove it"
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
    return next(images_below(folder), None) is not None


def images_below(folder: Path) -> Iterator[str]:
    """All image files in the folder and in those below it, the hidden ones aside."""

    # Plain strings: making 50,000 Paths takes a second.
    def refuse(error: OSError) -> NoReturn:
        raise DataError(f"{error.filename} can't be read: {error.strerror}; check its permissions") from error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                yield f"{parent}{os.sep}{name}"


def file_pool(files: dict[str, list[str]], root: Path) -> Pool:
    """Those that can be read, of the image files of each class; named as they lie in `root`."""
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
        return decoded(open_file, indices, frame)

    return Pool(
        labels.astype(np.int64),
        read,
        name=lambda index: os.path.relpath(paths[index], root),
        sizes=lambda _: surveyed.sizes,
        unreadable=surveyed.unreadable,
        contents=lambda indices: digests([paths[index] for index in indices]),
    )
