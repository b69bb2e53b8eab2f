"""Images that belong together on both sides of a split, and images of two classes: told, and kept apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

import advisor.data
from advisor.data.pools import Found, Pool
from advisor.data.twins import joined, near_pairs, series, thumbnails
from advisor.errors import DataError
from advisor.models.fingerprint import code_fingerprint, fingerprint
from advisor.records import Finding
from advisor.store import Store

if TYPE_CHECKING:
    import numpy.typing as npt

    Labels = npt.NDArray[np.int64]
    Pairs = list[tuple[int, int]]

MOST_LOOKED_AT = 4096  # images: a pool of more is not looked at as a whole, its sample is
_TOLD = 4  # files of a finding
_WORTH_TELLING = 0.02  # of the images


def grouped(
    found: Found, channels: int, pattern: str | None, store: Store | None
) -> tuple[Labels | None, list[Finding]]:
    """What belongs together of images that are to be split: (N,), one number for each group.

    Args:
        channels: of the model's images.
        pattern: of names: images whose parts that it matches (its first group, if it has one) are equal
            belong together; None: names that differ in a running number alone, and near copies.

    Returns:
        None where every image is on its own, or where there are too many to look at; and findings.

    Raises:
        DataError: the pattern is none, or matches nothing.
    """
    pool = found.train
    names = [pool.name(index) for index in range(len(pool.labels))]
    if pattern is not None:
        groups = _matched(pattern, names)
        return groups, [_told(groups, f"--groups {pattern}", names)]
    by_name = series(names, pool.labels)
    pairs = _pairs(pool, channels, store) if len(names) <= MOST_LOOKED_AT else []
    if by_name is None and not pairs:
        return None, []
    groups = joined(len(names), pairs, by_name)
    findings = _two_classes(pool, pairs, found.class_names)
    if by_name is not None:
        findings.append(_told(by_name, "names that differ in a running number alone", names))
    alike = sorted(set(chain.from_iterable(pairs)))
    if len(alike) > _WORTH_TELLING * len(names):
        text = f"{len(alike):,} of {len(names):,} images are copies, or nearly, of others: held out together"
        findings.append(Finding("copies", "note", text, tuple(names[place] for place in alike[:_TOLD])))
    return groups, findings


def without_twins(
    found: Found, train: Labels, validation: Labels, channels: int, store: Store | None
) -> tuple[Labels, list[Finding]]:
    """The held-out images of which no copy, or nearly, is trained on; where none is left, all of them."""
    assert found.held_out is not None  # noqa: S101 - the data came with a split
    pairs = _pairs_across(found.train, train, found.held_out, validation, channels, store)
    if not pairs:
        return validation, []
    own = sorted({place for _, place in pairs})
    rest = np.delete(validation, own)
    files = tuple(found.held_out.name(int(validation[place])) for place in own[:_TOLD])
    told = f"{len(own):,} of {len(validation):,} held-out images are copies, or nearly, of training images"
    labels = found.held_out.labels
    if set(labels[rest].tolist()) != set(labels[validation].tolist()):
        text = f"{told}: what they get right was learned by heart; hold out others"
        return validation, [Finding("leak", "error", text, files)]
    return rest, [Finding("leak", "warning", f"{told}; they are left out", files)]


def apart_from(
    found: Found, train: Labels, validation: Labels, channels: int, store: Store | None
) -> tuple[Labels, list[Finding]]:
    """Of a sample of many, the training images without copies, or nearly, of held-out ones."""
    pairs = _pairs_across(found.train, train, found.train, validation, channels, store)
    own = sorted({place for place, _ in pairs})
    rest, labels = np.delete(train, own), found.train.labels
    if not own or set(labels[rest].tolist()) != set(labels[train].tolist()):
        return train, []
    files = tuple(found.train.name(int(train[place])) for place in own[:_TOLD])
    text = f"{len(own):,} images are copies, or nearly, of held-out ones: they are not trained on"
    return rest, [Finding("copies", "note", text, files)]


def _pairs(pool: Pool, channels: int, store: Store | None) -> Pairs:
    """Of the whole pool: which are copies, or nearly."""
    every = np.arange(len(pool.labels))

    def find() -> Pairs:
        return near_pairs(thumbnails(pool, every, channels))

    return _remembered(store, [(pool, every)], channels, find)


def _pairs_across(
    one: Pool, first: Labels, other: Pool, second: Labels, channels: int, store: Store | None
) -> Pairs:
    def find() -> Pairs:
        return near_pairs(thumbnails(one, first, channels), thumbnails(other, second, channels))

    return _remembered(store, [(one, first), (other, second)], channels, find)


def _remembered(
    store: Store | None, parts: Sequence[tuple[Pool, Labels]], channels: int, find: Callable[[], Pairs]
) -> Pairs:
    contents = [pool.contents(indices) for pool, indices in parts if pool.contents is not None]
    if store is None or len(contents) < len(parts):
        return find()
    code = code_fingerprint(nn.Module(), advisor.data)
    key = {"twins": fingerprint(repr((contents, channels)), []), "code": code}
    known = store.get("twins", key)
    if known is None:
        known = {"pairs": find()}
        store.put("twins", key, known)
    return [(one, other) for one, other in known["pairs"]]


def _two_classes(pool: Pool, pairs: Pairs, class_names: Sequence[str]) -> list[Finding]:
    """The finding that an image, or nearly, lies in two classes."""
    labels = pool.labels
    torn = [(one, other) for one, other in pairs if labels[one] != labels[other]]
    if not torn:
        return []
    images = sorted(set(chain.from_iterable(torn)))
    one, other = torn[0]
    text = (
        f"{len(images):,} images lie in two classes, the same or nearly the same image in each, such as "
        f"{pool.name(one)} ({class_names[labels[one]]}) and {pool.name(other)} "
        f"({class_names[labels[other]]}): nothing can be right about both; remove the wrong ones"
    )
    return [Finding("two-classes", "warning", text, tuple(pool.name(place) for place in images[:_TOLD]))]


def _matched(pattern: str, names: Sequence[str]) -> Labels:
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise DataError(f"--groups {pattern!r} is no regular expression: {error}") from error
    keys = []
    for name in names:
        match = regex.search(name)
        keys.append(name if match is None else f"\0{match[1] if regex.groups else match[0]}")
    if not any(key.startswith("\0") for key in keys):
        raise DataError(f"--groups {pattern!r} matches none of the images' names, such as {names[0]}")
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def _told(groups: Labels, why: str, names: Sequence[str]) -> Finding:
    known, first, counts = np.unique(groups, return_index=True, return_counts=True)
    largest = int(counts.argmax())
    text = (
        f"{len(names):,} images are {len(known):,} groups by {why} (the largest, of {counts[largest]:,}, "
        f"is that of {names[first[largest]]}): each is held out as a whole"
    )
    return Finding("groups", "note", text)
