"""Classifiers that people put on a network, made again from the names and shapes of their weights."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn

from advisor.errors import ModelError
from advisor.models.blocks import evaluating
from advisor.models.layers import logits

Shapes = Mapping[str, tuple[int, ...]]


_HEAD = re.compile(r"(^|\.)(fc|classifier|heads?|last_linear|output|logits)(\.|$)")


class PointwiseHead(nn.Conv2d):
    """A 1x1 convolution in the place of a linear layer: (N, C) features become (N, classes) outputs."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name for it
        """The convolution of one position."""
        flat: torch.Tensor = super().forward(input.flatten(1)[..., None, None]).flatten(1)
        return flat


class WithHead(nn.Module):
    """A network that gives features, and a classifier on them."""

    def __init__(self, body: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(features, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, classes) of (N, C, H, W)."""
        outputs: torch.Tensor = self.head(self.body(images).flatten(1))
        return outputs


def empty_head(module: nn.Module) -> str:
    """The path at which a classifier was taken out: an `Identity` where one usually stands; "" without."""
    names = [name for name, layer in module.named_modules() if isinstance(layer, nn.Identity)]
    found = [name for name in names if _HEAD.search(name)]
    layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    has_more = layers and layers[-1].partition(".")[0] in {name.partition(".")[0] for name in found}
    return "" if has_more or not found else found[-1]


def with_head(module: nn.Module, features: int, size: tuple[int, ...]) -> nn.Module:
    """The network with a classifier of one output on its (N, features), which any classes may be given to.

    Where a classifier was taken out, if one there gets such features of images of `size`; else in a module of
    both.
    """
    where = empty_head(module)
    if where:
        parent, _, name = where.rpartition(".")
        setattr(module.get_submodule(parent), name, nn.Linear(features, 1))
        try:
            with torch.no_grad(), evaluating(module):
                if logits(module(torch.zeros(1, *size))).shape == (1, 1):
                    return module
        except Exception:  # noqa: BLE001, S110 - it is given something else there
            pass
        setattr(module.get_submodule(parent), name, nn.Identity())
    return WithHead(module, features, 1).eval()


def probabilities(module: nn.Module, size: tuple[int, ...]) -> str:
    """`softmax` or `sigmoid`, where outputs for images of that size are such; "" where they are scores.

    Raises:
        ModelError: it doesn't give an output for each of several images.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *size, generator=generator)
    try:
        with torch.no_grad(), evaluating(module):
            outputs = [logits(module(images * scale)) for scale in (1, 1000)]
    except Exception:  # noqa: BLE001 - the user's own code; whether it runs is told elsewhere
        return ""
    if len(outputs[0]) != 2:
        raise ModelError(
            f"{type(module).__name__} returns shape {tuple(outputs[0].shape)} for 2 images; mend its code: "
            "it has to take any number of images, (N, C, H, W)"
        )
    if outputs[0].shape[1] < 2 or any(not ((each >= 0) & (each <= 1)).all() for each in outputs):
        return ""
    is_one = all(torch.allclose(each.sum(1), torch.ones(2), atol=1e-4) for each in outputs)
    constant = torch.equal(outputs[0][0], outputs[0][1])
    return "softmax" if is_one else "" if constant else "sigmoid"


def classifier_of(module: nn.Module) -> str:
    """The path of the layer that gives the outputs: as timm says, else the last that could."""
    config = getattr(module, "pretrained_cfg", None) or {}
    said = config.get("classifier") if isinstance(config, dict) else None
    if isinstance(said, str) and _has(module, said):
        return said
    layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    return layers[-1] if layers else ""


def replaced_part(own: Shapes, found: Shapes, classifier: str) -> str | None:
    """The least part of the network around the classifier outside of which nothing differs there.

    None where they differ in nothing but the class count.
    """
    parts = classifier.split(".")
    for depth in range(len(parts), 0, -1):
        part = ".".join(parts[:depth])
        top = f"{parts[0]}."
        around = {*(n for n in own if n.startswith(top)), *(n for n in found if n.startswith(top))}
        outside = [n for n in around if not n.startswith(f"{part}.")]
        if all(own.get(name) == found.get(name) for name in outside):
            break
    mine, theirs = _below(own, part), _below(found, part)
    same = mine.keys() == theirs.keys() and all(shape[1:] == theirs[name][1:] for name, shape in mine.items())
    if same and (part == classifier or mine == theirs):
        return None
    return part


def head_of_shapes(  # noqa: PLR0911 - each shape that is no head is one
    shapes: Shapes, features: int, at: str
) -> tuple[nn.Module, str] | None:
    """A head whose weights have these names and shapes, and in words what was assumed of it.

    Linear layers and 1x1 convolutions, with batch or layer norms between them, alone or in a Sequential.
    Shapes tell no activation: between two layers it is taken to be a ReLU.

    Args:
        shapes: of its entries, below its own path, in the file's order.
        features: what it is given for each image.
        at: its path, for the words.

    Returns:
        None where it is anything else, or doesn't go on `features`.
    """
    layers: dict[str, nn.Module] = {}
    for name, entries in _by_layer(shapes).items():
        layer = _layer(entries)
        if layer is None:
            return None
        layers[name] = layer
    width = features
    for layer in layers.values():
        takes, gives = _widths(layer)
        if takes != width:
            return None
        width = gives
    if not layers or not any(isinstance(layer, nn.Linear | nn.Conv2d) for layer in layers.values()):
        return None
    if list(layers) == [""]:
        return layers[""], ""
    if any(not name or "." in name for name in layers):
        nested = {name.partition(".")[0] for name in layers}
        if len(nested) != 1 or "" in layers:
            return None
        (child,) = nested
        inner = head_of_shapes(_below(shapes, child), features, f"{at}.{child}")
        return None if inner is None else (nn.Sequential(OrderedDict({child: inner[0]})), inner[1])
    return _in_a_row(layers, at)


def _in_a_row(layers: dict[str, nn.Module], at: str) -> tuple[nn.Module, str]:
    """The layers with what has no weights between them, each under its own name."""
    numbered = all(name.isdecimal() for name in layers)
    row: OrderedDict[str, nn.Module] = OrderedDict()
    linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear | nn.Conv2d)]
    waits = False  # for its activation
    activated = 0
    for name, layer in layers.items():
        while numbered and len(row) < int(name):
            row[str(len(row))] = nn.ReLU() if waits else nn.Identity() if row else nn.Flatten()
            activated += waits
            waits = False
        if name in linear and waits:
            if not numbered:
                row[f"before_{name}"] = nn.ReLU()
                activated += 1
            waits = False
        row[name] = layer
        waits = waits or (name in linear and name != linear[-1])
    words = f"between the layers of {at} there is a ReLU" if activated else ""
    return nn.Sequential(row), words


