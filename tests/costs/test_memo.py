"""What the memo knows from shapes alone, held against what torch says of the CPU's operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from advisor.costs.memo import OperatorMemo, Remembering, tensors_in

aten = torch.ops.aten
X = (2, 8, 6, 7)


def _convolution_gradients(wanted: list[bool], biases: list[int] | None) -> Callable[..., Any]:
    def run(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> Any:
        options = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1, wanted)
        return aten.convolution_backward(y, x, weight, biases, *options)

    return run


CALLS: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "convolution": (F.conv2d, (X, (4, 8, 3, 3))),
    "strided": (lambda x, w: F.conv2d(x, w, stride=2, padding=1, dilation=2), (X, (4, 8, 3, 2))),
    "depthwise": (lambda x, w: F.conv2d(x, w, groups=8), (X, (8, 1, 3, 3))),
    "to a point": (F.conv2d, (X, (4, 8, 6, 7))),
    "of points": (F.conv2d, ((2, 8, 1, 1), (4, 8, 1, 1))),
    "one dimension": (F.conv1d, ((2, 8, 9), (4, 8, 3))),
    "three dimensions": (F.conv3d, ((2, 8, 4, 5, 6), (4, 8, 3, 3, 3))),
    "transposed": (lambda x, w: F.conv_transpose2d(x, w, stride=2), (X, (8, 4, 3, 3))),
    "every gradient": (_convolution_gradients([True] * 3, [4]), ((2, 4, 6, 7), X, (4, 8, 3, 3))),
    "one gradient": (
        _convolution_gradients([True, False, False], None),
        ((2, 4, 6, 7), X, (4, 8, 3, 3)),
    ),
    "gradients of points": (
        _convolution_gradients([True] * 3, [4]),
        ((2, 4, 1, 1), (2, 8, 1, 1), (4, 8, 3, 3)),
    ),
    "a factor for each channel": (torch.mul, (X, (8, 1, 1))),
    "shapes that meet in the middle": (torch.add, ((2, 1, 6, 1), (8, 1, 7))),
    "a dimension of one": (torch.mul, ((2, 1, 1, 7), (1, 7))),
    "clone": (torch.clone, (X,)),
    "compared": (lambda x: x > 0.5, (X,)),
    "clamped": (lambda x: x.clamp_min(0.5), (X,)),
    "decomposed, wide": (lambda x: torch.linalg.svd(x, full_matrices=False), ((3, 5),)),
    "decomposed, long": (lambda x: torch.linalg.svd(x, full_matrices=False), ((5, 3),)),
    "decomposed, whole": (torch.linalg.svd, ((5, 3),)),
    "gradient of a slice": (lambda y: aten.slice_backward(y, [2, 8, 6, 9], 3, 0, 7, 1), (X,)),
    "made strided": (lambda x: x.new_empty_strided((3, 4), (1, 3)), (X,)),
}
LAYOUTS: dict[str, Callable[[tuple[int, ...]], torch.Tensor]] = {
    "contiguous": torch.empty,
    "one element all over": lambda shape: torch.empty(1).expand(shape),
    "reversed": lambda shape: torch.empty(shape[::-1]).permute(*reversed(range(len(shape)))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CALLS)
def test_results_are_laid_out_as_on_the_cpu(name: str, layout: str) -> None:
    call, shapes = CALLS[name]
    made = LAYOUTS[layout]
    with torch.device("meta"):
        on_meta = [made(shapes[0]), *map(torch.empty, shapes[1:])]
    with Remembering(OperatorMemo()), torch.no_grad():
        found = tensors_in(call(*on_meta))
    with FakeTensorMode(), torch.no_grad():
        real = tensors_in(call(made(shapes[0]), *map(torch.empty, shapes[1:])))
    assert _described(found) == _described(real)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with torch.device("meta"), Remembering(OperatorMemo()):
        with pytest.raises(RuntimeError):
            torch.empty(2, 3) * torch.empty(2, 4)
        with pytest.raises(RuntimeError):
            F.conv2d(torch.empty(2, 8, 2, 2), torch.empty(4, 8, 3, 3))


def _described(tensors: list[torch.Tensor]) -> list[tuple[object, ...]]:
    return [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors]
