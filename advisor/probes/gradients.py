"""What each layer's training could win: the energy of its gradients on the user's images."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from advisor.data.loading import Dataset
from advisor.methods.sparse import TrainedChannels
from advisor.models.layers import TRANSPOSED, is_whole, logits
from advisor.parts.attachment import is_bias
from advisor.parts.bypass import LayerModule
from advisor.parts.low_rank import ADAPTED_TYPES, plan_layer
from advisor.records import BASELINE, Candidate, Census, Layer, Levers
from advisor.training.update import begin, routed

_BATCHES = 8  # that gradients are averaged over


def captured(
    model: nn.Module,
    census: Census,
    dataset: Dataset,
    batch_size: int,
    options: Sequence[Candidate],
    *,
    relative: bool = True,
) -> NDArray[np.float64]:
    """How much of each layer's squared gradient norm each option captures: (layers, 1 + options).

    The first, a frozen layer, captures nothing; `full` all of it; a bypass of rank r the r largest squared
    singular values of the weight's gradient; norm, bias and trained channels their own. Of the mean gradient
    of a few batches.

    Args:
        dataset: its labels are the model's outputs.
        relative: to the squared norm of the layer's weights (Auto-RGN, arXiv 2210.11466).
    """
    moved = _with_gradients(model, census, dataset, batch_size)
    found = np.zeros((len(census.layers), 1 + len(options)))
    for place, layer in enumerate(census.layers):
        module = moved.get_submodule(layer.name)
        named = dict(module.named_parameters(recurse=is_whole(module)))
        size = sum(_squares(parameter.detach()) for parameter in named.values()) if relative else 1.0
        for number, option in enumerate(options, 1):
            energy = sum(_squares(part) for part in _moved(option, layer, module, named))
            found[place, number] = energy / size if size else 0.0
    return found


def _with_gradients(model: nn.Module, census: Census, dataset: Dataset, batch_size: int) -> nn.Module:
    """A copy of the model with the mean gradients of a few batches."""
    # Block by block they are the same, and take the memory of one block.
    whole = Candidate(BASELINE, levers=Levers(checkpoint=True))
    trainable, _ = begin(copy.deepcopy(model), census, whole, learning_rate=0.0)
    images = dataset.train
    size = min(batch_size, len(images))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for indices in order[: _BATCHES * size].split(size):
            if len(indices) == size:  # statistics of a few images would be others
                inputs, labels = images.batch(indices, dataset.normalisation)
                with routed(trainable):
                    loss = trainable.loss(logits(trainable.model(inputs)), labels)
                loss.backward()
    return trainable.model


def _moved(
    option: Candidate, layer: Layer, module: LayerModule, named: Mapping[str, nn.Parameter]
) -> Iterator[torch.Tensor]:
    """The parts of the layer's gradient that the option can follow."""
    setting = dict(option.setting)
    for name, parameter in named.items():
        gradient = parameter.grad
        if gradient is None:
            continue
        if option.method in (BASELINE, "norm") or (option.method == "bias" and is_bias(name)):
            yield gradient
        elif name == "weight" and layer.layer_type in ADAPTED_TYPES:
            if option.method == "sparse":
                chosen = TrainedChannels(module, float(setting["fraction"])).outputs
                yield _matrices(gradient, module).flatten(0, 1)[chosen]
            elif option.method == "lora":
                plan = plan_layer(layer, int(setting["rank"]))
                if plan.form == "low-rank":
                    by_group = torch.linalg.svdvals(_matrices(gradient, module))
                    yield by_group[:, : plan.rank // layer.groups]
                elif plan.form == "kernel":
                    yield gradient


def _matrices(weight: torch.Tensor, layer: LayerModule) -> torch.Tensor:
    """A weight as (g, C_out/g, C_in/g * taps)."""
    by_group = weight.unflatten(0, (getattr(layer, "groups", 1), -1))
    if isinstance(layer, TRANSPOSED):  # (g, C_in/g, C_out/g, k, k)
        by_group = by_group.transpose(1, 2)
    return by_group.flatten(2)


def _squares(gradient: torch.Tensor) -> float:
    return float(gradient.square().sum())
