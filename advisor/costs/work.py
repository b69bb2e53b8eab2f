"""What a device has to do in an operator: its kind and phase, and the figures that its seconds follow from.

They add up over operators, so an update's seconds are a sum, too (`device.profile`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch

from advisor.costs.figures import FIGURES, convolution_figures, convolution_kind, new_bytes
from advisor.costs.flops import OperatorFlops
from advisor.records import Work

aten = torch.ops.aten
# Kind, phase, and the figures; phase "": as the recorder has it.
Piece = tuple[str, str, *tuple[int, ...]]
_CONVOLUTIONS = {aten.convolution, aten._convolution}
_PRODUCTS = {aten.mm, aten.addmm, aten.addmm_, aten.bmm, aten.baddbmm, aten.mv, aten.addmv, aten.addr}
_NORMS = {
    *(aten.native_batch_norm, aten._native_batch_norm_legit, aten._native_batch_norm_legit_no_training),
    *(aten.native_layer_norm, aten.native_group_norm),
}
_NORM_GRADIENTS = {
    *(aten.native_batch_norm_backward, aten.native_layer_norm_backward, aten.native_group_norm_backward),
}
_POOLS = {aten.max_pool2d_with_indices, aten.avg_pool2d}
_POOL_GRADIENTS = {aten.max_pool2d_with_indices_backward, aten.avg_pool2d_backward}
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
        return (_convolution("forward", args[0], args[1], result, args[3], args[6], args[8]),)
    if packet is aten.convolution_backward:
        return _convolution_gradients(args)
    if func.is_view or packet is aten._unsafe_view or packet in _MAKES_NOTHING or func.namespace != "aten":
        return (("view", "forward", 1, 0, 0, 0, 0, 0),)
    kind, phase, count = _other(func, args, made, flops)
    return ((kind, phase, 1, count, count, count, *_bytes(read, made)),)


def _other(
    func: torch._ops.OpOverload,
    args: Sequence[Any],
    made: Sequence[torch.Tensor],
    flops: OperatorFlops | None,
) -> tuple[str, str, int]:
    """Kind, phase and FLOPs of what is no convolution."""
    packet = func.overloadpacket
    if packet in _PRODUCTS:
        return "linear", "", flops.result if flops is not None else 0
    if packet in _NORMS or packet in _NORM_GRADIENTS:
        count = flops.result + flops.input_gradient + flops.weight_gradient if flops is not None else 0
        return "norm", "forward" if packet in _NORMS else "input_gradient", count
    if packet in _POOLS:  # each place looks at its window
        return "pool", "forward", made[0].numel() * prod(args[1])
    if packet in _POOL_GRADIENTS:
        return "pool", "input_gradient", args[0].numel()
    count = sum(tensor.numel() for tensor in made) if packet in _COSTLY else 0
    # What is written where it was read needs no new memory.
    return ("in_place", "forward", count) if func._schema.is_mutable else ("elementwise", "", count)


def _convolution(
    phase: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    strides: Sequence[int],
    is_transposed: bool,
    groups: int,
) -> Piece:
    taps, inputs = prod(weight.shape[2:]), x.shape[1]
    outputs = weight.shape[1] * groups if is_transposed else weight.shape[0]
    wide, channels = (x, inputs) if is_transposed else (y, outputs)
    images = x.shape[0] or 1
    places = wide.numel() // channels // images
    strided = is_transposed or any(step > 1 for step in strides)
    kind = convolution_kind(images, places, inputs, taps, groups, strided=strided)
    sizes = {"forward": (x, weight, y), "input_gradient": (y, weight, x), "weight_gradient": (y, x, weight)}
    first, second, made = (tensor.nbytes for tensor in sizes[phase])
    figures = convolution_figures(kind, images, places, inputs, outputs, taps, groups, (first, second), made)
    return (kind, phase, *figures)


def _convolution_gradients(args: Sequence[Any]) -> tuple[Piece, ...]:
    y, x, weight, strides, is_transposed, groups, wanted = (args[n] for n in (0, 1, 2, 4, 7, 9, 10))
    phases = {"input_gradient": wanted[0], "weight_gradient": wanted[1] or wanted[2]}
    return tuple(
        _convolution(phase, x, weight, y, strides, is_transposed, groups)
        for phase, is_wanted in phases.items()
        if is_wanted
    )


def _bytes(read: Sequence[torch.Tensor], made: Sequence[torch.Tensor]) -> tuple[int, int]:
    """Read and written; and of new memory. What is broadcast is read as often as it is held."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*read, *made))
    there = set(map(id, read))
    return size, new_bytes(*(tensor.nbytes for tensor in made if id(tensor) not in there))


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
        for name, value in zip(FIGURES, figures, strict=True):
            found[kind, phase, name] += count * value
    return found


def as_work(found: Mapping[tuple[str, str, str], int]) -> tuple[Work, ...]:
    """The same as records, in order."""
    places = sorted({(kind, phase) for kind, phase, _ in found})
    return tuple(
        Work(kind, phase, *(found.get((kind, phase, name), 0) for name in FIGURES)) for kind, phase in places
    )
