"""Labelled images as an adapter takes them: how they are read, and which outputs their classes are."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

from advisor.data import Normalisation
from advisor.data.loading import default_normalisation
from advisor.data.pixels import Frame
from advisor.data.pools import Found
from advisor.delivery.adapters import Recipe
from advisor.errors import DataError
from advisor.models import LoadedModel
from advisor.records import Framing


def frame_of(recipe: Recipe) -> tuple[Frame, Normalisation]:
    """What the recipe brings every image to, and what a network is called with then."""
    channels, height, width = recipe.input_size
    normalisation = default_normalisation(channels)
    if recipe.mean and recipe.std:
        normalisation = Normalisation(recipe.mean, recipe.std)
    how = recipe.interpolation, recipe.crop_mode, recipe.channel_order, recipe.orientation
    framing = Framing(recipe.crop, *cast(Any, how))
    return Frame((channels, height, width), framing, normalisation.mean), normalisation


def known_outputs(recipe: Recipe) -> tuple[int, ...]:
    """The model's output for each of the recipe's classes."""
    return recipe.class_outputs or tuple(range(len(recipe.class_names)))


def outputs_for(found: Found, recipe: Recipe, loaded: LoadedModel) -> tuple[int, ...]:
    """The model's output for each class of the images; those that it doesn't know get the next ones.

    Raises:
        DataError: which classes they are can't be told.
    """
    known = {
        _key(name): output for name, output in zip(recipe.class_names, known_outputs(recipe), strict=True)
    }
    if not recipe.head_replaced:
        known = {_key(name): place for place, name in enumerate(loaded.class_names or ())} | known
    names = [_key(name) for name in found.class_names]
    twins = [name for name, count in Counter(names).items() if count > 1]
    if twins:
        raise DataError(
            f"{found.source}: several classes are named {twins[0]!r}, but for case and blanks; put them "
            "together or rename one"
        )
    if not found.named and not all(name.isdecimal() for name in known):
        raise DataError(
            f"{found.source}: its classes have numbers and the adapter's have names "
            f"({', '.join(recipe.class_names[:3])}), so which is which can't be told; name them (class_names "
            "in an .npz)"
        )
    taken = set(known.values())
    result: list[int] = []
    for name in names:
        output = known.get(name)
        if output is None and not found.named and int(name) < recipe.classes and int(name) not in taken:
            output = int(name)  # the model's own output of that number
        if output is None:
            output = max(recipe.classes - 1, *taken, -1) + 1
        taken.add(output)
        result.append(output)
    return tuple(result)


def _key(name: str) -> str:
    return name.strip().casefold()
