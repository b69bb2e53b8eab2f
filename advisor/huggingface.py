"""The adapter as Hugging Face PEFT reads it: `PeftModel.from_pretrained(base, folder)`.

Written only where PEFT computes the same: its LoRA and DoRA know no dilation, no padding but zeros and
no transposed convolution, its DoRA no groups. The head, depthwise kernels that are trained themselves
and normalisation layers whose statistics moved go along whole (`modules_to_save`).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import nn

from advisor.adapters import Recipe
from advisor.errors import InputError
from advisor.files import write_whole
from advisor.methods.base import BYPASS, LayerModule, Trainable
from advisor.methods.lora import SCALE
from advisor.models.layers import CONVOLUTIONS, is_plain

FOLDER = "huggingface"
_EXPRESSIBLE = ("lora", "dora")
_KNOWN_TO_PEFT = (*_EXPRESSIBLE, "loha", "lokr", "ia3")
_PREFIX = "base_model.model"  # where PEFT holds the base model
# Inside a layer: a bypass of ours, or DoRA's recomposed weight.
_ADAPTED = re.compile(rf"^(.*?)\.?({BYPASS}|parametrizations\.weight\.0)\.(.*)$")


class _InexpressibleError(Exception):
    """Why PEFT can't compute the same, in words."""


def save_for_peft(
    folder: Path, base: nn.Module, trainable: Trainable, recipe: Recipe
) -> tuple[tuple[Path, ...], str]:
    """Write `huggingface/adapter_config.json` and `adapter_model.safetensors` into the folder.

    Args:
        folder: the output folder.
        base: the model that was adapted.
        trainable: the trained candidate.
        recipe: says which candidate it is.

    Returns:
        The files; and why there are none, where the method has a counterpart in PEFT.

    Raises:
        InputError: the folder can't be written to.
    """
    target = folder / FOLDER
    shutil.rmtree(target, ignore_errors=True)  # of a former run
    if recipe.method not in _KNOWN_TO_PEFT:
        return (), ""
    try:
        config, tensors = _translated(base, trainable, recipe)
    except _InexpressibleError as reason:
        return (), f"no {FOLDER}/: {reason}"
    try:
        target.mkdir()
    except OSError as error:
        raise InputError(f"{target}: can't be made ({error.strerror}); move what is there away") from error
    files = target / "adapter_config.json", target / "adapter_model.safetensors"
    write_whole(files[0], json.dumps(config, indent=2) + "\n")
    write_whole(files[1], save_tensors(tensors, metadata={"format": "pt"}))
    return files, ""


@dataclass(frozen=True, slots=True)
class _Adapted:
    """One layer's low-rank change, in PEFT's shapes."""

    rank: int
    tensors: Mapping[str, torch.Tensor]


