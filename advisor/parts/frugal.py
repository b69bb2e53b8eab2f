"""Layers that keep for their backward pass only what a frozen weight needs.

torch saves a convolution's input, a normalisation layer's input and a rectifier's output whether or
not their gradients are asked for. With its weight frozen a convolution needs the weight alone, a
normalisation layer in eval mode its scale, and a rectifier one bit for each element (a byte here).
Forward passes are torch's own operators, so outputs are unchanged to the bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from advisor.models.layers import CONVOLUTIONS, TRANSPOSED, uses_weight_as_is
from advisor.models.padded import convolve_only, pad_first
from advisor.parts.bypass import LayerModule

aten = torch.ops.aten
_PLAIN_NORM = nn.modules.batchnorm._BatchNorm
_RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.Hardtanh)


class _Replaced(functools.partial[torch.Tensor]):
    """A forward pass of ours: told apart from one that someone else put on the instance."""


def replace_forward(layer: nn.Module, compute: Callable[..., torch.Tensor]) -> None:
    """Run `compute(layer, x)` as the layer's forward pass; its path, class and weights stay."""
    # A partial, not a closure: it is copied, and pickled, along with the layer that it holds.
    layer.forward = _Replaced(compute, layer)


def restore_forwards(model: nn.Module) -> None:
    """Undo every `replace_forward`."""
    for module in model.modules():
        if isinstance(vars(module).get("forward"), _Replaced):
            del module.forward
            convolve_only(module)


def freeze_frugally(layer: nn.Module) -> bool:
    """Give the layer a lean backward pass where its class has one, which says whether it has.

    Only the bias may be trained, and running statistics must be frozen.
    """
    if isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED)) and uses_weight_as_is(layer):
        replace_forward(layer, _frozen_convolution)
    elif isinstance(layer, _PLAIN_NORM) and type(layer).forward is _PLAIN_NORM.forward:
        replace_forward(layer, _frozen_norm)
    elif type(layer) in _RECTIFIERS:
        replace_forward(layer, _rectifier)
    else:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a convolution slides: everything but its tensors."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    def convolve(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x (N, C_in, ...) -> (N, C_out, ...)."""
        return aten.convolution(x, weight, bias, *self._arguments(self.groups))

    def input_gradient(self, dy: torch.Tensor, shape: torch.Size, weight: torch.Tensor) -> torch.Tensor:
        """Of an input of `shape`, whose values don't matter."""
        x = dy.new_empty(1).expand(shape)
        arguments = self._arguments(self.groups)
        return aten.convolution_backward(dy, x, weight, None, *arguments, [True, False, False])[0]

    def weight_gradient(
        self, dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, groups: int
    ) -> torch.Tensor:
        """Of a weight with that many groups, whose values don't matter."""
        return aten.convolution_backward(dy, x, weight, None, *self._arguments(groups), [False, True, False])[
            1
        ]

    def _arguments(self, groups: int) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.transposed, self.output_padding, groups


def slide(
    layer: LayerModule, x: torch.Tensor, output_size: list[int] | None = None
) -> tuple[torch.Tensor, Geometry]:
    """The input, padded where the convolution itself can't pad so, and the geometry that is left.

    `output_size` is what a transposed convolution may be called with.
    """
    dimensions = len(layer.kernel_size)
    padding, output_padding, transposed = layer.padding, (0,) * dimensions, _is_transposed(layer)
    if transposed:
        output_padding = layer._output_padding(
            *(x, output_size, layer.stride, layer.padding, layer.kernel_size, dimensions, layer.dilation)
        )
    else:
        x = pad_first(layer, x)
        around = padding_around(layer)
        padding = tuple(around[::-2])
        if layer.padding_mode != "zeros" or padding != tuple(around[-2::-2]):
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            x, padding = F.pad(x, around, mode=mode), (0,) * dimensions
    return x, Geometry(layer.stride, padding, layer.dilation, transposed, output_padding, layer.groups)


def padding_around(layer: LayerModule) -> list[int]:
    """A convolution's padding before and after each axis, the last axis first, as `F.pad` takes it."""
    if isinstance(layer.padding, str):
        return list(layer._reversed_padding_repeated_twice)
    return [size for size in reversed(layer.padding) for _ in range(2)]


def _is_transposed(layer: LayerModule) -> bool:
    return isinstance(layer, TRANSPOSED)


class _FrozenConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, geometry: Geometry
    ) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.geometry, ctx.shape = geometry, x.shape
        return geometry.convolve(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        dx = ctx.geometry.input_gradient(dy, ctx.shape, weight) if wanted[0] else None
        return dx, None, _sum_over_pixels(dy) if wanted[2] else None, None


class _FrozenNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, layer: LayerModule
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, layer.running_var)
        ctx.eps = layer.eps
        return F.batch_norm(x, layer.running_mean, layer.running_var, weight, bias, eps=layer.eps)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, variance = ctx.saved_tensors
        dx = None
        if ctx.needs_input_grad[0]:
            scale = (variance + ctx.eps).rsqrt()
            scale = scale if weight is None else scale * weight
            dx = dy * scale.view(-1, *[1] * (dy.ndim - 2))
        return dx, None, _sum_over_pixels(dy) if ctx.needs_input_grad[2] else None, None


class _Rectifier(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, low: float, high: float, inplace: bool) -> torch.Tensor:
        passes = x > low if high == float("inf") else (x > low).logical_and_(x < high)
        ctx.save_for_backward(passes)
        if not inplace:
            return x.clamp(low, high)
        ctx.mark_dirty(x)
        return x.clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (passes,) = ctx.saved_tensors
        return dy * passes, None, None, None


def _sum_over_pixels(dy: torch.Tensor) -> torch.Tensor:
    return dy.sum([axis for axis in range(dy.ndim) if axis != 1])


def _frozen_convolution(
    layer: LayerModule, x: torch.Tensor, output_size: list[int] | None = None
) -> torch.Tensor:
    x, geometry = slide(layer, x, output_size)
    return _FrozenConvolution.apply(x, layer.weight, layer.bias, geometry)


def _frozen_norm(layer: LayerModule, x: torch.Tensor) -> torch.Tensor:
    if layer.training or layer.running_var is None:
        return type(layer).forward(layer, x)
    return _FrozenNorm.apply(x, layer.weight, layer.bias, layer)


def _rectifier(layer: LayerModule, x: torch.Tensor) -> torch.Tensor:
    low, high = (0.0, float("inf")) if isinstance(layer, nn.ReLU) else (layer.min_val, layer.max_val)
    return _Rectifier.apply(x, low, high, layer.inplace)
