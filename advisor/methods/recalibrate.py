"""BatchNorm statistics re-estimated on the new data; nothing is trained."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from advisor.errors import InputError
from advisor.methods import register
from advisor.methods.base import Method
from advisor.parts.attachment import Attachment
from advisor.records import Candidate, Census, Levers


@register
class Recalibrate(Method):
    """Statistics of the new data replace the stored ones; no gradient, no optimizer."""

    name = "recalibrate"
    summary = "BatchNorm statistics re-estimated on the new data; nothing is trained"
    formula = "μ, σ² ← mean over the new batches of their mean and variance"
    source = "AdaBN, arXiv 1603.04779"
    order = 50
    learning_rates = ()
    learns_classes = False
    statistics = "reestimated"

    def applies(self, census: Census) -> bool:
        """Where the model has running statistics."""
        return any(layer.tracks_statistics for layer in census.layers)

    def train(self, to: Attachment) -> Iterable[nn.Parameter]:
        """Nothing: an update only moves the statistics. InputError where there are none."""
        if not self.applies(to.census):
            raise InputError("the model has no running statistics that could be re-estimated")
        return ()


def reestimation(micro_batch: int | None = None) -> Candidate:
    """What runs before the training of a candidate that wants its statistics re-estimated first."""
    return Candidate(Recalibrate.name, levers=Levers(micro_batch=micro_batch))
