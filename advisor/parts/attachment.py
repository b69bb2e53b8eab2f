"""A method being attached to a model, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from advisor.errors import InputError
from advisor.models.layers import has_statistics, is_whole
from advisor.parts.bypass import LayerModule
from advisor.parts.closed_form import Examples
from advisor.records import LAYER_TYPES, Census, Features, Layer, Levers, SettingValue

Setting = Mapping[str, SettingValue]
Statistics = Literal["frozen", "updated", "reestimated"]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of outputs (N, classes) and labels (N,)


@dataclass(slots=True)
class Trainable:
    """A model with a method attached.

    `statistics` is the policy for normalisation layers with running statistics: `frozen` (eval
    mode), `updated` (train mode), or `reestimated` (train mode, cumulative average, nothing trained).
    """

    model: nn.Module
    parameters: dict[str, nn.Parameter]  # trained, by name in the attached model
    statistics: Statistics
    setting: Setting = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # such as where a rank was capped
    batches_seen: int = 0  # by the re-estimation
    levers: Levers = field(default_factory=Levers)
    front: tuple[str, ...] = ()  # modules before the scope, in order: frozen, in eval mode
    chain: tuple[str, ...] = ()  # what the model calls one after the other
    checkpointed: tuple[slice, ...] = ()  # parts of the chain that run again in the backward pass
    runs_again: bool = False  # such a part, at this moment
    # Added by the method and never trained, by name: indices of trained channels, a frozen projection.
    additions: dict[str, torch.Tensor] = field(default_factory=dict)
    loss: Loss = F.cross_entropy
    solved: Features | None = None  # of the head that is in closed form: nothing else is learned
    examples: Examples | None = None  # what that head was solved of, once it is

    def tracked_norms(self) -> list[tuple[str, Any]]:
        """The normalisation layers with running statistics that the candidate changes, by name.

        Re-estimation before training reaches those before the scope, too.
        """
        front = () if self.levers.statistics == "reestimated" else self.front
        frozen = {id(module) for name in front for module in self.model.get_submodule(name).modules()}
        return [
            (name, module)
            for name, module in self.model.named_modules()
            if has_statistics(module) and id(module) not in frozen
        ]

    def train_mode(self) -> None:
        """Put every module in the mode that an update needs."""
        self.model.train(self.statistics != "reestimated" and self.solved is None)
        updates = self.statistics != "frozen"
        for _, module in self.tracked_norms():
            if module.training != updates:
                module.train(updates)
        for name in self.front:
            self.model.get_submodule(name).eval()

    def delta(self) -> dict[str, torch.Tensor]:
        """What has to be shipped: trained weights, additions, and the statistics that training changed.

        `num_batches_tracked` is left out: no output depends on it.
        """
        tensors: dict[str, torch.Tensor] = {
            name: parameter.detach() for name, parameter in self.parameters.items()
        } | self.additions
        if self.statistics != "frozen" or self.levers.statistics == "reestimated":
            for name, module in self.tracked_norms():
                prefix = f"{name}." if name else ""
                tensors[f"{prefix}running_mean"] = module.running_mean
                tensors[f"{prefix}running_var"] = module.running_var
        return tensors


@dataclass(slots=True)
class Attachment:
    """What a method gets to attach itself to: the model, and the layers that it may adapt."""

    model: nn.Module
    census: Census  # of the part that is to be trained
    setting: Setting
    notes: list[str] = field(default_factory=list)  # to be told to the user, such as where a rank was capped

    def layers(self, *layer_types: str) -> Iterator[tuple[Layer, LayerModule]]:
        """Each layer of those types, any by default, that a forward pass calls; the head is left out."""
        for layer in self.census.of_type(*layer_types or LAYER_TYPES):
            if layer.name == self.census.head:
                continue
            if layer.calls:
                yield layer, self.model.get_submodule(layer.name)
            elif layer.parameters:
                self.notes.append(f"{layer.name}: not adapted: a forward pass never calls it")

    def head(self) -> list[nn.Parameter]:
        """The last classifier's weight and bias. Raises InputError where the model has none."""
        return head_parameters(self.model, self.census)

    def norms(self) -> list[nn.Parameter]:
        """Scale and shift of every normalisation layer that a forward pass calls."""
        return [
            parameter
            for layer in self.census.of_type("norm")
            if layer.calls
            for parameter in self.model.get_submodule(layer.name).parameters(recurse=False)
        ]

    def every_parameter(self) -> list[nn.Parameter]:
        """Every parameter of the layers that the census lists, a shared one once."""
        parameters: dict[int, nn.Parameter] = {}
        for layer in self.census.layers:
            module = self.model.get_submodule(layer.name)
            for parameter in module.parameters(recurse=is_whole(module)):
                parameters[id(parameter)] = parameter
        return list(parameters.values())


def head_parameters(model: nn.Module, census: Census) -> list[nn.Parameter]:
    """The last classifier's weight and bias. Raises InputError where the model has none."""
    if census.head is None:
        raise InputError("the model has no classifier layer (Linear or 1x1 convolution) that can be trained")
    return list(model.get_submodule(census.head).parameters())


def train_only(
    model: nn.Module,
    trained: Iterable[nn.Parameter],
    statistics: Statistics,
    setting: Setting,
    notes: Sequence[str] = (),
) -> Trainable:
    """Freeze everything but `trained`."""
    keep = {id(parameter) for parameter in trained}
    parameters = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(id(parameter) in keep)
        if id(parameter) in keep:
            parameters[name] = parameter
    return Trainable(model, parameters, statistics, setting, tuple(notes))


def is_bias(name: str) -> bool:
    """Whether a parameter's path says that it is a bias; MultiheadAttention has an `in_proj_bias`."""
    return name.rpartition(".")[2] in ("bias", "in_proj_bias")


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer by its first name."""
    names: tuple[dict[torch.Tensor, str], dict[torch.Tensor, str]] = ({}, {})
    for path, module in model.named_modules():  # once for both: it takes longer than all the rest
        for known, held in zip(names, (module._parameters, module._buffers), strict=True):
            for name, tensor in held.items():
                if tensor is not None:
                    known.setdefault(tensor, f"{path}.{name}" if path else name)
    return {name: tensor for known in names for tensor, name in known.items()}


def own_tensors(module: nn.Module) -> list[torch.Tensor]:
    """The module's own parameters and buffers, without those of the modules in it."""
    held = (*module._parameters.values(), *module._buffers.values())
    return [tensor for tensor in held if tensor is not None]


def hidden_tensors(module: nn.Module) -> list[str]:
    """Attributes in which the module keeps tensors that are neither parameters nor buffers.

    Such a tensor is not moved with the model, not saved, and not priced.
    """
    registered = {"_parameters", "_buffers", "_modules", "_parametrizations"}
    return [name for name, value in vars(module).items() if name not in registered and _holds_tensor(value)]


def _holds_tensor(value: Any) -> bool:
    if value is None or isinstance(value, int | float | str):  # nearly all: the first look is the cheapest
        return False
    if isinstance(value, torch.Tensor):
        return True
    if isinstance(value, Mapping):
        return any(map(_holds_tensor, value.values()))
    return isinstance(value, list | tuple | set) and any(map(_holds_tensor, value))
