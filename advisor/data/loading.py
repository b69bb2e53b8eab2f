"""The user's images: found, split once into training and held-out, read at the input size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from advisor.data.deferred import Deferred
from advisor.data.leaks import MOST_LOOKED_AT, apart_as_said, apart_from, grouped, without_twins
from advisor.data.pixels import Frame, Normalisation, Size
from advisor.data.pools import Found, Pool, existing
from advisor.data.reading import read
from advisor.data.sources import find, find_unlabelled
from advisor.data.splits import sample, split, split_groups
from advisor.data.survey import Unreadable, check_share, left_out
from advisor.errors import DataError
from advisor.models.fingerprint import fingerprint
from advisor.records import Augment, Finding, Framing
from advisor.store import Store

if TYPE_CHECKING:
    import numpy.typing as npt

    Labels = npt.NDArray[np.int64]


class LabelledImages:
    """Images that stay in RAM as bytes from when they are first looked at, and their labels.

    Some of them share the bytes of all.
    """

    def __init__(
        self,
        images: torch.Tensor | Deferred,
        labels: torch.Tensor,
        groups: torch.Tensor | None = None,
        places: torch.Tensor | None = None,
    ) -> None:
        """Images, and what is known of each.

        Args:
            images: (M, C, H, W) uint8, at the model's input size.
            labels: (N,) int64.
            groups: (N,) int64: those of one number are held out together; None: each may be, alone.
            places: (N,) int64: which of the M images these are; None: all, in their order.
        """
        self._shared = images if isinstance(images, Deferred) else Deferred.of(images)
        self._places = places
        self.labels = labels
        self.groups = groups

    def __len__(self) -> int:
        """How many."""
        return len(self.labels)

    @classmethod
    def joined(cls, *parts: LabelledImages) -> LabelledImages:
        """All of them, in order."""
        images = Deferred.joined(*(part.undecoded for part in parts))
        groups = [part.groups for part in parts if part.groups is not None]
        return cls(
            images,
            torch.cat([part.labels for part in parts]),
            torch.cat(groups) if len(groups) == len(parts) else None,
        )

    @property
    def undecoded(self) -> Deferred:
        """The images (N, C, H, W), before they are looked at."""
        if self._places is None:
            return self._shared
        places = self._places
        return self._shared.changed(itemgetter(places), places.tolist(), count=len(places))

    @property
    def images(self) -> torch.Tensor:
        """(N, C, H, W) uint8; a copy, where these are some of others."""
        return self.undecoded.images

    def decode(self) -> None:
        """Look at them, if nobody did."""
        self._shared.images  # noqa: B018 - looked at

    @property
    def key(self) -> str:
        """Equal keys: equal images and labels. Nothing is decoded for it."""
        known = [self.labels] if self.groups is None else [self.labels, self.groups]
        return fingerprint(self.undecoded.key, [("", each) for each in known])

    def labelled(self, labels: torch.Tensor) -> LabelledImages:
        """The same images with other labels."""
        return LabelledImages(self._shared, labels, self.groups, self._places)

    def those(self, wanted: torch.Tensor) -> LabelledImages:
        """The images at indices, or where a mask is true."""
        places = torch.arange(len(self))[wanted]
        groups = None if self.groups is None else self.groups[places]
        within = places if self._places is None else self._places[places]
        return LabelledImages(self._shared, self.labels[places], groups, within)

    def batch(self, indices: torch.Tensor, normalisation: Normalisation) -> tuple[torch.Tensor, torch.Tensor]:
        """The images at `indices` (B,), normalised float32 (B, C, H, W), and their labels (B,)."""
        places = indices if self._places is None else self._places[indices]
        return normalisation.of(self._shared.images[places]), self.labels[indices]


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
    framing: Framing = field(default_factory=Framing)
    augment: Augment = "none"  # what of the images is trained on
    unreadable: int = 0  # images that are left out
    findings: tuple[Finding, ...] = ()  # what may make the accuracy other than it seems
    warnings: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[LabelledImages, ...]:
        """All images: to train on, held out, and old and unlabelled ones, where there are any."""
        more = (part for part in (self.retained, self.unlabelled) if part is not None)
        return self.train, self.validation, *more


def load_data(
    source: str | Found,
    input_size: Size,
    *,
    normalisation: Normalisation | None = None,
    framing: Framing | None = None,
    max_train: int = 2048,
    max_validation: int = 1000,
    seed: int = 0,
    store: Store | None = None,
    grouping: str | None = None,
) -> Dataset:
    """Read a sample of the data and hold out a part of it, stratified by class.

    The sample depends on the data and `seed` alone. Where the data comes with its own split, that
    is kept; else 30 %, at most `max_validation` images, are held out, those that belong together
    (see `advisor.data.twins`) on one side. Each class is in both parts at least once, even where that
    takes more images than the limits name. Only the sampled images are decoded at the input size.
    Files that can't be images are left out before the split, so that the same images are held out
    whatever `max_train` is; what can't be decoded is left out of either part. Where a store tells which
    of the sample's files those are, the others are decoded when they are looked at.

    Args:
        source: a folder of class folders, or one with such folders in `train/` and `val/` (or
            `test/`); an `.npz` with `images`, `labels` and perhaps `class_names`;
            `torchvision:NAME:/path`; `digits`; or what `find` found of one.
        input_size: the model's, (C, H, W).
        normalisation: None: ImageNet's for three channels, 0.5 for any other number.
        framing: of images of other sizes; None: their shorter side is resized to it, and they are
            cropped in the centre.
        store: where it is looked for, and kept, which files can't be decoded, and what belongs together.
        grouping: a table or a pattern of names that tells what belongs together; None: names and looks do.

    Raises:
        DataError: the data is missing, unreadable or doesn't fit the model.
    """
    normalisation = _checked(normalisation or default_normalisation(input_size[0]), input_size[0])
    framing = framing or Framing()
    if not 0.1 <= framing.crop <= 10:
        raise DataError(f"a crop of {framing.crop} can't be used; give a share such as 0.875")
    found = find(source) if isinstance(source, str) else source
    _check_classes(found)
    labels, channels, groups = found.train.labels, input_size[0], None
    if found.held_out is None:
        held_out = found.train
        groups, findings = grouped(found, channels, grouping, store)
        if groups is None:
            train, validation = split(labels, max_train, max_validation, seed)
        else:
            train, validation = split_groups(labels, groups, max_train, max_validation, seed)
        if len(labels) > MOST_LOOKED_AT:
            train, more = apart_from(found, train, validation, channels, store)
            findings += more
    else:
        held_out = found.held_out
        train = sample(labels, max_train, seed)
        validation = sample(held_out.labels, max_validation, seed)
        among = sample(labels, MOST_LOOKED_AT, seed)  # whatever `max_train` is
        validation, findings = without_twins(found, among, validation, channels, store)
        if grouping is not None:
            validation, more = apart_as_said(found, validation, grouping, channels)
            findings += more
    frame = Frame(input_size, framing, normalisation.mean)
    parts = [
        _read(found.train, train, frame, store, groups),
        _read(held_out, validation, frame, store, groups),
    ]
    failures = [each for _, failed in parts for each in failed]
    check_share(failures, len(train) + len(validation))
    unreadable = [*found.unreadable, *failures]
    check_share(unreadable, found.total)
    for (images, failed), wanted in zip(
        parts, (found.train.labels[train], held_out.labels[validation]), strict=True
    ):
        _check_nothing_lost(found, images, wanted, failed)
    return Dataset(
        source=found.source,
        class_names=found.class_names,
        train=parts[0][0],
        validation=parts[1][0],
        normalisation=normalisation,
        named=found.named,
        is_split_drawn=found.held_out is None,
        framing=framing,
        unreadable=len(unreadable),
        warnings=left_out(found.source, unreadable, found.total),
        findings=tuple(findings),
    )


def load_unlabelled(
    source: str,
    frame: Frame,
    *,
    apart_from: str,
    most: int = 2048,
    seed: int = 0,
    store: Store | None = None,
) -> tuple[LabelledImages, tuple[str, ...]]:
    """Read a sample of images that nobody has labelled; their labels are -1.

    Args:
        source: a folder with images, in whatever folders below it, or an `.npz` with `images`.
        apart_from: the labelled data. None of its images may be among these: what is judged on an image
            must not have learned from it.
        most: how many at most; the sample depends on the images and `seed` alone.
        store: as for `load_data`.

    Returns:
        The images, and a warning where some can't be read.

    Raises:
        DataError: the images are missing, unreadable or don't fit the model.
    """
    path = existing(source)
    labelled = Path(apart_from).expanduser().resolve()
    if labelled.exists() and (
        path.resolve().is_relative_to(labelled) or labelled.is_relative_to(path.resolve())
    ):
        raise DataError(f"{path} holds images of the labelled data, {apart_from}; give others")
    pool = find_unlabelled(source)
    sampled = np.random.default_rng(seed).permutation(len(pool.labels))[:most]
    images, failures = _read(pool, sampled, frame, store)
    check_share(failures, len(sampled))
    unreadable = (*pool.unreadable, *failures)
    check_share(unreadable, pool.total)
    unknown = torch.full_like(images.labels, -1)
    return images.labelled(unknown), left_out(source, unreadable, pool.total)


def default_normalisation(channels: int) -> Normalisation:
    """ImageNet's for 3 channels; 0.5 and 0.5 for any other number."""
    if channels == 3:
        return Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return Normalisation((0.5,) * channels, (0.5,) * channels)


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


