"""Relatives of torchvision's networks of other widths or depths: constructors' arguments, from shapes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from advisor.models.architectures import import_torchvision, trial

Shapes = Mapping[str, tuple[int, ...]]

_MULTIPLIERS = tuple(
    hundredths / 100 for hundredths in (*range(5, 205, 5), 14, 22, 33, 66, 225, 250, 300, 400)
)


def relative(name: str, shapes: Shapes) -> Callable[[int], nn.Module] | None:
    """What builds the network of torchvision's family `name` that has these shapes, given a class count.

    None where the family has no free widths, or none that give these shapes.
    """
    for family, find in _FAMILIES.items():
        if re.match(family, name):
            try:
                return find(name, shapes)
            except (KeyError, ValueError, ZeroDivisionError, IndexError):
                return None
    return None


def _resnet(_: str, shapes: Shapes) -> Callable[[int], nn.Module]:
    models = import_torchvision().models.resnet
    layers = [_count(shapes, rf"layer{stage}\.(\d+)\.") for stage in range(1, 5)]
    is_deep = "layer1.0.conv3.weight" in shapes
    width, per_group = shapes["layer1.0.conv2.weight"][:2]
    groups = width // per_group if is_deep else 1
    block = models.Bottleneck if is_deep else models.BasicBlock
    per = width // groups if is_deep else 64
    return lambda classes: models.ResNet(block, layers, classes, groups=groups, width_per_group=per)


def _densenet(_: str, shapes: Shapes) -> Callable[[int], nn.Module]:
    growth, bottleneck = shapes["features.denseblock1.denselayer1.conv2.weight"][:2]
    blocks = tuple(_count(shapes, rf"features\.denseblock{n}\.denselayer(\d+)\.", 1) for n in range(1, 5))
    stem = shapes["features.conv0.weight"][0]
    models = import_torchvision().models.densenet
    return lambda classes: models.DenseNet(
        growth, blocks, stem, bn_size=bottleneck // growth, num_classes=classes
    )


def _shufflenet(_: str, shapes: Shapes) -> Callable[[int], nn.Module]:
    repeats = [_count(shapes, rf"stage{stage}\.(\d+)\.") for stage in (2, 3, 4)]
    stages = [2 * shapes[f"stage{stage}.0.branch2.0.weight"][0] for stage in (2, 3, 4)]
    channels = [shapes["conv1.0.weight"][0], *stages, shapes["conv5.0.weight"][0]]
    models = import_torchvision().models
    return lambda classes: models.ShuffleNetV2(repeats, channels, classes)


def _multiplied(name: str, shapes: Shapes) -> Callable[[int], nn.Module] | None:
    """MobileNets and MNASNets: the multiplier whose first and last convolutions are these."""
    models = import_torchvision().models

    def build(multiplier: float, classes: int, **options: Any) -> nn.Module:
        if name.startswith("mnasnet"):
            made: nn.Module = models.MNASNet(multiplier, num_classes=classes)
        elif name == "mobilenet_v2":
            made = models.MobileNetV2(num_classes=classes, width_mult=multiplier)
        else:
            made = models.get_model(name, num_classes=classes, width_mult=multiplier, **options)
        return made

    tails: list[dict[str, Any]] = [{}]
    if name.startswith("mobilenet_v3"):
        tails.append({"reduced_tail": True})
    wanted = {key: shape for key, shape in shapes.items() if len(shape) == 4 and shape[2:] != (7, 7)}
    stem = next(iter(wanted))
    del wanted[stem]  # whose input may be grey
    for multiplier in _MULTIPLIERS:
        for options in tails:
            own = trial(lambda m=multiplier, o=options: build(m, 2, **o))  # type: ignore[misc]
            if all(own.get(key) == shape for key, shape in wanted.items()):
                return lambda classes, m=multiplier, o=options: build(m, classes, **o)  # type: ignore[misc]
    return None


def _efficientnet(name: str, shapes: Shapes) -> Callable[[int], nn.Module] | None:
    """Widths and depths of the stages are read off; expansions, kernels and strides are the family's."""
    models = import_torchvision().models.efficientnet
    if "v2" in name:
        return None
    settings, _ = models._efficientnet_conf("efficientnet_b0", width_mult=1.0, depth_mult=1.0)
    stem = shapes["features.0.0.weight"][0]
    stages, before = [], stem
    for number, stage in enumerate(settings, 1):
        layers = _count(shapes, rf"features\.{number}\.(\d+)\.")
        last = "2" if number == 1 else "3"  # the first stage expands nothing
        after = shapes[f"features.{number}.0.block.{last}.0.weight"][0]
        stages.append(
            models.MBConvConfig(
                stage.expand_ratio, stage.kernel, stage.stride, before, after, layers, 1.0, 1.0
            )
        )
        before = after
    top = shapes[f"features.{len(settings) + 1}.0.weight"][0]
    return lambda classes: models.EfficientNet(stages, 0.2, num_classes=classes, last_channel=top)


def _count(shapes: Shapes, pattern: str, first: int = 0) -> int:
    found = [int(match[1]) for name in shapes if (match := re.match(pattern, name))]
    return max(found) - first + 1


_FAMILIES: Mapping[str, Callable[[str, Shapes], Callable[[int], nn.Module] | None]] = {
    r"(wide_)?resn": _resnet,
    r"densenet": _densenet,
    r"shufflenet": _shufflenet,
    r"mobilenet|mnasnet": _multiplied,
    r"efficientnet": _efficientnet,
}
