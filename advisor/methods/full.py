"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from advisor.methods import register
from advisor.methods.base import Method
from advisor.parts.attachment import Attachment
from advisor.records import BASELINE, Census


@register
class Full(Method):
    """W <- W - lr * Adam(dL/dW) for every weight."""

    name = BASELINE
    summary = "every weight is trained"
    formula = "W ← W − η·Adam(∂L/∂W)"
    source = "the baseline"
    order = 10
    learning_rates = (1e-4, 5e-4, 2e-3)

    def applies(self, census: Census) -> bool:
        """Wherever there is a weight."""
        return census.parameters > 0

    def train(self, to: Attachment) -> Iterable[nn.Parameter]:
        """Everything; statistics are updated."""
        return to.every_parameter()
