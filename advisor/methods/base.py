"""What a fine-tuning method is, and the parts that methods share.

A method freezes the model, attaches what it trains, and later merges it back into plain layers.
One method is one file in this folder (or an entry point `peft_advisor.methods`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from advisor.errors import InputError
from advisor.models.layers import is_whole
from advisor.models.padded import pad_itself, pad_once
from advisor.records import Census, Levers, SettingValue

Setting = Mapping[str, SettingValue]
# A convolution or Linear layer: torch types what a module holds as Tensor | Module, which fits neither.
LayerModule = Any
BYPASS = "peft_bypass"  # the child that a bypass becomes: a name that no network uses for its own
Statistics = Literal["frozen", "updated", "reestimated"]


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
    choices: dict[str, torch.Tensor] = field(default_factory=dict)  # made when attaching, such as indices
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = F.cross_entropy  # of outputs and labels

    def tracked_norms(self) -> list[tuple[str, Any]]:
        """The normalisation layers with running statistics that the candidate changes, by name.

        Re-estimation before training reaches those before the scope, too.
        """
        front = () if self.levers.statistics == "reestimated" else self.front
        frozen = {id(module) for name in front for module in self.model.get_submodule(name).modules()}
        return [
            (name, module)
            for name, module in self.model.named_modules()
            if module._buffers.get("running_mean") is not None and id(module) not in frozen
        ]

    def train_mode(self) -> None:
        """Put every module in the mode that an update needs."""
        self.model.train(self.statistics != "reestimated")
        for _, module in self.tracked_norms():
            module.train(self.statistics != "frozen")
        for name in self.front:
            self.model.get_submodule(name).eval()

    def delta(self) -> dict[str, torch.Tensor]:
        """What has to be shipped: trained weights, choices, and the statistics that training changed.

        `num_batches_tracked` is left out: no output depends on it.
        """
        tensors: dict[str, torch.Tensor] = {
            name: parameter.detach() for name, parameter in self.parameters.items()
        } | self.choices
        if self.statistics != "frozen" or self.levers.statistics == "reestimated":
            for name, module in self.tracked_norms():
                prefix = f"{name}." if name else ""
                tensors[f"{prefix}running_mean"] = module.running_mean
                tensors[f"{prefix}running_var"] = module.running_var
        return tensors


class Method(Protocol):
    """The contract that every method meets; see `tests/methods/test_contract.py`."""

    name: str  # as typed on the command line
    summary: str  # one line: what is trained
    formula: str
    source: str  # paper, equation
    learns_classes: bool  # False: looks at no labels, so it can't learn a class that the model has never seen
    learning_rates: tuple[float, ...]  # ascending; at least three, none where nothing is trained

    def settings(self, census: Census, ranks: Sequence[int]) -> Iterable[Setting]:
        """The settings that make sense on this model; none where the method doesn't apply."""
        ...

    def attach(self, model: nn.Module, census: Census, setting: Setting) -> Trainable:
        """Freeze the model and attach what is trained, in place; outputs are unchanged."""
        ...

    def optimizer(
        self, trainable: Trainable, levers: Levers, learning_rate: float
    ) -> torch.optim.Optimizer | None:
        """The optimizer of the trained parameters; None where nothing is trained."""
        ...

    def merge(self, model: nn.Module) -> nn.Module:
        """Back to plain layers where the method allows it, outputs unchanged, in place."""
        ...


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


def listed_parameters(model: nn.Module, census: Census) -> list[nn.Parameter]:
    """Every parameter of the layers that the census lists, a shared one once."""
    parameters: dict[int, nn.Parameter] = {}
    for layer in census.layers:
        module = model.get_submodule(layer.name)
        for parameter in module.parameters(recurse=is_whole(module)):
            parameters[id(parameter)] = parameter
    return list(parameters.values())


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


def head_parameters(model: nn.Module, census: Census) -> list[nn.Parameter]:
    """The last classifier's weight and bias. Raises InputError where the model has none."""
    if census.head is None:
        raise InputError("the model has no classifier layer (Linear or 1x1 convolution) that can be trained")
    return list(model.get_submodule(census.head).parameters())


def add_bypass(layer: LayerModule, bypass: nn.Module) -> None:
    """Run `bypass` on the layer's input and add it to the layer's output.

    A layer that pads first does so before both. A bypass with a method `rescale(sum, layer)` has the last
    word on what the layer returns.
    A hook, not a wrapper: the layer keeps its path, class and attributes, so checkpoints of the base
    model still load and code that reads `layer.weight` still works.
    """
    layer.add_module(BYPASS, bypass)
    pad_once(layer)
    layer.register_forward_hook(_add_bypass_output)


def reparametrise(layer: nn.Module, change: nn.Module, tensor: Literal["weight", "bias"] = "weight") -> None:
    """Let the layer compute with `change(weight)`, which has the weight's shape, instead of its weight."""
    # unsafe: what it would check, by running the change once more, is what the methods guarantee.
    parametrize.register_parametrization(layer, tensor, change, unsafe=True)


def bypass_of(layer: nn.Module) -> nn.Module | None:
    """What `add_bypass` added to the layer, if anything."""
    return layer._modules.get(BYPASS)


def remove_bypass(layer: LayerModule) -> nn.Module:
    """Undo `add_bypass`; returns the bypass."""
    for key, hook in list(layer._forward_hooks.items()):
        if hook is _add_bypass_output:
            del layer._forward_hooks[key]
    bypass = layer.get_submodule(BYPASS)
    delattr(layer, BYPASS)
    pad_itself(layer)
    return bypass


def merge_attached(model: nn.Module) -> nn.Module:
    """Fold every bypass that has a weight of the layer's shape, and every parametrization, into the layer.

    A bypass without such a weight (it holds a non-linearity) stays. Weights are replaced, not changed
    in place: another layer that shares one keeps its own.
    """
    layer: LayerModule
    bypass: Any
    for layer in list(model.modules()):
        bypass = bypass_of(layer)
        if bypass is not None and hasattr(bypass, "weight_change"):
            merged = (layer.weight + bypass.weight_change(layer)).detach()
            layer.weight = nn.Parameter(merged, requires_grad=False)
            remove_bypass(layer)
        for tensor in ("weight", "bias"):
            if parametrize.is_parametrized(layer, tensor):
                held = layer.parametrizations[tensor]
                if hasattr(held, "original"):  # what the removal writes the merged value into
                    held.original = nn.Parameter(held.original.detach().clone(), requires_grad=False)
                parametrize.remove_parametrizations(layer, tensor, leave_parametrized=True)
    return model


def _add_bypass_output(
    layer: LayerModule, args: tuple[torch.Tensor, ...], output: torch.Tensor
) -> torch.Tensor:
    bypass: Any = layer.get_submodule(BYPASS)
    # In place: no convolution or linear layer saves its output, and one tensor less is held.
    output = output.add_(bypass(*args))
    return bypass.rescale(output, layer) if hasattr(bypass, "rescale") else output
