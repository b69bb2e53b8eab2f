"""The trained model as a plain one, in the form in which the base model came."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from safetensors.torch import save as save_tensors
from torch import nn

from advisor.errors import first_line
from advisor.methods import get_method
from advisor.models import LoadedModel
from advisor.models.layers import answers_otherwise, logits
from advisor.system.files import write_whole

NAMES = ("merged.pt", "merged.safetensors")


def save_merged(
    folder: Path, loaded: LoadedModel, trained: nn.Module, method: str, images: torch.Tensor
) -> tuple[Path | None, str]:
    """Fold what was trained into the layers, and write the result.

    A state dict, with the file's own naming, where the model came as one or by name; safetensors where it
    came as that; a pickled module where it came as one.

    Args:
        loaded: the base model, its head made to fit the data.
        trained: the adapted model, which becomes the merged one: a copy of a parametrised module shares
            its class, so that merging the copy would break the model.
        images: (N, C, H, W), normalised, on which both must answer the same.

    Returns:
        The file, and why there is none where it can't be written.

    Raises:
        InputError: the folder can't be written to.
    """
    for name in NAMES:
        (folder / name).unlink(missing_ok=True)  # of a former run
    with torch.inference_mode():
        expected = logits(trained.eval()(images))
    merged = get_method(method).merge(trained).eval()
    plain = merged.state_dict()
    if plain.keys() != loaded.module.state_dict().keys():
        return None, f"no merged model: {method} adds what can't be folded into the layers; use load_adapter"
    with torch.inference_mode():
        found = logits(merged(images))
    if answers_otherwise(found, expected):
        return None, f"no merged model: folding {method} into these layers changes outputs; use load_adapter"
    if loaded.form == "module":
        return _pickled(folder / NAMES[0], merged)
    state = {
        loaded.keys.get(name, loaded.key_prefix + name): tensor.detach().clone()
        for name, tensor in plain.items()
    }
    if loaded.form == "safetensors":
        path = folder / NAMES[1]
        write_whole(
            path, save_tensors({n: t.contiguous() for n, t in state.items()}, {"format": "pt"}), keep_old=True
        )
    else:
        path = folder / NAMES[0]
        write_whole(path, _saved(state), keep_old=True)
    return path, ""


def _pickled(path: Path, merged: nn.Module) -> tuple[Path | None, str]:
    merged.requires_grad_(True)  # as a model comes; attaching froze what was not trained
    try:
        content = _saved(merged)
    except Exception as error:  # noqa: BLE001 - a user's class may refuse in any way
        return None, f"no merged model: its class can't be pickled ({first_line(error)})"
    write_whole(path, content, keep_old=True)
    return path, ""


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
