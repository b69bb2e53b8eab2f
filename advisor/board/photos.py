"""The photos of a folder: read once, kept in a file, and divided as they were where that is known."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from advisor.data.pixels import SUFFIXES, Frame, Normalisation, fit, read_image
from advisor.errors import DataError, first_line
from advisor.system.files import write_whole

_HELD_OUT = 0.3  # of the photos that nothing is known of
_MOST_UNREADABLE = 0.05


class Photos:
    """Photos at the network's input size, and their labels.

    The pixels lie in a file, so the memory that they take is the kernel's to give back.
    """

    def __init__(self, pixels: torch.Tensor, labels: torch.Tensor) -> None:
        """`pixels`: (N, C, H, W) uint8; `labels`: (N,) int64."""
        self.pixels, self.labels = pixels, labels

    def __len__(self) -> int:
        """How many."""
        return len(self.labels)

    def batch(self, indices: torch.Tensor, normalisation: Normalisation) -> tuple[torch.Tensor, torch.Tensor]:
        """Those at `indices` (B,) as a network is called with them, and their labels (B,)."""
        return normalisation.of(self.pixels[indices]), self.labels[indices]


def read_photos(
    folder: Path, work: Path, frame: Frame, outputs: Mapping[str, int], split: Mapping[str, Sequence[str]]
) -> tuple[Photos, Photos, str, list[Path]]:
    """Photos to train on and to hold out, a key that is another one for others, and what can't be read.

    Args:
        folder: with a folder for each class.
        work: where the pixels are kept, and found again after a power cut.
        outputs: the network's output for each class's name.
        split: digests of photos that are known, in order: `train` and `held_out`. Of others, three in ten
            are held out; which, their bytes say, so a photo stays where it is when more come.

    Raises:
        DataError: there are no such photos, too many can't be read, or a part of the split would be empty.
    """
    if find_spec("PIL") is None:
        raise DataError("photos are read with Pillow, which is not installed; pip install pillow")
    labels = {path: outputs[name] for path, name in _classes(folder, outputs).items()}
    digests: defaultdict[str, list[Path]] = defaultdict(list)
    unreadable: list[Path] = []
    for path in labels:
        with suppress(OSError):
            if path.is_file():  # no link to what is gone, no pipe
                digests[hashlib.sha256(path.read_bytes()).hexdigest()[:16]].append(path)
                continue
        unreadable.append(path)
    parts = _divided(digests, split)
    key = hashlib.sha256(repr((frame, parts)).encode()).hexdigest()[:12]
    found: list[Photos] = []
    for name, part in parts.items():
        files = [digests[digest].pop() for digest in part]
        pixels, bad = _pixels(files, frame, work / f"{name}-{key}")
        kept = [place for place in range(len(files)) if place not in bad]
        unreadable += [files[place] for place in bad]
        if not kept:
            raise DataError(f"{folder} holds too few photos: none is left to be {_SAID[name]}")
        labels_of_part = torch.tensor([labels[files[place]] for place in kept])
        found.append(Photos(pixels if not bad else pixels[kept], labels_of_part))
    if len(unreadable) > _MOST_UNREADABLE * len(labels):
        raise DataError(f"{len(unreadable)} of {len(labels)} photos in {folder} can't be read; replace them")
    return found[0], found[1], key, unreadable


_SAID = {"train": "trained on", "held_out": "held out"}


def _classes(folder: Path, outputs: Mapping[str, int]) -> dict[Path, str]:
    """Each photo's class: the name of the first folder on its way that is one."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give one with a folder of photos for each class")
    found: dict[Path, str] = {}
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in inner.parts)
        if path.suffix.lower() not in SUFFIXES or is_hidden or path.is_dir():
            continue
        names = [unicodedata.normalize("NFC", part) for part in inner.parts[:-1]]
        known = next((name for name in names if name in outputs), None)
        if known is None:
            classes = ", ".join(outputs)
            raise DataError(f"{path} lies in no folder that is named as a class is ({classes}); move it")
        found[path] = known
    if (count := len(set(found.values()))) < 2:
        held = "photos of 1 class" if count else "no photos"
        raise DataError(f"{folder} holds {held}; two are needed, each in a folder of its own")
    return found


def _divided(
    digests: Mapping[str, Sequence[Path]], split: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    left = {digest: len(paths) for digest, paths in digests.items()}
    parts: dict[str, list[str]] = {"train": [], "held_out": []}
    for name, part in parts.items():
        for digest in split.get(name, ()):
            if left.get(digest):
                part.append(digest)
                left[digest] -= 1
    for digest in sorted(left):  # in an order that has nothing to do with classes
        if left[digest]:
            known = next((name for name, part in parts.items() if digest in split.get(name, ())), None)
            drawn = "held_out" if int(digest[:8], 16) < _HELD_OUT * 16**8 else "train"
            parts[known or drawn] += [digest] * left[digest]  # copies are on one side
    return parts


def _pixels(files: Sequence[Path], frame: Frame, path: Path) -> tuple[torch.Tensor, list[int]]:
    """Of each file, in a file at `path`; and the places of those that can't be read."""
    shape = (len(files), *frame.size)
    count = len(files) * frame.size[0] * frame.size[1] * frame.size[2]
    if not count:
        return torch.empty(shape, dtype=torch.uint8), []
    done = path.with_suffix(".json")
    is_there = done.exists() and path.exists() and path.stat().st_size == count
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = torch.from_file(str(path), shared=True, size=count, dtype=torch.uint8).view(shape)
    if is_there:
        bad: list[int] = json.loads(done.read_text())
        return pixels, bad
    reasons: dict[int, str] = {}
    for place, file in enumerate(files):
        try:
            pixels[place] = fit(read_image(file, frame)[None], frame)[0]
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001 - decoders raise anything
            reasons[place] = first_line(error)
    with path.open("rb") as written:
        os.fsync(written.fileno())  # before anything says that it is whole
    write_whole(done, json.dumps([*reasons]))
    return pixels, [*reasons]


def frame_of(recipe: Mapping[str, Any]) -> Frame:
    """How a recipe's images are brought to its input size."""
    from advisor.records import Framing

    framing = Framing(
        recipe["crop"],
        recipe["interpolation"],
        recipe["crop_mode"],
        recipe["channel_order"],
        recipe["orientation"],
    )
    channels, height, width = recipe["input_size"]
    return Frame((channels, height, width), framing, tuple(recipe["mean"]))
