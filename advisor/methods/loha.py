"""LoHa: each weight's change is the elementwise product of two low-rank products."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from advisor.methods import register
from advisor.methods.base import Method
from advisor.parts.attachment import Attachment, Setting
from advisor.parts.bypass import LayerModule, reparametrise
from advisor.parts.low_rank import LowRank, Plan, WeightForm, attach_plans, each_rank, plan_product

SCALE = 2.0  # as in LoRA


class HadamardProduct(nn.Module):
    """dW = scale * (B1 A1) ⊙ (B2 A2): rank r^2 from two pairs of rank r, each as in `LowRank`.

    B2 is zero at the start, and the entries of B1 A1 have variance 1: B2 A2 then moves the weight as
    far in one update as LoRA's B A does.
    """

    def __init__(self, layer: LayerModule, rank: int, scale: float) -> None:
        super().__init__()
        self.first = LowRank(layer, rank, 1.0)
        self.second = LowRank(layer, rank, scale)
        groups = getattr(layer, "groups", 1)
        nn.init.normal_(self.first.down.weight)
        nn.init.normal_(self.first.up.weight, std=(groups / rank) ** 0.5)

    def weight_change(self, layer: LayerModule) -> torch.Tensor:
        """dW in the shape of the layer's weight."""
        # The gradients need both products, each as large as the weight: made again, not held.
        return checkpoint(self._product, layer, use_reentrant=False, preserve_rng_state=False)

    def _product(self, layer: LayerModule) -> torch.Tensor:
        return self.first.weight_change(layer) * self.second.weight_change(layer)


@register
class LoHa(Method):
    """Weight form: one convolution with W + dW. Twice LoRA's parameters at the same rank."""

    name = "loha"
    summary = "an elementwise product of two low-rank changes of each weight, and the head"
    formula = "W' = W + (α/r)·(B₁A₁)⊙(B₂A₂); A₁, B₁, A₂, B₂ and the head trained, B₂ = 0 at the start"
    source = "LyCORIS, arXiv 2309.14859, eq. 3; the product is FedPara's, arXiv 2108.06098, proposition 1"
    order = 90
    peft_type = "LOHA"
    learning_rates = (5e-4, 2e-3, 1e-2)

    def grid(self, ranks: Sequence[int]) -> Iterable[Setting]:
        """Each rank."""
        return each_rank(ranks)

    def train(self, to: Attachment) -> Iterable[nn.Parameter]:
        """What changes every adapted weight, and the head; depthwise kernels are trained themselves."""
        return attach_plans(to, int(to.setting["rank"]), _adapt, plan=partial(plan_product, products=2))


def _adapt(layer: LayerModule, plan: Plan) -> nn.Module:
    hadamard = HadamardProduct(layer, plan.rank, SCALE)
    reparametrise(layer, WeightForm(layer, hadamard))
    return hadamard
