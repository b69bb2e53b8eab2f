"""torchvision's datasets, of any kind that reads images and labels from a folder."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from advisor.data.objects import kept_paths
from advisor.data.pixels import Frame, Size, pixels
from advisor.data.pools import Failures, Found, Pool, class_names_of, decoded, existing
from advisor.data.survey import Survey, Unreadable, reason, survey
from advisor.errors import DataError
from advisor.names import did_you_mean

if TYPE_CHECKING:
    import numpy.typing as npt

    Labels = npt.NDArray[np.int64]

# torchvision's "trainval" default contains "val", so here the test set comes first.
_HELD_OUT_SPLITS = ("test", "val", "valid")
_FIRST = 20  # of a dataset's images, one of which must be readable
_LOOKED_AT = 16  # of a dataset's images, to tell their size where no file does


def find_torchvision(source: str) -> Found:
    """The images of `torchvision:NAME:/path`."""
    _, name, root = (*source.split(":", 2), "", "")[:3]
    kind = _dataset_class(name)
    if not root.strip():
        raise DataError(f"data {source}: no path; write torchvision:{name}:/path/to/the/downloaded/data")
    folder = existing(root)
    parameters = inspect.signature(kind).parameters
    options: dict[str, Any] = {"root": str(folder)}
    if "download" in parameters:
        options["download"] = False  # some download by default
    if "train" in parameters:
        train = _build(kind, options | {"train": True})
        held_out = _build(kind, options | {"train": False})
    else:
        train = _build(kind, options)
        held_out = _held_out_split(kind, options) if "split" in parameters else None

    parts = [part for part in (train, held_out) if part is not None]
    targets = [_targets(part, name) for part in parts]
    surveys = [
        _survey_dataset(part, folder, failed) for part, (_, failed) in zip(parts, targets, strict=True)
    ]
    labels = [of_part[list(look.readable)] for (of_part, _), look in zip(targets, surveys, strict=True)]
    known = getattr(train, "classes", None) or getattr(train, "categories", None)
    # ImageNet's classes are tuples of synonyms.
    names = [str(item[0]) if isinstance(item, tuple) else str(item) for item in known or ()]
    # The names are an attribute of the dataset's own making; numbers are right in any case.
    usable = len(set(names)) == len(names) > max(int(part.max(initial=0)) for part in labels)
    class_names, joined = class_names_of(source, np.concatenate(labels), names if usable else None)
    pools = [
        _dataset_pool(*each) for each in zip(parts, np.split(joined, [len(labels[0])]), surveys, strict=False)
    ]
    return Found(source, class_names, usable, pools[0], pools[1] if len(pools) > 1 else None)


def _dataset_class(name: str) -> Callable[..., Any]:
    from torchvision import datasets

    kind = getattr(datasets, name, None) if name in datasets.__all__ else None
    if kind is None:
        hint = did_you_mean(name, datasets.__all__) or "; it has CIFAR10, MNIST, SVHN, STL10, for example"
        raise DataError(f"torchvision has no dataset {name!r}{hint}")
    first, *others = inspect.signature(kind).parameters.values()
    needed = [p.name for p in others if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if first.name != "root" or needed:
        lacking = f"it also needs {', '.join(needed)}" if needed else "it is not read from a folder"
        raise DataError(
            f"torchvision's {name} can't be used here: {lacking}; "
            "save its images as an .npz or in class folders"
        )
    found: Callable[..., Any] = kind
    return found


def _held_out_split(kind: Callable[..., Any], options: dict[str, Any]) -> Any | None:
    for split in _HELD_OUT_SPLITS:
        try:
            return _build(kind, options | {"split": split})
        except DataError as error:
            if not isinstance(error.__cause__, ValueError):  # ValueError: not one of its splits
                raise
    return None


def _build(kind: Callable[..., Any], options: dict[str, Any]) -> Any:
    try:
        return kind(**options)
    except Exception as error:  # each dataset raises its own
        name, root = getattr(kind, "__name__", ""), options["root"]
        if isinstance(error, ImportError):
            raise DataError(f"torchvision's {name} needs a package: {reason(error)}; install it") from error
        raise DataError(
            f"torchvision's {name} was not found in {root} ({reason(error).split('. ')[0]}); "
            "download it first, or give the folder that holds it"
        ) from error


def _targets(dataset: Any, name: str) -> tuple[Labels, Failures]:
    """The labels, without decoding the images where the dataset keeps a list of them; -1 where one fails."""
    failed: Failures = {}

    def label(index: int) -> Any:
        try:
            return dataset[index][1]
        except Exception as error:  # noqa: BLE001 - each dataset raises its own
            failed[index] = reason(error)
            return -1

    try:
        place, first = next(
            (index, found) for index in range(min(_FIRST, len(dataset))) if (found := label(index)) != -1
        )
    except StopIteration:
        why = next(iter(failed.values()), "it is empty")
        raise DataError(f"torchvision's {name} can't be read: {why}; check its files") from None
    for attribute in ("targets", "labels", "_labels", "y"):
        kept = getattr(dataset, attribute, None)
        if kept is not None and len(kept) == len(dataset):
            targets = np.asarray(kept)
            if targets.ndim == 1 and targets[place] == first:
                lacking = np.zeros(0, np.int64)
                break
    else:
        targets = np.asarray([label(index) for index in range(len(dataset))])
        lacking = np.asarray(sorted(failed), np.int64)
    if targets.ndim != 1 or targets.dtype.kind not in "iu" or np.delete(targets, lacking).min() < 0:
        raise DataError(f"torchvision's {name} is not an image classification dataset; use one that is")
    return targets.astype(np.int64), failed


def _survey_dataset(dataset: Any, root: Path, failed: Failures) -> Survey:
    """Which images can be read, as far as the dataset's files tell, and their sizes."""
    paths = _paths(dataset)
    if paths is None:
        whole = tuple(index for index in range(len(dataset)) if index not in failed)
        unreadable = tuple(Unreadable(f"image {index}", why) for index, why in sorted(failed.items()))
        return Survey(whole, unreadable, frozenset(), {})
    look = survey(paths, lambda position: os.path.relpath(paths[position], root))
    # What looks whole may still have failed.
    also = sorted(failed.keys() & set(look.readable))
    unreadable = tuple(Unreadable(os.path.relpath(paths[index], root), failed[index]) for index in also)
    whole = tuple(index for index in look.readable if index not in failed)
    return Survey(whole, (*look.unreadable, *unreadable), look.sizes, {})


def _paths(dataset: Any) -> list[str] | None:
    """The image files, in order, where the dataset keeps a list of them; else they are of its own making."""
    paths = kept_paths(dataset)
    return paths if paths is not None and any(map(os.path.isfile, paths[:_FIRST])) else None


def _sizes_of(dataset: Any, indices: Sequence[int]) -> Iterator[Size]:
    """Of a few images: a dataset without a list of files mostly holds one array."""
    for index in indices[:: max(len(indices) // _LOOKED_AT, 1)]:
        with contextlib.suppress(Exception):  # each dataset raises its own
            image = dataset[index][0]
            yield 1 if image.mode == "L" else 3, image.height, image.width


def _dataset_pool(dataset: Any, labels: Labels, look: Survey) -> Pool:
    def open_one(index: int, frame: Frame) -> torch.Tensor:
        return pixels(dataset[look.readable[index]][0], frame.size[0])

    return Pool(
        labels,
        # One thread: some datasets keep an open file between the calls.
        lambda indices, frame: decoded(open_one, indices, frame, workers=1),
        name=lambda index: f"image {look.readable[index]}",
        sizes=lambda _: look.sizes or frozenset(_sizes_of(dataset, look.readable)),
        unreadable=look.unreadable,
    )
