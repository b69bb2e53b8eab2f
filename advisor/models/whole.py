"""Whole modules: of old versions, of other libraries, in wrappers, with parts that only training needs."""

from __future__ import annotations

import copy
import inspect
import re
from functools import cache
from typing import Any

import torch
from torch import nn

from advisor.errors import ModelError
from advisor.models.architectures import stock_architecture
from advisor.models.pickles import QUANTISED, StandIn, as_mapping, stand_ins
from advisor.models.printable import shown

_LIBRARIES = (
    "torch.",
    "torchvision.",
    "timm.",
    "builtins.",
    "collections.",
    "functools.",
    "numpy.",
    "copyreg.",
)
_HELD = ("_parameters", "_buffers", "_modules")
_WRAPPERS = (
    "DataParallel",
    "DistributedDataParallel",
    "OptimizedModule",
    "AveragedModel",
    "FullyShardedDataParallel",
)


_QUANTISED = re.compile(r"torch\.(ao\.)?nn\.(intrinsic\.)?quantized\.")


def copied(module: nn.Module) -> nn.Module:
    """A deep copy, also of what was run before: what it keeps of that is copied without its graph.

    Raises:
        Exception: whatever what it holds raises when it is copied.
    """
    memo: dict[int, Any] = {}
    for layer in module.modules():
        for tensor in (*vars(layer).values(), *layer._buffers.values()):
            if isinstance(tensor, nn.parameter.UninitializedBuffer):  # whose copy torch has forgotten
                memo[id(tensor)] = nn.parameter.UninitializedBuffer()
            elif isinstance(tensor, torch.Tensor) and not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    return copy.deepcopy(module, memo)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module, and its parts, outside of the wrappers of DataParallel, torch.compile and averaging."""
    while (inner := _wrapped(module)) is not None:
        module = inner
    for layer in module.modules():
        vars(layer).pop("_compiled_call_impl", None)
        for name, child in layer._modules.items():
            if child is not None and _wrapped(child) is not None:
                layer._modules[name] = unwrapped(child)
    return module


def _wrapped(module: nn.Module) -> nn.Module | None:
    if type(module).__name__ not in _WRAPPERS:
        return None
    return module._modules.get("module") or module._modules.get("_orig_mod")


def refuse_unseen(module: nn.Module) -> None:
    """Raises ModelError: a layer is none that could be looked into, or trained."""
    for name, layer in module.named_modules():
        where = f"its {shown(name)} " if name else ""
        if isinstance(layer, torch.jit.ScriptModule):
            raise ModelError(f"{where}is TorchScript, whose layers can't be seen; give what it was made of")
        if _QUANTISED.match(type(layer).__module__):
            raise ModelError(where + QUANTISED)


def complete(module: nn.Module) -> None:
    """Attributes that its classes have got since the module was saved, with their defaults, in place."""
    for layer in module.modules():
        kind: Any = type(layer)
        for name, value in _defaults(kind).items():
            layer.__dict__.setdefault(name, value)
        if isinstance(layer, nn.modules.batchnorm._NormBase) and "_buffers" in vars(layer):
            layer._buffers.setdefault("num_batches_tracked", torch.tensor(0))
    if type(module).__module__.startswith("torchvision.models."):
        architecture = stock_architecture(module)
        fresh = None if architecture is None else dict(architecture.build(None, None).named_modules())
        for name, layer in module.named_modules() if fresh else ():
            like = fresh.get(name) if fresh else None
            if type(like) is type(layer):
                for attribute, value in vars(like).items():
                    layer.__dict__.setdefault(attribute, value)


@cache
def _defaults(kind: Any) -> dict[str, Any]:
    """What a new instance of a layer of torch's holds, apart from its weights and what it is made of."""
    if not kind.__module__.startswith("torch.nn.modules."):
        return {}
    wanted = [
        each
        for each in list(inspect.signature(kind).parameters.values())
        if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD
    ]
    try:
        fresh = kind(*[1] * len(wanted))
    except Exception:  # noqa: BLE001 - one that wants anything else gets no defaults
        return {}
    return {name: value for name, value in vars(fresh).items() if name not in _HELD}


def class_of(module: nn.Module | StandIn) -> str:
    """The dotted name of its class, as the file says it."""
    kind = type(module)
    return kind.kind if issubclass(kind, StandIn) else f"{kind.__module__}.{kind.__qualname__}"


def foreign_classes(module: nn.Module | StandIn) -> list[str]:
    """Dotted names of classes, anywhere in the module, that are no library's known here."""
    return sorted({kind for each in stand_ins(module) if not (kind := class_of(each)).startswith(_LIBRARIES)})


def inner_stand_in(module: nn.Module | StandIn) -> nn.Module | StandIn:
    """What is inside the wrappers of parallel training and compiling."""
    while class_of(module).rpartition(".")[2] in _WRAPPERS:
        held = vars(module) if isinstance(module, nn.Module) else as_mapping(module)
        children = as_mapping(held.get("_modules"))
        inner = children.get("module", children.get("_orig_mod"))
        if not isinstance(inner, nn.Module | StandIn):
            break
        module = inner
    return module


def without_auxiliary(module: nn.Module) -> str:
    """Drop torchvision's auxiliary heads, in place; their names."""
    if not type(module).__module__.startswith("torchvision.models."):
        return ""
    found = [
        name for name in ("aux1", "aux2", "AuxLogits") if isinstance(getattr(module, name, None), nn.Module)
    ]
    for name in found:
        setattr(module, name, None)
    if found:
        module.aux_logits = False  # type: ignore[assignment]
    return ", ".join(found)
