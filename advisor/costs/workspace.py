"""What kernels allocate inside one operator, and give back before it ends: reordered copies, scratch.

No shape tells it: it depends on the processor and on what the library chooses. So the operators that
may decide an update's peak - few of them - are run once, by themselves, on this machine, and the
allocator's own events are read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.profiler import ProfilerActivity, profile, record_function

aten = torch.ops.aten
# Those seen to allocate more than their results (measurements/memory_accuracy.py looks for others).
OPERATORS = {
    *(aten.convolution, aten.convolution_backward, aten.native_batch_norm, aten.native_batch_norm_backward),
    *(aten.native_layer_norm, aten.native_layer_norm_backward, aten.native_group_norm),
    *(aten.native_group_norm_backward, aten.roll),
    *(aten.upsample_bilinear2d, aten.upsample_bilinear2d_backward),
    *(aten._scaled_dot_product_flash_attention_for_cpu,),
    *(aten._scaled_dot_product_flash_attention_for_cpu_backward,),
}
# Elementwise ones of unlike types copy some of their arguments, in the type of the result, before they begin.
# The places of their weights and of the number of groups among their arguments.
_WEIGHT_AND_GROUPS = {aten.convolution: (1, 8), aten.convolution_backward: (2, 9)}
_MARK = "peft-advisor-operator"
_TENSOR = "tensor"

Call = tuple[Any, ...]  # an operator with its arguments, each tensor's shape instead of it; hashable


def call_of(
    func: torch._ops.OpOverload,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    read: Sequence[torch.Tensor],
) -> Call | None:
    """What has to be known of a call to make another one like it; None where it takes no workspace.

    Args:
        read: the tensors among its arguments.
    """
    if func.overloadpacket not in OPERATORS and ("out" in kwargs or not _converts(func, read)):
        return None
    return func, _described(args), _described(tuple(kwargs.items()))


def _converts(func: torch._ops.OpOverload, read: Sequence[torch.Tensor]) -> bool:
    """Whether an operator's arguments are of unlike types; numbers are converted one by one."""
    if len(read) < 2 or torch.Tag.pointwise not in func.tags:
        return False
    return len({tensor.dtype for tensor in read if tensor.ndim}) > 1


class Workspace:
    """The most that calls hold while they run, their results included; each measured once."""

    def __init__(self) -> None:
        self._known: dict[Call, int] = {}

    def peaks(self, calls: Iterable[Call]) -> dict[Call, int]:
        """Bytes above what is held before the call, by call."""
        wanted = dict.fromkeys(calls)
        missing = [call for call in wanted if call not in self._known]
        if missing:
            with unset_fake_temporarily():  # an update on fake tensors asks, but these have to be real
                self._known |= zip(missing, _measured(missing), strict=True)
        return {call: self._known[call] for call in wanted}

    def bound(self, call: Call, made: int) -> int:
        """No more than this, as far as is known: the measured bytes, or before that, a generous guess.

        Libraries hold, beside the results, a reordered copy of each of them and of each argument, with
        channels padded to a multiple of 16, and some scratch. `made` is the bytes of the results.
        """
        known = self._known.get(call)
        if known is not None:
            return known
        if call[0].overloadpacket is aten.native_batch_norm:
            return made + 2 * _bytes(call[1][3:5])  # a factor and a summand for each channel
        return _guessed(call) + int(2.35 * made)


def _measured(calls: Sequence[Call]) -> list[int]:
    buffers: dict[torch.dtype, torch.Tensor] = {}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for index, (func, args, kwargs) in enumerate(calls):
            made_args, made_kwargs = _made(args, buffers), dict(_made(kwargs, buffers))
            if func._schema.name.endswith("_"):  # what it writes to may share no memory with what it reads
                made_args = (made_args[0].clone(), *made_args[1:])
            with torch.no_grad(), record_function(f"{_MARK} {index}"):
                result = func(*made_args, **made_kwargs)
            del result
    marks: dict[int, tuple[int, int]] = {}
    changes: list[tuple[int, int]] = []
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            changes.append((event.start_ns(), event.nbytes()))
        elif event.name().startswith(_MARK):
            marks[int(event.name().rpartition(" ")[2])] = event.start_ns(), event.end_ns()
    changes.sort()
    times = [time for time, _ in changes]
    found = []
    for index in range(len(calls)):
        start, end = marks[index]
        inside = changes[bisect_left(times, start) : bisect_left(times, end)]
        found.append(max(accumulate((size for _, size in inside), initial=0)))
    return found


def _described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (_TENSOR, tuple(value.shape), tuple(value.stride()), value.dtype)
    if isinstance(value, list | tuple):
        return tuple(_described(item) for item in value)
    return value


def _made(value: Any, buffers: dict[torch.dtype, torch.Tensor]) -> Any:
    """The arguments again. Values don't matter, so all tensors of a type are views of the same memory."""
    if isinstance(value, tuple):
        if value and value[0] is _TENSOR:
            _, shape, strides, dtype = value
            spanned = max(1, 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)))
            if dtype not in buffers or buffers[dtype].numel() < spanned:
                # Ones: what a kernel reads must be no denormals; zeros: indices must be valid.
                buffers[dtype] = torch.full((spanned,), int(dtype.is_floating_point), dtype=dtype)
            return buffers[dtype].as_strided(shape, strides)
        return tuple(_made(item, buffers) for item in value)
    return value


@cache
def _guessed(call: Call) -> int:
    func, args, _ = call
    padded = 0
    if func.overloadpacket in _WEIGHT_AND_GROUPS:
        weight, groups = (args[place] for place in _WEIGHT_AND_GROUPS[func.overloadpacket])
        if groups > 1:  # each group's channels are padded: of depthwise weights that makes 256 times as many
            _, (channels, others, *kernel), _, dtype = weight
            per_group = -(-channels // groups // 16) * 16 * -(-others // 16) * 16
            padded = groups * per_group * prod(kernel) * dtype.itemsize
    return int(1.35 * _bytes(args)) + padded + 2**22


def _bytes(described: Any) -> int:
    if not isinstance(described, tuple):
        return 0
    if described and described[0] is _TENSOR:
        return prod(described[1]) * described[3].itemsize
    return sum(_bytes(item) for item in described)
