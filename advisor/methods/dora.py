"""DoRA: a weight's direction gets a low-rank change, its magnitude per output channel is trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from advisor.methods import register
from advisor.methods.base import (
    LayerModule,
    Setting,
    Trainable,
    merge_attached,
    plain_optimizer,
    reparametrise,
)
from advisor.methods.low_rank import LowRank, Plan, attach_plans, output_norms, over_outputs, plan_layers
from advisor.records import Census

SCALE = 2.0  # as in LoRA


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
        norms = output_norms(direction.detach(), layer)
        # A channel whose weights are all zero has no direction; it stays zero instead of NaN.
        gain = self.magnitude / norms.clamp_min(torch.finfo(norms.dtype).tiny)
        return direction * over_outputs(gain, weight, layer)


@register
class DoRA:
    """Weight form: one convolution with the recomposed weight, so nothing extra is saved per pixel."""

    name = "dora"
    summary = "LoRA on each weight's direction, its magnitude per output channel trained too, and the head"
    formula = "W' = m·(W + (α/r)·BA)/‖W + (α/r)·BA‖; A, B, m and the head trained"
    source = "DoRA, arXiv 2402.09353, eq. 5 and section 4.3"
    learns_classes = True
    learning_rates = (5e-4, 2e-3, 1e-2)

    def settings(self, census: Census, ranks: Sequence[int]) -> Iterable[Setting]:
        """Each rank."""
        return [{"rank": rank} for rank in ranks] if census.head is not None else []

    def attach(self, model: nn.Module, census: Census, setting: Setting) -> Trainable:
        """Recompose every adapted weight; depthwise kernels are trained themselves."""
        plans = plan_layers(census, int(setting["rank"]))
        return attach_plans(model, census, setting, plans, _adapt)

    optimizer = staticmethod(plain_optimizer)
    merge = staticmethod(merge_attached)


def _adapt(layer: LayerModule, plan: Plan) -> nn.Module:
    weight = DoRAWeight(layer, plan.rank)
    reparametrise(layer, weight)
    return weight
