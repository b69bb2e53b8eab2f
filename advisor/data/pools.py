"""Images that were found and are not decoded yet."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from advisor.data.pixels import Frame, Size, fit
from advisor.data.survey import Oddity, Source, Unreadable, decoding, opened, reason
from advisor.errors import DataError
from advisor.names import missing_data

if TYPE_CHECKING:
    import numpy.typing as npt

    Labels = npt.NDArray[np.int64]

Failures = dict[int, str]  # place among the images asked for -> why that one can't be read


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Labelled images that are not decoded yet, without those that can't be."""

    labels: Labels
    read: Callable[[Labels, Frame], tuple[torch.Tensor, Failures]]  # indices (n,) -> (n, C, H, W) uint8
    name: Callable[[int], str]  # of the image at an index, for the user
    sizes: Callable[[int | None], frozenset[Size]]  # as they are, for a model that takes so many channels
    unreadable: tuple[Unreadable, ...] = ()
    contents: Callable[[Labels], list[str]] | None = None  # digests of the files; None: there are none
    oddities: Mapping[Oddity, int] = field(default_factory=dict)  # of how many images

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
    notes: tuple[str, ...] = ()  # how the source was understood, in words

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

    @property
    def said(self) -> tuple[str, ...]:
        """How the source was understood, and what of its images is not as it is stored."""
        counts = sum((Counter(pool.oddities) for pool in self.pools), Counter[Oddity]())
        return (
            *self.notes,
            *(f"{counts[odd]:,} of {self.total:,} images {odd.value}" for odd in Oddity if counts[odd]),
        )


def existing(text: str) -> Path:
    """The path, where something is there. Raises DataError."""
    try:
        path = Path(text).expanduser()
        if text.strip() and path.exists():
            return path
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, no such home
        pass
    raise DataError(missing_data(text))


def decoded(
    open_one: Callable[[int, Frame], torch.Tensor], indices: Labels, frame: Frame, workers: int | None = None
) -> tuple[torch.Tensor, Failures]:
    """The images at the indices, in the frame, and why some of them are not."""
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
    return images, dict(sorted(failures.items()))  # whichever thread was first


def digests(sources: Sequence[Source]) -> list[str]:
    """SHA-256, in hexadecimal, of each file's bytes; nothing of one that can't be read."""

    def digest(source: Source) -> str:
        try:
            with opened(source) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:  # decoding it will tell why
            return ""

    with decoding() as pool:
        return list(pool.map(digest, sources))


def class_names_of(
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
