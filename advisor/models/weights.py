"""Where a file keeps its weights: a module, or tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch

from advisor.errors import ModelError
from advisor.models.pickles import QUANTISED, StandIn, as_mapping, is_module
from advisor.models.printable import shown

# Where checkpoints keep the weights, the likeliest first. A moving average goes before the plain weights
# where both are there: it is what is evaluated and shipped.
_AVERAGE_KEYS = (
    "ema",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema_model",
    "params_ema",
    "averaged_model",
)
_PLAIN_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "params",
    "weights",
    "module",
)
_SHARED = 8  # values for each stored byte: layers may share weights, but not thousands of them
_OPTIMIZER_KEYS = {"optimizer", "optimizer_state_dict", "optimizer_state", "optimizer_states", "param_groups"}


def find_weights(content: Any, depth: int = 2) -> list[tuple[str, Any]]:
    """Modules, stand-ins for such, and state dicts, each under its key: what is evaluated goes first.

    Args:
        content: of the file.
        depth: how many dicts down they may be.

    Raises:
        ModelError: there are several under keys of their own, or they are quantised.
    """
    if is_module(content):
        return [("", content)]
    held = as_mapping(content)
    if "param_groups" in held:
        return []
    tensors = {str(key): value for key, value in held.items() if isinstance(value, torch.Tensor)}
    # Some write the epoch and the like right beside the weights.
    if tensors and (len(tensors) == len(held) or any("." in key for key in tensors)):
        if any("_packed_params" in str(key) for key in held):
            raise ModelError(QUANTISED)
        return [("", tensors)]
    if depth == 0:
        return []
    found = [
        (key, weights)
        for key in (*_AVERAGE_KEYS, *_PLAIN_KEYS)
        for _, weights in find_weights(held.get(key), depth - 1)[:1]
    ]
    if found:
        return found
    others = {
        str(key): inner[0][1]
        for key, value in held.items()
        if key not in _OPTIMIZER_KEYS and (inner := find_weights(value, 0))
    }
    if len(others) > 1:
        names = ", ".join(map(shown, list(others)[:5]))
        raise ModelError(f"holds several models ({names}); save the state dict of one of them alone")
    return list(others.items())


def is_average(key: str) -> bool:
    """Whether a moving average of the weights stands under that key."""
    return key in _AVERAGE_KEYS


def refuse_content(content: Any) -> NoReturn:
    """Raises ModelError: what there is in place of weights."""
    held = as_mapping(content)
    if not held and not isinstance(content, dict):
        kind = type(content).kind if isinstance(content, StandIn) else type(content).__name__
        raise ModelError(f"holds a {shown(kind)}, not a model or a state dict")
    if held.keys() & _OPTIMIZER_KEYS:
        raise ModelError("holds an optimizer's state, but no weights; give the checkpoint of the model")
    keys = ", ".join(shown(str(key)) for key in list(held)[:5]) or "nothing"
    raise ModelError(f"holds no weights (its keys: {keys}); give a state dict, or a dict holding one")


def usable(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """The tensor in float32, or as it is where it holds whole numbers.

    Raises:
        ModelError: it is quantised, sparse, complex, without values, or claims more than are stored.
    """
    if problem := _problem_of(tensor):
        raise ModelError(f"its entry {shown(name)} {problem}")
    tensor = tensor.detach()
    try:
        return tensor.float() if tensor.is_floating_point() else tensor
    except NotImplementedError as error:
        raise ModelError(
            f"its entry {shown(name)} holds {tensor.dtype}, which torch can't convert; save it after .float()"
        ) from error


def check_together(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors that are each `usable` but repeat what is stored. Raises ModelError."""
    for name, tensor in tensors.items():
        if problem := _problem_of(tensor):
            raise ModelError(f"its entry {shown(name)} {problem}")
    storages = (tensor.untyped_storage() for tensor in tensors.values())
    stored = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    if sum(tensor.numel() for tensor in tensors.values()) > _SHARED * stored:
        raise ModelError("has more values than are stored; save its state dict after .contiguous()")


def check_trained(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises ModelError: weights or statistics hold NaN, as after a training that diverged."""
    for name, tensor in tensors.items():
        # The sum takes no memory, and is NaN where any is.
        if tensor.is_floating_point() and tensor.sum().isnan() and (wrong := int(tensor.isnan().sum())):
            raise ModelError(
                f"its entry {shown(name)} holds NaN in {wrong} of {tensor.numel()} places, as after a "
                "training that diverged; give an earlier checkpoint"
            )


def _problem_of(tensor: torch.Tensor) -> str:
    if tensor.is_quantized or (tensor.dtype in (torch.int8, torch.uint8) and tensor.ndim > 1):
        return QUANTISED
    if tensor.layout != torch.strided:
        return "is a sparse tensor; save it after .to_dense()"
    if tensor.is_complex():
        return "holds complex numbers; only real ones can be fine-tuned here"
    if tensor.is_meta:
        return "has a shape but no values; save the model after its weights are loaded"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        # A few stored bytes may claim to be terabytes by repeating themselves.
        return "has more values than are stored; save it after .contiguous()"
    return ""
