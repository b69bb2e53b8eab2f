"""Tensors of a network by name, and as safetensors has them, without its package, which boards lack."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_KINDS = {name: kind for kind, name in _TYPES.items()}


def tensors_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer, those too that a state dict leaves out."""
    held = (network.named_parameters(), network.named_buffers())
    return {name: tensor.detach() for some in held for name, tensor in some}


def fill(network: nn.Module, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Set those of the network's tensors that are given."""
    own = tensors_of(network)
    for name, tensor in tensors:
        own[name].copy_(tensor)


def can_be_packed(tensor: torch.Tensor) -> bool:
    """Whether safetensors has its type."""
    return tensor.dtype in _TYPES


def packed(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Iterator[bytes]:
    """The content of a safetensors file, a tensor at a time: no second copy of all is made."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name, tensor in sorted(tensors.items()):
        end = start + tensor.nbytes
        header[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in sorted(tensors.items()):
        whole = tensor.detach().contiguous()
        yield ctypes.string_at(whole.data_ptr(), whole.nbytes) if whole.numel() else b""


def unpacked(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in a safetensors file, one read after the other. Raises ValueError where it is none."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        for name, told in header.items():
            if name == "__metadata__":
                continue
            kind, shape, (start, end) = _KINDS[told["dtype"]], told["shape"], told["data_offsets"]
            flat = torch.empty(0, dtype=kind)
            if end > start:
                file.seek(8 + size + start)
                flat = torch.frombuffer(bytearray(file.read(end - start)), dtype=kind)
            yield name, flat.view(shape)
