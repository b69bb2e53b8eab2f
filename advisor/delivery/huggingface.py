"""The adapter as Hugging Face PEFT reads it: `PeftModel.from_pretrained(base, folder)`.

Written only where PEFT computes the same: it knows no padding but zeros and no transposed convolution,
its LoRA and DoRA no dilation, its DoRA no groups. The head, depthwise kernels that are trained themselves
and normalisation layers whose statistics moved go along whole (`modules_to_save`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import nn

from advisor.delivery.adapters import Recipe
from advisor.errors import InputError
from advisor.methods import get_method
from advisor.methods.lora import SCALE
from advisor.models.layers import is_plain, layer_type
from advisor.parts.attachment import Trainable
from advisor.parts.bypass import BYPASS, LayerModule
from advisor.parts.closed_form import WideHead
from advisor.system.files import write_whole

FOLDER = "huggingface"
_PREFIX = "base_model.model"  # where PEFT holds the base model
# The names of what PEFT puts around the model and into a layer.
_EVERYWHERE = (_PREFIX, "base_layer", "default")
_LORA_PARTS = ("dropout", "A", "B", "embedding_A", "embedding_B", "magnitude_vector")
_HADAMARD_PARTS = ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")
_KRONECKER_PARTS = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
# Inside a layer: a bypass of ours, or what its weight, and (IA)^3's bias, is recomposed with.
_ADAPTED = re.compile(rf"^(.*?)\.?({BYPASS}|parametrizations\.(?:weight|bias)\.0)\.(.*)$")


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
    files = target / "adapter_config.json", target / "adapter_model.safetensors"
    _remove(target, files)
    peft_type = get_method(recipe.method).peft_type
    if peft_type is None:
        return (), ""
    try:
        config, tensors = _translated(base, trainable, recipe, peft_type)
    except _InexpressibleError as reason:
        return (), f"no {FOLDER}/: {reason}"
    try:
        target.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{target}: can't be made ({error.strerror}); move what is there away") from error
    write_whole(files[0], json.dumps(config, indent=2) + "\n", keep_old=True)
    write_whole(files[1], save_tensors(tensors, metadata={"format": "pt"}), keep_old=True)
    return files, ""


def _remove(target: Path, files: Iterable[Path]) -> None:
    """What a former run wrote: a folder of that name may hold the user's own files, too."""
    try:
        for file in files:
            file.unlink(missing_ok=True)
        if target.is_dir() and not any(target.iterdir()):
            target.rmdir()
    except OSError as error:
        raise InputError(f"{target}: can't be written to ({error.strerror}); move it away") from error


@dataclass(frozen=True, slots=True)
class _Adapted:
    """One layer's change, in PEFT's shapes."""

    rank: int  # 0 where the method has none
    tensors: Mapping[str, torch.Tensor]


