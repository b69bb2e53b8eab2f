"""What a finished run leaves in its folder: adapter and recipe, sums, PEFT's form, the merged model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from advisor.delivery.adapters import RECIPE, TENSORS, Recipe, save_adapter
from advisor.delivery.huggingface import save_for_peft
from advisor.delivery.kept_sums import SUMS, KeptSums
from advisor.delivery.merged import NAMES, save_merged
from advisor.errors import InputError
from advisor.models import LoadedModel
from advisor.parts.attachment import Trainable
from advisor.system.files import make_folder

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True, slots=True)
class Delivered:
    """What was written, and what was not."""

    recipe: Recipe  # as it was written
    files: tuple[Path, ...]
    notes: tuple[str, ...]  # what there is no form of, and why
    unwritten: tuple[str, ...]  # what failed to be written, and why


def deliver(
    folder: Path,
    loaded: LoadedModel,
    trainable: Trainable,
    recipe: Recipe,
    images: torch.Tensor,
    sums: KeptSums | None = None,
) -> Delivered:
    """Write all forms that there are. What can't be written takes nothing else with it.

    Args:
        folder: which is there.
        loaded: the base model.
        trainable: the adapted one; it is taken apart.
        recipe: how it was made.
        images: (N, C, H, W), normalised, on which the merged model must answer the same.
        sums: of which its head was solved.
    """
    unwritten: list[str] = []

    @contextmanager
    def noted() -> Iterator[None]:
        try:
            yield
        except InputError as error:
            unwritten.append(str(error))
        except OSError as error:
            unwritten.append(f"{error.filename or folder}: can't be written ({error.strerror})")

    files: list[Path] = []
    with noted():
        recipe = save_adapter(folder, trainable, recipe, sums)
        files += [folder / TENSORS, folder / RECIPE, *([folder / SUMS] if sums is not None else [])]
    for_peft: Iterable[Path] = ()
    merged, no_peft, no_merged = None, "", ""
    with noted():
        for_peft, no_peft = save_for_peft(folder, loaded.module, trainable, recipe)
    # The last, because it takes the trained model apart.
    with noted():
        merged, no_merged = save_merged(folder, loaded, trainable.model, recipe.method, images)
    files += [*([merged] if merged else []), *for_peft]
    return Delivered(
        recipe, tuple(files), tuple(note for note in (no_merged, no_peft) if note), tuple(unwritten)
    )


def check_folder(model: str, folder: Path) -> None:
    """Make it, and refuse one that can't be written to or that holds the model that is given."""
    try:
        make_folder(folder)
    except InputError as error:
        raise InputError(f"--output {error}") from error
    for name in (CHECKPOINT, TENSORS, SUMS, *NAMES):
        try:
            taken = (folder / name).samefile(model)
        except (OSError, ValueError):  # one of them is no file
            continue
        if taken:
            raise InputError(f"{model} lies where apply would write over it; give another --output")
