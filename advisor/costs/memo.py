"""Operators on meta tensors: run once for each combination of shapes, remembered after that.

A simulated update asks the same of the same operators over and over, and so does the next candidate's:
what an operator returns, and its FLOPs, follow from its arguments' shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from advisor.costs.attention import DeviceNeededError, check_attention
from advisor.costs.flops import OperatorFlops, operator_flops
from advisor.costs.work import Piece, work_of
from advisor.costs.workspace import Call, call_of

_Template = tuple[torch.Size, tuple[int, ...], torch.dtype]
_AGAIN = object()  # cheap to run, or not a matter of shapes: run every time
_FIRST = object()  # only changes its first argument's values, which a meta tensor has none of


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of an operator's calls with arguments of certain shapes."""

    behaviour: Any  # its result, without the values; or how to get it
    flops: OperatorFlops | None
    call: Call | None  # where it may need workspace
    work: tuple[Piece, ...] = ()


class OperatorMemo:
    """What each operator returned for each combination of shapes. Shared by all that is simulated."""

    def __init__(self) -> None:
        self._known: dict[Any, Known] = {}
        self._cpu = FakeTensorMode()
        self._fake: dict[_Template, torch.Tensor] = {}  # arguments to ask about, by what they are like

    def run(
        self, func: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, Known, list[torch.Tensor]]:
        """The operator's result on meta tensors, what else is known of such calls, and the tensors it reads.

        Raises:
            DeviceNeededError: attention that takes another path on the CPU, and what runs under autocast.
        """
        read: list[torch.Tensor] = []
        key: list[Any] = [func]
        for arg in args:
            kind = type(arg)
            if kind in _TENSORS:
                read.append(arg)
                key.append((arg.shape, arg.stride(), arg.dtype, arg.is_meta))
            else:
                key.append(arg if kind in _HASHABLE else _signature(arg, read))
        if kwargs:
            key.append(_signature(kwargs, read))
        call = tuple(key)
        known = self._known.get(call)
        if known is None:
            known = self._known[call] = self._learn(func, args, kwargs, read)
        behaviour = known.behaviour
        if behaviour is _FIRST:
            return args[0], known, read
        if behaviour is _AGAIN:
            return func(*args, **kwargs), known, read
        return _made(behaviour), known, read

    def _learn(
        self,
        func: torch._ops.OpOverload,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        read: Sequence[torch.Tensor],
    ) -> Known:
        check_attention(func)
        if torch.is_autocast_enabled("cpu"):
            raise DeviceNeededError("autocast is the device's: it leaves meta tensors as they are")
        behaviour = self._behaviour(func, args, kwargs, read)
        if behaviour is _FIRST:
            result = args[0]
        elif behaviour is _AGAIN:
            result = func(*args, **kwargs)
        else:
            result = _made(behaviour)
        call = call_of(func, args, kwargs, read)
        flops = operator_flops(func, args, kwargs, result)
        return Known(behaviour, flops, call, work_of(func, args, result, read, tensors_in(result), flops))

    def _behaviour(
        self,
        func: torch._ops.OpOverload,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        read: Sequence[torch.Tensor],
    ) -> Any:
        packet = func.overloadpacket
        is_view = func.is_view or packet is aten._unsafe_view
        if packet is aten.empty and kwargs.get("device") == _META:
            return _template(func(*args, **kwargs))
        if not read or is_view or not all(tensor.is_meta for tensor in read):
            return _AGAIN
        if func._schema.is_mutable:
            in_place = func._schema.name.endswith("_") and torch.Tag.inplace_view not in func.tags
            return _FIRST if in_place and packet not in _RESHAPING else _AGAIN
        known = _known_from_shapes(packet, args, kwargs, read)
        if known is not None:
            return known
        if packet in _SAME_ON_META or (packet in _CONVOLUTIONS and all(t.is_contiguous() for t in read)):
            return _template(func(*args, **kwargs))
        # As the CPU's kernel would: the meta device's own rules differ in small things.
        with self._cpu:
            on_cpu = {id(tensor): self._on_cpu(_template(tensor)) for tensor in read}
            fake_args, fake_kwargs = tree_map_only(
                torch.Tensor, lambda t: on_cpu[id(t)], (tuple(args), dict(kwargs))
            )
            result = func(*fake_args, **fake_kwargs)
        return _template(result) if _is_fresh(result, on_cpu.values()) else _AGAIN

    def _on_cpu(self, template: _Template) -> torch.Tensor:
        made = self._fake.get(template)
        if made is None:
            shape, stride, dtype = template
            made = self._fake[template] = torch.empty_strided(shape, stride, dtype=dtype)
        return made


