"""Convolutions of a class of their own that only pad their input first, told by what they compute.

TensorFlow's "same" padding, which torch's convolutions lack with a stride, makes every port of such a
network bring such a class. A layer is recognised by running a small copy of it: its one convolution
must read the layer's own weight and bias, and the input padded with zeros by a known rule.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

_KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FUNCTIONS = (F.conv1d, F.conv2d, F.conv3d)
_MACHINERY = {*vars(nn.Module()), "forward", "_compiled_call_impl"}
_SIZES = {"in_channels", "out_channels", "groups"}  # the copy has small ones
_ATTACHED = "peft_"  # what methods add to a layer: none of its own
_BEYOND = (0, 1, 2, 3, 5, 8, 40)  # pixels more than the kernel reaches: every remainder of usual strides


@dataclass(frozen=True, slots=True)
class FirstPadding:
    """What the layer pads by, before its convolution pads in its own way.

    `around` is as `F.pad` takes it, the last axis first; None: as TensorFlow's "same" does, so that an
    axis of n pixels comes to ceil(n / stride).
    """

    around: tuple[int, ...] | None

    def of(self, layer: Any, size: Sequence[int]) -> tuple[int, ...]:
        """Pixels before and after each axis of an input of that size (H, W), the last axis first."""
        if self.around is not None:
            return self.around
        geometry = zip(size, layer.kernel_size, layer.stride, layer.dilation, strict=True)
        return _same([max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0) for n, k, s, d in geometry])


def first_padding(layer: nn.Module) -> FirstPadding | None:
    """How a convolution pads first; None where its class is torch's own, or does something else."""
    kind = next((kind for kind in _KINDS if isinstance(layer, kind)), None)
    if kind is None:
        return None
    own = type(layer)
    if own.forward is kind.forward and own._conv_forward is kind._conv_forward:  # type: ignore[attr-defined]
        return None
    try:
        key = _signature(layer)
    except _UnknownError:
        return None
    if key not in _verdicts:
        try:
            # Whatever the caller is about, such as a simulation: the copy has values.
            with _disable_current_modes(), torch.no_grad():
                _verdicts[key] = _verdict(layer)
        except Exception:  # noqa: BLE001 - a class may ask for what the copy lacks
            _verdicts[key] = None
    return _verdicts[key]