def _check_classes(found: Found) -> None:
    source, names = found.source, found.class_names
    counts = np.bincount(found.train.labels, minlength=len(names))
    present = np.flatnonzero(counts)
    without = ""
    if found.unreadable:
        first = found.unreadable[0]
        without = f" ({len(found.unreadable)} can't be read, such as {first.name}: {first.reason})"
    if len(present) < 2:
        only = f"only one class, {names[present[0]]!r}" if len(present) else "no images"
        raise DataError(f"data {source}: {only}{without}; a classifier needs images of two classes or more")
    if found.held_out is None:
        alone = [names[label] for label in present if counts[label] == 1]
        if alone:
            raise DataError(
                f"data {source}: class {alone[0]!r} has a single image{without}, so none can be held out "
                f"({len(alone)} such classes); add images to it or remove it"
            )
        return
    held_out = set(found.held_out.labels.tolist())
    for label in sorted(held_out ^ set(present.tolist())):
        has, lacks = ("held-out", "training") if label in held_out else ("training", "held-out")
        raise DataError(
            f"data {source}: class {names[label]!r} has {has} images but no {lacks} ones{without}; "
            "add some or remove the class"
        )


def _read(
    pool: Pool, indices: Labels, frame: Frame, store: Store | None, groups: Labels | None = None
) -> tuple[LabelledImages, list[Unreadable]]:
    """The images at the indices without those that can't be decoded, and these."""
    images, failures = read(pool, indices, frame, store)
    kept = np.delete(indices, [*failures])
    unreadable = [Unreadable(pool.name(int(indices[place])), why) for place, why in failures.items()]
    together = None if groups is None else torch.from_numpy(groups[kept])
    return LabelledImages(images, torch.from_numpy(pool.labels[kept]), together), unreadable


def _check_nothing_lost(
    found: Found, images: LabelledImages, wanted: Labels, failures: Sequence[Unreadable]
) -> None:
    lost = sorted(set(wanted.tolist()) - set(images.labels.tolist()))
    if lost:
        first = failures[0]
        raise DataError(
            f"data {found.source}: class {found.class_names[lost[0]]!r} has too few images that can be read "
            f"({first.name} can't: {first.reason}); replace them, add others or remove the class"
        )
