"""Images that belong together: copies, near copies, frames of one video.

What is judged on a photo has learned it by heart where its twin was trained on. So those that belong
together are held out together, or not at all.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from advisor.data.parts import one_form
from advisor.data.pixels import Frame
from advisor.data.pools import Pool
from advisor.records import Framing

if TYPE_CHECKING:
    import numpy.typing as npt

    Groups = npt.NDArray[np.int64]  # (N,): images of the same number belong together
    Thumbnails = npt.NDArray[np.float64]  # (N, D), in [0, 255]

_SIDE = 16  # of a thumbnail, in which a photo is still told from others
_NEAR, _NEAR_IN_CONTRAST = 6.0, 0.15  # root mean square: of 255; of the images' own standard deviation
_SAME = 0.01  # likewise, what rounding leaves
_CHUNK = 1024
# Frames and bursts: what comes before the last number in a name, if several images share it.
_SERIES = re.compile(r"(.*?)[\W_]*(?:frame|img|image|shot|burst|photo|pic|f|n|no)?[\W_]*\d+", re.IGNORECASE)
_LEAST_SERIES, _MOST_IN_ONE = 3, 0.5  # series a class, on average; of a class's images, in one of them


def thumbnails(pool: Pool, indices: Groups, channels: int) -> Thumbnails:
    """Of each image, squashed to a small square; NaN where it can't be decoded."""
    frame = Frame((channels, _SIDE, _SIDE), Framing(mode="squash"))
    images, failures = pool.read(indices, frame)
    found = images.flatten(1).numpy().astype(np.float64)
    found[[*failures]] = np.nan
    return found


def near_pairs(one: Thumbnails, other: Thumbnails | None = None) -> list[tuple[int, int]]:
    """Which of the first are near copies of which of the second; of each other, where there is one alone.

    Near: the root mean square of their difference is small beside 255 and beside their own contrast. What
    shows nothing but one colour is near to what is just the same.
    """
    found: list[tuple[int, int]] = []
    others = one if other is None else other
    contrast, squares = _contrast(others), np.square(others).sum(1)
    for start in range(0, len(one), _CHUNK):
        part = one[start : start + _CHUNK]
        distance = np.square(part).sum(1)[:, None] + squares - 2 * part @ others.T
        rms = np.sqrt(np.maximum(distance, 0) / one.shape[1])
        least = np.minimum(_contrast(part)[:, None], contrast)
        rows, columns = np.nonzero(rms <= np.clip(_NEAR_IN_CONTRAST * least, _SAME, _NEAR))
        pairs = zip((rows + start).tolist(), columns.tolist(), strict=True)
        found += [(a, b) for a, b in pairs if other is not None or a < b]
    return found


def _contrast(images: Thumbnails) -> npt.NDArray[np.float64]:
    """The standard deviation over the places of an image, in the channel that has most."""
    by_place = images.reshape(len(images), -1, _SIDE * _SIDE)
    found: npt.NDArray[np.float64] = by_place.std(2).max(1)
    return found


def joined(count: int, pairs: Sequence[tuple[int, int]], *groupings: Groups) -> Groups:
    """What belongs together by pairs, or by any of the groupings that are known."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = [*pairs]
    for groups in groupings:
        first: dict[int, int] = {}
        links += [(first.setdefault(int(group), place), place) for place, group in enumerate(groups)]
    rows, columns = zip(*links, strict=True) if links else ((), ())
    graph = coo_array((np.ones(len(links)), (rows, columns)), shape=(count, count))
    found: Groups = connected_components(graph, directed=False)[1].astype(np.int64)
    return found


def series(names: Sequence[str], labels: Groups) -> Groups | None:
    """Those whose names differ in their last number alone; None where that tells nothing.

    It tells nothing where a class has hardly more than one such series: then the number only counts its
    images.
    """
    of_name: dict[tuple[int, str], list[int]] = defaultdict(list)
    for place, (name, label) in enumerate(zip(names, labels.tolist(), strict=True)):
        match = _SERIES.fullmatch(Path(one_form(name)).stem)
        of_name[label, match[1] if match and match[1] else name].append(place)
    several = [places for places in of_name.values() if len(places) > 1]
    covered = sum(map(len, several))
    largest = max((len(places) for places in several), default=0)
    classes = len(np.unique(labels))
    if (
        covered < len(names) / 2
        or len(several) < _LEAST_SERIES * classes
        or largest > _MOST_IN_ONE * len(names) / classes
    ):
        return None
    groups = np.arange(len(names))
    for places in several:
        groups[places] = places[0]
    return groups
