"""Images of a pool: of files, they are told apart by the files' bytes, and decoded when they must be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import nn

import advisor.data
from advisor.data.deferred import Deferred
from advisor.data.pixels import Frame
from advisor.data.pools import Failures, Pool
from advisor.errors import DataError
from advisor.models.fingerprint import code_fingerprint, fingerprint
from advisor.store import Store

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Indices = npt.NDArray[np.int64]

_Contents = Callable[[], Sequence[str]]  # of the files, digested


def read(pool: Pool, indices: Indices, frame: Frame, store: Store | None) -> tuple[Deferred, Failures]:
    """The images at the indices without those that can't be decoded, and why these can't.

    Which those are is found by decoding all, unless the store knows: then the others are decoded when they
    are looked at.
    """
    if pool.contents is None:
        images, failures = pool.read(indices, frame)
        return Deferred.of(_only(images, _kept(indices, failures))), failures
    contents = cache(partial(pool.contents, indices))
    decoded, failures = _decoded(pool, indices, frame, contents, store)
    kept = _kept(indices, failures)

    def make() -> torch.Tensor:
        if decoded is not None:
            return _only(decoded, kept)
        return _later(pool, indices[kept], frame, [contents()[place] for place in kept])

    def tell() -> str:
        return _key([contents()[place] for place in kept], frame)

    return Deferred((len(kept), *frame.size), make, tell), failures


def _decoded(
    pool: Pool, indices: Indices, frame: Frame, contents: _Contents, store: Store | None
) -> tuple[torch.Tensor | None, Failures]:
    """The images at the indices, and why some of them are not; None where the store tells the latter."""
    if store is None:
        return pool.read(indices, frame)
    # A module without parts: what decodes is no part of any model.
    code = code_fingerprint(nn.Module(), advisor.data)
    key = {"images": _key(contents(), frame), "code": code}
    known = store.get("unreadable", key)
    if known is not None:
        return None, dict(known["failures"])
    images, failures = pool.read(indices, frame)
    store.put("unreadable", key, {"failures": [*failures.items()]})
    return images, failures


def _later(pool: Pool, indices: Indices, frame: Frame, contents: Sequence[str]) -> torch.Tensor:
    """The images at the indices, whose files had these contents when they were first read."""
    images, failures = pool.read(indices, frame)
    assert pool.contents is not None  # noqa: S101 - they have files
    for place, (then, now) in enumerate(zip(contents, pool.contents(indices), strict=True)):
        if place in failures or now != then:
            why = f" and can't be read: {failures[place]}" if place in failures else ""
            name = pool.name(int(indices[place]))
            raise DataError(f"{name} has changed since this run began{why}; start it again")
    return images


def _kept(indices: Indices, failures: Failures) -> list[int]:
    return [place for place in range(len(indices)) if place not in failures]


def _only(images: torch.Tensor, kept: Sequence[int]) -> torch.Tensor:
    """Those at the places, moved in place: a copy may be more than the memory holds."""
    for place, old in enumerate(kept):
        if place != old:
            images[place] = images[old]
    return images[: len(kept)]


def _key(contents: Sequence[str], frame: Frame) -> str:
    """Of the images that files with such contents hold, as this machine decodes them."""
    import PIL
    from PIL import features

    decoders = PIL.__version__, features.version("jpg"), features.version("libjpeg_turbo")
    return fingerprint(repr((frame, decoders, [*contents])), [])
