"""(IA)^3: one trained scale for each output channel, and the head."""

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
class IA3:
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
    learns_classes = True
    learning_rates = (1e-3, 5e-3, 2e-2)

    def settings(self, census: Census, ranks: Sequence[int]) -> Iterable[Setting]:  # noqa: ARG002
        """One, where there is a layer before the head."""
        return [{}] if has_scalable_layer(census) else []

    def attach(self, model: nn.Module, census: Census, setting: Setting) -> Trainable:
        """Attach the scales; everything else but the head is frozen."""
        scales, notes = scale_outputs(model, census, shift=False)
        return train_only(model, [*scales, *head_parameters(model, census)], "updated", setting, notes)

    optimizer = staticmethod(plain_optimizer)
    merge = staticmethod(merge_attached)
