"""SSF: one trained scale and one trained shift for each output channel, and the head."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from advisor.methods import register
from advisor.methods.base import Method
from advisor.parts.attachment import Attachment
from advisor.parts.channel_scale import has_scalable_layer, scale_outputs
from advisor.records import Census


@register
class SSF(Method):
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
    order = 140
    learning_rates = (1e-3, 5e-3, 2e-2)

    def applies(self, census: Census) -> bool:
        """Where there is a layer before the head."""
        return super().applies(census) and has_scalable_layer(census)

    def train(self, to: Attachment) -> Iterable[nn.Parameter]:
        """The scales and shifts, and the head; everything else is frozen."""
        return [*scale_outputs(to, shift=True), *to.head()]
