"""Which image files can be read, and how large their images are, told without decoding most of them.

A JPEG or PNG that begins with its size and ends with its end mark is taken for whole, and a WebP that is as
long as it says: that costs some hundred bytes of reading. Damage in the middle shows when it is decoded. All
other files are decoded, those with an alpha channel, a palette or more than 8 bits a pixel among them.
"""

from __future__ import annotations

import io
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, BinaryIO

from advisor.data.pixels import ORIENTATION, Size, eight_bits
from advisor.errors import DataError, first_line
from advisor.system import files

if TYPE_CHECKING:
    from PIL import Image

MOST_UNREADABLE = 0.05  # of a source's images: so many are left out, with more the data isn't used
_NAMED = 3  # of those left out
# Baseline, extended and progressive; PIL looks at the seldom ones.
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2)
_JPEG_SEGMENTS = {*range(0xC0, 0xFF)} - {*range(0xD0, 0xDB)}  # those with a length, before the image's data
_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_PNG_END = b"IEND\xaeB`\x82"
_PNG_GREY, _PNG_COLOURS = b"\x00", b"\x02"  # kinds without an alpha channel or a palette
_PNG_HEADER, _PNG_MORE = 33, (b"eXIf", b"tRNS", b"acTL")  # bytes; chunks
_JPEG_EXIF = 0xE1
_OPAQUE = 255
_WEBP_MORE = 0b11010  # alpha, EXIF, animation


Source = str | Callable[[], bytes]  # the path of an image's file, or what gives the file's bytes


