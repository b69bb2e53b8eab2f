"""The adapter as Hugging Face PEFT reads it, where PEFT computes the very same."""

from __future__ import annotations

from pathlib import Path

from advisor.adapters import Recipe
from advisor.methods.base import Trainable
from advisor.models import LoadedModel


def save_for_peft(
    folder: Path, loaded: LoadedModel, trainable: Trainable, recipe: Recipe
) -> tuple[tuple[Path, ...], str]:
    return (), "no huggingface/: not yet"
