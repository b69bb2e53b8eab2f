"""Telling two sets of weights apart by a short text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import nn


def fingerprint(text: str, tensors: Iterable[tuple[object, torch.Tensor]]) -> str:
    """SHA-256, in hexadecimal, of the text and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_fingerprint(model: nn.Module) -> str:
    """Of the weights and statistics alone: the code that holds them, and counters, may change."""
    state = model.state_dict().items()
    return fingerprint("", sorted((n, t) for n, t in state if not n.endswith("num_batches_tracked")))
