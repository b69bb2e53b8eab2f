"""Corruptions of images, to rehearse a shift before it happens.

The kinds and the five severities of CIFAR-10-C and ImageNet-C (Hendrycks & Dietterich, arXiv
1903.12261), written anew: what is random or a photograph there (snow, fog, frost, spatter) is only alike.
Small images get the levels of CIFAR-10-C, larger ones those of ImageNet-C; lengths grow with the image.
The levels of elastic-transform are this file's own: there, distortions don't grow with the severity.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from advisor.data.loading import Dataset, LabelledImages
from advisor.errors import InputError
from advisor.names import near

_AT_ONCE = 256  # images in floating point
_SMALL = 64  # pixels of the longer side: from here on an image is large
_FROST = (0.8, 0.92, 1.0)
_WATER, _MUD = (0.69, 0.93, 0.93), (0.25, 0.16, 0.08)
_PANE = 112  # pixels of the longer side of a drawn pane of ice
_SEEDS = 0.01  # crystals for each of its pixels
_SIDES = (32, 224)  # of the images that the levels are for


@dataclass(frozen=True, slots=True)
class Corruption:
    """What happens to the images."""

    kind: str
    severity: int  # 1 to 5

    def __str__(self) -> str:
        return f"{self.kind}:{self.severity}"


def parse_corruption(text: str) -> Corruption:
    """`gaussian-noise:3`; without a severity, 3. Raises InputError."""
    kind, colon, severity = text.strip().partition(":")
    if kind not in _KINDS:
        meant = near(kind, _KINDS)
        hint = f"did you mean {meant[0]}? T" if meant else "t"
        raise InputError(
            f"--rehearse {text!r}: {hint}he kinds are {', '.join(_KINDS)}, such as gaussian-noise:3"
        )
    if colon and severity not in ("1", "2", "3", "4", "5"):
        raise InputError(f"--rehearse {text!r}: the severity goes from 1 to 5, such as {kind}:3")
    return Corruption(kind, int(severity) if colon else 3)


def corrupt(dataset: Dataset, corruption: Corruption, seed: int) -> Dataset:
    """The dataset as it would be after the shift: all its images but the old ones.

    Raises:
        InputError: the images have no colours, and it changes nothing else.
    """
    channels = dataset.train.undecoded.shape[1]
    if corruption.kind == "saturate" and channels != 3:
        raise InputError(
            f"--rehearse {corruption}: it changes colours, and these images have {channels} "
            f"channel{'s' * (channels > 1)}; give contrast or brightness"
        )

    def shifted(part: LabelledImages, seed: int) -> LabelledImages:
        images = part.undecoded.changed(
            partial(corrupted, corruption=corruption, seed=seed), corruption, seed
        )
        return LabelledImages(images, part.labels, part.groups)

    unlabelled = dataset.unlabelled
    return replace(
        dataset,
        source=f"{dataset.source}, rehearsing {corruption}",
        train=shifted(dataset.train, 2 * seed),
        validation=shifted(dataset.validation, 2 * seed + 1),
        unlabelled=None if unlabelled is None else shifted(unlabelled, -1 - seed),
    )


def corrupted(images: torch.Tensor, corruption: Corruption, seed: int) -> torch.Tensor:
    """Corrupted copies of images (N, C, H, W), uint8; the same for the same seed."""
    if not len(images):
        return images.clone()
    function, small, large = _KINDS[corruption.kind]
    is_small = max(images.shape[2:]) < _SMALL
    level = (small if is_small else large)[corruption.severity - 1]
    scale = max(images.shape[2:]) / _SIDES[0 if is_small else 1]
    random = torch.Generator().manual_seed(seed)
    parts = [
        function(part.float() / 255, level, scale, random).clamp(0, 1).mul(255).round().to(torch.uint8)
        for part in images.split(_AT_ONCE)
    ]
    return torch.cat(parts)


def _gaussian_noise(x: torch.Tensor, level: float, _: float, random: torch.Generator) -> torch.Tensor:
    return x + level * torch.randn(x.shape, generator=random)


def _shot_noise(x: torch.Tensor, level: float, _: float, random: torch.Generator) -> torch.Tensor:
    return torch.poisson(x * level, generator=random) / level


def _speckle_noise(x: torch.Tensor, level: float, _: float, random: torch.Generator) -> torch.Tensor:
    return x + x * level * torch.randn(x.shape, generator=random)


def _impulse_noise(x: torch.Tensor, level: float, _: float, random: torch.Generator) -> torch.Tensor:
    """Salt and pepper."""
    hit = torch.rand(x.shape, generator=random) < level
    return torch.where(hit, (torch.rand(x.shape, generator=random) < 0.5).float(), x)


def _defocus_blur(
    x: torch.Tensor, level: tuple[float, float], scale: float, _: torch.Generator
) -> torch.Tensor:
    """Radius of the disk, and sigma of what softens its edge, in pixels."""
    radius, softness = (scale * length for length in level)
    fine = 8  # points of a pixel's side
    reach = math.ceil(radius + 3 * softness)
    points = (torch.arange((2 * reach + 1) * fine) + 0.5) / fine - reach - 0.5
    distance = (points[:, None] ** 2 + points[None] ** 2).sqrt()
    disk = torch.special.ndtr((radius - distance) / max(softness, 1e-3))
    return _filtered(x, F.avg_pool2d(disk[None, None], fine)[0, 0])


def _gaussian_blur(x: torch.Tensor, level: float, scale: float, _: torch.Generator) -> torch.Tensor:
    line = _gaussian(scale * level)
    return _filtered(x, line[:, None] * line[None])


def _glass_blur(
    x: torch.Tensor, level: tuple[float, float, int], scale: float, random: torch.Generator
) -> torch.Tensor:
    """Sigma in pixels, how far a pixel may have come from, and how often that happens."""
    sigma, farthest, times = level
    reach = max(round(scale * farthest), 1)
    count, channels, height, width = x.shape
    x = _smoothed(x, scale * sigma)
    for _ in range(times):
        from_row, from_column = (
            (places + torch.randint(-reach, reach + 1, (count, height, width), generator=random)).clamp(
                0, side - 1
            )
            for places, side in ((torch.arange(height)[:, None], height), (torch.arange(width), width))
        )
        places = (from_row * width + from_column).view(count, 1, -1).expand(-1, channels, -1)
        x = x.flatten(2).gather(2, places).view(x.shape)
    return _smoothed(x, scale * sigma)


def _motion_blur(
    x: torch.Tensor,
    level: tuple[float, float],
    scale: float,
    random: torch.Generator,
    degrees: tuple[float, float] = (-45, 45),
) -> torch.Tensor:
    """Radius and sigma of a streak, in pixels; each image has its own direction."""
    radius, sigma = (scale * length for length in level)
    reach = max(round(radius), 1)
    low, high = (math.radians(angle) for angle in degrees)
    angles = low + (high - low) * torch.rand(len(x), generator=random)
    steps = torch.linspace(0, reach, 4 * reach + 1)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernels = torch.zeros(len(x), 2 * reach + 1, 2 * reach + 1)
    images = torch.arange(len(x))[:, None].expand(-1, len(steps))
    rows = (reach + steps * angles.sin()[:, None]).round().long()
    columns = (reach + steps * angles.cos()[:, None]).round().long()
    kernels.index_put_((images, rows, columns), weights.expand(len(x), -1), accumulate=True)
    return _filtered(x, kernels)


def _zoom_blur(x: torch.Tensor, level: tuple[float, float], _: float, __: torch.Generator) -> torch.Tensor:
    """Largest zoom, and the step from 1 on: the mean of all zooms."""
    most, step = level
    total, count = x.clone(), 1
    zoom = 1.0
    while zoom < most - 1e-9:
        shrink = torch.tensor([[1 / zoom, 0, 0], [0, 1 / zoom, 0]]).expand(len(x), -1, -1)
        grid = F.affine_grid(shrink, list(x.shape), align_corners=False)
        total += F.grid_sample(x, grid, padding_mode="border", align_corners=False)
        count, zoom = count + 1, zoom + step
    return total / count


def _fog(x: torch.Tensor, level: tuple[float, float], _: float, random: torch.Generator) -> torch.Tensor:
    """How thick, and by what each finer octave of its clouds is weaker."""
    thickness, decay = level
    clouds = _plasma(len(x), x.shape[2:], decay, random)
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + thickness * clouds) * brightest / (brightest + thickness)


def _snow(x: torch.Tensor, level: tuple[float, ...], scale: float, random: torch.Generator) -> torch.Tensor:
    """Mean and deviation of the flakes, their size, from where on one is seen, its streak, the light left."""
    mean, deviation, size, least, radius, sigma, light = level
    cells = [max(math.ceil(side / max(size * scale, 1)), 1) for side in x.shape[2:]]
    flakes = mean + deviation * torch.randn(len(x), 1, *cells, generator=random)
    flakes = F.interpolate(flakes, size=x.shape[2:], mode="bilinear", align_corners=False)
    flakes = torch.where(flakes < least, 0.0, flakes).clamp(0, 1)
    flakes = _motion_blur(flakes, (radius, sigma), scale, random, degrees=(-135, -45))
    grey = x.mean(1, keepdim=True)
    dimmed = light * x + (1 - light) * torch.maximum(x, 1.5 * grey + 0.5)
    return dimmed + flakes + flakes.flip((2, 3))


def _frost(x: torch.Tensor, level: tuple[float, float], _: float, random: torch.Generator) -> torch.Tensor:
    """The light left, and how bright the frost on the pane is.

    The benchmarks lay photographs of frost over an image. Here it is made: ridges of noise, octave
    after octave, and needles that grow from seeds in six directions, each image's turned its own way.
    """
    left, brightness = level
    ice = _crystals(len(x), x.shape[2:], random)
    bluish = torch.tensor(_FROST if x.shape[1] == 3 else [sum(_FROST) / 3]).view(1, -1, 1, 1)
    return left * x + brightness * ice * bluish


def _spatter(
    x: torch.Tensor, level: tuple[float, float, float, bool], scale: float, random: torch.Generator
) -> torch.Tensor:
    """The drops' size, from where on the noise that they come from is one, and what they are.

    Of mud (the last is true), the third is how soft a drop's edge is; of water, how bright it is.
    """
    size, least, strength, is_mud = level
    noise = _smoothed(torch.randn(len(x), 1, *x.shape[2:], generator=random), scale * size)
    noise = noise / noise.std((2, 3), correction=0, keepdim=True).clamp(min=1e-6)
    colour = torch.tensor(_MUD if is_mud else _WATER)
    colour = (colour if x.shape[1] == 3 else colour.mean(0, keepdim=True)).view(1, -1, 1, 1)
    if is_mud:
        covered = _smoothed((noise > least).float(), scale * strength)
        covered = torch.where(covered < 0.8, 0.0, covered)
        return x * (1 - covered) + colour * covered
    drops = torch.where(noise < least, 0.0, noise - least + 1)
    # Lit from one corner: brighter where the surface rises towards it.
    slope = F.pad(drops, (1, 1, 1, 1), mode="replicate")
    light = slope[:, :, 2:, 2:] - slope[:, :, :-2, :-2]
    light = drops * (1 + light / light.abs().amax((2, 3), keepdim=True).clamp(min=1e-6))
    return x + strength * colour * light / light.amax((2, 3), keepdim=True).clamp(min=1e-6)


def _elastic_transform(
    x: torch.Tensor, level: tuple[float, float, float], _: float, random: torch.Generator
) -> torch.Tensor:
    """How far pixels wobble, over which distance, and how far the corners are moved: shares of the side."""
    wobble, distance, moved = level
    count, _channels, height, width = x.shape
    side = max(height, width)
    affine = torch.eye(2, 3).repeat(count, 1, 1)
    affine += 2 * moved * (2 * torch.rand(count, 2, 3, generator=random) - 1)
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    field = _smoothed(torch.randn(count, 2, height, width, generator=random), distance * side)
    field = field / field.std((2, 3), correction=0, keepdim=True).clamp(min=1e-6)
    grid = grid + 2 * wobble * field.permute(0, 2, 3, 1)  # the grid goes from -1 to 1
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def _saturate(x: torch.Tensor, level: tuple[float, float], _: float, __: torch.Generator) -> torch.Tensor:
    """What HSV's saturation is multiplied with, and what is added to it; grey stays grey."""
    if x.shape[1] != 3:
        return x
    times, more = level
    value, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    saturation = (value - least) / value.clamp(min=1e-6)
    wanted = (times * saturation + more).clamp(0, 1)
    return value - (value - x) * wanted / saturation.clamp(min=1e-6)


