"""Adapters: Conv-Adapter's bottleneck, Rebuffi's parallel 1x1 and AdaptFormer's bottleneck, and the head."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from advisor.errors import InputError
from advisor.methods import register
from advisor.methods.base import Method
from advisor.models.layers import CONVOLUTIONS, uses_weight_as_is
from advisor.models.padded import first_padding
from advisor.parts.attachment import Attachment, Setting
from advisor.parts.bypass import LayerModule, add_bypass
from advisor.records import Census

_ADAPTED_TYPES = {  # by kind
    # No depthwise layers: their pointwise neighbours mix the channels that an adapter there would mix again.
    "conv": ("standard", "pointwise", "grouped"),
    "parallel": ("standard", "depthwise", "grouped"),
    "linear": ("linear",),
}


class ConvAdapter(nn.Module):
    """dy = s * U(relu(D x)): D a depthwise k x k convolution C_in -> h, U a 1x1 convolution h -> C_out.

    h = C_in // reduction, taken down to a divisor of C_in; D has h groups and the layer's stride,
    padding and dilation, so receptive fields match. s is a scale for each output channel. U is zero
    at the start. The non-linearity means that it can't be merged.
    """

    def __init__(self, layer: LayerModule, reduction: int) -> None:
        super().__init__()
        options: dict[str, Any] = {"bias": False, "device": layer.weight.device, "dtype": layer.weight.dtype}
        plain: Any = next(kind for kind in CONVOLUTIONS if isinstance(layer, kind))
        hidden = bottleneck(layer.in_channels, reduction)
        self.down = plain(
            layer.in_channels,
            hidden,
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=hidden,
            padding_mode=layer.padding_mode,
            **options,
        )
        self.up = plain(hidden, layer.out_channels, 1, **options)
        nn.init.zeros_(self.up.weight)
        shape = (layer.out_channels, *[1] * len(layer.kernel_size))
        self.scale = nn.Parameter(torch.ones(shape, device=options["device"], dtype=options["dtype"]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The adapter's output, to be added to the layer's."""
        return self.up(F.relu(self.down(x))) * self.scale


