"""Low-rank weight changes: plans, rank caps, exact deltas and attaching, shared by LoRA and its kin.

A layer's change is dW = scale * B A, with A in the layer's own shape but r outputs and B a 1x1 map from
r to the layer's outputs - the shape that Hugging Face PEFT uses for ungrouped convolutions. With
groups g, A and B are grouped alike, so dW is block-diagonal as W is, and r is a multiple of g.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import nn

from advisor.models.layers import CONVOLUTIONS, TRANSPOSED
from advisor.parts.attachment import Attachment, Setting
from advisor.parts.bypass import LayerModule
from advisor.records import Layer

Form = Literal["low-rank", "factor", "kernel", "skip"]
ADAPTED_TYPES = ("standard", "pointwise", "depthwise", "grouped", "transposed", "linear")
# Depthwise kernels: trained as they are, factorised, or left alone; never a k x k bypass, which
# would be many times larger than the kernel itself.
DEPTHWISE_FORMS = ("kernel", "factor", "skip")


@dataclass(frozen=True, slots=True)
class Plan:
    """How one layer is adapted, and at which rank."""

    layer: Layer
    form: Form
    rank: int  # 0 for kernel and skip
    note: str = ""  # where the rank asked for could not be had


def plan_product(layer: Layer, rank: int, products: int = 1) -> Plan:
    """The rank asked for, capped where the adapter would hold more parameters than the weight.

    The adapter holds `products` pairs A, B: one for LoRA, two for LoHa. Where even the least legal rank
    costs more than the weight, the weight itself is trained.
    """
    groups = layer.groups  # the least legal rank: one for each group
    outputs, inputs, taps = matrix_shape(layer.weight_shape, groups, layer.layer_type)
    per_group_rank = products * (inputs * groups * taps + outputs)
    most = outputs * inputs * taps // per_group_rank * groups
    return capped(layer, max(rank // groups, 1) * groups, most, least=groups)


def capped(layer: Layer, wanted: int, most: int, least: int = 1) -> Plan:
    """Low-rank at `wanted` or, with a note, at `most`; the weight itself where `most` is below `least`."""
    if most < least:
        note = f"{layer.name}: weight trained itself: rank {least} would cost more than its parameters"
        return Plan(layer, "kernel", 0, note)
    if wanted > most:
        return Plan(layer, "low-rank", most, f"{layer.name}: rank {wanted} capped at {most}")
    return Plan(layer, "low-rank", wanted)


Planner = Callable[[Layer, int], Plan]


def each_rank(ranks: Sequence[int]) -> list[Setting]:
    """One setting for each rank."""
    return [{"rank": rank} for rank in ranks]


def plan_layer(layer: Layer, rank: int, depthwise: str = "kernel", plan: Planner = plan_product) -> Plan:
    """Depthwise layers are the same for every method; `plan` decides on the others."""
    if layer.layer_type == "depthwise":
        return _plan_depthwise(layer, rank, depthwise)
    return plan(layer, rank)


def attach_plans(
    to: Attachment,
    rank: int,
    adapt: Callable[[LayerModule, Plan], nn.Module],
    *,
    depthwise: str = "kernel",
    plan: Planner = plan_product,
) -> list[nn.Parameter]:
    """Plan every convolution and linear layer but the head, and carry the plans out.

    `adapt` attaches what a low-rank or factor plan asks for to its layer and returns the module whose
    parameters are trained.

    Returns:
        What is to be trained, the head included.
    """
    trained = to.head()
    for layer, module in to.layers(*ADAPTED_TYPES):
        planned = plan_layer(layer, rank, depthwise, plan)
        if planned.form == "kernel":
            trained.append(module.weight)
        elif planned.form != "skip":
            trained += adapt(module, planned).parameters()
        if planned.note:
            to.notes.append(planned.note)
    return trained


class LowRank(nn.Module):
    """A and B of one layer: dW = scale * B A.

    Shapes, for a convolution C_in -> C_out with groups g and kernel k: `down` is A, (r, C_in/g, k, k)
    ((C_in, r/g, k, k) transposed; (r, C_in) linear); `up` is B, (C_out, r/g, 1, 1) ((C_out, r)
    linear), zero at the start.
    Run as a bypass, it costs r/C_out of the layer and a 1x1 convolution; `weight_change` is the same
    change as a weight.
    """

    def __init__(self, layer: LayerModule, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        weight = layer.weight
        options: dict[str, Any] = {"bias": False, "device": weight.device, "dtype": weight.dtype}
        if isinstance(layer, nn.Linear):
            self.down: Any = nn.Linear(layer.in_features, rank, **options)
            self.up: Any = nn.Linear(rank, layer.out_features, **options)
        else:
            plain: Any = next(kind for kind in (*CONVOLUTIONS, *TRANSPOSED) if isinstance(layer, kind))
            shape: dict[str, Any] = {
                "kernel_size": layer.kernel_size,
                "stride": layer.stride,
                "padding": layer.padding,
                "dilation": layer.dilation,
                "groups": layer.groups,
                "padding_mode": layer.padding_mode,
            }
            if isinstance(layer, TRANSPOSED):
                shape["output_padding"] = layer.output_padding
            self.down = plain(layer.in_channels, rank, **shape, **options)
            mixing: Any = CONVOLUTIONS[len(layer.kernel_size) - 1]
            self.up = mixing(rank, layer.out_channels, 1, groups=layer.groups, **options)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The bypass: scale * B(A(x))."""
        return self.up(self.down(x) * self.scale)

    def weight_change(self, layer: LayerModule) -> torch.Tensor:
        """dW in the shape of the layer's weight."""
        return self.scale * product(self.down.weight, self.up.weight, layer)


