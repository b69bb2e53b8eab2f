"""Image files: which there are, and a pool of those that can be read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch

from advisor.data.pixels import SUFFIXES, Frame, read_image
from advisor.data.pools import Failures, Pool, decoded, digests
from advisor.data.survey import Source, opened, survey
from advisor.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    Labels = npt.NDArray[np.int64]

# Pillow opens them where it was built so, or with a package beside it.
_SOMETIMES = {
    ".avif": "a Pillow with AVIF",
    ".heic": "pip install pillow-heif",
    ".heif": "pip install pillow-heif",
}
# What systems and programs leave in folders, which nobody means.
_JUNK = (
    *("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"),
    *("thumbs.db", "desktop.ini"),
)
# What may lie beside images without being one that was forgotten.
_BESIDE = (
    *("", ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".html", ".ini", ".db"),
    ".npy",
)


def is_junk(name: str) -> bool:
    """Whether it is hidden, or something that a system put there."""
    return name.startswith((".", "~$")) or name.casefold() in _JUNK


@cache
def suffixes() -> tuple[str, ...]:
    """Of the image files that can be read here, in lower case."""
    from PIL import features

    found = [*SUFFIXES]
    if features.check("avif"):
        found.append(".avif")
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return tuple(found)
    register_heif_opener()
    return (*found, ".heic", ".heif")


def images_below(folder: Path) -> Iterator[str]:
    """All image files in the folder and in those below it, without what is hidden or junk."""
    return (path for path in files_below(folder) if is_image(path))


def is_image(path: str) -> bool:
    """Whether its name is that of an image file that can be read here."""
    return path.lower().endswith(suffixes())


def files_below(folder: Path) -> Iterator[str]:
    """All files in the folder and in those below it, without what is hidden or junk."""

    # Plain strings: making 50,000 Paths takes a second.
    def refuse(error: OSError) -> NoReturn:
        raise DataError(f"{error.filename} can't be read: {error.strerror}; check its permissions") from error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not is_junk(name)]
        for name in files:
            if not is_junk(name):
                yield f"{parent}{os.sep}{name}"


def entries(folder: Path) -> list[Path]:
    """What lies in the folder, without what is hidden or junk. Raises DataError."""
    try:
        return [path for path in folder.iterdir() if not is_junk(path.name)]
    except OSError as error:
        raise DataError(f"{folder} can't be read: {error.strerror}; check its permissions") from error


def folders_in(folder: Path) -> list[Path]:
    """Those right in the folder, by name, without what is hidden or junk. Raises DataError."""
    return sorted(path for path in entries(folder) if path.is_dir())


def told_left_out(files: Sequence[str]) -> tuple[str, ...]:
    """A line that counts, by suffix, the files that are no readable images; () where there is none."""
    kinds = Counter(os.path.splitext(path)[1].lower() for path in files if not is_image(path))  # noqa: PTH122
    strange = {kind: count for kind, count in kinds.items() if kind not in _BESIDE}
    if not strange:
        return ()
    told = [
        f"{count:,} {kind}" + (f" (to read them: {_SOMETIMES[kind]})" if kind in _SOMETIMES else "")
        for kind, count in sorted(strange.items(), key=lambda item: (-item[1], item[0]))
    ]
    more = f" and {len(told) - 4} other kinds" if len(told) > 4 else ""
    return (f"left out, as they are no images that can be read: {', '.join(told[:4])}{more}",)


def file_pool(files: Mapping[str, Sequence[str]], root: Path) -> Pool:
    """Those that can be read, of the image files of each class; named as they lie in `root`."""
    paths = [path for of_class in files.values() for path in of_class]
    labels = np.repeat(np.arange(len(files)), [len(of_class) for of_class in files.values()])
    return image_pool(paths, labels.astype(np.int64), lambda index: os.path.relpath(paths[index], root))


def image_pool(sources: Sequence[Source], labels: Labels, name: Callable[[int], str]) -> Pool:
    """Those that can be read, of images that are each a file, or what one holds.

    Args:
        name: of the image at an index, for the user.
    """
    surveyed = survey(sources, name)
    readable = [sources[position] for position in surveyed.readable]

    def open_one(index: int, frame: Frame) -> torch.Tensor:
        with opened(readable[index]) as file:
            return read_image(file, frame)

    def read(indices: Labels, frame: Frame) -> tuple[torch.Tensor, Failures]:
        if frame.size[0] not in (1, 3):
            raise DataError(
                f"wrong channels: image files have 1 or 3, the model takes {frame.size[0]}; "
                f"give an .npz with {frame.size[0]}-channel images"
            )
        return decoded(open_one, indices, frame)

    return Pool(
        labels[list(surveyed.readable)],
        read,
        name=lambda index: name(surveyed.readable[index]),
        sizes=lambda _: surveyed.sizes,
        unreadable=surveyed.unreadable,
        contents=lambda indices: digests([readable[index] for index in indices]),
        oddities=surveyed.oddities,
    )
