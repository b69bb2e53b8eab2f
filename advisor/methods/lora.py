"""LoRA for convolutions of every kind and linear layers, and the head."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from advisor.methods import register
from advisor.methods.base import Method
from advisor.models.layers import uses_weight_as_is
from advisor.parts.attachment import Attachment, Setting
from advisor.parts.bypass import LayerModule, add_bypass, reparametrise
from advisor.parts.low_rank import (
    DEPTHWISE_FORMS,
    Factor,
    LowRank,
    Plan,
    WeightForm,
    attach_plans,
    each_rank,
)
from advisor.records import Census

SCALE = 2.0  # alpha / r with alpha = 2 r: the same step size at every rank


@register
class LoRA(Method):
    """y = W*x + (alpha/r) B*(A*x): A a k x k convolution C_in -> r, B a 1x1 convolution r -> C_out.

    A carries the layer's stride, padding, dilation, groups and padding mode. Depthwise kernels are
    trained themselves (`depthwise=kernel`), factorised (`factor`) or left alone (`skip`).
    """

    name = "lora"
    summary = "a low-rank bypass beside each convolution and linear layer, and the head"
    formula = "y = W∗x + (α/r)·B∗(A∗x); A, B and the head trained, B = 0 at the start"
    source = "LoRA, arXiv 2106.09685, eq. 3; convolutions as in Hugging Face PEFT"
    order = 70
    peft_type = "LORA"
    learning_rates = (5e-4, 2e-3, 1e-2)

    def grid(self, ranks: Sequence[int]) -> Iterable[Setting]:
        """Each rank, and the middle one with depthwise layers in their other forms."""
        middle = ranks[len(ranks) // 2]
        others: list[Setting] = [{"rank": middle, "depthwise": form} for form in DEPTHWISE_FORMS[1:]]
        return [*each_rank(ranks), *others]

    def suits(self, census: Census, setting: Setting) -> bool:
        """A form of depthwise layers only where there are some."""
        return "depthwise" not in setting or bool(census.of_type("depthwise"))

    def train(self, to: Attachment) -> Iterable[nn.Parameter]:
        """The bypasses and the head."""
        depthwise = str(to.setting.get("depthwise", "kernel"))
        return attach_plans(to, int(to.setting["rank"]), _adapt, depthwise=depthwise)


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
