"""A trained candidate as a file: the delta in safetensors, with what is needed to attach it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from advisor.errors import ModelError
from advisor.methods import get_method
from advisor.methods.base import LayerModule, Trainable
from advisor.models.layers import resize_outputs, take_census
from advisor.records import Candidate, Census, Levers

_FORMAT = "peft-advisor adapter 1"


def save_adapter(path: str | Path, trainable: Trainable, candidate: Candidate, census: Census) -> None:
    """Write the trained weights and the statistics that training changed."""
    tensors = {name: tensor.contiguous() for name, tensor in trainable.delta().items()}
    metadata = {
        "format": _FORMAT,
        "method": candidate.method,
        "setting": json.dumps(dict(candidate.setting)),
        "levers": json.dumps(asdict(candidate.levers)),
        "input_size": json.dumps(census.input_size),
    }
    save_file(tensors, path, metadata=metadata)


def load_adapter(model: nn.Module, path: str | Path) -> Trainable:
    """Attach a saved adapter to the base model it was trained on, in place.

    Where it was trained on more classes than the model has, the head takes the adapter's size.

    Raises:
        ModelError: the file is no adapter, or belongs to another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} can't be read as a safetensors file: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise ModelError(f"{path} is not an adapter that peft-advisor wrote")
    candidate = Candidate.of(
        metadata["method"],
        json.loads(metadata["setting"]),
        Levers(**json.loads(metadata["levers"])),
    )
    census = take_census(model, tuple(json.loads(metadata["input_size"])))
    _resize_head(model, census, tensors)
    trainable = get_method(candidate.method).attach(model, census, dict(candidate.setting))
    expected = trainable.delta()
    differing = [
        name
        for name in sorted(expected.keys() | tensors.keys())
        if name not in expected or name not in tensors or expected[name].shape != tensors[name].shape
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ModelError(f"{path} was trained on another model: {', '.join(differing[:3])}{more} differ")
    model.load_state_dict(tensors, strict=False)
    return trainable


def _resize_head(model: nn.Module, census: Census, tensors: Mapping[str, torch.Tensor]) -> None:
    if census.head is None:
        return
    head: LayerModule = model.get_submodule(census.head)
    saved = tensors.get(f"{census.head}.weight")
    if saved is None or saved.shape == head.weight.shape or saved.shape[1:] != head.weight.shape[1:]:
        return
    resize_outputs(head, saved.shape[0])
