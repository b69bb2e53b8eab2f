"""More images, or new classes, for a head that was solved in closed form: nothing old is needed or forgotten.

The sums that `apply` kept take the new images, and the head is solved anew: it is the one that all images
together give, with the features' means and scales, and with the penalty that generalised cross-validation
finds, which are those of all images, too. What is before the head stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from advisor.costs.growing import GrowingCost, growing_cost
from advisor.data.loading import LabelledImages
from advisor.data.pools import Found
from advisor.data.sources import find
from advisor.data.survey import Unreadable, check_share, left_out
from advisor.delivery.adapters import RECIPE, Recipe, attach_adapter, read_recipe, read_tensors
from advisor.delivery.folder import check_folder, deliver
from advisor.delivery.kept_sums import SUMS, KeptSums, marks_of
from advisor.delivery.recipe_images import frame_of, known_outputs, outputs_for
from advisor.errors import DataError, InputError
from advisor.models import load_model, take_census
from advisor.models.layers import logits
from advisor.parts.attachment import Trainable
from advisor.parts.closed_form import inputs_of
from advisor.parts.sums import Spectrum
from advisor.probes import ACCURACY, head_of
from advisor.records import Accuracy, Census
from advisor.story.situation import Progress, versions
from advisor.training.update import head_to_solve
from advisor.units import format_percent

_AT_ONCE = 64  # images that are read and run together


@dataclass(frozen=True, slots=True)
class Growth:
    """What to add to what, and where to write."""

    adapter: Path  # the folder that apply wrote
    add: str  # images with their classes, as for `load_data`
    output: Path
    arch: str | None = None
    trust: bool = False


@dataclass(frozen=True, slots=True)
class Grown:
    """What came of it."""

    recipe: Recipe
    images: Mapping[str, int]  # that were added, of each class
    new_classes: tuple[str, ...]
    before: int  # images that were in the sums
    features: int
    cost: GrowingCost
    accuracy: Accuracy  # of the images added, each one answered by a head without it
    of_known: Accuracy | None  # likewise, of classes that the head had; None where none was added
    of_new: Accuracy | None
    of_known_before: Accuracy | None  # of the head as it was
    files: tuple[Path, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    unwritten: tuple[str, ...]


def grow(model: str, growth: Growth, progress: Progress = lambda stage, fraction, running: None) -> Grown:
    """Add images to what a head was solved of, solve it anew, and write what the adapter became.

    Images that are in the sums already are left out: a folder that images are put into may be given again.

    Args:
        model: the base model of the adapter, as for `load_model`.

    Raises:
        InputError: the adapter's head was not solved or its sums are missing, the model is another one, or
            the images can't be used.
    """
    folder = growth.adapter
    recipe = _recipe_to_grow(folder)
    kept = KeptSums.read(folder / SUMS, recipe.sums_sha256)
    progress("load", 0.0, "data")
    found = find(growth.add)
    check_folder(model, growth.output)
    progress("load", 0.5, "model")
    loaded = load_model(model, arch=growth.arch, trust=growth.trust)
    tensors = read_tensors(folder, recipe, loaded.module)
    trainable = attach_adapter(loaded.module, recipe, tensors, folder)
    census = take_census(loaded.module, recipe.input_size)
    head = head_to_solve(trainable, census)
    if (head.in_features, head.out_features) != (len(kept.sums.features), len(kept.sums.targets)):
        raise InputError(
            f"{folder / SUMS}: is of another head than {RECIPE} tells; use files of one run of apply"
        )
    outputs = outputs_for(found, recipe, loaded)
    progress("load", 1.0, "")

    seen = _Seen.of(found, outputs, kept, trainable, census, recipe, progress)
    known, classes = recipe.classes, max(recipe.classes, *(output + 1 for output in outputs))
    sums = kept.sums
    before = sums.count
    sums.grow(classes)
    sums.add(seen.features, seen.labels)
    spectrum = Spectrum(sums)
    penalty = spectrum.cross_validated()
    weight, bias = spectrum.head(penalty)
    right = spectrum.left_out(seen.features, seen.labels, penalty).argmax(1) == seen.labels
    is_new = ~torch.isin(seen.labels, torch.tensor(known_outputs(recipe)))
    accuracy = _share(right)
    assert accuracy is not None  # noqa: S101 - there are images

    progress("write", 0.0, "")
    names = dict(zip(outputs, found.class_names, strict=True))
    counts = Counter(names[label] for label in seen.labels.tolist())
    fresh = {output: name for output, name in names.items() if output not in known_outputs(recipe)}
    fresh = {output: name for output, name in fresh.items() if name in counts}
    recipe = replace(
        recipe,
        classes=classes,
        base_classes=recipe.base_classes if classes == known else recipe.base_classes or known,
        class_names=(*recipe.class_names, *fresh.values()),
        class_outputs=(*known_outputs(recipe), *fresh),
        accuracy=None,  # they were the former head's
        base_accuracy=None,
        predicted_accuracy=None,
        added=(
            *recipe.added,
            {
                "data": growth.add,
                "images": len(seen.labels),
                "new_classes": list(fresh.values()),
                "accuracy_left_out": accuracy.mean,
            },
        ),
        versions=versions(),
    )
    own = {id(head.weight): weight, id(head.bias): bias}
    solved = {name: own[id(p)] for name, p in trainable.parameters.items() if id(p) in own}
    grown = attach_adapter(loaded.module, recipe, {**tensors, **solved}, folder)
    whole = KeptSums(sums, torch.cat([kept.marks, seen.marks]))
    delivered = deliver(growth.output, loaded, grown, recipe, seen.some, whole)
    progress("write", 1.0, "")
    return Grown(
        recipe=delivered.recipe,
        images=counts,
        new_classes=tuple(fresh.values()),
        before=before,
        features=len(sums.features),
        cost=growing_cost(loaded.module, census, sums.sizes, classes, len(seen.labels)),
        accuracy=accuracy,
        of_known=_share(right[~is_new]),
        of_new=_share(right[is_new]),
        of_known_before=_share(seen.right_before[~is_new]),
        files=delivered.files,
        notes=delivered.notes,
        warnings=seen.warnings,
        unwritten=delivered.unwritten,
    )


def verdict(grown: Grown) -> str:
    """One line: how many of the added images are right, and what of that is due to the new classes."""
    parts = [f"{format_percent(grown.accuracy.mean)} right of the {grown.accuracy.samples:,} images added"]
    if grown.of_new is not None and grown.of_known is not None:
        of_new, of_known = format_percent(grown.of_new.mean), format_percent(grown.of_known.mean)
        parts.append(f"{of_new} of new classes, {of_known} of known ones")
    if grown.of_known_before is not None:
        of = " of known classes" if grown.of_new is not None else ""
        parts.append(f"the head before had {format_percent(grown.of_known_before.mean)}{of}")
    return "; ".join(parts) + ". Each is judged by a head that was solved without it."


def _share(right: torch.Tensor) -> Accuracy | None:
    return ACCURACY.of(bytes(right.to(torch.uint8).tolist())) if len(right) else None


# What is there


def _recipe_to_grow(folder: Path) -> Recipe:
    """The recipe in the folder, of a head that was solved. Raises InputError."""
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise InputError(
            f"{folder}: {what}; with --add, give the folder that apply wrote in the report's place"
        )
    recipe = read_recipe(folder)
    if head_of(recipe.candidate) is None:
        raise InputError(
            f"{folder}: the head of {recipe.candidate.id} was trained, and only one solved in closed form "
            "can grow; apply a candidate such as ridge-features=last"
        )
    if not recipe.sums_sha256:
        raise InputError(f"{folder}: was written without {SUMS}, so nothing can be added; run apply again")
    return recipe


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """What the adapted model makes of images that are not in the sums yet."""

    features: torch.Tensor  # (n, F) that the head reads
    labels: torch.Tensor  # (n,) the model's outputs
    marks: torch.Tensor  # (n,)
    right_before: torch.Tensor  # (n,) bool: by the head as it is
    some: torch.Tensor  # a few of the images, normalised
    warnings: tuple[str, ...]

    @classmethod
    def of(
        cls,
        found: Found,
        outputs: tuple[int, ...],
        kept: KeptSums,
        trainable: Trainable,
        census: Census,
        recipe: Recipe,
        progress: Progress,
    ) -> _Seen:
        pool, marks = found.train, set(kept.marks.tolist())
        frame, normalisation = frame_of(recipe)
        output_of, unreadable, again = torch.tensor(outputs), list(found.unreadable), 0
        features, labels, made, right, some = [], [], [], [], torch.empty(0)
        model = trainable.model.eval()
        with torch.no_grad(), inputs_of(head_to_solve(trainable, census)) as inputs:
            for indices in np.array_split(np.arange(len(pool.labels)), -(-len(pool.labels) // _AT_ONCE)):
                progress("add", int(indices[0]) / len(pool.labels), "one forward pass")
                images, failures = pool.read(indices, frame)
                unreadable += [Unreadable(pool.name(int(indices[n])), why) for n, why in failures.items()]
                theirs = output_of[torch.from_numpy(pool.labels[indices])]
                found_marks = marks_of(images, theirs).tolist()
                fresh = []
                for place, mark in enumerate(found_marks):
                    if place in failures:
                        continue
                    if mark in marks:
                        again += 1
                        continue
                    marks.add(mark)
                    fresh.append(place)
                if not fresh:
                    continue
                x, y = LabelledImages(images, theirs).batch(torch.tensor(fresh), normalisation)
                right.append(logits(model(x)).argmax(1) == y)
                features.append(inputs[0])
                labels.append(y)
                made += [found_marks[place] for place in fresh]
                some = x[:8] if not len(some) else some
        check_share(unreadable, found.total)
        if not features:
            raise DataError(f"{found.source}: all of its {again:,} images were added before; give others")
        warnings = list(left_out(found.source, unreadable, found.total))
        if again:
            warnings.append(f"{found.source}: {again:,} images were added before, and are not counted twice")
        if found.held_out is not None:
            warnings.append(f"{found.source}: its {found.held_out.total:,} held-out images are not added")
        if recipe.rehearse:
            warnings.append(f"the former images were corrupted ({recipe.rehearse}), those added are not")
        return cls(
            torch.cat(features),
            torch.cat(labels),
            torch.tensor(made),
            torch.cat(right),
            some,
            tuple(warnings),
        )