def _brightness(x: torch.Tensor, level: float, _: float, __: torch.Generator) -> torch.Tensor:
    """Added to the value of HSV: hue and saturation stay."""
    value = x.amax(1, keepdim=True)
    brighter = (value + level).clamp(max=1)
    return torch.where(value > 0, x * brighter / value.clamp(min=1e-6), brighter)


def _contrast(x: torch.Tensor, level: float, _: float, __: torch.Generator) -> torch.Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return mean + level * (x - mean)


def _pixelate(x: torch.Tensor, level: float, _: float, __: torch.Generator) -> torch.Tensor:
    """Share of the pixels that are left on each side."""
    height, width = x.shape[2:]
    fewer = F.interpolate(x, size=(max(int(height * level), 1), max(int(width * level), 1)), mode="area")
    return F.interpolate(fewer, size=(height, width), mode="nearest-exact")


def _jpeg(x: torch.Tensor, level: int, _: float, __: torch.Generator) -> torch.Tensor:
    """Saved at that quality and read again; what is no RGB image, channel by channel."""
    colours = 3 if x.shape[1] == 3 else 1
    pictures = x.mul(255).round().to(torch.uint8).reshape(-1, colours, *x.shape[2:])
    read = torch.stack([_saved_as_jpeg(picture, level) for picture in pictures])
    return read.reshape(x.shape).float() / 255


