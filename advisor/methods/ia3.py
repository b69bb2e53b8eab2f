"""(IA)^3: one trained scale for each output channel, and the head."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from advisor.methods import register
from advisor.methods.base import Method
from advisor.parts.attachment import Attachment
from advisor.parts.channel_scale import has_scalable_layer, scale_outputs
from advisor.records import Census


@register
class IA3(Method):
    """y' = s * y for the output y of each convolution and linear layer, s one at the start.

    Hugging Face PEFT's IA3 (`feedforward_modules=[]`) also scales y: where no BatchNorm follows, the
    two are the same function of s. Where one does, PEFT's scale comes before it, multiplies an
    activation that has to be saved, and is cancelled by the batch statistics; here y is the
    BatchNorm's output and s multiplies its gamma and beta.
    """

    name = "ia3"
    summary = "a scale for each output channel, inside the BatchNorm where one follows, and the head"
    formula = "y = s⊙(W∗x + b) as (s⊙W)∗x + s⊙b, or y = s⊙BN(W∗x); s and the head trained, s = 1 at the start"
    source = "(IA)³, arXiv 2205.05638, section 3.3; convolutions as in Hugging Face PEFT"
    order = 130
    peft_type = "IA3"
    learning_rates = (1e-3, 5e-3, 2e-2)

    def applies(self, census: Census) -> bool:
        """Where there is a layer before the head."""
        return super().applies(census) and has_scalable_layer(census)

    def train(self, to: Attachment) -> Iterable[nn.Parameter]:
        """The scales, and the head; everything else is frozen."""
        return [*scale_outputs(to, shift=False), *to.head()]
