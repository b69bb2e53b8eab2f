"""Which image files can be read, and how large their images are, told without decoding most of them.

A JPEG or PNG that begins with its size and ends with its end mark is taken for whole, and a WebP that is as
long as it says: that costs some hundred bytes of reading. Damage in the middle shows when it is decoded. All
other files are decoded.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from advisor.data.pixels import Size, check_depth
from advisor.errors import DataError, first_line

MOST_UNREADABLE = 0.05  # of a source's images: so many are left out, with more the data isn't used
_NAMED = 3  # of those left out
# Baseline, extended and progressive; PIL looks at the seldom ones.
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2)
_JPEG_SEGMENTS = {*range(0xC0, 0xFF)} - {*range(0xD0, 0xDB)}  # those with a length, before the image's data
_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_PNG_END = b"IEND\xaeB`\x82"
_PNG_GREY = (0, 4)  # colour types


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An image that is left out."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Survey:
    """What the files hold."""

    readable: tuple[int, ...]  # positions
    unreadable: tuple[Unreadable, ...]
    sizes: frozenset[Size]  # of the readable ones


def survey(paths: Sequence[str], name: Callable[[int], str]) -> Survey:
    """Look at every file.

    Args:
        name: of the file at a position, for the user.
    """

    def look(position: int) -> Size | Unreadable:
        try:
            return _glance(paths[position]) or _decoded(paths[position])
        except Exception as error:  # noqa: BLE001 - decoders raise anything from struct.error to SyntaxError
            return Unreadable(name(position), reason(error))

    with decoding() as pool:
        # Handed out in pieces: a task for each file would take longer than the file.
        pieces = [range(start, min(start + 64, len(paths))) for start in range(0, len(paths), 64)]
        found = [size for piece in pool.map(lambda piece: [*map(look, piece)], pieces) for size in piece]
    return Survey(
        readable=tuple(place for place, each in enumerate(found) if not isinstance(each, Unreadable)),
        unreadable=tuple(each for each in found if isinstance(each, Unreadable)),
        sizes=frozenset(each for each in found if not isinstance(each, Unreadable)),
    )


@contextmanager
def decoding(workers: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Threads for PIL's work; in them a decompression bomb is an error, and no other warning is told.

    Args:
        workers: None: one for each core that this process may use.
    """
    from PIL import Image

    allowed = getattr(os, "sched_getaffinity", None)  # not on every system
    cores = len(allowed(0)) if allowed is not None else os.cpu_count() or 1
    with warnings.catch_warnings(), ThreadPoolExecutor(workers or cores) as pool:
        warnings.simplefilter("ignore")  # such as a palette's transparency, which is dropped anyway
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield pool


def check_share(unreadable: Sequence[Unreadable], total: int, where: str = "") -> None:
    """Raises DataError where more than a few of the images can't be read."""
    if len(unreadable) > MOST_UNREADABLE * total:
        first = min(unreadable, key=lambda each: (each.name, each.reason))
        raise DataError(
            f"{where}{first.name} can't be read: {first.reason} ({len(unreadable):,} of {total:,} images "
            f"can't, and only up to {100 * MOST_UNREADABLE:.0f} % would be left out); replace or remove them"
        )


def left_out(source: str, unreadable: Sequence[Unreadable], total: int) -> tuple[str, ...]:
    """The warning that names them; () where there is none."""
    if not unreadable:
        return ()
    first = sorted(unreadable, key=lambda each: (each.name, each.reason))[:_NAMED]
    names = ", ".join(f"{each.name} ({each.reason})" for each in first)
    more = f" and {len(unreadable) - _NAMED:,} more" if len(unreadable) > _NAMED else ""
    are = "is" if len(unreadable) == 1 else "are"
    warning = (
        f"{source}: {len(unreadable):,} of {total:,} images can't be read and {are} left out: {names}{more}; "
        f"up to {100 * MOST_UNREADABLE:.0f} % may be"
    )
    return (warning,)


def reason(error: Exception) -> str:
    """Why an image can't be read, in one line."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"it is larger than {Image.MAX_IMAGE_PIXELS} pixels, which may be a decompression bomb"
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error)


def _glance(path: str) -> Size | None:
    """(C, H, W) of a JPEG, PNG or WebP that looks whole; None: decode it to know."""
    from PIL import Image

    with open(path, "rb") as file:  # noqa: PTH123 - making 50,000 Paths takes a second
        start = file.read(30)
        if start.startswith(_PNG_START):
            size: Size | None = _png_size(start)
            end = _PNG_END
        elif start.startswith(b"\xff\xd8"):
            size, end = _jpeg_size(file), b"\xff\xd9"
        elif len(start) == 30 and start.startswith(b"RIFF") and _length(file) >= _webp_length(start):
            size, end = _webp_size(start), b""
        else:
            return None
        limit = Image.MAX_IMAGE_PIXELS
        if size is None or limit is None or not 0 < size[1] * size[2] <= limit:
            return None
        file.seek(-len(end), os.SEEK_END)
        return size if file.read() == end else None


def _png_size(start: bytes) -> Size:
    grey = start[25:26] != b"" and start[25] in _PNG_GREY
    return 1 if grey else 3, int.from_bytes(start[20:24]), int.from_bytes(start[16:20])


def _jpeg_size(file: BinaryIO) -> Size | None:
    """From the first frame header, past the segments before it."""
    file.seek(2)
    while len(segment := file.read(4)) == 4 and segment[0] == 0xFF and segment[1] in _JPEG_SEGMENTS:
        if segment[1] in _JPEG_FRAMES:
            frame = file.read(6)  # bits, height, width, components
            if len(frame) < 6 or frame[0] != 8:
                return None
            return 1 if frame[5] == 1 else 3, int.from_bytes(frame[1:3]), int.from_bytes(frame[3:5])
        file.seek(int.from_bytes(segment[2:]) - 2, os.SEEK_CUR)
    return None


def _length(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _webp_length(start: bytes) -> int:
    """As the file itself says."""
    return 8 + int.from_bytes(start[4:8], "little")


def _webp_size(start: bytes) -> Size | None:
    """Of the three kinds that there are (RFC 9649); PIL gives all of them colours."""
    if start[8:16] == b"WEBPVP8X":
        return 3, 1 + int.from_bytes(start[27:30], "little"), 1 + int.from_bytes(start[24:27], "little")
    if start[8:16] == b"WEBPVP8L" and start[20:21] == b"\x2f":
        sides = int.from_bytes(start[21:25], "little")
        return 3, 1 + (sides >> 14 & 0x3FFF), 1 + (sides & 0x3FFF)
    if start[8:16] == b"WEBPVP8 " and start[23:26] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(start[at : at + 2], "little") & 0x3FFF for at in (26, 28))
        return 3, height, width
    return None


def _decoded(path: str) -> Size:
    """(C, H, W) of the image, after decoding all of it in the least detail."""
    from PIL import Image

    with Image.open(path) as image:
        size, grey = image.size, image.mode in ("1", "L", "LA") or image.mode.startswith("I;16")
        check_depth(image)
        image.draft("L", (1, 1))  # of a JPEG, only the mean of each block
        image.load()
        return 1 if grey else 3, size[1], size[0]
