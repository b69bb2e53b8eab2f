"""What PyTorch makes for a convolution's shape, once, and keeps: code, and plans to reorder its tensors.

A library does most convolutions, in blocks of channels. For each shape that it meets, in each direction, it
makes a kernel, some 66 kB that stay in the process. They are no tensor's and no operator's workspace, but the
runtime's: how many there are follows from the fine-tune, how much each takes is measured where it runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

import torch

from advisor.costs.figures import is_product
from advisor.costs.workspace import Call

aten = torch.ops.aten
# Photos are judged in passes of other sizes than a batch: whole ones, and what is left over.
PASSES = 2


def kernels_of(calls: Iterable[Call]) -> tuple[int, int]:
    """How many kernels the convolutions of an update need, and how many shapes its forward pass has."""
    shapes, kernels = set(), set()
    for func, args, _ in calls:
        if func.overloadpacket is aten.convolution:
            x, weight, _, *options = args
            shapes.add((x, weight, *options))
            directions: tuple[str, ...] = ("forward",)
        elif func.overloadpacket is aten.convolution_backward:
            _, x, weight, _, *options, (of_input, of_weight, _) = args
            directions = ("input",) * of_input + ("weight",) * of_weight
        else:
            continue
        if not _is_product(x, weight, options):
            kernels |= {(direction, x, weight, *options) for direction in directions}
    return len(kernels), len(shapes)


def _is_product(x: Any, weight: Any, options: Any) -> bool:
    _, (images, *_), *_ = x
    _, (_, _, *kernel), *_ = weight
    strides, _, _, is_transposed, *_ = options
    return is_product(images, prod(kernel), strided=is_transposed or any(step > 1 for step in strides))
