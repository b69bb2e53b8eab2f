"""Photos of one visit, one object, one burst: what looks alike to a network is held out together.

Nothing but their looks may tell that images were taken together: file names count on, and no two are near
copies. A network that has never seen their classes still finds them alike, far more than other images of
the class. Judged on one whose like it was trained on, a candidate shows what it is worth on that day's
images alone.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from advisor.data.loading import Dataset, LabelledImages
from advisor.data.pictures import picture
from advisor.data.pixels import Normalisation
from advisor.data.splits import split_groups
from advisor.data.twins import joined
from advisor.probes.scenarios import features_before
from advisor.probes.train import key_of
from advisor.records import Finding, Picture
from advisor.store import Store
from advisor.training.loop import images_at_once

if TYPE_CHECKING:
    import numpy.typing as npt

    Labels = npt.NDArray[np.int64]

# Correlation of standardised features: on groceries it tells the accuracy on other visits, on clothes and
# CIFAR-10, which have none, it changes nothing (measurements/lookalikes.py).
ALIKE = 0.55
_SIDE = 128  # pixels; of larger images so many tell as much, in a third of the time
_AT_ONCE = images_at_once((3, _SIDE, _SIDE))
_LEAST_GROUPS = 3  # of a class: else all of it looks alike, and that tells nothing
_SAMPLED = 2900  # images: of more, the split holds a sample
_SHOWN = 4  # of the largest group
_WORTH_TELLING, _MOST = 0.1, 0.5  # of the images


def held_out_together(
    model: nn.Module, head: str, dataset: Dataset, total: int, seed: int, store: Store | None
) -> Dataset:
    """The data split anew, where images look alike in groups; else as it is.

    Args:
        model: with trained weights, but not of these classes: then it would find all of a class alike.
        head: its classifier's path.
        dataset: its split was drawn.
        total: images that there are, of which the dataset may be a sample. Of too many to train on all of
            them here, what looks alike is told and not held out together: `apply` trains on more.
    """
    images = LabelledImages.joined(dataset.train, dataset.validation)

    def find() -> dict[str, list[Any]]:
        groups = groups_of(features(model, head, images, dataset.normalisation), images.labels)
        largest = images.those(
            torch.from_numpy((groups == np.bincount(groups).argmax()).nonzero()[0][:_SHOWN])
        )
        captions = (dataset.class_names[label] for label in largest.labels)
        shown = list(map(picture, captions, largest.images))
        return {
            "groups": groups.tolist(),
            "shown": [(each.caption, b64encode(each.jpeg).decode()) for each in shown],
        }

    key = key_of(model, dataset.normalisation, images) | {"head": head, "shown": _SHOWN}
    known = find() if store is None else store.remembered("lookalikes", key, find)
    groups = np.array(known["groups"], np.int64)
    pictures = tuple(Picture(caption, b64decode(jpeg)) for caption, jpeg in known["shown"])
    sizes = np.bincount(groups)
    alike = int(sizes[sizes > 1].sum())
    if alike < _WORTH_TELLING * len(groups):
        return dataset
    weight: Literal["warning", "note"] = "warning" if alike >= _MOST * len(groups) else "note"
    text = f"{alike:,} of {len(groups):,} images look much like others of their class, as if taken together"
    if total > _SAMPLED:
        text += ": the accuracy may be that on such images alone; give --groups, or hold out others in val/"
        return replace(
            dataset, findings=(*dataset.findings, Finding("lookalikes", weight, text, (), pictures))
        )
    if images.groups is not None:
        groups = joined(len(groups), [], groups, images.groups.numpy())
    train, validation = split_groups(
        images.labels.numpy(), groups, len(dataset.train), len(dataset.validation), seed
    )
    together = LabelledImages(images.undecoded, images.labels, torch.from_numpy(groups))
    text += (
        f": they are held out in {len(np.unique(groups)):,} groups, or accuracy would tell of such images "
        "alone; what --groups says goes before"
    )
    return replace(
        dataset,
        train=together.those(torch.from_numpy(train)),
        validation=together.those(torch.from_numpy(validation)),
        findings=(*dataset.findings, Finding("lookalikes", weight, text, (), pictures)),
    )


def features(
    model: nn.Module, head: str, images: LabelledImages, normalisation: Normalisation
) -> torch.Tensor:
    """(N, F), what reaches the head, of images no larger than need be."""

    def smaller(x: torch.Tensor) -> torch.Tensor:
        scale = _SIDE / max(x.shape[2:])
        return F.interpolate(x, scale_factor=scale, mode="area") if scale < 1 else x

    try:
        return features_before(model, head, images, normalisation, _AT_ONCE, smaller)
    except (RuntimeError, ValueError, AssertionError):  # it takes images of one size alone
        return features_before(model, head, images, normalisation, images_at_once(images.undecoded.shape[1:]))


def groups_of(features: torch.Tensor, labels: torch.Tensor, alike: float = ALIKE) -> Labels:
    """(N,): of which group each image is; most are alone.

    A class of which hardly two images differ is not grouped.

    Args:
        features: (N, F).
        labels: (N,).
        alike: correlation of two images' standardised features from which on they belong together.
    """
    centred = features.double() - features.double().mean(0)
    scaled = F.normalize(centred / centred.std(0, unbiased=False).clamp(min=1e-6), dim=1)
    pairs: list[tuple[int, int]] = []
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        links = (scaled[members] @ scaled[members].T > alike).triu(1).nonzero().tolist()
        if len(np.unique(joined(len(members), links))) >= min(_LEAST_GROUPS, len(members)):
            pairs += [(int(members[one]), int(members[other])) for one, other in links]
    return joined(len(labels), pairs)
