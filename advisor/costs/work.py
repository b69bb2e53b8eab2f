"""What a device has to do in an operator: its kind and phase, and the figures that its seconds follow from.

They add up over operators, so an update's seconds are a sum, too (`device.profile`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch

from advisor.costs.figures import FIGURES, convolution_figures, convolution_kind
from advisor.costs.flops import OperatorFlops
from advisor.records import Work

aten = torch.ops.aten
# (kind, phase, flops, in eights, in sixteens, bytes); phase "": as the recorder has it.
Piece = tuple[str, str, int, int, int, int]
_CONVOLUTIONS = {aten.convolution, aten._convolution}
_PRODUCTS = {aten.mm, aten.addmm, aten.addmm_, aten.bmm, aten.baddbmm, aten.mv, aten.addmv, aten.addr}
_NORMS = {
    *(aten.native_batch_norm, aten._native_batch_norm_legit, aten._native_batch_norm_legit_no_training),
    *(aten.native_layer_norm, aten.native_group_norm),
}
_NORM_GRADIENTS = {
    *(aten.native_batch_norm_backward, aten.native_layer_norm_backward, aten.native_group_norm_backward),
}
# Elementwise operators that take more than their bytes.
_COSTLY = {
    *(aten.sigmoid, aten.sigmoid_, aten.silu, aten.silu_, aten.silu_backward, aten.gelu, aten.gelu_backward),
    *(
        aten.exp,
        aten.tanh,
        aten.tanh_backward,
        aten._softmax,
        aten._log_softmax,
        aten.pow,
        aten.log,
        aten.erf,
    ),
    *(aten.mish, aten.mish_backward, aten.elu, aten.elu_backward, aten.sqrt, aten.rsqrt),
}
_MAKES_NOTHING = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}


def work_of(
    func: torch._ops.OpOverload,
    args: Sequence[Any],
    result: Any,
    read: Sequence[torch.Tensor],
    made: Sequence[torch.Tensor],
    flops: OperatorFlops | None,
) -> tuple[Piece, ...]:
    """The pieces of one call: for a convolution's gradients one each; none where nothing is done.

    Args:
        read: the tensors among its arguments.
        made: those that it returns.
    """
    packet = func.overloadpacket
    if packet in _CONVOLUTIONS:
        return (_convolution("forward", args[0], args[1], result, args[6], args[8], _bytes(read, made)),)
    if packet is aten.convolution_backward:
        return _convolution_gradients(args)
    if packet in _PRODUCTS:
        count = flops.result if flops is not None else 0
        return (("linear", "", count, count, count, _bytes(read, made)),)
    if packet in _NORMS or packet in _NORM_GRADIENTS:
        phase = "forward" if packet in _NORMS else "input_gradient"
        count = flops.result + flops.input_gradient + flops.weight_gradient if flops is not None else 0
        return (("norm", phase, count, count, count, _bytes(read, made)),)
    if func.is_view or packet is aten._unsafe_view or packet in _MAKES_NOTHING or func.namespace != "aten":
        return (("view", "forward", 0, 0, 0, 0),)
    count = sum(tensor.numel() for tensor in made) if packet in _COSTLY else 0
    # What is written where it was read needs no new memory.
    kind = "in_place" if func._schema.is_mutable else "elementwise"
    return ((kind, "forward" if kind == "in_place" else "", count, count, count, _bytes(read, made)),)


def _convolution(
    phase: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    is_transposed: bool,
    groups: int,
    size: int,
) -> Piece:
    kernel, inputs = prod(weight.shape[2:]), x.shape[1]
    outputs = weight.shape[1] * groups if is_transposed else weight.shape[0]
    positions = (x if is_transposed else y).numel() // (inputs if is_transposed else outputs)
    figures = convolution_figures(positions, inputs, outputs, kernel, groups, size)
    return (convolution_kind(inputs, kernel, groups), phase, *figures)


def _convolution_gradients(args: Sequence[Any]) -> tuple[Piece, ...]:
    y, x, weight, is_transposed, groups, wanted = args[0], args[1], args[2], args[7], args[9], args[10]
    found = []
    if wanted[0]:
        size = _bytes((y, weight), (x,))
        found.append(_convolution("input_gradient", x, weight, y, is_transposed, groups, size))
    if wanted[1] or wanted[2]:
        size = _bytes((y, x), (weight,))
        found.append(_convolution("weight_gradient", x, weight, y, is_transposed, groups, size))
    return tuple(found)


def _bytes(read: Sequence[torch.Tensor], made: Sequence[torch.Tensor]) -> int:
    """Read and written; what is broadcast is read as often as it is held."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*read, *made))


def summed(calls: Mapping[tuple[Piece, str], int]) -> Counter[tuple[str, str, str]]:
    """(kind, phase, figure) -> how much, of so many calls of each piece in each of the recorder's phases."""
    found: Counter[tuple[str, str, str]] = Counter()
    for (piece, recorded), count in calls.items():
        kind, phase, *figures = piece
        if not phase:
            phase = "input_gradient" if recorded == "backward" else recorded
            if kind != "linear" and phase == "weight_gradient":
                phase = "input_gradient"
            if phase == "optimizer":
                phase = "forward"
        for name, value in zip(FIGURES, (1, *figures), strict=True):
            found[kind, phase, name] += count * value
    return found


def as_work(found: Mapping[tuple[str, str, str], int]) -> tuple[Work, ...]:
    """The same as records, in order."""
    places = sorted({(kind, phase) for kind, phase, _ in found})
    return tuple(
        Work(kind, phase, *(found.get((kind, phase, name), 0) for name in FIGURES)) for kind, phase in places
    )
