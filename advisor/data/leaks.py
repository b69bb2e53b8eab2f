"""Images that belong together on both sides of a split, and images of two classes: told, and kept apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

import advisor.data
from advisor.data.grouping import said_groups
from advisor.data.pictures import of_pool
from advisor.data.pools import Found, Pool
from advisor.data.twins import joined, near_pairs, series, thumbnails
from advisor.models.fingerprint import code_fingerprint, fingerprint
from advisor.records import Finding, Weight
from advisor.store import Store

if TYPE_CHECKING:
    import numpy.typing as npt

    Labels = npt.NDArray[np.int64]
    Pairs = list[tuple[int, int]]

MOST_LOOKED_AT = 4096  # images: a pool of more is not looked at as a whole, its sample is
_TOLD = 4  # files of a finding
_WORTH_TELLING = 0.02  # of the images


def grouped(
    found: Found, channels: int, said: str | None, store: Store | None
) -> tuple[Labels | None, list[Finding]]:
    """What belongs together of images that are to be split: (N,), one number for each group.

    Args:
        channels: of the model's images.
        said: a table or a pattern of names, see `said_groups`; None: names that differ in a running number
            alone, and near copies.

    Returns:
        None where every image is on its own, or where there are too many to look at; and findings.

    Raises:
        DataError: what was said tells nothing of these images.
    """
    pool = found.train
    names = [pool.name(index) for index in range(len(pool.labels))]
    if said is not None:
        groups, rest = said_groups(said, names)
        return groups, [_told(groups, f"--groups {said}{rest}", names)]
    by_name = series(names, pool.labels)
    every = np.arange(len(names))
    pairs = _pairs(channels, store, (pool, every)) if len(names) <= MOST_LOOKED_AT else []
    if by_name is None and not pairs:
        return None, []
    groups = joined(len(names), pairs, *(() if by_name is None else (by_name,)))
    findings = _two_classes(pool, pairs, found.class_names, channels)
    if by_name is not None:
        findings.append(_told(by_name, "names that differ in a running number alone", names))
    alike = list(dict.fromkeys(chain.from_iterable(pairs)))  # so that twins stand beside each other
    if len(alike) > _WORTH_TELLING * len(names):
        text = f"{len(alike):,} of {len(names):,} images are copies, or nearly, of others: held out together"
        findings.append(_shown("copies", "note", text, pool, alike, channels))
    return groups, findings


def apart_as_said(found: Found, validation: Labels, said: str, channels: int) -> tuple[Labels, list[Finding]]:
    """The held-out images whose groups are not trained on, too; where none is left, all of them.

    Args:
        said: see `said_groups`.
        channels: of the model's images.

    Raises:
        DataError: what was said tells nothing of these images.
    """
    held_out = found.held_out
    assert held_out is not None  # noqa: S101 - the data came with a split
    names = [pool.name(index) for pool in found.pools for index in range(len(pool.labels))]
    groups, _ = said_groups(said, names)
    trained, of_held_out = np.split(groups, [len(found.train.labels)])
    both = np.flatnonzero(np.isin(of_held_out[validation], trained))
    if not len(both):
        return validation, []
    rest, removed, is_whole = _without(held_out, validation, both.tolist())
    told = (
        f"{len(both):,} of {len(validation):,} held-out images belong, by --groups {said}, to groups "
        "that are trained on"
    )
    if not is_whole:
        text = f"{told}: hold out whole groups"
        return validation, [_shown("leak", "error", text, held_out, removed, channels)]
    return rest, [_shown("leak", "warning", f"{told}; they are left out", held_out, removed, channels)]


def without_twins(
    found: Found, train: Labels, validation: Labels, channels: int, store: Store | None
) -> tuple[Labels, list[Finding]]:
    """The held-out images of which no copy, or nearly, is trained on; where none is left, all of them."""
    held_out = found.held_out
    assert held_out is not None  # noqa: S101 - the data came with a split
    pairs = _pairs(channels, store, (found.train, train), (held_out, validation))
    if not pairs:
        return validation, []
    rest, removed, is_whole = _without(held_out, validation, (place for _, place in pairs))
    count = len(validation) - len(rest)
    told = f"{count:,} of {len(validation):,} held-out images are copies, or nearly, of training images"
    if not is_whole:
        text = f"{told}: what they get right was learned by heart; hold out others"
        return validation, [_shown("leak", "error", text, held_out, removed, channels)]
    return rest, [_shown("leak", "warning", f"{told}; they are left out", held_out, removed, channels)]


def apart_from(
    found: Found, train: Labels, validation: Labels, channels: int, store: Store | None
) -> tuple[Labels, list[Finding]]:
    """Of a sample of many, the training images without copies, or nearly, of held-out ones."""
    pairs = _pairs(channels, store, (found.train, train), (found.train, validation))
    rest, removed, is_whole = _without(found.train, train, (place for place, _ in pairs))
    if not pairs or not is_whole:
        return train, []
    text = (
        f"{len(train) - len(rest):,} images are copies, or nearly, of held-out ones: they are not trained on"
    )
    return rest, [_shown("copies", "note", text, found.train, removed, channels)]


def _pairs(channels: int, store: Store | None, *parts: tuple[Pool, Labels]) -> Pairs:
    """Which images of the first part are copies, or nearly, of which of the second, or of each other."""

    def find() -> Pairs:
        return near_pairs(*(thumbnails(pool, indices, channels) for pool, indices in parts))

    contents = [pool.contents(indices) for pool, indices in parts if pool.contents is not None]
    if store is None or len(contents) < len(parts):
        return find()
    code = code_fingerprint(nn.Module(), advisor.data)
    key = {"twins": fingerprint(repr((contents, channels)), []), "code": code}
    known = store.remembered("twins", key, lambda: {"pairs": find()})
    return [(one, other) for one, other in known["pairs"]]


def _without(pool: Pool, indices: Labels, twins: Iterable[int]) -> tuple[Labels, list[int], bool]:
    """The indices but those at the places, those at the places, and whether no class is lost."""
    places = sorted(set(twins))
    rest = np.delete(indices, places)
    is_whole = set(pool.labels[rest].tolist()) == set(pool.labels[indices].tolist())
    return rest, indices[places].tolist(), is_whole


def _shown(
    kind: str, weight: Weight, text: str, pool: Pool, indices: Sequence[int], channels: int
) -> Finding:
    """A finding with the names and pictures of the first few of its images."""
    first = indices[:_TOLD]
    return Finding(kind, weight, text, tuple(map(pool.name, first)), of_pool(pool, first, channels))


def _two_classes(pool: Pool, pairs: Pairs, class_names: Sequence[str], channels: int) -> list[Finding]:
    """The finding that an image, or nearly, lies in two classes."""
    labels = pool.labels
    torn = [(one, other) for one, other in pairs if labels[one] != labels[other]]
    if not torn:
        return []
    images = list(dict.fromkeys(chain.from_iterable(torn)))
    one, other = torn[0]
    text = (
        f"{len(images):,} images lie in two classes, the same or nearly the same image in each, such as "
        f"{pool.name(one)} ({class_names[labels[one]]}) and {pool.name(other)} "
        f"({class_names[labels[other]]}): nothing can be right about both; remove the wrong ones"
    )
    return [_shown("two-classes", "warning", text, pool, images, channels)]


def _told(groups: Labels, why: str, names: Sequence[str]) -> Finding:
    known, first, counts = np.unique(groups, return_index=True, return_counts=True)
    largest = int(counts.argmax())
    text = (
        f"{len(names):,} images are {len(known):,} groups by {why} (the largest, of {counts[largest]:,}, "
        f"is that of {names[first[largest]]}): each is held out as a whole"
    )
    return Finding("groups", "note", text)