def pad_first(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """The input as the layer's convolution reads it; itself where nothing is added, or `pad_once` did."""
    if _is_padded_once(layer):
        return x
    padding = first_padding(layer)
    return x if padding is None else _padded(layer, padding, x)


def pad_once(layer: Any) -> None:
    """Pad before the layer is called, so that what runs beside it reads the padded input, too."""
    padding = first_padding(layer)
    if padding is not None and not _is_padded_once(layer):
        layer.register_forward_pre_hook(_Before(_pad_input, padding))
        convolve_only(layer)


def convolve_only(layer: Any) -> None:
    """Let a layer that `pad_once` pads for run as torch's own class, unless another forward is put on it."""
    if _is_padded_once(layer) and "forward" not in vars(layer):
        kind: Any = next(kind for kind in _KINDS if isinstance(layer, kind))
        layer.forward = _Convolving(kind.forward, layer)


def pad_itself(layer: Any) -> None:
    """Undo `pad_once`."""
    for key, hook in list(layer._forward_pre_hooks.items()):
        if isinstance(hook, _Before):
            del layer._forward_pre_hooks[key]
    if isinstance(vars(layer).get("forward"), _Convolving):
        del layer.forward


# Partials, not closures: they are copied, and pickled, along with the layer.
class _Before(partial[Any]):
    """The hook of ours."""


class _Convolving(partial[torch.Tensor]):
    """The forward pass of ours."""


def _pad_input(padding: FirstPadding, layer: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (_padded(layer, padding, args[0]), *args[1:])


def _padded(layer: Any, padding: FirstPadding, x: torch.Tensor) -> torch.Tensor:
    around = padding.of(layer, x.shape[-len(layer.kernel_size) :])
    return F.pad(x, around) if any(around) else x


def _is_padded_once(layer: Any) -> bool:
    return any(isinstance(hook, _Before) for hook in layer._forward_pre_hooks.values())


def _same(totals: Sequence[int]) -> tuple[int, ...]:
    return tuple(part for total in reversed(totals) for part in (total // 2, total - total // 2))


class _UnknownError(Exception):
    """A layer holds what can't be compared, or copied small."""


_verdicts: dict[Any, FirstPadding | None] = {}


def _signature(module: Any) -> Any:
    """All that the outputs of layers of one class depend on, but for the weights and their sizes."""
    held = tuple((name, _plain(value)) for name, value in _attributes(module))
    children = []
    for name, child in _children(module):
        if child is not None and (child._parameters or child._buffers):
            raise _UnknownError
        children.append((name, child and _signature(child)))
    own: tuple[Any, ...] = ()
    if isinstance(module, _KINDS):
        if set(module._parameters) != {"weight", "bias"} or module._buffers:
            raise _UnknownError
        own = _small_sizes(module), module._parameters["bias"] is None
    return type(module), held, tuple(children), own


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if name not in _MACHINERY and not (name in _SIZES and isinstance(module, _KINDS)):
            yield name, value


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module | None]]:
    for name, child in module._modules.items():
        if not name.startswith(_ATTACHED):
            yield name, child


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if value is None or isinstance(value, int | float | str | torch.dtype | torch.device):
        return value
    raise _UnknownError


def _small_sizes(layer: Any) -> tuple[int, int, int]:
    """(C_in, C_out, groups) of the copy: of each up to two."""
    groups = min(layer.groups, 2)
    inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    return min(inputs, 2) * groups, min(outputs, 2) * groups, groups


def _verdict(layer: Any) -> FirstPadding | None:
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return None
    generator = torch.Generator().manual_seed(0)
    random = partial(torch.rand, generator=generator, dtype=torch.float64, device="cpu")
    small = _small_copy(layer, random)
    reach = [(k - 1) * d + 1 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
    found: dict[tuple[int, ...], tuple[int, ...] | None] = {}
    for number in range(2 * len(_BEYOND)):
        # No two axes alike: which one is padded how must not be mistaken.
        size = tuple(n + _BEYOND[(number + 3 * axis) % len(_BEYOND)] for axis, n in enumerate(reach))
        small.train(number >= len(_BEYOND))
        around = _seen(small, random(2, small.in_channels, *size) + 0.5)
        if found.setdefault(size, around) != around or around is None:
            return None
    same = FirstPadding(None)
    every = set(found.values())
    if len(every) == 1:
        return FirstPadding(every.pop())
    return same if all(same.of(layer, size) == around for size, around in found.items()) else None


def _seen(layer: Any, x: torch.Tensor) -> tuple[int, ...] | None:
    """What the layer pads x by; None where it does anything but that and its convolution."""
    with _Convolutions() as seen:
        y = layer(x)
    if len(seen.calls) != 1:
        return None
    padded, weight, bias, stride, padding, dilation, _, _, groups = seen.calls[0]
    own = list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups
    if weight is not layer.weight or bias is not layer.bias or (stride, padding, dilation, groups) != own:
        return None
    plain = _FUNCTIONS[x.ndim - 3](padded, layer.weight, layer.bias, *own)
    return _around(x, padded) if y.shape == plain.shape and torch.allclose(y, plain) else None


def _small_copy(layer: Any, random: partial[torch.Tensor]) -> Any:
    """A layer of the same class and attributes with few channels, and random weights on the CPU."""
    kind: Any = type(layer)
    small: Any = kind.__new__(kind)
    nn.Module.__init__(small)
    for name, value in _attributes(layer):
        vars(small)[name] = copy.copy(value)
    inputs, outputs, groups = _small_sizes(layer)
    small.in_channels, small.out_channels, small.groups = inputs, outputs, groups
    small.weight = nn.Parameter(random(outputs, inputs // groups, *layer.kernel_size) + 0.5)
    small.bias = None if layer.bias is None else nn.Parameter(random(outputs) + 0.5)
    for name, child in _children(layer):
        small._modules[name] = copy.deepcopy(child)
    return small


class _Convolutions(TorchDispatchMode):
    """The arguments of each convolution that runs while it lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.calls.append(args)
        return func(*args, **(kwargs or {}))


def _around(x: torch.Tensor, padded: torch.Tensor) -> tuple[int, ...] | None:
    """What zeros are around x, which has none; None where `padded` is not just that."""
    around: list[int] = []
    for axis in range(x.ndim - 1, 1, -1):
        nonzero = padded.transpose(0, axis).flatten(1).any(1).nonzero().flatten()
        if not len(nonzero):
            return None
        before = int(nonzero[0])
        around += [before, padded.shape[axis] - x.shape[axis] - before]
    if min(around, default=0) < 0 or not torch.equal(F.pad(x, around), padded):
        return None
    return tuple(around)
