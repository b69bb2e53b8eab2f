"""TinyTL: small residual branches at half resolution, biases and the head; the rest saves next to nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import gcd, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from advisor.methods import register
from advisor.methods.base import Method
from advisor.models.layers import CONVOLUTIONS, uses_weight_as_is
from advisor.parts.attachment import Attachment, Setting, is_bias
from advisor.parts.bypass import LayerModule, add_bypass, merge_attached
from advisor.parts.frugal import freeze_frugally, padding_around, restore_forwards
from advisor.records import Census, Layer

_BRANCHED = ("standard", "pointwise", "grouped")
GROUPS = 2  # the paper's
_INTERPOLATION = ("linear", "bilinear", "trilinear")  # by spatial dimensions


class LiteResidual(nn.Module):
    """dy = up(U * relu(G * pool(x))): half the resolution in, so a quarter of the pixels is saved.

    G is a grouped k x k convolution C_in -> h with the layer's stride, U a 1x1 convolution h -> C_out,
    zero at the start; k is the layer's kernel size, 3 beside a 1x1. `up` interpolates to the layer's
    output. The official code normalises after G and U; here that would be statistics to keep.
    Pooling and the non-linearity mean that it can't be merged.
    """

    def __init__(self, layer: LayerModule, reduction: int) -> None:
        super().__init__()
        options: dict[str, Any] = {"bias": False, "device": layer.weight.device, "dtype": layer.weight.dtype}
        plain: Any = next(kind for kind in CONVOLUTIONS if isinstance(layer, kind))
        kernel, hidden, groups = branch_shape(layer.in_channels, layer.kernel_size, reduction)
        self.narrow = plain(
            layer.in_channels,
            hidden,
            kernel,
            stride=layer.stride,
            padding=tuple(size // 2 for size in kernel),
            groups=groups,
            **options,
        )
        self.widen = plain(hidden, layer.out_channels, 1, **options)
        nn.init.zeros_(self.widen.weight)
        self._layer = (layer,)  # only its geometry is read; a tuple hides it from the module tree

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The branch's output, to be added to the layer's."""
        size = _output_size(self._layer[0], x.shape[2:])
        residual = self.widen(F.relu(self.narrow(halve(x)), inplace=True))
        return F.interpolate(residual, size, mode=_INTERPOLATION[len(size) - 1])


@register
class LiteResiduals(Method):
    """A branch beside each convolution whose weight is larger than the branch.

    That is where the paper's blocks begin on networks of inverted bottlenecks (1x1 convolutions that
    widen), and every k x k convolution elsewhere; never a depthwise one. The normalisation layers'
    statistics are frozen: updating them would need each layer's input, half of what is saved. What
    stays saved is a quarter of each branch's input and a byte for each rectified element; other
    activations (SiLU, hard-swish) and layer or group normalisation still save their inputs.
    """

    name = "lite-residual"
    summary = "a small residual branch at half resolution beside convolutions, biases, and the head (TinyTL)"
    formula = "y = W∗x + b + up(U∗relu(G∗pool(x))); G grouped, U 1x1, b, β and the head trained"
    source = "TinyTL, arXiv 2007.11622, section 3.2"
    order = 150
    learning_rates = (1e-3, 5e-3, 2e-2)
    statistics = "frozen"
    variants = ({"reduction": 2}, {"reduction": 4})

    def suits(self, census: Census, setting: Setting) -> bool:
        """Each reduction C_in / h at which some convolution takes a branch."""
        reduction = int(setting["reduction"])
        return any(
            layer.calls and layer.name != census.head and _has_room(layer, reduction)
            for layer in census.of_type(*_BRANCHED)
        )

    def train(self, to: Attachment) -> Iterable[nn.Parameter]:
        """The branches, the biases and the head; what is frozen saves no more than it needs."""
        reduction = int(to.setting["reduction"])
        trained = to.head()
        for layer, module in to.layers():
            trained += _biases(layer, module)
            freeze_frugally(module)
        for layer, module in to.layers(*_BRANCHED):
            if _has_room(layer, reduction) and uses_weight_as_is(module):
                branch = LiteResidual(module, reduction)
                add_bypass(module, branch)
                trained += branch.parameters()
        return trained

    def merge(self, model: nn.Module) -> nn.Module:
        """Biases are the model's own and branches stay: only the layers' plain backward passes return."""
        restore_forwards(model)
        return merge_attached(model)


def halve(x: torch.Tensor) -> torch.Tensor:
    """x (N, C, ...) average-pooled by 2; a last odd pixel is left out, a single one kept.

    Sums of slices, because torch's own average pooling saves its input, the largest tensor here.
    """
    for axis in range(2, x.ndim):
        pairs = x.shape[axis] // 2
        if pairs:
            even, odd = x.narrow(axis, 0, 2 * pairs).unflatten(axis, (pairs, 2)).unbind(axis + 1)
            x = (even + odd) * 0.5
    return x


def branch_shape(
    channels: int, kernel_size: Sequence[int], reduction: int
) -> tuple[tuple[int, ...], int, int]:
    """Kernel, hidden channels and groups of the branch of a layer with that many input channels."""
    # Odd, so that padding keeps the size; 3 beside a 1x1 convolution, which has no reach of its own.
    kernel = tuple(3 if set(kernel_size) == {1} else size | 1 for size in kernel_size)
    hidden = max(channels // reduction // GROUPS * GROUPS, 1)
    return kernel, hidden, gcd(GROUPS, channels, hidden)


def _has_room(layer: Layer, reduction: int) -> bool:
    """Whether the convolution's weight is larger than a branch beside it."""
    outputs, inputs = layer.weight_shape[0], layer.weight_shape[1] * layer.groups
    kernel, hidden, groups = branch_shape(inputs, layer.kernel_size, reduction)
    return hidden * (inputs // groups * prod(kernel) + outputs) < prod(layer.weight_shape)


def _biases(layer: Layer, module: nn.Module) -> list[nn.Parameter]:
    # Of the layer's own; attention, one layer of the census, holds its projections'.
    inside = layer.layer_type != "other" or isinstance(module, nn.MultiheadAttention)
    return [p for name, p in module.named_parameters(recurse=inside) if is_bias(name)]


def _output_size(layer: LayerModule, size: Sequence[int]) -> list[int]:
    around = padding_around(layer)[::-1]
    return [
        (n + around[2 * axis] + around[2 * axis + 1] - dilation * (kernel - 1) - 1) // stride + 1
        for axis, (n, kernel, stride, dilation) in enumerate(
            zip(size, layer.kernel_size, layer.stride, layer.dilation, strict=True)
        )
    ]
