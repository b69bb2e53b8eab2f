"""Operators on meta tensors: run once for each combination of shapes, remembered after that.

A simulated update asks the same of the same operators over and over, and so does the next candidate's:
what an operator returns, and its FLOPs, follow from its arguments' shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from advisor.costs.flops import OperatorFlops, operator_flops
from advisor.costs.workspace import OPERATORS, Call, call_of

_Template = tuple[torch.Size, tuple[int, ...], torch.dtype]
_AGAIN = object()  # cheap to run, or not a matter of shapes: run every time
_FIRST = object()  # only changes its first argument's values, which a meta tensor has none of


class DeviceNeededError(Exception):
    """What an operator does here depends on the device, so meta tensors can't stand for the CPU's."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of an operator's calls with arguments of certain shapes."""

    behaviour: Any  # its result, without the values; or how to get it
    flops: OperatorFlops | None
    call: Call | None  # where it may need workspace


class OperatorMemo:
    """What each operator returned for each combination of shapes. Shared by all that is simulated."""

    def __init__(self) -> None:
        self._known: dict[Any, Known] = {}
        self._cpu = FakeTensorMode()

    def run(
        self, func: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, Known]:
        """The operator's result on meta tensors, and what else is known of such calls.

        Raises:
            DeviceNeededError: attention, which takes another path on the CPU.
        """
        key = (
            func,
            *[
                (arg.shape, arg.stride(), arg.dtype, arg.is_meta)
                if type(arg) in _TENSORS
                else arg
                if type(arg) in _HASHABLE
                else _signature(arg)
                for arg in args
            ],
            _signature(kwargs) if kwargs else None,
        )
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._learn(func, args, kwargs)
        behaviour = known.behaviour
        if behaviour is _FIRST:
            return args[0], known
        if behaviour is _AGAIN:
            return func(*args, **kwargs), known
        return _made(behaviour), known

    def _learn(self, func: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Known:
        if func.overloadpacket is torch.ops.aten._safe_softmax:
            raise DeviceNeededError("scaled_dot_product_attention is one fused kernel on the CPU")
        behaviour = self._behaviour(func, args, kwargs, tensors_in((args, kwargs)))
        if behaviour is _FIRST:
            result = args[0]
        elif behaviour is _AGAIN:
            result = func(*args, **kwargs)
        else:
            result = _made(behaviour)
        call = call_of(func, args, kwargs) if func.overloadpacket in OPERATORS else None
        return Known(behaviour, operator_flops(func, args, kwargs, result), call)

    def _behaviour(
        self,
        func: torch._ops.OpOverload,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        read: Sequence[torch.Tensor],
    ) -> Any:
        if not read or func.is_view or not all(tensor.is_meta for tensor in read):
            return _AGAIN
        if func._schema.is_mutable:
            in_place = func._schema.name.endswith("_") and torch.Tag.inplace_view not in func.tags
            return _FIRST if in_place and func.overloadpacket not in _RESHAPING else _AGAIN
        packet = func.overloadpacket
        if packet in _LIKE_FIRST and _are_alike(read):
            return _template(read[0])
        if packet in _SAME_ON_META:
            return _template(func(*args, **kwargs))
        if packet in _BATCH_NORM:
            return _BATCH_NORM[packet](args)
        # As the CPU's kernel would: the meta device's own rules differ in small things.
        with self._cpu:
            on_cpu = {id(t): torch.empty_strided(t.shape, t.stride(), dtype=t.dtype) for t in read}
            fake_args, fake_kwargs = tree_map_only(
                torch.Tensor, lambda t: on_cpu[id(t)], (tuple(args), dict(kwargs))
            )
            result = func(*fake_args, **fake_kwargs)
        return _template(result) if _is_fresh(result, on_cpu.values()) else _AGAIN


class Remembering(TorchDispatchMode):
    """Every operator goes through the memo; nothing is recorded."""

    def __init__(self, memo: OperatorMemo) -> None:
        super().__init__()
        self._memo = memo

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Run one operator."""
        return self._memo.run(func, args, kwargs or {})[0]


aten = torch.ops.aten
_RESHAPING = {aten.resize_, aten.set_, aten.resize_as_}
# Of floating-point tensors of one shape they make another one: known without asking.
_LIKE_FIRST = {
    *(aten.add, aten.sub, aten.mul, aten.div, aten.neg, aten.sqrt, aten.rsqrt, aten.reciprocal),
    *(aten.relu, aten.hardtanh, aten.hardswish, aten.hardsigmoid, aten.silu, aten.gelu, aten.sigmoid),
    *(aten.threshold_backward, aten.hardtanh_backward, aten.hardswish_backward, aten.silu_backward),
    *(aten.hardsigmoid_backward, aten.gelu_backward, aten.sigmoid_backward, aten.addcmul, aten.addcdiv),
}


_SAME_ON_META = {
    *(aten.convolution, aten.convolution_backward, aten.mm, aten.addmm, aten.bmm),
    *(aten.empty_like, aten.new_empty, aten.zeros_like, aten.new_zeros),
}


def _batch_norm(args: Sequence[Any]) -> Any:
    # Saved for the backward pass: the batch's statistics; in eval mode the CPU's kernel saves none.
    x, training = args[0], args[5]
    saved = ((x.shape[1],) if training else (0,), (1,), x.dtype)
    return [_template(x), saved, saved]


def _batch_norm_backward(args: Sequence[Any]) -> Any:
    x, wanted = args[1], args[9]
    each = (_template(x), ((x.shape[1],), (1,), x.dtype), ((x.shape[1],), (1,), x.dtype))
    return [template if want else None for template, want in zip(each, wanted, strict=True)]


# The Python code that stands for them on other devices takes milliseconds.
_BATCH_NORM: dict[Any, Callable[[Sequence[Any]], Any]] = {
    aten.native_batch_norm: _batch_norm,
    aten.native_batch_norm_backward: _batch_norm_backward,
}


def _are_alike(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether they are floating-point tensors without gaps, all of one shape, layout and type."""
    first = tensors[0]
    kind = (first.shape, first.stride(), first.dtype)
    return (
        first.dtype.is_floating_point
        and _least_bytes(first) == first.numel() * first.element_size()
        and all((tensor.shape, tensor.stride(), tensor.dtype) == kind for tensor in tensors)
    )


def _is_fresh(result: Any, read: Iterable[torch.Tensor]) -> bool:
    """Whether the operator returned nothing but new tensors, each the whole of its storage."""
    storages = {tensor.untyped_storage()._cdata for tensor in read}
    made = tensors_in(result)
    return bool(made) and all(
        tensor.untyped_storage()._cdata not in storages
        and tensor.untyped_storage().nbytes() == _least_bytes(tensor)
        for tensor in made
    )


_TENSORS = (torch.Tensor, nn.Parameter)
_HASHABLE = {int, float, bool, str, type(None), torch.dtype}


def _signature(value: Any) -> Any:
    """An argument that is no tensor, or holds some, without their values; hashable."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype, value.is_meta
    if isinstance(value, list | tuple):
        return tuple(_signature(item) for item in value)
    if isinstance(value, dict):
        return tuple((name, _signature(item)) for name, item in value.items())
    return value


def _template(result: Any) -> Any:
    if isinstance(result, torch.Tensor):
        return (result.shape, result.stride(), result.dtype)
    if isinstance(result, list | tuple):
        return [_template(item) for item in result]
    return result


def _made(template: Any) -> Any:
    if type(template) is tuple:
        shape, stride, dtype = template
        return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    if type(template) is list:
        return tuple(_made(item) for item in template)
    return template


def _least_bytes(tensor: torch.Tensor) -> int:
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Every tensor in nested tuples, lists and dictionaries."""
    found: list[torch.Tensor] = []
    _collect(value, found)
    return found


def _collect(value: Any, found: list[torch.Tensor]) -> None:
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif isinstance(value, tuple | list):
        for item in value:
            if type(item) not in _HASHABLE:
                _collect(item, found)
    elif isinstance(value, dict):
        _collect(tuple(value.values()), found)