class ParallelAdapter(nn.Module):
    """dy = A * x with A a 1x1 convolution of the layer's stride and groups, zero at the start.

    It reads the pixel under the kernel's middle tap, so merging adds A to that tap. Of an input that the
    layer has padded first (`models.padded`), that is further inside by as much as the kernel reaches.
    """

    def __init__(self, layer: LayerModule) -> None:
        super().__init__()
        plain: Any = next(kind for kind in CONVOLUTIONS if isinstance(layer, kind))
        self.mix = plain(
            layer.in_channels,
            layer.out_channels,
            1,
            stride=layer.stride,
            groups=layer.groups,
            bias=False,
            device=layer.weight.device,
            dtype=layer.weight.dtype,
        )
        nn.init.zeros_(self.mix.weight)
        self._inset = _inset(layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The adapter's output, to be added to the layer's."""
        for axis, inset in enumerate(self._inset, start=2):
            x = x.narrow(axis, inset, x.shape[axis] - 2 * inset) if inset else x
        return self.mix(x)

    def weight_change(self, layer: LayerModule) -> torch.Tensor:
        """A at the middle tap of a kernel that is zero elsewhere, in the shape of the layer's weight."""
        change = torch.zeros_like(layer.weight)
        middle = tuple(size // 2 for size in layer.kernel_size)
        change[(..., *middle)] = self.mix.weight.flatten(1)
        return change


class LinearAdapter(nn.Sequential):
    """dy = U relu(D x): D linear, inputs -> inputs // reduction, U on to the outputs, zero at the start.

    AdaptFormer's constant scale is left out: with U zero at the start and Adam, it is a learning rate.
    The non-linearity means that it can't be merged.
    """

    def __init__(self, layer: LayerModule, reduction: int) -> None:
        options: dict[str, Any] = {"bias": False, "device": layer.weight.device, "dtype": layer.weight.dtype}
        hidden = max(layer.in_features // reduction, 1)
        down = nn.Linear(layer.in_features, hidden, **options)
        up = nn.Linear(hidden, layer.out_features, **options)
        nn.init.zeros_(up.weight)
        super().__init__(down, nn.ReLU(), up)


@register
class Adapter(Method):
    """Beside each layer of the types that its `kind` adapts."""

    name = "adapter"
    summary = "a small layer beside each convolution or linear layer, and the head"
    formula = (
        "conv: y = W∗x + s·U∗relu(D∗x);  parallel: y = W∗x + A∗x with A 1x1;  linear: y = W·x + U·relu(D·x); "
        "D, U, s, A and the head trained"
    )
    source = (
        "Conv-Adapter, arXiv 2208.07463, eq. 2; parallel residual adapters, arXiv 1803.10082, eq. 2; "
        "AdaptFormer, arXiv 2205.13535, eq. 3, beside each linear layer"
    )
    order = 120
    learning_rates = (5e-4, 2e-3, 1e-2)
    variants = ({"kind": "conv", "reduction": 8}, {"kind": "parallel"}, {"kind": "linear", "reduction": 8})

    def suits(self, census: Census, setting: Setting) -> bool:
        """Each kind where it has a layer to adapt."""
        layers = census.of_type(*_ADAPTED_TYPES[str(setting["kind"])])
        return any(layer.name != census.head for layer in layers)

    def train(self, to: Attachment) -> Iterable[nn.Parameter]:
        """The adapters and the head. InputError where no adapter finds room."""
        adapters: list[nn.Parameter] = []
        kind = str(to.setting["kind"])
        for layer, module in to.layers(*_ADAPTED_TYPES[kind]):
            if not uses_weight_as_is(module):
                continue
            if kind == "parallel" and not _reads_middle_pixel(module):
                continue
            bypass = _beside(module, to.setting)
            size = sum(parameter.numel() for parameter in bypass.parameters())
            if size >= module.weight.numel():
                sizes = f"{size} parameters, as many as its weight's {module.weight.numel()}"
                to.notes.append(f"{layer.name}: no adapter: {sizes}")
                continue
            add_bypass(module, bypass)
            adapters += bypass.parameters()
        if not adapters:
            which = "linear layer" if kind == "linear" else "convolution"
            raise InputError(f"no {which} has room for an adapter beside it")
        return [*to.head(), *adapters]


def _beside(layer: LayerModule, setting: Setting) -> nn.Module:
    match setting["kind"]:
        case "parallel":
            return ParallelAdapter(layer)
        case "linear":
            return LinearAdapter(layer, int(setting["reduction"]))
        case _:
            return ConvAdapter(layer, int(setting["reduction"]))


def bottleneck(channels: int, reduction: int) -> int:
    """The largest divisor of `channels` that is at most channels // reduction, at least 1."""
    return next(size for size in range(max(channels // reduction, 1), 0, -1) if channels % size == 0)


def _reads_middle_pixel(layer: LayerModule) -> bool:
    """Whether output pixel i has input pixel i * stride under its middle tap, k > 1.

    Or, of a layer that pads first, that pixel further inside the padded input.
    """
    if set(layer.kernel_size) == {1} or any(size % 2 == 0 for size in layer.kernel_size):
        return False
    if isinstance(layer.padding, str):
        return layer.padding == "same"
    inset = _inset(layer)
    return min(inset) >= 0 and (not any(inset) or first_padding(layer) is not None)


def _inset(layer: LayerModule) -> tuple[int, ...]:
    """For each axis, where the kernel's middle tap is first, from the edge of what the convolution reads."""
    if isinstance(layer.padding, str):
        return (0,) * len(layer.kernel_size)
    taps = zip(layer.kernel_size, layer.dilation, layer.padding, strict=True)
    return tuple(dilation * (size // 2) - padding for size, dilation, padding in taps)
