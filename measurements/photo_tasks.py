"""Tasks on photos: a network with ImageNet weights, photos that the advice is given, others that judge.

Photos named `val-...` were taken on other visits than all others of their class: where there are such, they
judge, and the advice gets none of them.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from advisor.costs import Simulator
from advisor.data import parse_corruption
from advisor.data.corruptions import corrupted
from advisor.data.loading import LabelledImages
from advisor.data.pixels import Frame
from advisor.data.pools import Found
from advisor.data.sources import find
from advisor.models.fingerprint import fingerprint, model_fingerprint
from advisor.probes import FineTune, Trainer, in_quick_layout
from advisor.records import Candidate, Levers
from advisor.store import Store
from advisor.story.situation import Request, prepare
from measurements.advice import Size, Studied
from measurements.photo_networks import NETWORKS
from measurements.truth import say

_OTHER_VISITS = "val-"
_TUNED_WITH, _TUNED_AT, _TUNED_FOR = Candidate("full", levers=Levers(statistics="frozen")), 5e-4, 8  # epochs


@dataclass(frozen=True, slots=True)
class Task:
    network: str
    photos: str  # a folder of class folders
    given: int = 0  # photos to the advice, spread over the classes as they are; 0: five of each class
    shift: str = ""  # a corruption of all, after the network has learned the classes on others
    epochs: int = 5
    reported: bool = True  # else the advisor was developed on it

    @property
    def name(self) -> str:
        situation = self.shift or ("" if self.given else f"{_FEW} a class")
        return ", ".join(filter(None, (self.network, self.photos, situation)))


@dataclass(frozen=True, slots=True)
class PhotoSize(Size):
    """Of the photos, too."""

    side: int = 160  # in pixels
    judging: int = 1550  # at most
    tuning: int = 700  # for a network that is to meet a shift


_FEW = 5
PHOTO_FOLDERS = ("clothing", "grocery", "cifar/test")


class Prepared(Studied):
    """A task's network and photos."""

    size: PhotoSize

    def __init__(self, task: Task, size: PhotoSize, data: Path, kept: Path, store: Store) -> None:
        self.task, self.size, self.store = task, size, store
        self.reported, self.epochs = task.reported, task.epochs
        self.folder = kept / task.name.replace(", ", "-").replace(":", "-").replace(" ", "-")
        photos = find(str(data / task.photos))
        self.class_names = photos.class_names
        tuning, given, judging, self.of_other_visits = _split(task, size, photos)
        _link(photos, data / task.photos, given, self.folder)
        self._tuned = self._tune(photos, data, tuning, kept) if task.shift else None
        story = prepare(self.network(), self.request, lambda *_: None)
        judges = _read(photos, judging, size, task)
        judges = judges.labelled(torch.tensor(story.given.situation.label_map)[judges.labels])
        if task.shift:
            shifted = corrupted(judges.images, parse_corruption(task.shift), seed=1)
            judges = LabelledImages(shifted, judges.labels)
        # Every photo trains in the end, whichever were held out for the choice.
        train = LabelledImages.joined(story.given.dataset.train, story.given.dataset.validation)
        self.held_out = len(story.given.dataset.validation)
        self.new_head = story.given.situation.head_replaced
        self.dataset, self.census = replace(story.given.dataset, train=train, validation=judges), story.census
        model = in_quick_layout(story.loaded.module, self.census)
        self.trainer = Trainer(model, self.census, self.dataset, size.batch)
        self.simulator = Simulator(story.loaded.module, self.census, len(train))
        # Hours of training outlast edits of how images are held out, and of what a new head begins with.
        names = [photos.train.name(index) for index in (*given, *judging)]
        self.key = {
            "study": "photos",
            "task": task.name,
            "trained": {"epochs": task.epochs, "batch_size": size.batch},
            "model": model_fingerprint(self.network()),
            "photos": fingerprint(repr((self.dataset.normalisation, size.side, names)), []),
        }

    def network(self) -> nn.Module:
        """A new copy of what the task begins with."""
        make = NETWORKS[self.task.network].make
        if self._tuned is None:
            return make()
        model = make(len(self.class_names))
        model.load_state_dict(torch.load(self._tuned, weights_only=True))
        return model.eval()

    @property
    def request(self) -> Request:
        """What somebody asks who has the network and the photos."""
        return Request(
            batch_size=self.size.batch,
            input_size=(3, self.size.side, self.size.side),
            data=str(self.folder),
            normalisation=NETWORKS[self.task.network].normalisation,
            rehearse=self.task.shift or None,
            class_names=self.class_names if self.task.shift else None,
            epochs=self.epochs,
            methods=self.size.methods,
            probe_seconds=self.size.probe_seconds,
            verify=False,
        )

    def _tune(self, photos: Found, data: Path, tuning: Sequence[int], kept: Path) -> Path:
        """The file of a network that has learned the classes, on its own photos; made where it is missing."""
        task, size = self.task, self.size
        path = kept / f"{task.network}-{task.photos}-{size.side}-{len(tuning)}.pt"
        if path.exists():
            return path
        say(f"  {task.network} learns {task.photos}")
        folder = kept / f"{path.stem}-photos"
        _link(photos, data / task.photos, tuning, folder)
        plain = replace(self.request, data=str(folder), rehearse=None, class_names=None)
        story = prepare(NETWORKS[task.network].make(), plain, lambda *_: None)
        joined = LabelledImages.joined(story.given.dataset.train, story.given.dataset.validation)
        dataset = replace(story.given.dataset, train=joined)
        trainer = Trainer(
            in_quick_layout(story.loaded.module, story.census), story.census, dataset, size.batch
        )
        updates = _TUNED_FOR * max(len(joined) // size.batch, 1)
        tuned = FineTune(trainer, _TUNED_WITH, _TUNED_AT, updates, seed=0)
        tuned.run(updates)
        weights = {name: tensor.contiguous() for name, tensor in tuned.trainable.model.state_dict().items()}
        torch.save(weights, path)
        return path


def _split(task: Task, size: PhotoSize, photos: Found) -> tuple[list[int], list[int], list[int], int]:
    """Photos to tune the network with, to give, and to judge; how many of these are of other visits.

    Those come first, so that they can be counted alone.
    """
    pool = photos.train
    every = np.arange(len(pool.labels))
    other = np.array([Path(pool.name(int(index))).name.startswith(_OTHER_VISITS) for index in every])
    tuning: list[int] = []
    if task.shift:
        tuning = _of_each_class(pool.labels, every[~other], size.tuning, f"{task.photos}, tuning")
    rest = np.setdiff1d(every[~other], tuning)
    given = _of_each_class(pool.labels, rest, task.given, task.name)
    random = np.random.default_rng(zlib.crc32(f"{task.name}, judging".encode()))
    judging = [*random.permutation(every[other]), *random.permutation(np.setdiff1d(rest, given))]
    judging = [int(index) for index in judging[: size.judging]]
    return tuning, given, judging, min(int(other.sum()), size.judging)


def _of_each_class(labels: Any, among: Any, count: int, seed: str) -> list[int]:
    """About `count` of them, the classes' shares as they are; five of each class for 0."""
    random = np.random.default_rng(zlib.crc32(seed.encode()))
    found: list[int] = []
    for label in np.unique(labels[among]):
        of_class = random.permutation(among[labels[among] == label])
        wanted = max(round(count * len(of_class) / len(among)), 2) if count else _FEW
        found += [int(index) for index in of_class[:wanted]]
    return found


def _link(photos: Found, root: Path, wanted: Sequence[int], folder: Path) -> None:
    """A folder with these photos, in class folders, as links."""
    shutil.rmtree(folder, ignore_errors=True)
    for index in wanted:
        name = photos.train.name(index)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to((root / name).resolve())


def _read(photos: Found, wanted: Sequence[int], size: PhotoSize, task: Task) -> LabelledImages:
    frame = Frame((3, size.side, size.side), fill=NETWORKS[task.network].normalisation.mean)
    indices = np.array(wanted, dtype=np.int64)
    images, failures = photos.train.read(indices, frame)
    if failures:
        raise ValueError(f"photos that can't be read: {failures}")
    return LabelledImages(images, torch.from_numpy(photos.train.labels[indices]))
