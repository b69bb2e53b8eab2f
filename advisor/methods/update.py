"""One update: the step that is simulated, measured, probed and run for real."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from advisor.methods import get_method
from advisor.methods.base import Trainable
from advisor.models.layers import logits
from advisor.records import Candidate, Census


def begin(
    model: nn.Module, census: Census, candidate: Candidate, learning_rate: float
) -> tuple[Trainable, torch.optim.Optimizer | None]:
    """Attach the candidate's method to the model, in place, ready for the first update."""
    method = get_method(candidate.method)
    trainable = method.attach(model, census, dict(candidate.setting))
    trainable.train_mode()
    return trainable, method.optimizer(trainable, candidate.levers, learning_rate)


def update(
    trainable: Trainable,
    optimizer: torch.optim.Optimizer | None,
    images: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor | None:
    """Move the trained parameters, and the statistics that the method updates, by one batch.

    Args:
        trainable: in train mode (`Trainable.train_mode`).
        optimizer: of its parameters; None where nothing is trained.
        images: (N, C, H, W), normalised.
        labels: (N,) class indices.

    Returns:
        The mean cross-entropy over the batch before the update; None where nothing is trained.
    """
    if optimizer is None:
        _reestimate(trainable, images)
        return None
    optimizer.zero_grad(set_to_none=True)
    loss = F.cross_entropy(logits(trainable.model(images)), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _reestimate(trainable: Trainable, images: torch.Tensor) -> None:
    """Average the batches' statistics: batch n enters with weight 1 / n, so the first replaces the old."""
    trainable.batches_seen += 1
    norms = [norm for _, norm in trainable.tracked_norms()]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 1 / trainable.batches_seen
        with torch.no_grad():
            trainable.model(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
