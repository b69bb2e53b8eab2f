"""An image becomes bytes of the model's channels and size."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import torch
import torch.nn.functional as F

from advisor.errors import DataError
from advisor.records import Framing

if TYPE_CHECKING:
    from PIL import Image

Size = tuple[int, int, int]  # (C, H, W)
SUFFIXES = (  # of image files that any Pillow opens
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".webp", ".ppm", ".pgm", ".pnm"),
    *(".gif", ".tif", ".tiff"),
)
_MOST_PIXELS, _LEAST_SIDE = 2**25, 1024  # 33 million; more than any input's side
ORIENTATION = 0x0112  # of EXIF: 1 is upright, from 5 on height and width are exchanged


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Mean and standard deviation of images in [0, 1], per channel; one value serves all."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def of(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W), uint8, as float32 that a network is called with."""
        mean = torch.tensor(self.mean).view(-1, 1, 1)
        std = torch.tensor(self.std).view(-1, 1, 1)
        return images.float().div_(255).sub_(mean).div_(std)


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


def read_image(file: str | Path | BinaryIO, frame: Frame) -> torch.Tensor:
    """An image file's pixels (C, h, w), uint8, at least as large as the frame needs them."""
    from PIL import Image

    with Image.open(file) as image:
        # A large JPEG is decoded at 1/2, 1/4 or 1/8, never below twice the size that is needed.
        side = max(frame.resized)
        image.draft(None, (2 * side, 2 * side))
        turned = upright(image) if frame.framing.orientation == "exif" else image
        return pixels(turned, frame.size[0])


def pixels(image: Image.Image, channels: int) -> torch.Tensor:
    """An image as a person sees it, (channels, h, w) uint8: transparent over white, else as PIL converts."""
    if channels not in (1, 3):
        raise wrong_channels("image files", (0, len(image.getbands()), *image.size[::-1]), channels)
    image = over_white(_within_reason(eight_bits(image)))
    image = image.convert("L" if channels == 1 else "RGB")
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return values.view(image.height, image.width, channels).permute(2, 0, 1)


def _within_reason(image: Image.Image) -> Image.Image:
    """An image of very many pixels with fewer: of as many as it claims, each copy takes hundreds of MB."""
    factor = math.ceil(math.sqrt(image.width * image.height / _MOST_PIXELS))
    if factor == 1 or min(image.size) < factor * _LEAST_SIDE:
        return image
    return (image.convert("RGBA") if image.mode == "P" else image).reduce(factor)


def upright(image: Image.Image) -> Image.Image:
    """The image turned and flipped as its EXIF says that it is to be seen."""
    from PIL import ImageOps

    return image if image.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)


def over_white(image: Image.Image) -> Image.Image:
    """The image on white paper, where it is transparent; what lies beneath is nothing that anybody saw."""
    from PIL import Image

    if not image.has_transparency_data:
        return image
    seen = image.convert("RGBA")
    paper = Image.new("RGBA", seen.size, (255, 255, 255, 255))
    paper.alpha_composite(seen)
    return paper


def eight_bits(image: Image.Image) -> Image.Image:
    """An image of more bits a pixel with 8: the least of 8, 12 and 16 that hold its brightest pixel are used.

    Raises:
        ValueError: its values are in no range that would tell what is white.
    """
    from PIL import Image

    if not image.mode.startswith("I") and image.mode != "F":
        return image
    kind = torch.float32 if image.mode == "F" else torch.int32
    whole = image if image.mode in ("I", "F") else image.convert("I")  # from 16 bits of whatever byte order
    values = torch.frombuffer(bytearray(whole.tobytes()), dtype=kind).double()
    low, high = values.min().item(), values.max().item()
    most = next((2**bits for bits in (8, 12, 16) if high < 2**bits), None)
    if image.mode == "F" and low >= 0 and high <= 1:
        values = (values * 255).round()
    elif low < 0 or most is None:  # NaN, too
        raise ValueError(f"its pixels range from {low:g} to {high:g}; save it with 8 or 16 bits a pixel")
    else:
        values = values * (256 / most)
    grey = values.to(torch.uint8)
    return Image.frombytes("L", image.size, ctypes.string_at(grey.data_ptr(), grey.numel()))


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

    What has the input's size already was made for it, and is not resized.
    """
    if frame.framing.order == "bgr" and images.shape[1] == 3:
        images = images.flip(1)
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
