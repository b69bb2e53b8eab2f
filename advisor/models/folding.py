"""Weights that are kept in parts: pruned, normalised, or trained for quantisation. They become plain ones."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from advisor.errors import ModelError
from advisor.models.printable import shown
from advisor.units import format_percent

StateDict = dict[str, torch.Tensor]

_OBSERVERS = re.compile(r"(.*_)?(activation_post_process|weight_fake_quant|fake_quant\w*|observer)(_\d+)?")
_FUSED = re.compile(r"(.+)\.bn\.(weight|bias|running_mean|running_var|num_batches_tracked)")
_PARAMETRIZED = re.compile(r"(.*?)parametrizations\.(\w+)\.(.+)")


def folded(state: StateDict) -> tuple[StateDict, list[str]]:
    """Plain weights, and in words what was done.

    Pruned ones are multiplied with their masks, weight and spectral norm computed, observers of
    quantisation-aware training left out, and the norms that it fused named as they were.

    Raises:
        ModelError: a weight is computed in a way that names don't tell.
    """
    state, notes = dict(state), []
    for fold in (_without_observers, _without_masks, _weight_norm, _spectral_norm):
        notes += fold(state)
    left = next((name for name in state if _PARAMETRIZED.fullmatch(name)), None)
    if left is not None:
        match = _PARAMETRIZED.fullmatch(left)
        assert match is not None  # noqa: S101 - it was found so
        raise ModelError(
            f"its {shown(match[1] + match[2])} is computed from {shown(left)}; before saving, call "
            "torch.nn.utils.parametrize.remove_parametrizations on each layer that has some"
        )
    return state, notes


def folded_in(module: nn.Module) -> list[str]:
    """The same for a module's layers, in place: those that compute their weights get them as they are now."""
    computed: list[str] = []
    for name, layer in module.named_modules():
        hooks = [
            (key, hook)
            for key, hook in layer._forward_pre_hooks.items()
            if type(hook).__module__.startswith("torch.nn.utils.") and hasattr(hook, "remove")
        ]
        for key, hook in hooks:  # weight and spectral norm, and pruning, of the older kind
            hook.remove(layer)
            del layer._forward_pre_hooks[key]
        if hooks or parametrize.is_parametrized(layer):
            computed.append(shown(name))
        if parametrize.is_parametrized(layer):
            _unparametrise(layer)
    if not computed:
        return []
    more = f" and {len(computed) - 1} more" if len(computed) > 1 else ""
    how = "by parametrizations, weight or spectral norm"
    return [f"weights that {computed[0]}{more} computed {how} are plain ones, as they were last"]


def _unparametrise(layer: nn.Module) -> None:
    # Not torch's own way, which changes the class: that is shared with the module that this is a copy of.
    lists: Any = layer.parametrizations
    with torch.no_grad():
        values = {name: getattr(layer, name).detach().clone() for name in lists}
    del layer._modules["parametrizations"]
    layer.__class__ = type(layer).__bases__[0]
    for name, value in values.items():
        if lists[name]._parameters:
            layer.register_parameter(name, nn.Parameter(value))
        else:
            layer.register_buffer(name, value)


def _without_observers(state: StateDict) -> list[str]:
    observed = [name for name in state if any(_OBSERVERS.fullmatch(part) for part in name.split("."))]
    if not observed:
        return []
    for name in observed:
        del state[name]
    for name in [*state]:
        match = _FUSED.fullmatch(name)
        if match and f"{match[1]}.weight" in state:  # a convolution that holds its norm
            state[f"{_norm_of(match[1])}.{match[2]}"] = state.pop(name)
    return ["it was trained for quantisation: its observers are left out, so costs are in float32"]


def _norm_of(convolution: str) -> str:
    """What the norm after it is called where they are apart: `bn1` after `conv1`, or the next in a row."""
    above, dot, last = convolution.rpartition(".")
    if last.isdecimal():
        return f"{above}{dot}{int(last) + 1}"
    return f"{above}{dot}{last.replace('conv', 'bn')}"


def _without_masks(state: StateDict) -> list[str]:
    pruned = [
        name.removesuffix("_orig")
        for name in state
        if name.endswith("_orig") and f"{name.removesuffix('_orig')}_mask" in state
    ]
    kept = total = 0
    for name in pruned:
        mask = state.pop(f"{name}_mask")
        kept, total = kept + int(mask.count_nonzero()), total + mask.numel()
        state[name] = state.pop(f"{name}_orig") * mask.to(torch.float32)
    if not pruned:
        return []
    zero = f"{format_percent(1 - kept / max(total, 1), 0)} of those weights are zero"
    return [f"it was pruned: its masks are multiplied in, {zero}, and training would fill them"]


def _weight_norm(state: StateDict) -> list[str]:
    parts: dict[str, tuple[str, str]] = {}  # of each weight: the entries of its magnitude and direction
    for name in state:
        if name.endswith("_g") and f"{name[:-1]}v" in state:
            parts[name.removesuffix("_g")] = (name, f"{name[:-1]}v")
        match = _PARAMETRIZED.fullmatch(name)
        if match and match[3] == "original0" and f"{name[:-1]}1" in state:
            parts[match[1] + match[2]] = (name, f"{name[:-1]}1")
    for weight, names in parts.items():
        magnitude, direction = (state.pop(name).float() for name in names)
        if magnitude.ndim != direction.ndim or any(
            size not in (1, whole) for size, whole in zip(magnitude.shape, direction.shape, strict=True)
        ):
            raise ModelError(f"its {shown(weight)} has a weight norm of another shape; is the file damaged?")
        axes = [axis for axis, size in enumerate(magnitude.shape) if size != direction.shape[axis]]
        length = direction.square().sum(axes, keepdim=True).sqrt() if axes else direction.abs()
        state[weight] = magnitude * direction / length
    return ["weight norm is folded into plain weights"] if parts else []


def _spectral_norm(state: StateDict) -> list[str]:
    parts: dict[str, tuple[str, str, str]] = {}  # of each weight: the entries of it, of u and of v
    for name in state:
        if name.endswith("_orig") and f"{name[:-5]}_u" in state and f"{name[:-5]}_v" in state:
            parts[name.removesuffix("_orig")] = (name, f"{name[:-5]}_u", f"{name[:-5]}_v")
        match = _PARAMETRIZED.fullmatch(name)
        above = name.removesuffix("original")
        if match and match[3] == "original" and f"{above}0._u" in state and f"{above}0._v" in state:
            parts[match[1] + match[2]] = (name, f"{above}0._u", f"{above}0._v")
    for weight, names in parts.items():
        whole, rows, columns = (state.pop(name).float() for name in names)
        matrix = whole.flatten(1) if len(whole) == rows.numel() else whole.transpose(0, 1).flatten(1)
        if matrix.shape != (rows.numel(), columns.numel()):
            raise ModelError(
                f"its {shown(weight)} has a spectral norm of another shape; is the file damaged?"
            )
        state[weight] = whole / (rows.flatten() @ matrix @ columns.flatten())
    return ["spectral norm is folded into plain weights"] if parts else []