def _by_layer(shapes: Shapes) -> dict[str, dict[str, tuple[int, ...]]]:
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        layer, _, entry = name.rpartition(".")
        found.setdefault(layer, {})[entry] = shape
    return found


def _layer(entries: Mapping[str, tuple[int, ...]]) -> nn.Module | None:
    weight = entries.get("weight", ())
    bias = "bias" in entries
    if entries.keys() - {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}:
        return None
    if "running_mean" in entries:
        return nn.BatchNorm1d(entries["running_mean"][0], affine=len(weight) == 1)
    if len(weight) == 2:
        return nn.Linear(weight[1], weight[0], bias=bias)
    if len(weight) == 4 and weight[2:] == (1, 1):
        return PointwiseHead(weight[1], weight[0], 1, bias=bias)
    if len(weight) == 1 and bias:
        return nn.LayerNorm(weight[0])
    return None


def _widths(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    if isinstance(layer, nn.BatchNorm1d):
        return layer.num_features, layer.num_features
    assert isinstance(layer, nn.LayerNorm)  # noqa: S101 - `_layer` makes no other
    width = math.prod(layer.normalized_shape)
    return width, width


def features_of(module: nn.Module) -> int | None:
    """What the first layer with weights in a head is given for each image; None without one."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.BatchNorm1d | nn.LayerNorm):
            return _widths(layer)[0]
        weight = getattr(layer, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.ndim == 1:
            return len(weight)  # of some other norm
    return None


def _below(shapes: Shapes, part: str) -> dict[str, tuple[int, ...]]:
    return {name[len(part) + 1 :]: shape for name, shape in shapes.items() if name.startswith(f"{part}.")}


def _has(module: nn.Module, path: str) -> bool:
    return path in dict(module.named_modules())
