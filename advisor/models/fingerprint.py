"""Telling two sets of weights, or the code that uses them, apart by a short text."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import nn


def fingerprint(text: str, tensors: Iterable[tuple[object, torch.Tensor]]) -> str:
    """SHA-256, in hexadecimal, of the text and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.is_meta:  # it has no bytes
            continue
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_fingerprint(model: nn.Module) -> str:
    """Of the weights and statistics alone: the code that holds them, and counters, may change."""
    state = model.state_dict().items()
    return fingerprint("", sorted((n, t) for n, t in state if not n.endswith("num_batches_tracked")))


def code_fingerprint(model: nn.Module, *own: ModuleType) -> str:
    """Of the files that define the classes of the model's modules, and of modules and packages of ours."""
    defined_in = {sys.modules.get(type(module).__module__) for module in model.modules()}
    files = [getattr(module, "__file__", None) for module in defined_in]
    ours = [path for module in own for path in _files_of(module)]
    digest = hashlib.sha256()
    for path in sorted({path for path in files if path}) + ours:
        digest.update(_file_digest(path))
    for module in model.modules():
        if isinstance(module, torch.fx.GraphModule):  # its class is made when it is loaded
            digest.update(module.code.encode())
    return digest.hexdigest()


def _files_of(module: ModuleType) -> list[str]:
    folders = getattr(module, "__path__", None)
    if folders is None:
        return [module.__file__] if module.__file__ else []
    return [str(path) for folder in folders for path in sorted(Path(folder).glob("*.py"))]


@cache
def _file_digest(path: str) -> bytes:
    try:
        return hashlib.sha256(Path(path).read_bytes()).digest()
    except OSError:  # in an archive, or gone
        return b""
