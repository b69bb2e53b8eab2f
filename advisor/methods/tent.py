"""TENT: normalisation layers adapted without labels, by how sure the network is."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from advisor.methods import register
from advisor.methods.base import Method
from advisor.parts.attachment import Attachment
from advisor.records import Census


def entropy(outputs: torch.Tensor, _labels: torch.Tensor) -> torch.Tensor:
    """Mean entropy, in nats, of the softmax of outputs (N, classes); the labels are not looked at."""
    logs = outputs.log_softmax(1)
    return -(logs.exp() * logs).sum(1).mean()


@register
class Tent(Method):
    """Scale and shift of every normalisation layer, trained for the least entropy of the outputs.

    The paper normalises each test batch by its own statistics; a model that is shipped sees single
    images, so here the running statistics follow the batches, as in training.
    """

    name = "tent"
    summary = "scale and shift of every normalisation layer, trained without labels for surer outputs"
    formula = "γ, β ← least mean of H(p) = −Σ p·log p, with p = softmax(outputs)"
    source = "TENT, arXiv 2006.10726"
    order = 60
    learning_rates = (1e-4, 5e-4, 2e-3)
    learns_classes = False
    loss = staticmethod(entropy)

    def applies(self, census: Census) -> bool:
        """Where there are trainable normalisation layers."""
        return any(layer.has_affine and layer.calls for layer in census.layers)

    def train(self, to: Attachment) -> Iterable[nn.Parameter]:
        """The affine parameters alone; statistics are updated."""
        return to.norms()
