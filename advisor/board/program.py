"""The trained network as one file that other runtimes take: a program of torch.export, or ONNX."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advisor.delivery.adapters import Recipe, attach_adapter, read_recipe, read_tensors
from advisor.errors import InputError, first_line
from advisor.methods import get_method
from advisor.models import LoadedModel, load_model
from advisor.models.layers import answers_otherwise, logits
from advisor.system.files import check_writable, replacing

FORMATS = ("pt2", "onnx")
INPUT = "images"  # what the input of an ONNX file is called
_BATCH, _OTHER = 2, 3  # images: traced with so many, and tried with so many


@dataclass(frozen=True, slots=True)
class Program:
    """What was written."""

    path: Path
    bytes: int
    difference: float | None  # the largest of an output, against the network's; None: nothing ran the file


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A network after its fine-tune."""

    loaded: LoadedModel  # as it was before
    recipe: Recipe
    network: nn.Module  # with what was trained folded in, in eval mode


def write_program(
    model: str, adapter: Path, path: Path, form: str, *, arch: str | None = None, trust: bool = False
) -> Program:
    """Write the model with what was trained folded into its layers, for batches of any size.

    Args:
        model: the base model, as for `load_model`.
        adapter: the folder that `apply`, or a bundle's finetune.py, wrote.
        form: one of `FORMATS`. An ONNX file is held against the network by onnxruntime, where that is there.

    Raises:
        InputError: the model, the adapter or the file can't be used, or the network can't be written so.
    """
    check_writable(path)
    if form == "onnx":
        need_packages(form, "onnx", "onnxscript")
    trained = trained_network(model, adapter, arch=arch, trust=trust)
    with replacing(path) as temporary:
        difference = write_network(trained, temporary, form)
    return Program(path, path.stat().st_size, difference)


def need_packages(form: str, *names: str) -> None:
    """Raises InputError where some of them aren't installed."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise InputError(f"--as {form} needs {' and '.join(missing)}: pip install 'peft-advisor[onnx]'")


def trained_network(model: str, adapter: Path, *, arch: str | None = None, trust: bool = False) -> Trained:
    """The model with what was trained folded into its layers. Raises InputError."""
    loaded = load_model(model, arch=arch, trust=trust)
    recipe = read_recipe(adapter)
    tensors = read_tensors(adapter, recipe, loaded.module)
    trained = attach_adapter(loaded.module, recipe, tensors, adapter).model
    return Trained(loaded, recipe, get_method(recipe.method).merge(trained).eval())


def write_network(trained: Trained, path: Path, form: str) -> float | None:
    """Write it, and hold what was written against it.

    Returns:
        The largest difference of an output; None where nothing is there that runs the file.

    Raises:
        InputError: it can't be written so, or answers otherwise then.
    """
    size = trained.recipe.input_size
    images = torch.randn(_BATCH + _OTHER, *size, generator=torch.Generator().manual_seed(0))
    traced, others = images[:_BATCH], images[_BATCH:]
    write, run = {"pt2": (_write_pt2, _run_pt2), "onnx": (_write_onnx, _run_onnx)}[form]
    try:
        with torch.no_grad():
            # The exporter puts copies in place of containers, so a wide head no longer hears of its blocks.
            write(copy.deepcopy(trained.network), traced, path)
            return _difference(trained.network, others, lambda given: run(path, given))
    except InputError:
        raise
    except Exception as error:  # whatever torch's exporter says to this network
        source = trained.loaded.source
        raise InputError(f"{source} can't be written as {form}: {first_line(error)}") from error


def _difference(
    network: nn.Module, images: torch.Tensor, run: Callable[[torch.Tensor], torch.Tensor | None]
) -> float | None:
    found = run(images)
    if found is None:
        return None
    expected = logits(network(images))
    difference = float((found - expected).abs().max())
    if answers_otherwise(found, expected):
        raise InputError(f"the written network answers otherwise, by {difference:.2g}: it is not kept")
    return difference


def _shapes() -> Any:
    return ({0: torch.export.Dim("batch", min=1)},)


def _write_pt2(network: nn.Module, images: torch.Tensor, path: Path) -> None:
    program = torch.export.export(network, (images,), dynamic_shapes=_shapes())
    with path.open("wb") as file:
        torch.export.save(program, file)


def _run_pt2(path: Path, images: torch.Tensor) -> torch.Tensor:
    with path.open("rb") as file:
        found: torch.Tensor = torch.export.load(file).module()(images)
    return found


def _write_onnx(network: nn.Module, images: torch.Tensor, path: Path) -> None:
    torch.onnx.export(
        network,
        (images,),
        str(path),
        input_names=[INPUT],
        output_names=["scores"],
        dynamic_shapes=_shapes(),
        dynamo=True,
        external_data=False,  # one file
        verbose=False,
    )


def _run_onnx(path: Path, images: torch.Tensor) -> torch.Tensor | None:
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [found] = session.run(None, {INPUT: images.numpy()})
    return torch.from_numpy(found)
