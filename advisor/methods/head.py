"""Head only: the last classifier is trained, everything before it runs as it is."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from advisor.methods import register
from advisor.methods.base import Method
from advisor.parts.attachment import Attachment


@register
class Head(Method):
    """Linear probing: nothing is back-propagated past the classifier."""

    name = "head"
    summary = "the last classifier is trained; BatchNorm statistics stay frozen"
    formula = "y = V·f(x) + c; V, c trained"
    source = "linear probing, arXiv 1610.01644"
    order = 20
    learning_rates = (1e-3, 5e-3, 2e-2)
    only_head = True
    statistics = "frozen"

    def train(self, to: Attachment) -> Iterable[nn.Parameter]:
        """The head; BatchNorm runs in eval mode, so features don't move."""
        return to.head()
