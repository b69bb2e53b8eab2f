"""AdaBN: BatchNorm statistics re-estimated on the new data, nothing trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from advisor.methods import register
from advisor.methods.base import Setting, Trainable, merge_attached, train_only
from advisor.records import Census, Levers


@register
class Recalibrate:
    """The mean and variance over the new data replace the stored ones; no gradient, no optimizer."""

    name = "recalibrate"
    summary = "BatchNorm statistics re-estimated on the new data; nothing is trained"
    formula = "μ, σ² ← mean over the new batches of their mean and variance"
    source = "AdaBN, arXiv 1603.04779"
    learns_classes = False
    learning_rates: tuple[float, ...] = ()

    def settings(self, census: Census, ranks: Sequence[int]) -> Iterable[Setting]:  # noqa: ARG002
        """One, where the model has running statistics."""
        return [{}] if any(layer.tracks_statistics for layer in census.layers) else []

    def attach(self, model: nn.Module, census: Census, setting: Setting) -> Trainable:  # noqa: ARG002
        """Freeze every weight; an update then only moves the statistics."""
        return train_only(model, (), "reestimated", setting)

    def optimizer(
        self,
        trainable: Trainable,  # noqa: ARG002
        levers: Levers,  # noqa: ARG002
        learning_rate: float,  # noqa: ARG002
    ) -> torch.optim.Optimizer | None:
        """None: nothing is trained."""
        return None

    merge = staticmethod(merge_attached)