class UncompiledMode(TorchDispatchMode):
    """A mode under which nothing is compiled: asking, at every operator, takes a tenth of the time."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class Remembering(UncompiledMode):
    """Every operator goes through the memo; nothing is recorded but the FLOPs of all results."""

    def __init__(self, memo: OperatorMemo) -> None:
        super().__init__()
        self._memo = memo
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Run one operator."""
        result, known, _ = self._memo.run(func, args, kwargs or {})
        self.flops += known.flops.result if known.flops is not None else 0
        return result


aten = torch.ops.aten
_RESHAPING = {aten.resize_, aten.set_, aten.resize_as_}
# Of floating-point tensors of one shape they make another one: known without asking.
_LIKE_FIRST = {
    *(aten.add, aten.sub, aten.mul, aten.div, aten.neg, aten.sqrt, aten.rsqrt, aten.reciprocal),
    *(aten.relu, aten.hardtanh, aten.hardswish, aten.hardsigmoid, aten.silu, aten.gelu, aten.sigmoid),
    *(aten.threshold_backward, aten.hardtanh_backward, aten.hardswish_backward, aten.silu_backward),
    *(aten.hardsigmoid_backward, aten.gelu_backward, aten.sigmoid_backward, aten.addcmul, aten.addcdiv),
    aten.clamp_min,
}


# Their shapes and layouts are found by one piece of code for both devices: asking it is quick.
_SAME_ON_META = {
    *(aten.mm, aten.addmm, aten.bmm),
    *(aten.empty_like, aten.new_empty, aten.new_empty_strided, aten.zeros_like, aten.new_zeros),
    *(aten.add, aten.sub, aten.mul, aten.div, aten.sum, aten.mean, aten.linalg_vector_norm),
    *(aten.topk, aten.sort),
}
# So are theirs, but for activations in channels-last layout, which not every meta kernel keeps.
_CONVOLUTIONS = {aten.convolution, aten.convolution_backward}


def _batch_norm(args: Sequence[Any]) -> Any:
    # Saved for the backward pass: the batch's statistics; in eval mode the CPU's kernel saves none.
    x, training = args[0], args[5]
    saved = ((x.shape[1],) if training else (0,), (1,), x.dtype)
    return [_template(x), saved, saved]


def _batch_norm_backward(args: Sequence[Any]) -> Any:
    x, wanted = args[1], args[9]
    each = (_template(x), ((x.shape[1],), (1,), x.dtype), ((x.shape[1],), (1,), x.dtype))
    return [template if want else None for template, want in zip(each, wanted, strict=True)]


def _selected(args: Sequence[Any]) -> Any:
    x, dimension, index = args
    shape = list(x.shape)
    shape[dimension] = index.numel()
    return _contiguous(shape, x.dtype)


def _upsampled(args: Sequence[Any]) -> Any:
    x, size = args[0], args[1]
    return _contiguous((*x.shape[:2], *size), x.dtype)