def _translated(
    base: nn.Module, trainable: Trainable, recipe: Recipe, peft_type: str
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if recipe.base_classes is not None:
        raise _InexpressibleError("the head has other classes than the base model's, which PEFT would keep")
    if any(isinstance(module, WideHead) for module in trainable.model.modules()):
        raise _InexpressibleError("the head reads blocks besides its own input, which PEFT has no layer for")
    by_layer: dict[str, dict[str, torch.Tensor]] = {}
    whole: list[str] = []
    for name, tensor in trainable.delta().items():
        adapted = _ADAPTED.match(name)
        if adapted is not None and layer_type(base.get_submodule(adapted[1])) == "norm":
            whole.append(adapted[1])  # (IA)^3's scale is a part of its weight and bias
        elif adapted is not None:
            by_layer.setdefault(adapted[1], {})[adapted[3]] = tensor.detach()
        else:
            whole.append(name.rpartition(".")[0])
    if not by_layer:
        raise _InexpressibleError("every scale is behind a BatchNorm, and PEFT's are before it")
    layers = {name: _adapted(base, name, parts) for name, parts in by_layer.items()}
    saved = _saved_whole(base, dict.fromkeys(whole), layers, _pefts_own(peft_type))
    tensors = {
        f"{_PREFIX}.{layer}.{name}": value
        for layer, adapted in layers.items()
        for name, value in adapted.tensors.items()
    }
    for name in saved:
        module = trainable.model.get_submodule(name)
        for key in base.get_submodule(name).state_dict():
            tensors[f"{_PREFIX}.{name}.{key}"] = getattr(module, key)
    copies = {
        name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
    }
    return _config(recipe, peft_type, layers, whole), copies


def _config(
    recipe: Recipe, peft_type: str, layers: Mapping[str, _Adapted], whole: Iterable[str]
) -> dict[str, Any]:
    own: dict[str, Any]
    if peft_type == "IA3":
        own = {"feedforward_modules": [], "fan_in_fan_out": False, "init_ia3_weights": True}
    else:
        # Anchored: PEFT also takes a key for a name's last part.
        ranks = {f"^{re.escape(name)}": adapted.rank for name, adapted in layers.items()}
        rank = next(iter(ranks.values()))
        own = {"r": rank, "rank_pattern": ranks}
        own["alpha_pattern"] = {name: SCALE * rank for name, rank in ranks.items()}
        if peft_type in ("LOHA", "LOKR"):
            own |= {"alpha": SCALE * rank, "rank_dropout": 0.0, "module_dropout": 0.0}
            own |= {"use_effective_conv2d": False, "init_weights": True}
            if peft_type == "LOKR":
                own |= {"decompose_both": False, "decompose_factor": -1, "rank_dropout_scale": False}
        else:
            magnitudes = ("lora_magnitude_vector" in adapted.tensors for adapted in layers.values())
            own |= {"lora_alpha": SCALE * rank, "use_dora": any(magnitudes)}
            own |= {"use_rslora": False, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False}
            own |= {"init_lora_weights": True}
    return {
        **own,
        "peft_type": peft_type,
        "task_type": None,
        "base_model_name_or_path": recipe.base_model,
        "inference_mode": True,
        "target_modules": "|".join(map(re.escape, layers)),
        "modules_to_save": list(dict.fromkeys(whole)),
    }


def _adapted(base: nn.Module, name: str, parts: Mapping[str, torch.Tensor]) -> _Adapted:
    """One layer's trained tensors, by our names, as PEFT has them."""
    _refuse_layer(base, name, scaled="scale" in parts)
    layer: LayerModule = base.get_submodule(name)
    own = {re.sub(r"^(low_rank|change)\.", "", key): tensor for key, tensor in parts.items()}
    groups = getattr(layer, "groups", 1)
    if "scale" in own:
        scale = own["scale"]
        spread = (-1, 1) if isinstance(layer, nn.Linear) else (1, -1, *[1] * len(layer.kernel_size))
        return _Adapted(0, {"ia3_l": scale.view(spread)})
    if "first.down.weight" in own:
        return _hadamard(own, groups)
    if "left" in own:
        return _kronecker(own, layer)
    if "down.weight" not in own:
        raise _InexpressibleError(f"{name} has a factorised kernel, which PEFT doesn't know")
    down = own["down.weight"]
    tensors = {"lora_A.weight": _ungrouped(down, groups), "lora_B.weight": own["up.weight"]}
    if not isinstance(layer, nn.Linear) and any(step != 1 for step in layer.dilation):
        raise _InexpressibleError(f"{name} is dilated, which PEFT's bypass is not")
    if "magnitude" in own:
        if groups > 1:
            raise _InexpressibleError(f"{name} has groups, which PEFT's DoRA doesn't know")
        spread = (1, -1, *[1] * (down.ndim - 2)) if down.ndim > 2 else (-1,)
        tensors["lora_magnitude_vector"] = own["magnitude"].view(spread)
    return _Adapted(down.shape[0], tensors)


def _refuse_layer(base: nn.Module, name: str, *, scaled: bool) -> None:
    """Raises _InexpressibleError where PEFT adapts no such layer, or not alike."""
    if not name:
        raise _InexpressibleError("the model is a single layer")
    layer: LayerModule = base.get_submodule(name)
    known = (nn.Linear, nn.Conv2d) if scaled else (nn.Linear, nn.Conv1d, nn.Conv2d)
    if not isinstance(layer, known) or not is_plain(layer):
        raise _InexpressibleError(f"{name} is {type(layer).__name__}, which PEFT can't adapt alike")
    if not scaled and not isinstance(layer, nn.Linear) and layer.padding_mode != "zeros":
        raise _InexpressibleError(f"{name} pads with {layer.padding_mode}, PEFT's change of it with zeros")


def _hadamard(own: Mapping[str, torch.Tensor], groups: int) -> _Adapted:
    """(B1 A1) * (B2 A2) as matrices of a row for each output."""
    tensors: dict[str, torch.Tensor] = {}
    for number, part in ((1, "first"), (2, "second")):
        up, down = own[f"{part}.up.weight"].flatten(1), own[f"{part}.down.weight"].flatten(1)
        tensors |= {f"hada_w{number}_a": _ungrouped(up, groups), f"hada_w{number}_b": down}
    return _Adapted(down.shape[0], tensors)


def _kronecker(own: Mapping[str, torch.Tensor], layer: LayerModule) -> _Adapted:
    """C ⊗ D, split as in PEFT, which holds D whole from another rank on."""
    kernel = tuple(getattr(layer, "kernel_size", ()))
    right = own["right"] if "right" in own else own["up"] @ own["down"]
    longer = max(right.shape[0], right.shape[1] // math.prod(kernel))
    if "right" not in own and 2 * own["up"].shape[1] < longer:
        tensors = {"lokr_w1": own["left"], "lokr_w2_a": own["up"], "lokr_w2_b": own["down"]}
        return _Adapted(own["up"].shape[1], tensors)
    if len(kernel) == 1:
        raise _InexpressibleError("PEFT multiplies the Kronecker factors of a 1-d convolution otherwise")
    tensors = {"lokr_w1": own["left"], "lokr_w2": right.unflatten(1, (-1, *kernel)) if kernel else right}
    return _Adapted(longer, tensors)  # at that rank it is whole


def _ungrouped(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """A grouped layer's weight for all inputs, (C_out, C_in, ...): zero outside its group."""
    if groups == 1:
        return weight
    outputs, inputs, *kernel = weight.shape
    dense = weight.new_zeros(groups, outputs // groups, groups, inputs, *kernel)
    every = torch.arange(groups)
    dense[every, :, every] = weight.unflatten(0, (groups, -1))
    return dense.flatten(2, 3).flatten(0, 1)


def _pefts_own(peft_type: str) -> tuple[str, ...]:
    if peft_type == "IA3":
        return (*_EVERYWHERE, "ia3_l")
    if peft_type == "LOHA":
        return (*_EVERYWHERE, *(f"hada_{part}" for part in _HADAMARD_PARTS))
    if peft_type == "LOKR":
        return (*_EVERYWHERE, *(f"lokr_{part}" for part in _KRONECKER_PARTS))
    return (*_EVERYWHERE, *(f"lora_{part}" for part in _LORA_PARTS))


def _saved_whole(
    base: nn.Module, names: Iterable[str], adapted: Iterable[str], pefts_own: Iterable[str]
) -> list[str]:
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
        clash = clash or next((own for own in pefts_own if own.endswith(name)), None)
        if clash is not None:
            raise _InexpressibleError(f"PEFT can't tell {name or 'the model itself'} from {clash}")
    for path in taken:
        if path in adapted or path not in leaves:
            raise _InexpressibleError(f"PEFT can't tell {path} from a layer that is saved whole")
    return taken
