"""The bundle: base weights, the recipe, the network's source, and a fine-tune that needs torch alone."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

import advisor
from advisor.board.network import written
from advisor.board.tensors import can_be_packed, packed, tensors_of
from advisor.costs.passes import pass_size
from advisor.data.loading import Dataset
from advisor.data.pixels import Frame
from advisor.data.pools import Found
from advisor.delivery.adapters import RECIPE, document_of
from advisor.delivery.apply import Application, advised, chosen, learning_rate_of, promised_bytes, recipe_of
from advisor.errors import InputError
from advisor.methods import get_method, plan
from advisor.plain import encode
from advisor.records import Candidate, Recommendation
from advisor.story.situation import Progress, Story
from advisor.system.files import make_folder, write_whole

SCRIPT, NETWORK, WEIGHTS, LIBRARY = "finetune.py", "network.py", "base.safetensors", "advisor"
_ROOT = Path(advisor.__file__).parent
_READ_AT_ONCE = 256  # images, to tell which of the files they are
_EMPTY = '"""Copied from peft-advisor: what a fine-tune on the board needs of it."""\n'


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    folder: Path
    candidate: Candidate
    promised_bytes: int  # that an update takes, whatever is done on the board
    pass_size: int  # images that run at once where no gradient is needed
    known: int  # images of which the bundle knows on which side of the split they are
    bytes: int  # of all files
    warnings: tuple[str, ...]


def export(
    model: str,
    recommendation: Recommendation,
    application: Application,
    progress: Progress = lambda stage, fraction, running: None,
) -> Exported:
    """Write what runs the recommended fine-tune on a board, as `apply` would with the same arguments.

    Raises:
        InputError: the recommendation, the model or the data can't be used, or the network or the method
            can't be exported.
    """
    evaluation = chosen(recommendation, application.candidate)
    rate = learning_rate_of(evaluation, application.learning_rate)
    modules = _modules(evaluation.candidate)
    _check_folder(application.output)
    story = advised(model, recommendation, evaluation, application, progress)
    data, census = story.given.dataset, story.census
    if census.input_size[0] not in (1, 3):
        raise InputError(
            f"photos have 1 or 3 channels, the model takes {census.input_size[0]}: it can't be exported"
        )
    progress("export", 0.0, "network")
    example = data.validation.batch(torch.arange(min(2, len(data.validation))), data.normalisation)[0]
    network, tensors = written(story.loaded.module, example), tensors_of(story.loaded.module)
    odd = next((name for name, tensor in tensors.items() if not can_be_packed(tensor)), None)
    if odd is not None:
        raise InputError(f"{odd} holds {tensors[odd].dtype}: no file of weights for a board can")
    promised = promised_bytes(recommendation, evaluation)
    passes = pass_size(story.loaded.module, census, evaluation.cost, promised)
    progress("export", 0.5, "photos")
    split = _split(story.given.found, data)
    recipe = recipe_of(story, recommendation, evaluation, rate, application.epochs, 0)
    document = document_of(recipe) | {
        "board": {
            "census": encode(census),
            "promised_bytes": promised,
            "pass_size": passes,
            "split": split,
        }
    }
    folder = application.output
    write_whole(folder / RECIPE, json.dumps(document, indent=1, allow_nan=False) + "\n")
    write_whole(folder / NETWORK, network)
    write_whole(folder / SCRIPT, (_ROOT / "board" / SCRIPT).read_text(encoding="utf-8"))
    write_whole(folder / WEIGHTS, packed(tensors, {"format": "pt"}))
    for name, text in modules.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    progress("export", 1.0, "")
    files = [folder / name for name in (RECIPE, NETWORK, SCRIPT, WEIGHTS, *modules)]
    return Exported(
        folder,
        evaluation.candidate,
        promised,
        passes,
        sum(map(len, split.values())),
        sum(path.stat().st_size for path in files),
        tuple(_warnings(story, recommendation)),
    )


def _check_folder(folder: Path) -> None:
    """Make it, without what an earlier bundle left there; refuse one that holds other things."""
    try:
        make_folder(folder)
    except InputError as error:
        raise InputError(f"--output {error}") from error
    if (folder / LIBRARY).exists():
        if not (folder / SCRIPT).exists() or not (folder / WEIGHTS).exists():
            raise InputError(f"--output {folder} holds {LIBRARY}/ and is no bundle; give another folder")
        shutil.rmtree(folder / LIBRARY)


def _warnings(story: Story, recommendation: Recommendation) -> Iterator[str]:
    """What the report doesn't say yet, and what is otherwise on a board."""
    yield from (warning for warning in story.warnings if warning not in recommendation.warnings)
    known = recommendation.data
    if known is not None and known.rehearse:
        yield f"{known.rehearse} was rehearsed: on the board, photos are taken as they are"
    if known is not None and known.unlabelled:
        yield "images without labels are not read on the board, whatever looks at no labels"
    if recommendation.budget.metric != "accuracy":
        yield f"the board judges by accuracy, not by {recommendation.budget.metric}"


