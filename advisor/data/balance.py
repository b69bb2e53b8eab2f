"""Whether there is enough of each class, and what an accuracy on so many images can tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from advisor.names import listed
from advisor.records import Z95, Finding

_FEW = 10  # images of a class: with fewer its share of right answers says next to nothing
_UNEVEN = 10  # times as many images of one class as of another
_HALF = 0.5  # the largest class's share from which on accuracy alone says little of the others


def balance(counts: Mapping[str, int], named: bool) -> list[Finding]:
    """What the numbers of images by class tell.

    Args:
        counts: images of each class, training and held-out ones together.
        named: the classes have names, and not numbers alone.
    """
    found = []
    total, most, least = sum(counts.values()), max(counts.values()), min(counts.values())
    largest, smallest = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if (most >= _HALF * total and len(counts) > 2) or most >= _UNEVEN * least:
        found.append(
            Finding(
                "uneven",
                "warning",
                f"{most:,} of {total:,} images are {largest!r} and {least:,} are {smallest!r}: always "
                f"answering the former gets {100 * most / total:.0f} % right, and finds nothing else",
            )
        )
    few = [name for name, count in counts.items() if count < _FEW]
    if few:
        found.append(
            Finding(
                "few",
                "warning",
                f"{len(few)} of {len(counts)} classes have fewer than {_FEW} images ({listed(few)}): of them "
                "hardly anything is learnt, or told; add images",
            )
        )
    return found + ([] if named else _numbers([int(name) for name in counts]))


def _numbers(labels: Sequence[int]) -> list[Finding]:
    """What is odd about labels that are mere numbers."""
    missing = sorted(set(range(max(labels) + 1)) - set(labels))
    if not missing:
        return []
    if missing == [*range(min(labels))]:
        text = (
            f"labels begin at {min(labels)}; a network's outputs begin at 0: is the first class meant by it?"
        )
    else:
        text = f"no image has the label {listed([str(each) for each in missing])}: are those classes missing?"
    return [Finding("labels", "warning", text)]


def enough(held_out: int, groups: int | None = None) -> Finding:
    """How wide an interval so many held-out images leave, at the widest, and how many would halve it.

    Args:
        groups: of images that belong together, among them; None: each is on its own.
    """
    count = held_out if groups is None else groups
    half = 100 * Z95 * math.sqrt(0.25 / max(count, 1))
    what = f"{held_out:,} held-out images" + ("" if groups is None else f" in {groups:,} groups")
    return Finding(
        "enough",
        "note",
        f"{what} tell an accuracy to \N{PLUS-MINUS SIGN}{half:.0f} points at worst; four times as many tell "
        "it to half of that",
    )
