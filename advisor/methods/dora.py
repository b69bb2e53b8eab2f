"""DoRA: a weight's direction gets a low-rank change, its magnitude per output channel is trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import torch
from torch import nn

from advisor.methods import register
from advisor.methods.base import Method
from advisor.models.layers import uses_weight_as_is
from advisor.parts.attachment import Attachment, Setting
from advisor.parts.bypass import LayerModule, add_bypass, reparametrise
from advisor.parts.low_rank import (
    LowRank,
    Plan,
    attach_plans,
    each_rank,
    matrix_shape,
    output_norms,
    over_outputs,
)
from advisor.records import Layer

SCALE = 2.0  # as in LoRA
# The batch at which the two forms are compared. A constant, because a saved adapter has to find the
# form it was trained in, whatever the batch then: it is the command line's default.
REFERENCE_BATCH = 8


class DoRAWeight(nn.Module):
    """W' = m * V / ||V|| with V = W + scale * B A; the norm is taken over each output channel.

    The norm is a constant to the gradient (the paper's section 4.3), which keeps the result and
    saves a backward pass through it. `magnitude` has one element for each output channel.
    """

    def __init__(self, layer: LayerModule, rank: int) -> None:
        super().__init__()
        self.low_rank = LowRank(layer, rank, SCALE)
        self._layer = (layer,)  # only sizes and groups are read; a tuple hides it from the module tree
        self.magnitude = nn.Parameter(output_norms(layer.weight.detach(), layer))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight that the layer computes with."""
        layer = self._layer[0]
        direction = weight + self.low_rank.weight_change(layer)
        return direction * over_outputs(_gain(self.magnitude, direction, layer), weight, layer)


class DoRABypass(nn.Module):
    """The same as y = g * (W*x + scale * B*(A*x)) + bias, with g = m / ||W + scale * B A||.

    The gain g is one number for each output channel. Needs a layer that `uses_weight_as_is`.
    """

    def __init__(self, layer: LayerModule, rank: int) -> None:
        super().__init__()
        self.low_rank = LowRank(layer, rank, SCALE)
        self.magnitude = nn.Parameter(output_norms(layer.weight.detach(), layer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The low-rank bypass, to be added to the layer's output."""
        return self.low_rank(x)

    def rescale(self, output: torch.Tensor, layer: LayerModule) -> torch.Tensor:
        """The layer's own output plus the bypass, (N, C_out, ...), scaled without its bias."""
        with torch.no_grad():
            direction = self.low_rank.weight_change(layer).add_(layer.weight)
        positions = 0 if isinstance(layer, nn.Linear) else len(layer.kernel_size)
        spread = (-1, *[1] * positions)
        gain = _gain(self.magnitude, direction, layer).view(spread)
        if layer.bias is None:
            return output * gain
        bias = layer.bias.view(spread)
        # In place where nothing is saved: the product alone needs its factor, the output, for g's gradient.
        return (output.sub_(bias) * gain).add_(bias)

    def weight_change(self, layer: LayerModule) -> torch.Tensor:
        """W' - W in the shape of the layer's weight."""
        direction = layer.weight + self.low_rank.weight_change(layer)
        gain = _gain(self.magnitude, direction, layer)
        return direction * over_outputs(gain, direction, layer) - layer.weight


@register
class DoRA(Method):
    """On each layer the form that holds less from the forward to the backward pass.

    The weight form convolves once with the recomposed weight and holds nothing extra per pixel, but
    the direction and the recomposed weight; the bypass form runs beside the convolution and holds its
    output, and the r channels of A, for each pixel. Outputs and gradients are the same.
    """

    name = "dora"
    summary = "LoRA on each weight's direction, its magnitude per output channel trained too, and the head"
    formula = "W' = m·(W + (α/r)·BA)/‖W + (α/r)·BA‖; A, B, m and the head trained"
    source = "DoRA, arXiv 2402.09353, eq. 5 and section 4.3"
    order = 80
    peft_type = "LORA"
    learning_rates = (5e-4, 2e-3, 1e-2)

    def grid(self, ranks: Sequence[int]) -> Iterable[Setting]:
        """Each rank."""
        return each_rank(ranks)

    def train(self, to: Attachment) -> Iterable[nn.Parameter]:
        """What recomposes every adapted weight, and the head; depthwise kernels are trained themselves."""
        return attach_plans(to, int(to.setting["rank"]), _adapt)


def bypass_holds_less(layer: Layer, rank: int) -> bool:
    """Whether 8 images' outputs of the layer and of A are fewer elements than two weights, call for call.

    8 P (C_out + r) < 2 C_out C_in/g k^2, with P the layer's output positions per image.
    """
    outputs, _, _ = matrix_shape(layer.weight_shape, layer.groups, layer.layer_type)
    by_bypass = REFERENCE_BATCH * layer.output_positions * (outputs + rank)
    return by_bypass < layer.calls * 2 * prod(layer.weight_shape)


def _adapt(layer: LayerModule, plan: Plan) -> nn.Module:
    if uses_weight_as_is(layer) and bypass_holds_less(plan.layer, plan.rank):
        bypass = DoRABypass(layer, plan.rank)
        add_bypass(layer, bypass)
        return bypass
    weight = DoRAWeight(layer, plan.rank)
    reparametrise(layer, weight)
    return weight


def _gain(magnitude: torch.Tensor, direction: torch.Tensor, layer: LayerModule) -> torch.Tensor:
    """m / ||V|| for each output channel, (C_out,); no gradient flows through the norm."""
    norms = output_norms(direction.detach(), layer)
    # A channel whose weights are all zero has no direction; it stays zero instead of NaN.
    return magnitude / norms.clamp_min(torch.finfo(norms.dtype).tiny)