def _convolved(args: Sequence[Any]) -> Any:
    x, weight, _, stride, padding, dilation, transposed, _, groups = args
    kernel = weight.shape[2:]
    if transposed or x.shape[1] != weight.shape[1] * groups or len(stride) != len(kernel):
        return None
    windows = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    sizes = [(n + 2 * pad - gap * (k - 1) - 1) // step + 1 for n, k, step, pad, gap in windows]
    return _contiguous((x.shape[0], weight.shape[0], *sizes), x.dtype) if min(sizes) > 0 else None


def _convolution_gradients(args: Sequence[Any]) -> Any:
    _, x, weight, biases, *_, wanted = args
    each = [_contiguous(shape, x.dtype) for shape in (x.shape, weight.shape, biases or (0,))]
    return [template if want else None for template, want in zip(each, wanted, strict=True)]


def _broadcast(args: Sequence[Any]) -> Any:
    shapes = [arg.shape for arg in args if isinstance(arg, torch.Tensor)]
    try:
        shape = torch.broadcast_shapes(*shapes)
    except RuntimeError:
        return None
    # Where a dimension has one element, its stride follows from more than the shapes.
    return None if 1 in shape else _contiguous(shape, args[0].dtype)


def _compared(args: Sequence[Any]) -> Any:
    x, other = args
    return None if isinstance(other, torch.Tensor) else _contiguous(x.shape, torch.bool)


def _decomposed(args: Sequence[Any]) -> Any:
    x = args[0]
    if x.ndim != 2 or len(args) > 1:  # otherwise the thin decomposition is asked for, as by default
        return None
    (rows, columns), least = x.shape, min(x.shape)
    shapes = ((rows, least), (1, rows)), ((least,), (1,)), ((least, columns), (1, least))
    return [(torch.Size(shape), strides, x.dtype) for shape, strides in shapes]


def _known_from_shapes(
    packet: Any, args: Sequence[Any], kwargs: Mapping[str, Any], read: Sequence[torch.Tensor]
) -> Any:
    """What an operator on meta tensors returns, without their values; None where it has to be asked."""
    if (packet in _LIKE_FIRST or (packet is aten.clone and not kwargs)) and _are_alike(read):
        return _template(read[0])
    if packet in _RULES and args[0].is_contiguous():
        return _RULES[packet](args)
    if packet in _RULES_OF_PLAIN and _are_plain(read):
        return _RULES_OF_PLAIN[packet](args)
    return None


# The Python code that stands for them on other devices takes milliseconds. Of contiguous tensors.
_RULES: dict[Any, Callable[[Sequence[Any]], Any]] = {
    aten.native_batch_norm: _batch_norm,
    aten.native_batch_norm_backward: _batch_norm_backward,
    aten.index_copy: lambda args: _template(args[0]),
    aten.index_select: _selected,
    aten.upsample_bilinear2d: _upsampled,
    aten.upsample_bilinear2d_backward: lambda args: _contiguous(args[2], args[0].dtype),
    aten.slice_backward: lambda args: _contiguous(args[1], args[0].dtype),
}
# Of plain tensors alone (`_are_plain`). None: it has to be asked.
_RULES_OF_PLAIN: dict[Any, Callable[[Sequence[Any]], Any]] = {
    aten.convolution: _convolved,
    aten.convolution_backward: _convolution_gradients,
    **dict.fromkeys((aten.add, aten.sub, aten.mul, aten.div), _broadcast),
    **dict.fromkeys((aten.gt, aten.lt), _compared),
    aten._linalg_svd: _decomposed,
}


def _contiguous(shape: Sequence[int], dtype: torch.dtype) -> _Template:
    strides = tuple(accumulate(reversed(shape[1:]), mul, initial=1))[::-1]
    return torch.Size(shape), strides, dtype


def _are_alike(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether they are floating-point tensors without gaps, all of one shape, layout and type."""
    first = tensors[0]
    kind = (first.shape, first.stride(), first.dtype)
    return (
        first.dtype.is_floating_point
        and _least_bytes(first) == first.numel() * first.element_size()
        and all((tensor.shape, tensor.stride(), tensor.dtype) == kind for tensor in tensors)
    )


def _are_plain(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether they are floating-point tensors of one type, each contiguous or one element all over."""
    dtype = tensors[0].dtype
    return dtype.is_floating_point and all(
        tensor.dtype == dtype and (tensor.is_contiguous() or not any(tensor.stride())) for tensor in tensors
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


_META = torch.device("meta")
_TENSORS = (torch.Tensor, nn.Parameter)
_HASHABLE = {int, float, bool, str, type(None), torch.dtype}


def _signature(value: Any, read: list[torch.Tensor]) -> Any:
    """An argument that is no tensor, or holds some, without their values; hashable. Tensors go to `read`."""
    if isinstance(value, torch.Tensor):
        read.append(value)
        return value.shape, value.stride(), value.dtype, value.is_meta
    if isinstance(value, list | tuple):
        return tuple([item if type(item) in _HASHABLE else _signature(item, read) for item in value])
    if isinstance(value, dict):
        return tuple([(name, _signature(item, read)) for name, item in value.items()])
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
        return torch.empty_strided(shape, stride, dtype=dtype, device=_META)
    if type(template) is list:
        return tuple([_made(item) for item in template])
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
