"""A trained adapter as two files: what training changed, and all that is needed to put it back.

`adapter.safetensors` holds the tensors of `Trainable.delta`, `recipe.json` how they were made. Neither
runs code when it is read.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from advisor.delivery.kept_sums import SUMS, KeptSums
from advisor.errors import InputError
from advisor.models import take_census
from advisor.models.fingerprint import model_fingerprint
from advisor.models.heads import with_head
from advisor.parts.attachment import Trainable
from advisor.probes import Situation, adapt_head, head_of, trained_as
from advisor.records import Candidate, Census, Levers, SettingValue
from advisor.system.files import kept_name, opened, read_json, write_whole
from advisor.training.update import attach, head_to_solve

FORMAT = "peft-advisor adapter 1"
_MOST_VALUES = 2**25  # of an image: a recipe's are run through the model
TENSORS, RECIPE = "adapter.safetensors", "recipe.json"
HISTORY = "history.json"  # that a bundle's finetune.py writes, whatever it came to


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an adapter was made, and what it goes on."""

    method: str
    setting: Mapping[str, SettingValue]
    levers: Levers
    input_size: tuple[int, ...]  # (C, H, W)
    classes: int  # the adapted model's outputs
    base_fingerprint: str  # of the model that was adapted, see `model_fingerprint`
    adapter_sha256: str = ""  # of the adapter file that belongs to it; `save_adapter` fills it in
    head_replaced: bool = False  # none of the base model's outputs is kept
    base_classes: int | None = None  # the base model's outputs, where they were other than `classes`
    base_model: str = ""  # as typed
    learning_rate: float | None = None  # None where nothing is trained by gradients
    batch_size: int | None = None
    epochs: int | None = None  # that the learning rate's fall was planned for
    epochs_run: int | None = None  # fewer where training diverged
    seed: int = 0
    data: str = ""  # as typed
    augment: str = "none"  # what of the images was trained on
    rehearse: str | None = None
    class_names: tuple[str, ...] = ()  # the data's
    class_outputs: tuple[int, ...] = ()  # of the model, one for each of `class_names`
    mean: tuple[float, ...] = ()  # of images in [0, 1], by channel
    std: tuple[float, ...] = ()
    crop: float = 1.0  # of images of other sizes: resized to so much more than the input, the centre kept
    interpolation: str = "bilinear"
    crop_mode: str = "center"
    channel_order: str = "rgb"
    orientation: str = "exif"  # images are turned as theirs says; `stored`: they are not
    accuracy: Mapping[str, float | int] | None = None  # mean, low, high, samples: on held-out images
    base_accuracy: Mapping[str, float | int] | None = None
    predicted_accuracy: Mapping[str, float | int] | None = None  # by the probe
    sums_sha256: str = ""  # of the sums that its head was solved of; none where it was trained
    images: int | None = None  # that are in these sums
    added: tuple[Mapping[str, Any], ...] = ()  # to them, later: data, images, new classes
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, base: nn.Module, candidate: Candidate, census: Census) -> Recipe:
        """The least that `load_adapter` needs: of a base model with the head that it keeps."""
        return cls(
            method=candidate.method,
            setting=dict(candidate.setting),
            levers=candidate.levers,
            input_size=census.input_size,
            classes=census.classes or 0,
            base_fingerprint=model_fingerprint(base),
        )

    @property
    def candidate(self) -> Candidate:
        """What was trained."""
        return Candidate.of(self.method, self.setting, self.levers)


def save_adapter(
    folder: str | os.PathLike[str], trainable: Trainable, recipe: Recipe, sums: KeptSums | None = None
) -> Recipe:
    """Write `adapter.safetensors` and `recipe.json` into the folder, each whole or not at all.

    Args:
        sums: of which its head was solved; they become `sums.safetensors`.

    Returns:
        The recipe as it was written.

    Raises:
        InputError: the folder can't be written to.
    """
    # Copies: safetensors refuses tensors that share memory.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in trainable.delta().items()
    }
    content = save_tensors(tensors, metadata={"format": FORMAT})
    recipe = dataclasses.replace(recipe, adapter_sha256=hashlib.sha256(content).hexdigest(), sums_sha256="")
    if sums is not None:
        of_sums = sums.content()
        recipe = dataclasses.replace(
            recipe, sums_sha256=hashlib.sha256(of_sums).hexdigest(), images=sums.sums.count
        )
        write_whole(Path(folder, SUMS), of_sums, keep_old=True)
    elif (former := kept_name(Path(folder, SUMS))) is not None:
        Path(folder, SUMS).replace(former)  # of another head
    write_whole(Path(folder, TENSORS), content, keep_old=True)
    write_whole(
        Path(folder, RECIPE), json.dumps(document_of(recipe), indent=2, allow_nan=False) + "\n", keep_old=True
    )
    return recipe


