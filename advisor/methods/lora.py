"""LoRA for convolutions of every kind and linear layers, and the head."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from advisor.methods import register
from advisor.methods.base import (
    LayerModule,
    Setting,
    Trainable,
    add_bypass,
    merge_attached,
    plain_optimizer,
    reparametrise,
)
from advisor.methods.low_rank import (
    DEPTHWISE_FORMS,
    Factor,
    LowRank,
    Plan,
    WeightForm,
    attach_plans,
    plan_layers,
)
from advisor.models.layers import uses_weight_as_is
from advisor.records import Census

SCALE = 2.0  # alpha / r with alpha = 2 r: the same step size at every rank


@register
class LoRA:
    """y = W*x + (alpha/r) B*(A*x): A a k x k convolution C_in -> r, B a 1x1 convolution r -> C_out.

    A carries the layer's stride, padding, dilation, groups and padding mode. Depthwise kernels are
    trained themselves (`depthwise=kernel`), factorised (`factor`) or left alone (`skip`).
    """

    name = "lora"
    summary = "a low-rank bypass beside each convolution and linear layer, and the head"
    formula = "y = W∗x + (α/r)·B∗(A∗x); A, B and the head trained, B = 0 at the start"
    source = "LoRA, arXiv 2106.09685, eq. 3; convolutions as in Hugging Face PEFT"
    learns_classes = True
    learning_rates = (5e-4, 2e-3, 1e-2)

    def settings(self, census: Census, ranks: Sequence[int]) -> Iterable[Setting]:
        """Each rank; where there are depthwise layers, the middle rank in their other forms too."""
        if census.head is None:
            return []
        settings: list[Setting] = [{"rank": rank} for rank in ranks]
        if census.of_type("depthwise"):
            middle = ranks[len(ranks) // 2]
            settings += [{"rank": middle, "depthwise": form} for form in DEPTHWISE_FORMS[1:]]
        return settings

    def attach(self, model: nn.Module, census: Census, setting: Setting) -> Trainable:
        """Add the bypasses; everything else but the head is frozen."""
        plans = plan_layers(census, int(setting["rank"]), str(setting.get("depthwise", "kernel")))
        return attach_plans(model, census, setting, plans, _adapt)

    optimizer = staticmethod(plain_optimizer)
    merge = staticmethod(merge_attached)


def _adapt(layer: LayerModule, plan: Plan) -> nn.Module:
    if plan.form == "factor":
        factor = Factor(layer, plan.rank, SCALE)
        reparametrise(layer, factor)
        return factor
    low_rank = LowRank(layer, plan.rank, SCALE)
    if uses_weight_as_is(layer):
        add_bypass(layer, low_rank)
    else:
        reparametrise(layer, WeightForm(layer, low_rank))
    return low_rank
