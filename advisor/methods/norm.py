"""Normalisation affine parameters and the head."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from advisor.methods import register
from advisor.methods.base import Method
from advisor.parts.attachment import Attachment
from advisor.records import Census


@register
class Norm(Method):
    """Scale and shift of every normalisation layer, and the head."""

    name = "norm"
    summary = "scale and shift of every normalisation layer, and the head"
    formula = "y = γ·(x − μ)/σ + β; γ, β and the head trained"
    source = "BatchNorm-only training, arXiv 2003.00152"
    order = 30
    learning_rates = (1e-3, 5e-3, 2e-2)

    def applies(self, census: Census) -> bool:
        """Where there are trainable normalisation layers and a head."""
        return super().applies(census) and any(layer.has_affine and layer.calls for layer in census.layers)

    def train(self, to: Attachment) -> Iterable[nn.Parameter]:
        """The affine parameters and the head; statistics are updated."""
        return [*to.head(), *to.norms()]
