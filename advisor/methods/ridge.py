"""Ridge regression: the head is solved in closed form, on features of one forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import nn

from advisor.methods import register
from advisor.methods.base import Method
from advisor.parts.attachment import Attachment, Setting, Trainable
from advisor.parts.closed_form import solvable, widen
from advisor.records import FEATURES, Census, Features, Levers


@register
class Ridge(Method):
    """No gradient, no learning rate, no epochs: memory and FLOPs of inference, then one linear system.

    What the system is made of are sums over images, so more images and new classes can be added to it later,
    without the old ones and without forgetting: `advisor.delivery.grow`.
    """

    name = "ridge"
    summary = (
        "the last classifier is solved in closed form, on pooled features of one forward pass; "
        "more images and classes can be added later"
    )
    formula = "V = YᵀX(XᵀX + λI)⁻¹; λ by exact leave-one-out"
    source = "RanPAC, arXiv 2307.02251, section 4; features of all blocks: Head2Toe, arXiv 2201.03529"
    order = 25
    learning_rates = ()
    only_head = True
    statistics = "frozen"
    variants = tuple({"features": features} for features in FEATURES)

    def applies(self, census: Census) -> bool:
        """Where the head is a Linear layer that reads one vector an image."""
        return bool(solvable(census))

    def suits(self, census: Census, setting: Setting) -> bool:
        """Where those features are others than the fewer ones."""
        return setting["features"] in solvable(census)

    def solves(self, setting: Setting) -> Features:
        """Those of the setting."""
        return cast(Features, setting["features"])

    def train(self, to: Attachment) -> Iterable[nn.Parameter]:
        """The head, or the wide one in its place, which is solved once every image was seen."""
        return widen(to.model, to.census, self.solves(to.setting)).parameters()

    def optimizer(
        self, trainable: Trainable, levers: Levers, learning_rate: float
    ) -> torch.optim.Optimizer | None:
        """None: nothing descends."""
        del trainable, levers, learning_rate
        return None
