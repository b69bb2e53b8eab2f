"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from advisor.methods import register
from advisor.methods.base import (
    Setting,
    Trainable,
    listed_parameters,
    merge_attached,
    plain_optimizer,
    train_only,
)
from advisor.records import Census


@register
class Full:
    """W <- W - lr * Adam(dL/dW) for every weight."""

    name = "full"
    summary = "every weight is trained"
    formula = "W ← W − η·Adam(∂L/∂W)"
    source = "the baseline"
    learns_classes = True
    learning_rates = (1e-4, 5e-4, 2e-3)

    def settings(self, census: Census, ranks: Sequence[int]) -> Iterable[Setting]:  # noqa: ARG002
        """One."""
        return [{}]

    def attach(self, model: nn.Module, census: Census, setting: Setting) -> Trainable:
        """Train everything; statistics are updated."""
        return train_only(model, listed_parameters(model, census), "updated", setting)

    optimizer = staticmethod(plain_optimizer)
    merge = staticmethod(merge_attached)
