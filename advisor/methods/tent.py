"""TENT: normalisation layers adapted without labels, by how sure the network is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from advisor.methods import register
from advisor.methods.base import Setting, Trainable, merge_attached, plain_optimizer, train_only
from advisor.records import Census


@register
class Tent:
    """Scale and shift of every normalisation layer, trained for the least entropy of the outputs.

    The paper normalises each test batch by its own statistics; a model that is shipped sees single
    images, so here the running statistics follow the batches, as in training.
    """

    name = "tent"
    summary = "scale and shift of every normalisation layer, trained without labels for surer outputs"
    formula = "γ, β ← least mean of H(p) = −Σ p·log p, with p = softmax(outputs)"
    source = "TENT, arXiv 2006.10726"
    learns_classes = False
    learning_rates = (1e-4, 5e-4, 2e-3)

    def settings(self, census: Census, ranks: Sequence[int]) -> Iterable[Setting]:  # noqa: ARG002
        """One, where the model has trainable normalisation layers."""
        return [{}] if any(layer.has_affine for layer in census.layers) else []

    def attach(self, model: nn.Module, census: Census, setting: Setting) -> Trainable:
        """Train the affine parameters alone; statistics are updated."""
        trained = [
            parameter
            for layer in census.of_type("norm")
            for parameter in model.get_submodule(layer.name).parameters(recurse=False)
        ]
        trainable = train_only(model, trained, "updated", setting)
        trainable.loss = entropy
        return trainable

    optimizer = staticmethod(plain_optimizer)
    merge = staticmethod(merge_attached)


def entropy(outputs: torch.Tensor, _labels: torch.Tensor) -> torch.Tensor:
    """Mean entropy, in nats, of the softmax of outputs (N, classes); the labels are not looked at."""
    logs = outputs.log_softmax(1)
    return -(logs.exp() * logs).sum(1).mean()