def _modules(candidate: Candidate) -> dict[str, str]:
    """The modules of ours that the candidate is trained with on the board, as they are: path -> text.

    Raises:
        InputError: the candidate can't be trained there.
    """
    if candidate.levers.fuse:
        raise InputError(f"{candidate.short} can't be exported: folded norms are priced, not trained")
    methods = {candidate.method}
    if candidate.levers.statistics == "reestimated":
        methods.add("recalibrate")
    if candidate.method == plan.Plan.name:
        methods |= {*plan.PARTS}
    starts = []
    for name in methods:
        module = type(get_method(name)).__module__
        if not module.startswith("advisor.methods."):
            raise InputError(f"{name} can't be exported: it is no method of ours, but {module}'s")
        starts.append(module)
    found: dict[str, str] = {}
    for module in _needed([*starts, *_imported(_ROOT / "board" / SCRIPT)]):
        path = _file_of(module)
        empty = path.name == "__init__.py" and any(_imported(path)) and module != "advisor.methods"
        text = _EMPTY if empty else path.read_text(encoding="utf-8")
        found[str(LIBRARY / path.relative_to(_ROOT))] = text
    return dict(sorted(found.items()))


def _needed(starts: Iterable[str]) -> set[str]:
    """Modules of ours with all that they import, and the packages that they are in."""
    found: set[str] = set()
    left = [*starts]
    while left:
        module = left.pop()
        if module in found:
            continue
        found.add(module)
        package = module.rpartition(".")[0]
        if package:
            found.add(package)  # of which nothing is imported, but what is named
        left += _imported(_file_of(module))
    return found | {module.rpartition(".")[0] for module in found if module.count(".") > 1} | {"advisor"}


@cache
def _imported(path: Path) -> tuple[str, ...]:
    """Modules of ours that a file imports."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    named = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return tuple(name for name in named if name.partition(".")[0] == "advisor")


def _file_of(module: str) -> Path:
    path = _ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _split(found: Found, data: Dataset) -> dict[str, list[str]]:
    """Digests of the files of the images to train on, and of those held out, in their order.

    Of images that lie in no files, or that were changed since they were read, there is none.
    """
    frame = Frame(_size(data), data.framing, data.normalisation.mean)
    files: defaultdict[bytes, list[str]] = defaultdict(list)
    for pool in found.pools:
        if pool.contents is None:
            return {"train": [], "held_out": []}
        for indices in np.array_split(
            np.arange(len(pool.labels)), -(-len(pool.labels) // _READ_AT_ONCE) or 1
        ):
            images, failures = pool.read(indices, frame)
            for place, content in enumerate(pool.contents(indices)):
                if place not in failures:
                    files[_looks(images[place])].append(content[:16])
    return {
        "train": _told(files, data.train.images),
        "held_out": _told(files, data.validation.images),
    }


def _told(files: dict[bytes, list[str]], images: Sequence[torch.Tensor] | torch.Tensor) -> list[str]:
    looks = map(_looks, images)
    return [files[look].pop(0) for look in looks if files.get(look)]


def _looks(image: torch.Tensor) -> bytes:
    return hashlib.sha256(image.contiguous().numpy().data).digest()


def _size(data: Dataset) -> tuple[int, int, int]:
    channels, height, width = data.train.images.shape[1:]
    return channels, height, width
