"""An image becomes bytes of the model's channels and size."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from advisor.errors import DataError
from advisor.records import Framing

if TYPE_CHECKING:
    from PIL import Image

Size = tuple[int, int, int]  # (C, H, W)


@dataclass(frozen=True, slots=True)
class Frame:
    """What every image is brought to."""

    size: Size  # the model's input
    framing: Framing = field(default_factory=Framing)
    fill: tuple[float, ...] = (0.0,)  # of borders, in [0, 1]: one value for each channel, or for all

    @property
    def resized(self) -> tuple[int, int]:
        """Height and width that an image is resized to, of which the centre is kept."""
        height, width = (math.floor(side / self.framing.crop) for side in self.size[1:])
        return max(height, 1), max(width, 1)


def pixels(image: Image.Image, channels: int) -> torch.Tensor:
    """A decoded image as (channels, h, w) uint8, converted as PIL does."""
    from PIL import Image

    if channels not in (1, 3):
        raise wrong_channels("image files", (0, len(image.getbands()), *image.size[::-1]), channels)
    if image.mode.startswith("I;16"):  # PIL would clip everything above 255 to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    check_depth(image)
    array = np.array(image.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(array).reshape(*array.shape[:2], channels).permute(2, 0, 1)


def check_depth(image: Image.Image) -> None:
    """Raises ValueError where no conversion to 8 bits is the right one."""
    if image.mode in ("I", "F"):
        raise ValueError("it has 32 bits a pixel; save it with 8 or 16")


def wrong_channels(where: object, shape: tuple[int, ...], channels: int) -> DataError:
    """The error for images of the shape (N, ...), of a model that takes so many channels."""
    return DataError(
        f"{where}: wrong channels: images of shape {tuple(shape[1:])} can't be used with a model "
        f"that takes {channels}; give images with {channels}, or the right --input-size CxHxW"
    )


def with_channels(images: torch.Tensor, channels: int) -> torch.Tensor:
    """(N, 1 or 3, h, w) uint8 with as many channels as asked for."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    # ITU-R 601-2 luminance in PIL's integers, so that arrays and files of the same image agree.
    red, green, blue = images.to(torch.int32).unbind(1)
    luminance = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return luminance.to(torch.uint8).unsqueeze(1)


def fit(images: torch.Tensor, frame: Frame) -> torch.Tensor:
    """(N, C, h, w) uint8 -> (N, C, H, W): resized as the framing says, then the centre is kept.

    What has the input's size already was made for it, and stays as it is.
    """
    if images.shape[2:] == frame.size[1:]:
        return images
    height, width = images.shape[2:]
    target = frame.resized
    if frame.framing.mode == "border":  # all of it is seen
        scale = min(target[0] / height, target[1] / width)
        target = max(round(height * scale), 1), max(round(width * scale), 1)
    elif frame.framing.mode == "center":
        # Cropped first: the same pixels for less work, and a long thin image can't fill the RAM.
        scale = max(target[0] / height, target[1] / width)
        rows = max(min(height, round(target[0] / scale)), 1)
        columns = max(min(width, round(target[1] / scale)), 1)
        images = _centre(images, rows, columns)
    if images.shape[2:] != target:
        images = F.interpolate(images, size=target, mode=frame.framing.interpolation, antialias=True)
    return _bordered(_centre(images, *frame.size[1:]), frame)


def _centre(images: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """At most so many rows and columns, of the middle."""
    height, width = images.shape[2:]
    top, left = max(height - rows, 0) // 2, max(width - columns, 0) // 2
    return images[:, :, top : top + rows, left : left + columns]


def _bordered(images: torch.Tensor, frame: Frame) -> torch.Tensor:
    """In the middle of the frame, where they are smaller than it."""
    if images.shape[2:] == frame.size[1:]:
        return images
    colour = torch.tensor([round(255 * min(max(value, 0), 1)) for value in frame.fill], dtype=torch.uint8)
    framed = colour.view(1, -1, 1, 1).expand(len(images), *frame.size).clone()
    top, left = ((side - own) // 2 for side, own in zip(frame.size[1:], images.shape[2:], strict=True))
    framed[:, :, top : top + images.shape[2], left : left + images.shape[3]] = images
    return framed
