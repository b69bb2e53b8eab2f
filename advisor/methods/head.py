"""Head only: the last classifier is trained, everything before it runs as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from advisor.methods import register
from advisor.methods.base import (
    Setting,
    Trainable,
    head_parameters,
    merge_attached,
    plain_optimizer,
    train_only,
)
from advisor.records import Census


@register
class Head:
    """Linear probing: nothing is back-propagated past the classifier."""

    name = "head"
    summary = "the last classifier is trained; BatchNorm statistics stay frozen"
    formula = "y = V·f(x) + c; V, c trained"
    source = "linear probing, arXiv 1610.01644"
    learns_classes = True
    learning_rates = (1e-3, 5e-3, 2e-2)

    def settings(self, census: Census, ranks: Sequence[int]) -> Iterable[Setting]:  # noqa: ARG002
        """One, where the model has a classifier layer."""
        return [{}] if census.head is not None else []

    def attach(self, model: nn.Module, census: Census, setting: Setting) -> Trainable:
        """Train the head; BatchNorm runs in eval mode, so features don't move."""
        return train_only(model, head_parameters(model, census), "frozen", setting)

    optimizer = staticmethod(plain_optimizer)
    merge = staticmethod(merge_attached)
