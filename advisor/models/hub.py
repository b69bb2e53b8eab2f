"""What Hugging Face's libraries save: networks of transformers, and PEFT's adapters on top of a network.

The libraries are imported where they are needed, none of a folder's own code is run, and nothing is fetched.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from advisor.errors import ModelError
from advisor.models.named_code import stdout_to_stderr
from advisor.models.printable import first_line, shown
from advisor.system.files import read_json

ADAPTER = "adapter_config.json"
_OR_MERGE = "or load both with PeftModel and save the result of model.merge_and_unload()"
_CLASSIFIER = "ForImageClassification"
# Of a configuration: what names code, or asks for another way of computing than torch's own.
_CODE = ("auto_map", "attn_implementation", "experts_implementation", "use_kernels", "trust_remote_code")


def is_of_transformers(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is that of a network of transformers, and not of one of timm's inside it."""
    return (
        isinstance(config.get("model_type"), str)
        and isinstance(config.get("architectures"), list)
        and "architecture" not in config
    )


def of_transformers(folder: Path, config: Mapping[str, Any]) -> nn.Module:
    """The network of a folder that transformers saved, with its weights.

    Raises:
        ModelError: it classifies no images, is none of transformers' own, or its weights don't fit.
    """
    name = shown(str(next(iter(config["architectures"]), config["model_type"])))
    if not name.endswith(_CLASSIFIER):
        raise ModelError(
            f"holds transformers' {name}, which gives no scores of images' classes; give one that ends in "
            f"{_CLASSIFIER}"
        )
    if "quantization_config" in config:
        raise ModelError(f"holds a quantised {name}; give the floating-point model that it was made from")
    transformers = _imported("transformers", f"transformers' {name} needs transformers")
    plain = {key: value for key, value in config.items() if key not in _CODE and not key.startswith("_")}
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        with stdout_to_stderr():
            settings = transformers.AutoConfig.for_model(**plain)
            with torch.device("meta"), _no_larger_than(sum(each.stat().st_size for each in folder.iterdir())):
                transformers.AutoModelForImageClassification.from_config(settings)
            module, read = transformers.AutoModelForImageClassification.from_pretrained(
                folder,
                config=settings,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:  # whatever the file holds, or another version of transformers says
        raise ModelError(
            f"transformers {transformers.__version__} can't make its {name}: {first_line(error)}"
        ) from error
    wrong = [str(each) for kind in ("missing_keys", "mismatched_keys") for each in read.get(kind, ())]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ModelError(
            f"its weights lack {shown(wrong[0])}{more} of {name}; save it again with save_pretrained"
        )
    found: nn.Module = module
    return found


@contextmanager
def _no_larger_than(count: int) -> Iterator[None]:
    """Within it, a network of more weights is refused while it is made: configurations may ask for any."""
    left = count

    def take(module: nn.Module, name: str, weight: torch.Tensor | None) -> None:
        nonlocal left
        left -= 0 if weight is None else weight.numel()
        if left < 0:
            raise ValueError(f"it asks for more weights than its {count:,} bytes hold")

    hook = register_module_parameter_registration_hook(take)
    try:
        yield
    finally:
        hook.remove()


def base_of_adapter(folder: Path) -> str:
    """The network that PEFT's adapters in the folder go on, as `load_model` takes it.

    Raises:
        ModelError: the folder doesn't say, or it is not here.
    """
    try:
        named = read_json(folder / ADAPTER).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"its {ADAPTER} is damaged; save the adapters again") from error
    if not isinstance(named, str) or not named:
        raise ModelError(
            f"holds PEFT adapters, and its {ADAPTER} doesn't say which model they go on: put its path there "
            f"as base_model_name_or_path, {_OR_MERGE}"
        )
    for place in (Path(named), folder / named):
        if place.exists():
            return str(place)
    library, _, name = named.replace("/", ":", 1).partition(":")
    if library in ("torchvision", "timm") and name:
        return f"{library}:{name}"
    raise ModelError(
        f"holds PEFT adapters, and the model that they go on, {shown(named)}, is not here: put its path into "
        f"{ADAPTER} as base_model_name_or_path, {_OR_MERGE}"
    )


def with_adapter(base: nn.Module, folder: Path) -> nn.Module:
    """The network with the folder's adapters merged into its weights.

    Raises:
        ModelError: they don't fit, or can't be merged.
    """
    peft = _imported("peft", "its adapters need PEFT to be merged")
    try:
        with warnings.catch_warnings(record=True) as told, stdout_to_stderr():
            warnings.simplefilter("always")
            adapted = peft.PeftModel.from_pretrained(base, folder, local_files_only=True)
        lacking = next(
            (str(each.message) for each in told if "missing adapter keys" in str(each.message)), ""
        )
        if lacking:
            raise ValueError(lacking)
        merged: nn.Module = adapted.merge_and_unload()
    except Exception as error:  # PEFT raises its own, and torch's
        why = shown(" ".join(str(error).split()))
        raise ModelError(
            f"its PEFT adapters can't be merged into the model that they go on ({why}); load both with "
            "PeftModel, and save what model.merge_and_unload() gives"
        ) from error
    return merged


def _imported(library: str, needed: str) -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # whatever a folder names, nothing is fetched
    try:
        return import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise ModelError(f"{library} can't be imported: {first_line(error)}") from error
        raise ModelError(f"{needed}: pip install 'peft-advisor[hf]'") from error
