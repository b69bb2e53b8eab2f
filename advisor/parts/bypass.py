"""The two ways to attach something to a layer: beside it, or in the weight that it computes with."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils import parametrize

from advisor.models.padded import pad_itself, pad_once

# A convolution or Linear layer: torch types what a module holds as Tensor | Module, which fits neither.
LayerModule = Any
BYPASS = "peft_bypass"  # the child that a bypass becomes: a name that no network uses for its own


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
