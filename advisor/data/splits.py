"""Which images are trained on and which are held out: in proportion by class, the same for the same data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Labels = npt.NDArray[np.int64]

_HELD_OUT_SHARE = 0.3


def split(labels: Labels, most_train: int, most_held_out: int, seed: int) -> tuple[Labels, Labels]:
    """Disjoint indices to train on and to hold out. Each class present must have two images."""
    members = _shuffled_members(labels, seed)
    total = min(most_held_out, int(_HELD_OUT_SHARE * len(labels)))
    shares = _shares([len(indices) for indices in members], total, reserve=1)
    held_out = [indices[:share] for indices, share in zip(members, shares, strict=True)]
    rest = [indices[share:] for indices, share in zip(members, shares, strict=True)]
    return _first(rest, most_train), interleaved(held_out)


def sample(labels: Labels, most: int, seed: int) -> Labels:
    """Indices of at most so many images, each class in proportion."""
    return _first(_shuffled_members(labels, seed), most)


def _first(members: Sequence[Labels], most: int) -> Labels:
    shares = _shares([len(indices) for indices in members], most, reserve=0)
    return interleaved([indices[:n] for indices, n in zip(members, shares, strict=True)])


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


def interleaved(members: Sequence[Labels]) -> Labels:
    """The classes' indices merged so that every first part of the result is nearly stratified."""
    places = np.concatenate([(np.arange(len(m)) + 0.5) / len(m) for m in members])
    merged: Labels = np.concatenate(members)[np.argsort(places, kind="stable")]
    return merged


def split_groups(
    labels: Labels, groups: Labels, most_train: int, most_held_out: int, seed: int
) -> tuple[Labels, Labels]:
    """Like `split`, but images of one group are on one side.

    A class all of whose images belong together is split all the same, or it couldn't be judged.
    """
    generator = np.random.default_rng(seed)
    classes, numbers = np.unique(labels, return_inverse=True)
    sizes = np.bincount(numbers)
    total = min(most_held_out, int(_HELD_OUT_SHARE * len(labels)))
    wanted = np.array(_shares(sizes.tolist(), total, reserve=1))
    groups = _separable(groups, numbers, len(classes))
    known, members = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(known), len(classes)), np.int64)
    np.add.at(counts, (members, numbers), 1)
    chosen, held = np.zeros(len(known), bool), np.zeros(len(classes), np.int64)
    order = generator.permutation(len(known))
    for group in order:
        own = counts[group]
        if (held + own <= wanted)[own > 0].all():
            chosen[group] = True
            held += own
    # Where no group was small enough for a class, the smallest that leaves some of each class.
    for number in np.flatnonzero(held == 0):
        fitting = [
            g for g in order if counts[g][number] and ((held + counts[g] < sizes) | (counts[g] == 0)).all()
        ]
        if fitting:
            group = min(fitting, key=lambda g: counts[g].sum())
            chosen[group] = True
            held += counts[group]
    sides = chosen[members]
    train, held_out = (_within(labels, np.flatnonzero(side), generator) for side in (~sides, sides))
    return _first(train, most_train), interleaved(held_out)


def _separable(groups: Labels, numbers: Labels, classes: int) -> Labels:
    """The groups, but images of a class that has but one are each on their own."""
    found = groups.copy()
    for number in range(classes):
        own = numbers == number
        if len(np.unique(groups[own])) == 1:
            found[own] = groups.max() + 1 + np.flatnonzero(own)
    return found


def _within(labels: Labels, indices: Labels, generator: np.random.Generator) -> list[Labels]:
    own = labels[indices]
    return [generator.permutation(indices[own == label]) for label in np.unique(own)]
