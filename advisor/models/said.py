"""What a file says of its network beside the weights: which one it is, its classes, its images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from advisor.models.pickles import as_mapping, is_module, plain
from advisor.models.printable import shown
from advisor.names import timm_models, torchvision_models

_CLASS_KEYS = (
    *("class_names", "classes", "CLASSES", "idx_to_class", "class_to_idx", "labels", "label_names", "names"),
    *("id2label", "label2id", "categories", "target_names", "idx2label"),
)
_NETWORK_KEYS = (
    *("arch", "architecture", "architectures", "model", "model_name", "model_type", "model_arch", "network"),
    *("net", "backbone", "encoder", "encoder_name", "base_model", "name", "_target_", "type"),
)
_SIZE_KEYS = ("input_size", "img_size", "image_size", "imgsz", "input_shape", "input_resolution")
_MEAN_KEYS = ("mean", "image_mean", "pixel_mean", "norm_mean", "img_mean", "normalize_mean")
_STD_KEYS = ("std", "image_std", "pixel_std", "norm_std", "img_std", "normalize_std")
_DEPTH = 3  # of settings within settings
_LARGEST = 500  # entries of a settings object: what has more is data


@dataclass(frozen=True, slots=True)
class Said:
    """What was found; empty where nothing is said."""

    networks: tuple[str, ...] = ()  # names that torchvision or timm know
    size: tuple[int, ...] = ()  # (H, W) or (C, H, W)
    mean: tuple[float, ...] = ()  # of images in [0, 1], by channel
    std: tuple[float, ...] = ()


def what_is_said(*holders: object) -> Said:
    """From checkpoints, settings objects and configurations, the outermost first."""
    networks: list[str] = []
    size: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    for place in _places(holders):
        for key in _NETWORK_KEYS:
            networks += [name for name in _networks(place.get(key)) if name not in networks]
        size = size or next((sides for key in _SIZE_KEYS if (sides := _size(place.get(key)))), ())
        sides_of = (place[key] for key in ("crop_size", "size") if isinstance(place.get(key), Mapping))
        size = size or next(filter(None, map(_size, sides_of)), ())
        if not mean:
            means = next((found for key in _MEAN_KEYS if (found := _numbers(place.get(key)))), ())
            stds = next((found for key in _STD_KEYS if (found := _numbers(place.get(key)))), ())
            if len(means) == len(stds) and stds and min(stds) > 0:
                scale = 255 if max(means) > 1 else 1
                mean = tuple(value / scale for value in means)
                std = tuple(value / scale for value in stds)
    return Said(tuple(networks), size, mean, std)


def class_names(module: nn.Module, *holders: object) -> tuple[str, ...] | None:
    """Class names in the order of the outputs, from the checkpoint or the module; None without."""
    outputs = {layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear)}
    outputs |= {layer.out_channels for layer in module.modules() if isinstance(layer, nn.Conv2d)}
    for place in (*_places(holders), vars(module)):
        for key in _CLASS_KEYS:
            names = _as_names(plain(place.get(key)))
            if names is not None and len(names) in outputs:  # else it describes something other
                return names
    return None


def _places(holders: tuple[object, ...]) -> Iterator[Mapping[Any, Any]]:
    """Settings and what is in them, the outermost first; weights and data are none."""
    level = list(holders)
    for _ in range(_DEPTH):
        inner: list[object] = []
        for holder in level:
            place = as_mapping(plain(holder))
            if not place or len(place) > _LARGEST or is_module(holder):
                continue
            if any(isinstance(value, torch.Tensor) and value.numel() > _LARGEST for value in place.values()):
                continue
            yield {key: plain(value) for key, value in place.items()}
            inner += [each for each in place.values() if as_mapping(plain(each))]
        level = inner


def _networks(value: object) -> Iterator[str]:
    if isinstance(value, list | tuple) and value:
        value = value[0]
    if not isinstance(value, str) or not 3 < len(value) < 200:
        return
    last = value.replace(":", "/").rpartition("/")[2]
    words = (last, last.partition(".")[0], last.rpartition(".")[2], last.lower().replace("-", "_"))
    known = {*torchvision_models(), *timm_models()}
    yield from dict.fromkeys(word for word in words if word in known)


def _size(value: object) -> tuple[int, ...]:
    if isinstance(value, Mapping):
        side = value.get("shortest_edge")
        value = [value.get("height", side), value.get("width", side)]
    sides = [value, value] if type(value) is int else list(value) if isinstance(value, list | tuple) else []
    if len(sides) not in (2, 3) or not all(type(side) is int and side > 0 for side in sides):
        return ()
    if len(sides) == 3 and sides[0] > 16:
        sides = [sides[2], *sides[:2]]  # (H, W, C), as others write it
    return tuple(sides) if min(sides[-2:]) >= 8 and max(sides) <= 2048 else ()


def _numbers(value: object) -> tuple[float, ...]:
    if isinstance(value, torch.Tensor) and value.numel() <= 4:
        value = value.flatten().tolist()
    value = [value] if isinstance(value, float) else value
    if not isinstance(value, list | tuple) or len(value) not in (1, 3):
        return ()
    numbers = [each for each in value if isinstance(each, int | float) and math.isfinite(each)]
    return tuple(map(float, numbers)) if len(numbers) == len(value) else ()


def _as_names(value: Any) -> tuple[str, ...] | None:
    """Names from a list, or from a mapping either way round."""
    value = as_mapping(value) or value
    if isinstance(value, Mapping) and value:
        pairs = {plain(key): plain(each) for key, each in value.items()}
        if all(isinstance(name, str) and type(index) is int for name, index in pairs.items()):
            pairs = {index: name for name, index in pairs.items()}
        by_index = {int(str(key)): name for key, name in pairs.items() if str(key).isdecimal()}
        value = [by_index.get(index) for index in range(len(pairs))]
    if not isinstance(value, list | tuple) or not value:
        return None
    names = [plain(name) for name in value]
    return tuple(map(shown, names)) if all(isinstance(name, str) for name in names) else None  # type: ignore[arg-type]