def document_of(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, as `recipe.json` has it."""
    return {"format": FORMAT, "candidate": recipe.candidate.id, **asdict(recipe)}


def load_adapter(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """A copy of the model with the adapter attached: its outputs in eval mode are the trained one's.

    Args:
        model: the base model that the adapter was trained on, float32, on the CPU.
        path: the folder that `apply` wrote, or the `adapter.safetensors` in it.

    Returns:
        A new module in eval mode; `model` stays as it is.

    Raises:
        InputError: files are missing or damaged, or the adapter belongs to another model.
    """
    folder = Path(path).parent if Path(path).suffix == ".safetensors" else Path(path)
    recipe = read_recipe(folder)
    return attach_adapter(model, recipe, read_tensors(folder, recipe, model), folder).model.eval()


def attach_adapter(
    model: nn.Module, recipe: Recipe, tensors: Mapping[str, torch.Tensor], folder: Path | str = ""
) -> Trainable:
    """The recipe's candidate on a copy of the model, with the given tensors for its delta.

    Raises:
        InputError: the model's layers are not those of the recipe.
    """
    adapted = copy.deepcopy(model).eval()
    try:
        # What attaching draws at random is overwritten; the caller's generator is left alone.
        with torch.random.fork_rng(devices=[]):
            if math.prod(recipe.input_size) > _MOST_VALUES:
                raise ValueError(f"images of {'x'.join(map(str, recipe.input_size))} are too large")
            census = take_census(adapted, recipe.input_size)
            # Each new class has a row of its own in the adapter.
            rows = sum(tensor.numel() for tensor in tensors.values())
            if recipe.base_classes is not None and recipe.classes > (census.classes or 0) + rows:
                raise ValueError(f"it has no rows for {recipe.classes} classes")
            if recipe.base_classes is not None and recipe.head_replaced and census.head is None:
                adapted = with_head(adapted, census.classes or 0, recipe.input_size)
                census = take_census(adapted, recipe.input_size)
            if recipe.base_classes is not None and census.head is not None:
                adapt_head(adapted, census.head, _situation(recipe))
                census = take_census(adapted, recipe.input_size)
            trainable = attach(adapted, census, trained_as(recipe.candidate, census))
            if head_of(recipe.candidate) is not None:
                head_to_solve(trainable, census)
    except Exception as error:  # a recipe may hold anything
        raise InputError(f"{folder}: the adapter can't be attached to this model: {error}") from error
    expected = trainable.delta()
    differing = [
        name
        for name in sorted(expected.keys() | tensors.keys())
        if name not in expected or name not in tensors or expected[name].shape != tensors[name].shape
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise InputError(
            f"{folder}: {TENSORS} doesn't fit {RECIPE}: {', '.join(differing[:3])}{more} differ; "
            "use the two files of one run"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():  # as they are: loading may be a matter of a network's versions
            expected[name].copy_(tensor)
    return trainable


def read_recipe(folder: str | os.PathLike[str]) -> Recipe:
    """The recipe in a folder that `apply` wrote. Raises InputError."""
    path = Path(folder, RECIPE)
    try:
        document = read_json(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise InputError(f"{path}: is no JSON; take the file that apply wrote") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(f"{path}: is not a recipe of peft-advisor apply; give the folder that it wrote")
    try:
        return _recipe(document)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({error}); take the file that apply wrote") from error


def _recipe(document: Mapping[str, Any]) -> Recipe:
    known = {item.name for item in dataclasses.fields(Recipe)}
    values = {key: value for key, value in document.items() if key in known}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    levers = {item.name for item in dataclasses.fields(Levers)}
    values["levers"] = Levers(**{key: value for key, value in values["levers"].items() if key in levers})
    recipe = Recipe(**values)
    checks = {
        "method": isinstance(recipe.method, str),
        "setting": isinstance(recipe.setting, dict),
        "input_size": [type(side) for side in recipe.input_size] == [int] * 3,
        "classes": type(recipe.classes) is int,
        "base_fingerprint": isinstance(recipe.base_fingerprint, str),
    }
    if wrong := [name for name, right in checks.items() if not right]:
        raise ValueError(f"{wrong[0]} is wrong")
    return recipe


def read_tensors(folder: Path, recipe: Recipe, model: nn.Module) -> dict[str, torch.Tensor]:
    """The adapter's, where it belongs to the recipe and to this base model. Raises InputError."""
    tensors = _read_tensors(folder / TENSORS, recipe)
    found = model_fingerprint(model)
    if found != recipe.base_fingerprint:
        raise InputError(
            f"{folder}: the adapter was trained on other weights (fingerprint "
            f"{recipe.base_fingerprint[:12]}, this model's is {found[:12]}); give the model that it was "
            f"trained on{f', {recipe.base_model}' if recipe.base_model else ''}"
        )
    return tensors


def _read_tensors(path: Path, recipe: Recipe) -> dict[str, torch.Tensor]:
    try:
        with opened(path) as file:
            content = file.read()
    except OSError as error:
        raise _unreadable(path, error) from error
    if recipe.adapter_sha256 not in ("", hashlib.sha256(content).hexdigest()):
        raise InputError(
            f"{path}: is not the file that {RECIPE} was written with, or was damaged since; take both from "
            "one run of apply"
        )
    try:
        return load_tensors(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: is damaged or cut short; take the file that apply wrote") from error


def _unreadable(path: Path, error: OSError) -> InputError:
    if path.parent.joinpath(HISTORY).exists() and not path.exists():
        return InputError(f"{path.parent}: its fine-tune kept the old weights, so it holds no new ones")
    reason = error.strerror or type(error).__name__
    return InputError(
        f"{path}: can't be read ({reason}); give the folder that peft-advisor apply, or a bundle's "
        "finetune.py, wrote"
    )


def _situation(recipe: Recipe) -> Situation:
    """What `adapt_head` needs to know; the rows that it makes are overwritten."""
    kept = 0 if recipe.head_replaced else recipe.base_classes or 0
    return Situation("new-classes", recipe.classes, recipe.classes - kept, recipe.head_replaced, ())