class Factor(nn.Module):
    """A rank-r factorisation of a depthwise kernel seen as a (C, k*k) matrix, in weight form.

    `down` is A, (r, k*k); `up` is B, (C, r), zero at the start. One convolution with W + scale * B A
    replaces the layer's own.
    """

    def __init__(self, layer: LayerModule, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        weight = layer.weight
        taps = weight[0].numel()
        options: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        self.down = nn.Parameter(torch.empty(rank, taps, **options))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, **options))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def change(self) -> torch.Tensor:
        """dW as a (C, k*k) matrix."""
        return self.scale * (self.up @ self.down)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """W + dW: the parametrization."""
        return weight + self.change().view_as(weight)


class WeightForm(nn.Module):
    """W + dW as a parametrization: of changes that no bypass computes, or beside which none is exact.

    `change` has a `weight_change(layer)`, dW in the shape of the layer's weight.
    """

    def __init__(self, layer: LayerModule, change: nn.Module) -> None:
        super().__init__()
        self.change: Any = change
        # Only sizes and groups are read from it; a tuple hides it from the module tree.
        self._layer = (layer,)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """W + dW."""
        return weight + self.change.weight_change(self._layer[0])


def product(down: torch.Tensor, up: torch.Tensor, layer: LayerModule) -> torch.Tensor:
    """B A as a weight of `layer`: one matrix product, batched over the groups."""
    if isinstance(layer, nn.Linear):
        return up @ down
    groups, taps = layer.groups, prod(layer.kernel_size)
    inputs, outputs = layer.in_channels // groups, layer.out_channels // groups
    b = up.reshape(groups, outputs, -1)
    if isinstance(layer, TRANSPOSED):
        # (C_in, r/g, k...) -> for each group: W[i, o, k] = sum over q of A[i, q, k] B[o, q]
        a = down.reshape(groups, inputs, b.shape[-1], taps)
        kernel = b.unsqueeze(1) @ a
        return kernel.reshape(layer.in_channels, outputs, *layer.kernel_size)
    a = down.reshape(groups, b.shape[-1], inputs * taps)
    return torch.bmm(b, a).reshape(layer.out_channels, inputs, *layer.kernel_size)


def matrix_shape(weight_shape: Sequence[int], groups: int, layer_type: str) -> tuple[int, int, int]:
    """(C_out, C_in/g, taps) of a weight: (C_out, C_in/g, k...), (C_in, C_out/g, k...) if transposed."""
    first, second, *kernel = weight_shape
    if layer_type == "transposed":
        first, second = second * groups, first // groups
    return first, second, prod(kernel)


def as_weight(matrix: torch.Tensor, layer: LayerModule) -> torch.Tensor:
    """A (C_out, C_in/g, taps) change in the shape of the layer's weight."""
    if isinstance(layer, nn.Linear):
        return matrix.flatten(1)
    if isinstance(layer, TRANSPOSED):
        # (g, C_out/g, C_in/g, taps) -> (g, C_in/g, C_out/g, taps)
        matrix = matrix.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
    return matrix.unflatten(2, layer.kernel_size)


def output_norms(weight: torch.Tensor, layer: LayerModule) -> torch.Tensor:
    """The Euclidean norm of each output channel's true (grouped) weight: (C_out,)."""
    if not isinstance(layer, TRANSPOSED):
        return weight.flatten(1).norm(dim=1)
    # Transposed weights are (C_in, C_out/g, k...): output (group, o) reads the rows of its group.
    by_group = weight.unflatten(0, (layer.groups, -1)).flatten(3)  # (g, C_in/g, C_out/g, taps)
    return by_group.norm(dim=(1, 3)).flatten()


def over_outputs(values: torch.Tensor, weight: torch.Tensor, layer: LayerModule) -> torch.Tensor:
    """One value for each output channel, (C_out,), in a shape that broadcasts with the weight."""
    if not isinstance(layer, TRANSPOSED):
        return values.view(-1, *[1] * (weight.ndim - 1))
    rows = values.view(layer.groups, 1, -1).expand(-1, weight.shape[0] // layer.groups, -1)
    return rows.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))


def _plan_depthwise(layer: Layer, rank: int, depthwise: str) -> Plan:
    if depthwise != "factor":
        return Plan(layer, "kernel" if depthwise == "kernel" else "skip", 0)
    channels, taps = layer.weight_shape[0], prod(layer.weight_shape[1:])
    most = channels * taps // (channels + taps)  # break-even of r (C + k^2) against C k^2
    if most < 1:
        return Plan(layer, "kernel", 0, f"{layer.name}: kernel trained itself: no rank is smaller")
    if rank > most:
        return Plan(layer, "factor", most, f"{layer.name}: rank {rank} capped at {most}")
    return Plan(layer, "factor", rank)
