"""Normalisation affine parameters and the head."""

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
class Norm:
    """Scale and shift of every normalisation layer, and the head."""

    name = "norm"
    summary = "scale and shift of every normalisation layer, and the head"
    formula = "y = γ·(x − μ)/σ + β; γ, β and the head trained"
    source = "BatchNorm-only training, arXiv 2003.00152"
    learns_classes = True
    learning_rates = (1e-3, 5e-3, 2e-2)

    def settings(self, census: Census, ranks: Sequence[int]) -> Iterable[Setting]:  # noqa: ARG002
        """One, where the model has trainable normalisation layers and a head."""
        has_affine = any(layer.has_affine for layer in census.layers)
        return [{}] if has_affine and census.head is not None else []

    def attach(self, model: nn.Module, census: Census, setting: Setting) -> Trainable:
        """Train the affine parameters and the head; statistics are updated."""
        trained = head_parameters(model, census)
        for layer in census.of_type("norm"):
            trained += model.get_submodule(layer.name).parameters(recurse=False)
        return train_only(model, trained, "updated", setting)

    optimizer = staticmethod(plain_optimizer)
    merge = staticmethod(merge_attached)
