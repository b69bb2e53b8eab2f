"""SSF: one trained scale and one trained shift for each output channel, and the head."""

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
from advisor.methods.channel_scale import has_scalable_layer, scale_outputs
from advisor.records import Census


@register
class SSF:
    """y' = γ * y + β for the output y of each convolution and linear layer; γ = 1, β = 0 at the start.

    The paper puts one such pair after every operation. Behind a BatchNorm, the pair of the
    convolution before it would be cancelled, so a convolution and its BatchNorm share the pair behind
    both. Merged, a layer that had no bias has one.
    """

    name = "ssf"
    summary = (
        "a scale and a shift for each output channel, inside the BatchNorm where one follows, and the head"
    )
    formula = "y = γ⊙(W∗x + b) + β as (γ⊙W)∗x + (γ⊙b + β), or y = γ⊙BN(W∗x) + β; γ, β and the head trained"
    source = "SSF, arXiv 2210.08823, section 3.2"
    learns_classes = True
    learning_rates = (1e-3, 5e-3, 2e-2)

    def settings(self, census: Census, ranks: Sequence[int]) -> Iterable[Setting]:  # noqa: ARG002
        """One, where there is a layer before the head."""
        return [{}] if has_scalable_layer(census) else []

    def attach(self, model: nn.Module, census: Census, setting: Setting) -> Trainable:
        """Attach the scales and shifts; everything else but the head is frozen."""
        pairs, notes = scale_outputs(model, census, shift=True)
        return train_only(model, [*pairs, *head_parameters(model, census)], "updated", setting, notes)

    optimizer = staticmethod(plain_optimizer)
    merge = staticmethod(merge_attached)
