"""A trained scale, and optionally a shift, for each output channel, shared by (IA)^3 and SSF.

y' = s * y + t is computed by the weights that make y: W' = s W and b' = s b + t. So no tensor of
y's size is made or saved, and merging is exact. A BatchNorm that reads y cancels any scale and shift
of it while training, so there y is the BatchNorm's output, and W and b are its gamma and beta.
"""

from __future__ import annotations

import torch
from torch import nn

from advisor.models.layers import TRANSPOSED, uses_weight_as_is
from advisor.parts.attachment import Attachment
from advisor.parts.bypass import LayerModule, reparametrise
from advisor.parts.low_rank import ADAPTED_TYPES, over_outputs
from advisor.records import Census, Layer

# Batch and instance normalisation: each channel by itself, so that a scale before it is lost.
_PER_CHANNEL_NORM = nn.modules.batchnorm._NormBase


class ScaledWeight(nn.Module):
    """W' = s W; `scale` is s, (C_out,), one at the start."""

    def __init__(self, layer: LayerModule) -> None:
        super().__init__()
        self._layer = (layer,)  # only its kind and groups are read; a tuple hides it from the module tree
        weight = layer.weight
        outputs = weight.shape[1] * layer.groups if isinstance(layer, TRANSPOSED) else weight.shape[0]
        self.scale = nn.Parameter(torch.ones(outputs, device=weight.device, dtype=weight.dtype))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight that the layer computes with."""
        return weight * over_outputs(self.scale, weight, self._layer[0])


class ScaledBias(nn.Module):
    """b' = s b + t; `scale` is s, the weight's own; `shift` is t, (C_out,), zero at the start, or None."""

    def __init__(self, scale: nn.Parameter, shift: nn.Parameter | None) -> None:
        super().__init__()
        self.scale = scale
        self.shift = shift

    def forward(self, bias: torch.Tensor) -> torch.Tensor:
        """The bias that the layer computes with."""
        scaled = bias * self.scale
        return scaled if self.shift is None else scaled + self.shift


def has_scalable_layer(census: Census) -> bool:
    """Whether there is a head, and a layer before it whose outputs can be scaled."""
    before = [layer for layer in census.of_type(*ADAPTED_TYPES) if layer.calls and layer.name != census.head]
    return census.head is not None and bool(before)


def scale_outputs(to: Attachment, *, shift: bool) -> list[nn.Parameter]:
    """Attach a scale, and a shift if asked for, to each layer but the head; what is to be trained.

    Each layer that is left out gets a note.
    """
    trained: list[nn.Parameter] = []
    listed = {layer.name: layer for layer in to.census.layers}
    for layer, module in to.layers(*ADAPTED_TYPES):
        follower = layer.followed_by
        folds = bool(follower) and isinstance(to.model.get_submodule(follower), _PER_CHANNEL_NORM)
        if why := _left_out(layer, module, listed.get(follower), folds=folds):
            to.notes.append(f"{layer.name}: not adapted: {why}")
            continue
        trained += _scale(to.model.get_submodule(follower) if folds else module, shift=shift)
    return trained


def _left_out(layer: Layer, module: nn.Module, norm: Layer | None, *, folds: bool) -> str:
    """Why the layer can't have a scale; empty where it can."""
    if folds and norm is None:
        return f"{layer.followed_by}, which would hold its scale, is not to be trained"
    if folds and norm is not None and not norm.has_affine:
        return f"{layer.followed_by} cancels a scale and has none of its own"
    if not folds and not uses_weight_as_is(module):
        return f"{layer.module} computes its weight, which may cancel a scale"
    return ""


def _scale(layer: LayerModule, *, shift: bool) -> list[nn.Parameter]:
    """Scale, and shift, the outputs of a convolution, Linear or normalisation layer."""
    weight = ScaledWeight(layer)
    reparametrise(layer, weight)
    trained = [weight.scale]
    shifts = nn.Parameter(torch.zeros_like(weight.scale)) if shift else None
    if layer.bias is not None:
        reparametrise(layer, ScaledBias(weight.scale, shifts), "bias")
    elif shifts is not None:
        layer.bias = shifts  # it has none to scale, so its new bias is the shift itself
    return trained if shifts is None else [*trained, shifts]
