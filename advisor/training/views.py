"""What a training sees of its images: each as it is, or in every epoch in another view (`--augment`).

`flip` has two views of an image: as it is, and its mirror image. `standard` has random crops, half of them
mirrored: of inputs up to 64 pixels, shifted by up to an eighth of the side, as is usual on CIFAR (He et al.,
arXiv 1512.03385, section 4.2); of larger ones, a part of 8 to 100 % of the area and of an aspect from 3:4 to
4:3, brought to the input size (Szegedy et al., arXiv 1409.4842; the defaults of torchvision).

A view depends on the seed, the image's number and the view's, and on nothing else. Where what is frozen runs
once for each view, there are but a few of them, the image as it is among them; they take turns.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from advisor.data.pixels import Normalisation
from advisor.methods import get_method
from advisor.models.blocks import has_replaceable_front
from advisor.records import Augment, Candidate, Census

CACHED_VIEWS = 4  # of each image, under `standard`, where what is frozen runs once for each
_SHIFTED = 64  # pixels of the shorter side, at most, to be shifted and not resized
_SHIFT = 8  # a part of the side
_AREA, _ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)


class Images(Protocol):
    """Labelled images, or what a frozen front made of them."""

    @property
    def labels(self) -> torch.Tensor:
        """(N,) int64."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: torch.Tensor, normalisation: Normalisation) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs (B, ...) and labels (B,) of those at `indices` (B,): new tensors."""
        ...


def view_count(candidate: Candidate, census: Census, augment: Augment) -> int | None:
    """How many views of each image a candidate's training has; None: a new one in every epoch.

    What is trained by no gradient has one, the image as it is: a head in closed form, statistics.
    """
    method = get_method(candidate.method)
    if augment == "none" or not method.learning_rates:
        return 1
    if augment == "flip":
        return 2
    # Whether it is cached: what probes cache needn't be on the device, and comes out the same.
    scope = 0 if method.only_head else candidate.levers.scope
    return CACHED_VIEWS if has_replaceable_front(census, scope) else None


@dataclass(frozen=True, slots=True)
class View:
    """Images, all in one view."""

    images: Images
    augment: Augment
    seed: int
    number: int  # from 1 on; 0 would be the images as they are

    @property
    def labels(self) -> torch.Tensor:
        """(N,) int64."""
        return self.images.labels

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: torch.Tensor, normalisation: Normalisation) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs (B, C, H, W) and labels (B,) of those at `indices` (B,)."""
        inputs, labels = self.images.batch(indices, normalisation)
        for place, index in enumerate(indices.tolist()):
            self.change(inputs[place], index)
        return inputs, labels

    def change(self, image: torch.Tensor, index: int) -> None:
        """Make of an image (C, H, W), normalised, its view, in place."""
        if self.augment == "flip":
            image.copy_(image.flip(2))
            return
        drawn = random.Random(f"{self.seed}, {index}, {self.number}")  # noqa: S311 - no secret
        seen = _shifted(image, drawn) if min(image.shape[1:]) <= _SHIFTED else _cropped(image, drawn)
        image.copy_(seen.flip(2) if drawn.random() < 0.5 else seen)


class Views:
    """Images to train on, in several views."""

    def __init__(self, of: Callable[[int], Images], count: int | None, seed: int) -> None:
        """`of`: the images in the view of that number, 0: as they are; `count`: None: without end."""
        self._of, self.count, self._seed = of, count, seed
        self.plain = of(0)

    @classmethod
    def alone(cls, images: Images) -> Views:
        """Images as they are, and no other view."""
        return cls(lambda _: images, 1, 0)

    @classmethod
    def of(cls, images: Images, candidate: Candidate, census: Census, augment: Augment, seed: int) -> Views:
        """Those that the training of this candidate has."""
        count = view_count(candidate, census, augment)
        return cls(lambda number: View(images, augment, seed, number) if number else images, count, seed)

    def run_through(self, front: Callable[[Images], Images]) -> Views:
        """What a frozen front makes of the images, and of each `View`; there must be an end of them."""
        assert self.count is not None  # noqa: S101 - only of what may be cached
        made = [front(self._of(number)) for number in range(self.count)]
        return Views(made.__getitem__, self.count, self._seed)

    def batch(
        self, indices: torch.Tensor, epoch: int, normalisation: Normalisation
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs (B, ...) and labels (B,) of those at `indices` (B,), as that epoch shows them, from 0 on."""
        if self.count == 1:
            return self.plain.batch(indices, normalisation)
        inputs = torch.empty(0)
        for place, index in enumerate(indices.tolist()):  # beside the batch, one image is held at a time
            [image], _ = self._shown(index, epoch).batch(indices[place : place + 1], normalisation)
            if place == 0:
                inputs = image.new_empty(len(indices), *image.shape)
            inputs[place] = image
        return inputs, self.plain.labels[indices]

    def _shown(self, index: int, epoch: int) -> Images:
        """The view that holds what the epoch shows of an image."""
        if self.count is None:
            return self._of(epoch + 1)
        # They take turns, and where an image begins is drawn.
        first = random.Random(f"{self._seed}, {index}").randrange(self.count)  # noqa: S311 - no secret
        return self._of((first + epoch) % self.count)


def _shifted(image: torch.Tensor, drawn: random.Random) -> torch.Tensor:
    """By up to an eighth of the side, with the mean colour where nothing was."""
    height, width = image.shape[1:]
    most = min(height, width) // _SHIFT
    top, left = drawn.randint(0, 2 * most), drawn.randint(0, 2 * most)
    return F.pad(image, (most,) * 4)[:, top : top + height, left : left + width]


def _cropped(image: torch.Tensor, drawn: random.Random) -> torch.Tensor:
    """A part of it, at its own size."""
    height, width = image.shape[1:]
    area = drawn.uniform(*_AREA) * height * width
    aspect = math.exp(drawn.uniform(*map(math.log, _ASPECT)))
    rows = max(min(round(math.sqrt(area / aspect)), height), 1)
    columns = max(min(round(math.sqrt(area * aspect)), width), 1)
    top, left = drawn.randint(0, height - rows), drawn.randint(0, width - columns)
    part = image[None, :, top : top + rows, left : left + columns]
    return F.interpolate(part, size=(height, width), mode="bilinear", align_corners=False)[0]
