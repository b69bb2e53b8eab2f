"""Images that are made when they are first looked at, and told from others before that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from advisor.models.fingerprint import fingerprint


class Deferred:
    """Images (N, C, H, W), uint8. What they are made of tells them apart, so a key doesn't make them.

    Pickled as what they are: where the pickle goes, there may be nothing to make them of.
    """

    def __init__(
        self, shape: tuple[int, ...], make: Callable[[], torch.Tensor], tell: Callable[[], str]
    ) -> None:
        """`tell`: a text that is another one wherever `make` may give other images."""
        self.shape = shape
        self._make: Callable[[], torch.Tensor] | None = make
        self._tell: Callable[[], str] | None = tell
        self._images: torch.Tensor | None = None
        self._key = ""

    @classmethod
    def of(cls, images: torch.Tensor) -> Deferred:
        """Images that are there: their bytes tell them apart."""
        return cls(tuple(images.shape), lambda: images, lambda: fingerprint("", [("", images)]))

    @classmethod
    def joined(cls, *parts: Deferred) -> Deferred:
        """All of them, in order."""
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        return cls(
            shape,
            lambda: torch.cat([part.images for part in parts]),
            lambda: fingerprint(repr(("joined", *(part.key for part in parts))), []),
        )

    def changed(
        self, change: Callable[[torch.Tensor], torch.Tensor], *how: object, count: int | None = None
    ) -> Deferred:
        """What a function makes of them.

        Args:
            how: all that the outcome depends on besides the images, in plain values.
            count: how many come out; None: as many.
        """
        shape = (self.shape[0] if count is None else count, *self.shape[1:])
        return Deferred(
            shape, lambda: change(self.images), lambda: fingerprint(repr(("changed", self.key, *how)), [])
        )

    @property
    def images(self) -> torch.Tensor:
        """The images, made now if they weren't before."""
        if self._make is not None:
            # Threads decode into them, and those are in no inference mode, whoever looks at them first.
            with torch.inference_mode(mode=False):
                self._images, self._make = self._make(), None  # and what they were made of is let go of
        assert self._images is not None  # noqa: S101 - made once
        return self._images

    @property
    def key(self) -> str:
        """Equal keys: equal images."""
        if self._tell is not None:
            self._key, self._tell = self._tell(), None
        return self._key

    def __getstate__(self) -> dict[str, Any]:
        return {"shape": self.shape, "_make": None, "_tell": None, "_images": self.images, "_key": self.key}