def _saved_as_jpeg(picture: torch.Tensor, quality: int) -> torch.Tensor:
    import numpy as np
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).squeeze(2).numpy()).save(file, "JPEG", quality=quality)
    pixels = torch.from_numpy(np.array(Image.open(file)))
    return pixels.view(*pixels.shape[:2], -1).permute(2, 0, 1)


def _filtered(x: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Each image with its own kernel (N, K, K), or all with one (K, K); weights are made to sum to 1."""
    count, channels, height, width = x.shape
    kernels = kernels.expand(count, *kernels.shape[-2:])
    kernels = kernels / kernels.sum((1, 2), keepdim=True)
    reach = kernels.shape[-1] // 2
    # Mirroring takes less than the image; what is larger than it repeats the border.
    mode = "reflect" if reach < min(height, width) else "replicate"
    padded = F.pad(x, (reach, reach, reach, reach), mode=mode)
    flat = padded.reshape(1, count * channels, *padded.shape[2:])
    weights = kernels.repeat_interleave(channels, 0).unsqueeze(1)
    return F.conv2d(flat, weights, groups=count * channels).view(x.shape)


def _smoothed(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blurred along one side, then along the other: a wide blur in little time."""
    if sigma < 0.1:
        return x  # no pixel would see another
    line = _gaussian(sigma)
    line, reach = line / line.sum(), len(line) // 2
    flat = x.flatten(0, 1)[:, None]
    for along, padding in (((1, 1, -1, 1), (0, 0, reach, reach)), ((1, 1, 1, -1), (reach, reach, 0, 0))):
        side = flat.shape[2] if padding[2] else flat.shape[3]
        padded = F.pad(flat, padding, mode="reflect" if reach < side else "replicate")
        flat = F.conv2d(padded, line.view(along))
    return flat.view(x.shape)


def _crystals(count: int, size: Any, random: torch.Generator) -> torch.Tensor:
    """Ice on a pane, in [0, 1], (N, 1, H, W)."""
    shrink = min(_PANE / max(size), 1)  # drawn small: it has no finer detail
    rows, columns = (max(round(side * shrink), 1) for side in size)
    ridges = torch.zeros(count, 1, rows, columns)
    weight, cells = 1.0, 2
    while cells <= max(rows, columns):
        noise = torch.rand(count, 1, cells + 1, cells + 1, generator=random)
        noise = F.interpolate(noise, size=(rows, columns), mode="bilinear", align_corners=True)
        ridges += weight * (1 - (2 * noise - 1).abs()) ** 3
        weight, cells = weight / 1.6, 2 * cells
    reach = max(max(rows, columns) // 6, 1)
    turns = torch.rand(count, 1, generator=random) + torch.arange(6)
    steps = torch.linspace(0, reach, 3 * reach + 1)
    kernels = torch.zeros(count, 2 * reach + 1, 2 * reach + 1)
    angles = (turns * math.pi / 3)[:, :, None]
    down, right = ((reach + steps * part).round().long().flatten(1) for part in (angles.sin(), angles.cos()))
    images = torch.arange(count)[:, None].expand_as(down)
    kernels.index_put_(
        (images, down, right), (1 - steps / (reach + 1)).repeat(6).expand_as(down), accumulate=True
    )
    seeds = (torch.rand(count, 1, rows, columns, generator=random) < _SEEDS).float()
    needles = _filtered(seeds, kernels)
    needles = needles / needles.amax((2, 3), keepdim=True).clamp(min=1e-6)
    ice = ridges / ridges.amax((2, 3), keepdim=True).clamp(min=1e-6) + needles
    ice = (ice / ice.amax((2, 3), keepdim=True).clamp(min=1e-6)).clamp(min=0.05)
    return F.interpolate(ice, size=tuple(size), mode="bilinear", align_corners=False)


def _gaussian(sigma: float) -> torch.Tensor:
    reach = math.ceil(4 * sigma)
    return torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)


def _plasma(count: int, size: Any, decay: float, random: torch.Generator) -> torch.Tensor:
    """Clouds in [0, 1], (N, 1, H, W): octaves of noise, each twice as fine."""
    clouds = torch.zeros(count, 1, *size)
    weight, cells = 1.0, 1
    while cells <= max(size):
        noise = torch.rand(count, 1, cells + 1, cells + 1, generator=random)
        clouds += weight * F.interpolate(noise, size=tuple(size), mode="bilinear", align_corners=True)
        weight, cells = weight / decay, 2 * cells
    lowest, highest = clouds.amin((2, 3), keepdim=True), clouds.amax((2, 3), keepdim=True)
    return (clouds - lowest) / (highest - lowest).clamp(min=1e-6)


_ELASTIC = (
    (0.008, 0.06, 0.01),
    (0.012, 0.055, 0.015),
    (0.018, 0.05, 0.02),
    (0.024, 0.045, 0.025),
    (0.03, 0.04, 0.03),
)
_Function = Callable[[torch.Tensor, Any, float, torch.Generator], torch.Tensor]
# The function, and its levels for small and for large images: those of the two benchmarks.
_KINDS: dict[str, tuple[_Function, tuple[Any, ...], tuple[Any, ...]]] = {
    "gaussian-noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot-noise": (_shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "speckle-noise": (_speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.35, 0.45, 0.6)),
    "impulse-noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus-blur": (
        _defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "gaussian-blur": (_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1), (1, 2, 3, 4, 6)),
    "glass-blur": (
        _glass_blur,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    "motion-blur": (
        _motion_blur,
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    "zoom-blur": (
        _zoom_blur,
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.33, 0.03)),
    ),
    "fog": (
        _fog,
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "snow": (
        _snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": (
        _frost,
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    ),
    "spatter": (
        _spatter,
        (
            (0.7, 1.95, 0.5, False),
            (0.8, 1.42, 0.5, False),
            (1, 0.47, 0.5, False),
            (0.7, 0.98, 0.6, True),
            (0.5, 0.47, 0.6, True),
        ),
        (
            (4, 1.89, 0.6, False),
            (3, 1.06, 0.6, False),
            (2, 0.71, 0.5, False),
            (1, 0, 1.5, True),
            (1, -0.18, 1.5, True),
        ),
    ),
    "elastic-transform": (_elastic_transform, _ELASTIC, _ELASTIC),
    "saturate": (
        _saturate,
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    ),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": (_jpeg, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
}
KINDS = tuple(_KINDS)