def _translated(
    base: nn.Module, trainable: Trainable, recipe: Recipe
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if recipe.method not in _EXPRESSIBLE:
        raise _InexpressibleError(f"PEFT's {recipe.method} is not written yet")
    if recipe.base_classes is not None:
        raise _InexpressibleError("the head has other classes than the base model's, which PEFT would keep")
    by_layer: dict[str, dict[str, torch.Tensor]] = {}
    whole: list[str] = []
    for name, tensor in trainable.delta().items():
        adapted = _ADAPTED.match(name)
        if adapted is not None:
            by_layer.setdefault(adapted[1], {})[adapted[3]] = tensor.detach()
        else:
            whole.append(name.rpartition(".")[0])
    layers = {name: _adapted(base, name, parts) for name, parts in by_layer.items()}
    saved = _saved_whole(base, dict.fromkeys(whole), layers)
    tensors = {
        f"{_PREFIX}.{layer}.{name}": value
        for layer, adapted in layers.items()
        for name, value in adapted.tensors.items()
    }
    for name in saved:
        state = trainable.model.get_submodule(name).state_dict()
        tensors |= {f"{_PREFIX}.{name}.{key}": value for key, value in state.items()}
    copies = {
        name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
    }
    return _config(recipe, layers, whole), copies


def _config(recipe: Recipe, layers: Mapping[str, _Adapted], whole: Iterable[str]) -> dict[str, Any]:
    # Anchored: PEFT also takes a key for a name's last part.
    ranks = {f"^{re.escape(name)}": adapted.rank for name, adapted in layers.items()}
    rank = next(iter(ranks.values()))
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": recipe.base_model,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": SCALE * rank,
        "rank_pattern": ranks,
        "alpha_pattern": {name: SCALE * rank for name, rank in ranks.items()},
        "target_modules": "|".join(map(re.escape, layers)),
        "modules_to_save": list(dict.fromkeys(whole)),
        "use_dora": recipe.method == "dora",
        "use_rslora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }


def _adapted(base: nn.Module, name: str, parts: Mapping[str, torch.Tensor]) -> _Adapted:
    """A, B and the magnitude of one layer."""
    layer: LayerModule = base.get_submodule(name)
    parts = {key.removeprefix("low_rank."): tensor for key, tensor in parts.items()}
    magnitude = parts.get("magnitude")
    groups = getattr(layer, "groups", 1)
    _refuse_layer(name, layer, {*parts}, groups, is_dora=magnitude is not None)
    down, up = parts["down.weight"], parts["up.weight"]
    tensors = {"lora_A.weight": _ungrouped(down, groups), "lora_B.weight": up}
    if magnitude is not None:
        spread = (1, -1, *[1] * (down.ndim - 2)) if down.ndim > 2 else (-1,)
        tensors["lora_magnitude_vector"] = magnitude.view(spread)
    return _Adapted(down.shape[0], tensors)


def _refuse_layer(name: str, layer: LayerModule, parts: set[str], groups: int, *, is_dora: bool) -> None:
    """Raises _InexpressibleError where PEFT would compute something else."""
    if not name:
        raise _InexpressibleError("the model is a single layer")
    if not {"down.weight", "up.weight"} <= parts:
        raise _InexpressibleError(f"{name} has a factorised kernel, which PEFT doesn't know")
    if not isinstance(layer, (nn.Linear, *CONVOLUTIONS)) or not is_plain(layer):
        raise _InexpressibleError(f"{name} is {type(layer).__name__}, which PEFT can't adapt alike")
    if is_dora and groups > 1:
        raise _InexpressibleError(f"{name} has groups, which PEFT's DoRA doesn't know")
    if isinstance(layer, nn.Linear):
        return
    if any(step != 1 for step in layer.dilation):
        raise _InexpressibleError(f"{name} is dilated, which PEFT's bypass is not")
    if layer.padding_mode != "zeros":
        raise _InexpressibleError(f"{name} pads with {layer.padding_mode}, PEFT's bypass with zeros")


def _ungrouped(down: torch.Tensor, groups: int) -> torch.Tensor:
    """A for all input channels, zero outside its group: PEFT's A has no groups."""
    if groups == 1:
        return down
    rank, inputs, *kernel = down.shape
    dense = down.new_zeros(groups, rank // groups, groups, inputs, *kernel)
    every = torch.arange(groups)
    dense[every, :, every] = down.unflatten(0, (groups, -1))
    return dense.flatten(2, 3).flatten(0, 1)


def _saved_whole(base: nn.Module, names: Iterable[str], adapted: Iterable[str]) -> list[str]:
    """All modules that PEFT would take for one of `names`: it compares the ends of paths.

    Raises _InexpressibleError where it would take an adapted layer, or what holds one, along.
    """
    every = [name for name, _ in base.named_modules(remove_duplicate=False) if name]
    names, adapted = list(names), list(adapted)
    taken = [path for path in every if any(path.endswith(name) for name in names)]
    leaves = [path for path in taken if not list(base.get_submodule(path).children())]
    for name in names:
        # What PEFT leaves unadapted because it is saved, with a path for a regular expression.
        excluded = re.compile(rf"(^|.*\.){name}($|\..*)")
        clash = next((layer for layer in adapted if excluded.match(layer)), None)
        if clash is not None or _PREFIX.endswith(name) or not name:
            raise _InexpressibleError(f"PEFT can't tell {name or 'the model itself'} from {clash or _PREFIX}")
    for path in taken:
        if path in adapted or path not in leaves:
            raise _InexpressibleError(f"PEFT can't tell {path} from a layer that is saved whole")
    return taken
