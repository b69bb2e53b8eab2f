"""Sparse update: some output channels of every convolution and linear layer are trained, and the head."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from advisor.methods import register
from advisor.methods.base import Method
from advisor.models.layers import TRANSPOSED, uses_weight_as_is
from advisor.parts.attachment import Attachment
from advisor.parts.bypass import LayerModule, merge_attached, reparametrise
from advisor.parts.frugal import Geometry, replace_forward, restore_forwards, slide
from advisor.parts.low_rank import ADAPTED_TYPES, output_norms

CHILD = "peft_sparse"  # the child that holds a layer's trained channels


class TrainedChannels(nn.Module):
    """The chosen output channels of one layer: a trained copy of their weights.

    `rows` is (R, C_in/g, k, k) for every kind of convolution, transposed ones too, and (R, C_in) for
    a linear layer; `outputs`, (R,), says which channels they are, in the order of the groups. Where a
    group has too few outputs to choose among, whole groups are chosen, as in a depthwise layer, and
    `inputs` says which channels those read. The largest norms are chosen: a channel that training
    left at zero is not worth its gradient.
    """

    def __init__(self, layer: LayerModule, fraction: float) -> None:
        super().__init__()
        weight, self.groups = layer.weight.detach(), getattr(layer, "groups", 1)
        self.transposed = isinstance(layer, TRANSPOSED)
        norms = output_norms(weight, layer).unflatten(0, (self.groups, -1))
        each = norms.shape[1]
        self.kept_groups, kept = share(each, self.groups, fraction)
        self.inputs: torch.Tensor | None
        self.outputs: torch.Tensor
        if self.kept_groups == self.groups:
            columns = norms.topk(kept, dim=1).indices.sort(dim=1).values
            first = torch.arange(0, self.groups * each, each, device=weight.device)
            outputs, inputs = (columns + first.unsqueeze(1)).flatten(), None
        else:
            chosen = norms.norm(dim=1).topk(self.kept_groups).indices.sort().values
            outputs = _members(chosen, each)
            inputs = _members(chosen, layer.in_channels // self.groups)
        self.register_buffer("outputs", outputs)
        self.register_buffer("inputs", inputs)
        rows = self.by_output(weight, self.groups).index_select(0, outputs)
        self.rows = nn.Parameter(rows)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The layer's weight with the trained channels in place."""
        merged = self.by_output(weight, self.groups).index_copy(0, self.outputs, self.rows)
        return self.by_output(merged, self.groups)

    def by_output(self, weight: torch.Tensor, groups: int) -> torch.Tensor:
        """The weight with its output channels first; of such a weight, the layer's own form again."""
        if not self.transposed:
            return weight
        return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


class _SparseConvolution(torch.autograd.Function):
    """Saves what a convolution saves; the weight's gradient is computed for the chosen channels alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        rows: torch.Tensor,
        weight: torch.Tensor,
        layer: LayerModule,
        geometry: Geometry,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, rows)
        ctx.layer, ctx.geometry = layer, geometry
        return geometry.convolve(x, weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, rows = ctx.saved_tensors
        channels, geometry = ctx.layer.get_submodule(CHILD), ctx.geometry
        dx = d_rows = None
        if ctx.needs_input_grad[0]:
            # Made again rather than saved: together the merged weights are as large as the model.
            dx = geometry.input_gradient(dy, x.shape, channels(ctx.layer.weight))
        if ctx.needs_input_grad[1]:
            groups = channels.kept_groups
            read = x if channels.inputs is None else x.index_select(1, channels.inputs)
            chosen = dy.index_select(1, channels.outputs)
            like = channels.by_output(rows, groups)
            d_rows = channels.by_output(geometry.weight_gradient(chosen, read, like, groups), groups)
        return dx, d_rows, None, None, None


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, rows: torch.Tensor, transposed: torch.Tensor, layer: LayerModule
    ) -> torch.Tensor:
        ctx.save_for_backward(x, rows)
        ctx.layer = layer
        # Not F.linear, which transposes first: `costs.recorder` tells a layer from a change of weights
        # by its first operator, which has to read x.
        flat = x.flatten(0, -2)
        y = flat.mm(transposed) if layer.bias is None else torch.addmm(layer.bias, flat, transposed)
        # Not y.view(...): what follows may write to the result in place, which a view made here forbids.
        return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], y.shape[-1]))

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, _ = ctx.saved_tensors
        channels = ctx.layer.get_submodule(CHILD)
        dx = dy @ channels(ctx.layer.weight) if ctx.needs_input_grad[0] else None
        chosen = dy.index_select(-1, channels.outputs).flatten(0, -2)
        return dx, chosen.mT @ x.flatten(0, -2), None, None


@register
class Sparse(Method):
    """The weight gradient's FLOPs, the gradients and the optimizer's state shrink to the fraction.

    What is saved for the backward pass does not: it is the layer's input, which the activation before
    it usually holds anyway. Choosing input channels, as MCUNetV3's own engine does, would save a part
    of it again beside that.
    """

    name = "sparse"
    summary = "a share of each convolution's and linear layer's output channels, and the head"
    formula = "W'[S] trained, W' = W elsewhere; S: output channels with the largest ‖W[s]‖; the head trained"
    source = "sparse update, arXiv 2206.15472, section 2.2; channels by magnitude as in its code"
    order = 160
    learning_rates = (5e-4, 2e-3, 1e-2)
    variants = ({"fraction": 0.125}, {"fraction": 0.25})

    def train(self, to: Attachment) -> Iterable[nn.Parameter]:
        """The chosen channels and the head."""
        trained = to.head()
        for layer, module in to.layers(*ADAPTED_TYPES):
            channels = TrainedChannels(module, float(to.setting["fraction"]))
            if uses_weight_as_is(module) and not parametrize.is_parametrized(module):
                module.add_module(CHILD, channels)
                replace_forward(module, _linear if layer.layer_type == "linear" else _convolution)
            else:
                reparametrise(module, channels)
                to.notes.append(f"{layer.name}: its whole weight gradient is computed: it changes its weight")
            trained.append(channels.rows)
        return trained

    def merge(self, model: nn.Module) -> nn.Module:
        """Write the trained channels into the weights."""
        layer: LayerModule
        channels: Any
        for layer in list(model.modules()):
            channels = layer._modules.get(CHILD)
            if channels is not None:
                with torch.no_grad():
                    layer.weight.copy_(channels(layer.weight))
                delattr(layer, CHILD)
        restore_forwards(model)
        return merge_attached(model)


def share(each: int, groups: int, fraction: float) -> tuple[int, int]:
    """How many groups are trained, and how many of the `each` outputs in every one of those."""
    if groups == 1 or int(each * fraction) >= 1:
        return groups, max(int(each * fraction), 1)
    return max(int(groups * fraction), 1), each


def _members(groups: torch.Tensor, each: int) -> torch.Tensor:
    """The channels of the given groups, `each` of them in every group."""
    return (groups.unsqueeze(1) * each + torch.arange(each, device=groups.device)).flatten()


def _convolution(layer: LayerModule, x: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
    x, geometry = slide(layer, x, output_size)
    channels = layer.get_submodule(CHILD)
    with torch.no_grad():
        weight = channels(layer.weight)
    return _SparseConvolution.apply(x, channels.rows, weight, layer, geometry)


def _linear(layer: LayerModule, x: torch.Tensor) -> torch.Tensor:
    channels = layer.get_submodule(CHILD)
    with torch.no_grad():
        transposed = channels(layer.weight).mT
    return _SparseLinear.apply(x, channels.rows, transposed, layer)
