"""What a fine-tuning method is: it freezes the model, attaches what it trains, and is merged back later.

One method is one file in this folder (or an entry point `peft_advisor.methods`), and all that is
special about it stands there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from advisor.parts.attachment import (
    Attachment,
    Loss,
    Setting,
    Statistics,
    Trainable,
    hidden_tensors,
    own_tensors,
    tensors_of,
    train_only,
)
from advisor.parts.bypass import merge_attached
from advisor.records import Census, Features, Levers

_LAST = 1000


class Method(ABC):
    """The contract that every method meets; see `tests/methods/test_contract.py`.

    A method says what it is in class attributes, and what it trains in `train`. The rest has a default.
    """

    name: str  # as typed on the command line
    summary: str  # one line: what is trained
    formula: str
    source: str  # paper, equation
    order: int = _LAST  # where it is listed: from training everything to training nothing, then additions
    learning_rates: tuple[float, ...]  # Adam's, ascending; at least three, none where nothing is trained
    learns_classes: bool = True  # False: looks at no labels, so it can't learn classes never seen
    needs_data: bool = False  # its settings are found from the gradients on the user's images
    only_head: bool = False  # all before the head stays as it is
    statistics: Statistics = "updated"  # of normalisation layers with running statistics
    loss: Loss = staticmethod(F.cross_entropy)
    peft_type: str | None = None  # what Hugging Face PEFT calls it; None: PEFT has nothing that fits
    variants: ClassVar[tuple[Setting, ...]] = ({},)  # the settings to try, where no rank is among them

    def settings(self, census: Census, ranks: Sequence[int]) -> list[Setting]:
        """The settings that make sense on this model; none where the method doesn't apply."""
        if not self.applies(census):
            return []
        return [setting for setting in self.grid(ranks) if self.suits(census, setting)]

    def applies(self, census: Census) -> bool:
        """Whether the model has what the method trains. Most train the head, too."""
        return census.head is not None

    def grid(self, ranks: Sequence[int]) -> Iterable[Setting]:
        """The settings to try, ascending in what they train; `ranks` are those asked for."""
        del ranks
        return self.variants

    def suits(self, census: Census, setting: Setting) -> bool:
        """Whether this setting makes sense on the model."""
        del census, setting
        return True

    def attach(self, model: nn.Module, census: Census, setting: Setting) -> Trainable:
        """Freeze the model and attach what is trained, in place; outputs are unchanged.

        Whatever the method adds and does not train is saved and shipped along with what it does.

        Raises:
            InputError: the model has nothing that the method could adapt.
            TypeError: the method hides a tensor from the model, where it is neither saved nor priced.
        """
        to = Attachment(model, census, setting)
        modules = set(model.modules())
        before = {id(tensor) for module in modules for tensor in own_tensors(module)}
        trained = list(self.train(to))
        for module in model.modules():
            if module not in modules and (hidden := hidden_tensors(module)):
                raise TypeError(
                    f"{self.name}: {type(module).__name__}.{hidden[0]} holds a tensor; make it a parameter, "
                    "or a buffer with register_buffer"
                )
        trainable = train_only(model, trained, self.statistics, setting, to.notes)
        trainable.loss, trainable.solved = self.loss, self.solves(setting)
        trainable.additions = {
            name: tensor.detach()
            for name, tensor in tensors_of(model).items()
            if id(tensor) not in before and name not in trainable.parameters
        }
        return trainable

    def solves(self, setting: Setting) -> Features | None:
        """The features of the head that is solved in closed form; None: all that is learned is trained."""
        del setting
        return None

    @abstractmethod
    def train(self, to: Attachment) -> Iterable[nn.Parameter]:
        """Attach what the method adds, in place, and say what is to be trained."""

    def optimizer(
        self, trainable: Trainable, levers: Levers, learning_rate: float
    ) -> torch.optim.Optimizer | None:
        """The optimizer of the trained parameters; None where nothing is trained."""
        return plain_optimizer(trainable, levers, learning_rate)

    def merge(self, model: nn.Module) -> nn.Module:
        """Back to plain layers where the method allows it, outputs unchanged, in place."""
        return merge_attached(model)


def plain_optimizer(
    trainable: Trainable, levers: Levers, learning_rate: float
) -> torch.optim.Optimizer | None:
    """Adam or AdamW (betas 0.9, 0.999), or SGD, with a momentum of 0.9 or without."""
    parameters = list(trainable.parameters.values())
    if not parameters:
        return None
    match levers.optimizer:
        case "adam":
            return torch.optim.Adam(parameters, lr=learning_rate)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=learning_rate)
        case "momentum":
            return torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9)
        case "sgd":
            return torch.optim.SGD(parameters, lr=learning_rate)
