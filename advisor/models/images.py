"""Which images a network takes, as far as it says so itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args, get_type_hints

import torch
from torch import nn

from advisor.models.blocks import evaluating
from advisor.records import Framing

Size = tuple[int, int, int]  # (C, H, W)

_CROP = 0.875  # timm's own default
_KNOWN = {name: get_args(hint) for name, hint in get_type_hints(Framing).items()}


@dataclass(frozen=True, slots=True)
class ImageConfiguration:
    """What timm's configuration of a network, or its file, says of the images that it was trained for."""

    name: str  # of the network and its weights, "" where it doesn't say
    input_size: Size  # with the channels that the module takes
    mean: tuple[float, ...]  # of images in [0, 1], by channel
    std: tuple[float, ...]
    framing: Framing | None  # None: it says nothing of that
    unknown: str = ""  # what it asks for in vain, such as another interpolation
    origin: str = "timm's configuration"


def image_configuration(module: nn.Module) -> ImageConfiguration | None:
    """What the module's `pretrained_cfg` or `default_cfg` says; None where it has none, or a broken one."""
    for attribute in ("pretrained_cfg", "default_cfg"):
        config = _as_mapping(getattr(module, attribute, None))
        size = declared_size(config.get("input_size"))
        if size is None:
            continue
        size = _with_channels_that_run(module, size)
        mean, std = (_per_channel(config.get(key), size[0]) for key in ("mean", "std"))
        if mean is None or std is None or min(std) <= 0:
            mean = std = ()  # of other channels, say
        framing, unknown = _framing(config)
        return ImageConfiguration(_name(config), size, mean, std, framing, unknown)
    return None


def declared_size(value: object) -> Size | None:
    """A (C, H, W) of whole numbers; None where it is anything else."""
    if isinstance(value, tuple | list) and len(value) == 3:
        channels, height, width = value
        if all(type(side) is int and side > 0 for side in value):
            return channels, height, width
    return None


def stem_channels(module: nn.Module) -> int | None:
    """What the first convolution takes; None where there is none, or where it is not built yet."""
    stem = next((layer for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)
    return (stem.in_channels or None) if stem is not None else None


def _as_mapping(config: object) -> Mapping[str, Any]:
    if isinstance(config, Mapping):
        return config
    return vars(config) if hasattr(config, "__dict__") else {}  # timm's PretrainedCfg


def _name(config: Mapping[str, Any]) -> str:
    return ".".join(
        part for key in ("architecture", "tag") if isinstance(part := config.get(key), str) and part
    )


def _with_channels_that_run(module: nn.Module, size: Size) -> Size:
    """The size with the first convolution's channels where it was given others when it was built.

    Before that convolution, pixels may be folded into channels: so what is declared is tried first.
    """
    stem = stem_channels(module)
    if stem is None or stem == size[0] or _runs(module, size):
        return size
    own = (stem, *size[1:])
    return own if _runs(module, own) else size


def _runs(module: nn.Module, size: Size) -> bool:
    try:
        with torch.no_grad(), evaluating(module):
            module(torch.zeros(1, *size))
    except Exception:  # noqa: BLE001 - a model's own code raises what it likes
        return False
    return True


def _per_channel(value: object, channels: int) -> tuple[float, ...] | None:
    if not isinstance(value, tuple | list) or len(value) not in (1, channels):
        return None
    if not all(isinstance(each, int | float) and math.isfinite(each) for each in value):
        return None
    return tuple(float(each) for each in value) * (channels if len(value) == 1 else 1)


def _framing(config: Mapping[str, Any]) -> tuple[Framing, str]:
    crop = config.get("crop_pct")
    if not isinstance(crop, int | float) or not 0.1 <= crop <= 10:
        crop = _CROP
    wanted = {"interpolation": config.get("interpolation"), "mode": config.get("crop_mode")}
    known = {key: value for key, value in wanted.items() if value in _KNOWN[key]}
    unknown = [str(value) for key, value in wanted.items() if key not in known and value]
    return Framing(float(crop), **cast(Any, known)), ", ".join(unknown)
