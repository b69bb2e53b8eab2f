"""BitFit: every bias and normalisation shift, and the head."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from advisor.methods import register
from advisor.methods.base import Method
from advisor.parts.attachment import Attachment, is_bias
from advisor.records import Census


@register
class Bias(Method):
    """Every parameter named a bias, and the head."""

    name = "bias"
    summary = "every bias and normalisation shift, and the head (BitFit)"
    formula = "y = W·x + b; b, β and the head trained"
    source = "BitFit, arXiv 2106.10199"
    order = 40
    learning_rates = (1e-3, 5e-3, 2e-2)

    def applies(self, census: Census) -> bool:
        """Where any layer besides the head has a bias."""
        elsewhere = any(layer.has_bias and layer.name != census.head for layer in census.layers)
        return super().applies(census) and elsewhere

    def train(self, to: Attachment) -> Iterable[nn.Parameter]:
        """The biases and the head; statistics are updated."""
        listed = {id(parameter) for parameter in to.every_parameter()}
        named = to.model.named_parameters()
        return [*to.head(), *(p for name, p in named if id(p) in listed and is_bias(name))]