def opened(source: Source) -> io.BufferedReader | io.BytesIO:
    """The file, to be read from its beginning."""
    return files.opened(source) if isinstance(source, str) else io.BytesIO(source())


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An image that is left out."""

    name: str
    reason: str


class Oddity(Enum):
    """Why an image is not what reading its pixels as they are stored would show."""

    TURNED = "are to be turned, as their EXIF says (ImageFolder doesn't; nor does --orientation stored)"
    CLEAR = "are transparent in places: shown over white (torchvision's ImageFolder shows what is beneath)"
    DEEP = "have more than 8 bits a pixel: shown by the range that is used (ImageFolder shows white)"
    MOVING = "are animated: their first frame is used"


@dataclass(frozen=True, slots=True)
class Look:
    """What a file shows of its image."""

    size: Size  # as a person sees it
    oddities: tuple[Oddity, ...] = ()


@dataclass(frozen=True, slots=True)
class Survey:
    """What the files hold."""

    readable: tuple[int, ...]  # positions
    unreadable: tuple[Unreadable, ...]
    sizes: frozenset[Size]  # of the readable ones
    oddities: Mapping[Oddity, int]  # of how many of those


def survey(sources: Sequence[Source], name: Callable[[int], str]) -> Survey:
    """Look at every file.

    Args:
        name: of the file at a position, for the user.
    """

    def look(position: int) -> Look | Unreadable:
        try:
            return _glance(sources[position]) or _decoded(sources[position])
        except Exception as error:  # noqa: BLE001 - decoders raise anything from struct.error to SyntaxError
            return Unreadable(name(position), reason(error))

    with decoding() as pool:
        # Handed out in pieces: a task for each file would take longer than the file.
        pieces = [range(start, min(start + 64, len(sources))) for start in range(0, len(sources), 64)]
        found = [each for piece in pool.map(lambda piece: [*map(look, piece)], pieces) for each in piece]
    whole = [each for each in found if isinstance(each, Look)]
    return Survey(
        readable=tuple(place for place, each in enumerate(found) if not isinstance(each, Unreadable)),
        unreadable=tuple(each for each in found if isinstance(each, Unreadable)),
        sizes=frozenset(each.size for each in whole),
        oddities=Counter(oddity for each in whole for oddity in each.oddities),
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


def _glance(source: Source) -> Look | None:
    """What a JPEG, PNG or WebP shows that looks whole; None: decode it to know."""
    from PIL import Image

    with opened(source) as file:
        start = file.read(30)
        if start.startswith(_PNG_START):
            found = _png_look(start, file)
            end = _PNG_END
        elif start.startswith(b"\xff\xd8"):
            found, end = _jpeg_look(file), b"\xff\xd9"
        elif len(start) == 30 and start.startswith(b"RIFF") and _length(file) >= _webp_length(start):
            found, end = _webp_look(start), b""
        else:
            return None
        limit = Image.MAX_IMAGE_PIXELS
        if found is None or limit is None or not 0 < found.size[1] * found.size[2] <= limit:
            return None
        file.seek(-len(end), os.SEEK_END)
        return found if file.read() == end else None


def _png_look(start: bytes, file: BinaryIO) -> Look | None:
    """Of plain ones: alpha, a palette, 16 bits of grey and EXIF tell more when they are decoded."""
    depth, kind = start[24:25], start[25:26]
    if kind not in (_PNG_GREY, _PNG_COLOURS) or (kind == _PNG_GREY and depth == b"\x10"):
        return None
    file.seek(_PNG_HEADER)
    while len(chunk := file.read(8)) == 8 and chunk[4:] != b"IDAT":
        if chunk[4:] in _PNG_MORE:
            return None
        file.seek(int.from_bytes(chunk[:4]) + 4, os.SEEK_CUR)
    channels = 1 if kind == _PNG_GREY else 3
    return Look((channels, int.from_bytes(start[20:24]), int.from_bytes(start[16:20])))


def _jpeg_look(file: BinaryIO) -> Look | None:
    """From the first frame header, and the EXIF before it."""
    turn = 1
    file.seek(2)
    while len(segment := file.read(4)) == 4 and segment[0] == 0xFF and segment[1] in _JPEG_SEGMENTS:
        length = int.from_bytes(segment[2:]) - 2
        if segment[1] in _JPEG_FRAMES:
            frame = file.read(6)  # bits, height, width, components
            if len(frame) < 6 or frame[0] != 8:
                return None
            sides = int.from_bytes(frame[1:3]), int.from_bytes(frame[3:5])
            return _turned(Look((1 if frame[5] == 1 else 3, *sides)), turn)
        if segment[1] == _JPEG_EXIF:
            turn = _orientation(file.read(length), turn)
        else:
            file.seek(length, os.SEEK_CUR)
    return None


def _orientation(segment: bytes, known: int) -> int:
    from PIL import Image

    if not segment.startswith(b"Exif\0\0"):
        return known
    exif = Image.Exif()
    exif.load(segment)
    return int(exif.get(ORIENTATION, known))


def _turned(look: Look, orientation: int) -> Look:
    if not 2 <= orientation <= 8:
        return look
    channels, *sides = look.size
    height, width = reversed(sides) if orientation >= 5 else sides
    return Look((channels, height, width), (*look.oddities, Oddity.TURNED))


def _length(file: BinaryIO) -> int:
    place = file.tell()
    length = file.seek(0, os.SEEK_END)
    file.seek(place)
    return length


def _webp_length(start: bytes) -> int:
    """As the file itself says."""
    return 8 + int.from_bytes(start[4:8], "little")


def _webp_look(start: bytes) -> Look | None:
    """Of those (RFC 9649) without alpha, EXIF or animation; PIL gives all of them colours."""
    if start[8:16] == b"WEBPVP8X" and not start[20] & _WEBP_MORE:
        height, width = (1 + int.from_bytes(start[at : at + 3], "little") for at in (27, 24))
        return Look((3, height, width))
    if start[8:16] == b"WEBPVP8L" and start[20:21] == b"\x2f":
        sides = int.from_bytes(start[21:25], "little")
        if not sides >> 28 & 1:
            return Look((3, 1 + (sides >> 14 & 0x3FFF), 1 + (sides & 0x3FFF)))
    if start[8:16] == b"WEBPVP8 " and start[23:26] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(start[at : at + 2], "little") & 0x3FFF for at in (26, 28))
        return Look((3, height, width))
    return None


def _decoded(source: Source) -> Look:
    """What the image shows, after decoding all of it in the least detail."""
    from PIL import Image

    with opened(source) as file, Image.open(file) as image:
        size, mode = image.size, image.mode
        odd = {
            Oddity.MOVING: getattr(image, "n_frames", 1) > 1 and image.format != "TIFF",
            Oddity.DEEP: mode.startswith("I") or mode == "F",
        }
        orientation = image.getexif().get(ORIENTATION, 1)
        image.draft("L", (1, 1))  # of a JPEG, only the mean of each block
        image.load()
        odd[Oddity.CLEAR] = image.has_transparency_data and _shows_through(image)
        eight_bits(image)
        channels = 1 if mode in ("1", "L", "LA", "F") or mode.startswith("I") else 3
        oddities = tuple(oddity for oddity, is_so in odd.items() if is_so)
        return _turned(Look((channels, size[1], size[0]), oddities), int(orientation))


def _shows_through(image: Image.Image) -> bool:
    """Whether any pixel is not opaque: many images have an alpha channel that says nothing."""
    least, _ = image.convert("RGBA").getchannel("A").getextrema()
    return isinstance(least, int) and least < _OPAQUE
