"""What a source of images holds, and what was found in it that may make an accuracy other than it seems."""

from __future__ import annotations

import numpy as np

from advisor.data import load_data
from advisor.data.balance import balance, enough
from advisor.data.pools import Found
from advisor.data.sources import find
from advisor.errors import DataError
from advisor.records import WEIGHTS, LookedOver
from advisor.store import Store
from advisor.story.situation import Progress, Request, prepare

_SIDE = 32  # pixels: nothing is trained, and copies are looked for in less


def look_over(model: str | None, request: Request, progress: Progress, store: Store | None) -> LookedOver:
    """Look over the images that the request names.

    Args:
        model: that tells whether the images are read as in its training; None: that is not asked.

    Raises:
        InputError: the model or the data can't be used.
    """
    if request.data is None:
        raise DataError("no data was given; give a folder with one folder of images for each class")
    if model is None:
        found = find(request.data, request.labels)
        dataset = load_data(found, (_channels(found), _SIDE, _SIDE), store=store, grouping=request.groups)
        notes: tuple[str, ...] = found.said
    else:
        story = prepare(model, request, progress, store)
        found, dataset, notes = story.given.found, story.given.dataset, story.assumed
    counts = sum(np.bincount(pool.labels, minlength=len(found.class_names)) for pool in found.pools)
    by_class = dict(zip(found.class_names, np.asarray(counts).tolist(), strict=True))
    groups = dataset.validation.groups
    together = None if groups is None else len(groups.unique())
    findings = [
        *dataset.findings,
        *balance(by_class, found.named),
        enough(len(dataset.validation), together if together != len(dataset.validation) else None),
    ]
    told = {finding.text for finding in findings}
    return LookedOver(
        found.source,
        by_class,
        len(dataset.train),
        len(dataset.validation),
        dataset.is_split_drawn,
        (*(note for note in notes if note not in told), *dataset.warnings),
        tuple(sorted(findings, key=lambda finding: WEIGHTS.index(finding.weight))),
    )


def _channels(found: Found) -> int:
    """The most that any image has: colours where there are some."""
    return max((size[0] for pool in found.pools for size in pool.sizes(None)), default=3)
