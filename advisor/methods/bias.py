"""BitFit: every bias and normalisation shift, and the head."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from advisor.methods import register
from advisor.methods.base import (
    Setting,
    Trainable,
    head_parameters,
    listed_parameters,
    merge_attached,
    plain_optimizer,
    train_only,
)
from advisor.records import Census


@register
class Bias:
    """Every parameter named a bias, and the head."""

    name = "bias"
    summary = "every bias and normalisation shift, and the head (BitFit)"
    formula = "y = W·x + b; b, β and the head trained"
    source = "BitFit, arXiv 2106.10199"
    learns_classes = True
    learning_rates = (1e-3, 5e-3, 2e-2)

    def settings(self, census: Census, ranks: Sequence[int]) -> Iterable[Setting]:  # noqa: ARG002
        """One, where any layer besides the head has a bias."""
        elsewhere = any(layer.has_bias and layer.name != census.head for layer in census.layers)
        return [{}] if elsewhere and census.head is not None else []

    def attach(self, model: nn.Module, census: Census, setting: Setting) -> Trainable:
        """Train the biases and the head; statistics are updated."""
        listed = {id(parameter) for parameter in listed_parameters(model, census)}
        biases = [
            parameter
            for name, parameter in model.named_parameters()
            # MultiheadAttention calls its own `in_proj_bias`.
            if id(parameter) in listed and name.rpartition(".")[2] in ("bias", "in_proj_bias")
        ]
        return train_only(model, [*head_parameters(model, census), *biases], "updated", setting)

    optimizer = staticmethod(plain_optimizer)
    merge = staticmethod(merge_attached)
