"""Small pictures of a few images, to be shown beside what was found in the data."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from advisor.data.pixels import Frame, fit
from advisor.records import Picture

if TYPE_CHECKING:
    from advisor.data.pools import Pool

SIDE = 72  # pixels: two or three kB each
_QUALITY = 70
_COLOURS = 3


def of_pool(pool: Pool, indices: Sequence[int], channels: int) -> tuple[Picture, ...]:
    """Those of the images that can be read, with their names.

    Args:
        channels: of the model's images.
    """
    wanted = np.asarray(indices, np.int64)
    images, failures = pool.read(wanted, Frame((channels, SIDE, SIDE)))
    return tuple(
        picture(pool.name(index), image)
        for place, (index, image) in enumerate(zip(indices, images, strict=True))
        if place not in failures
    )


def picture(caption: str, image: torch.Tensor) -> Picture:
    """Of an image (C, H, W), uint8; of more channels than colours have, the first is shown in grey."""
    from PIL import Image

    [small] = fit(image[None], Frame((len(image), SIDE, SIDE)))
    grey = len(small) != _COLOURS
    pixels = small[0] if grey else small.permute(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(file, "JPEG", quality=_QUALITY, optimize=True)
    return Picture(caption, file.getvalue())
