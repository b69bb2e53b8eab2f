"""Cross-validation where there are too few images to hold a part of them out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from advisor.data.loading import Dataset, LabelledImages
from advisor.probes.scenarios import imprint
from advisor.probes.train import Answers, Probe, Trainer, Trial
from advisor.records import Candidate, Census

_FEW = 300  # images: of fewer, 30 % tell too little apart
_FOLDS = 5


def fold_count(dataset: Dataset) -> int:
    """Of how many parts each is to be held out once; 1: the split is good as it is.

    A split that came with the data is kept, however small it is.
    """
    if not dataset.is_split_drawn or len(dataset.train) + len(dataset.validation) >= _FEW:
        return 1
    images = LabelledImages.joined(dataset.train, dataset.validation)
    groups = [len(_groups(images, label).unique()) for label in images.labels.unique().tolist()]
    return min(_FOLDS, *groups)


class CrossValidation(Trainer):
    """Judges on every image, each time by a network that was trained on the other folds.

    To the race it is a trainer: a trial is one training for each fold, and its answers are those of all
    folds put together.
    """

    def __init__(
        self,
        model: nn.Module,
        census: Census,
        dataset: Dataset,
        batch_size: int,
        folds: int,
        imprinted_from: int | None = None,
    ) -> None:
        """Ready to judge.

        Args:
            dataset: its labels are the model's outputs; its split is not used.
            imprinted_from: the first of the head's rows that were imprinted from this data, if any were:
                they are imprinted anew for each fold, from images that it doesn't hold out.
        """
        images, self._fold_of = _spread(dataset, folds)
        self._folds, self._imprinted_from = folds, imprinted_from
        self._parts = []
        for fold in range(folds):
            own = self._fold_of == fold
            old = dataset.retained
            if old is not None:  # each fold's network is judged on its share
                old = old.those(torch.arange(len(old)) % folds == fold)
                old = old if len(old) else None
            self._parts.append(
                replace(dataset, train=images.those(~own), validation=images.those(own), retained=old)
            )
        whole = replace(self._parts[0], validation=images, retained=dataset.retained)
        super().__init__(model, census, whole, batch_size)

    def __getstate__(self) -> dict[str, Any]:
        assert self._trainers  # noqa: S101 - made here: elsewhere they would come out otherwise by rounding
        return super().__getstate__()

    @cached_property
    def _trainers(self) -> list[Trainer]:
        """Each fold's, made when one is needed: imprinting looks at the images."""
        trainers = []
        for part in self._parts:
            base = self.model
            if self._imprinted_from is not None and self.census.head is not None:
                base = copy.deepcopy(self.model)
                imprint(base, self.census.head, self._imprinted_from, part)
            trainers.append(Trainer(base, self.census, part, self.batch_size))
        return trainers

    def key(self) -> dict[str, Any]:
        """All that a probe's result depends on, besides its trial."""
        return super().key() | {"folds": self._folds}

    def probe(self, trial: Trial) -> Probe:
        """Train as many copies as there are folds; the first held-out images are of all folds."""
        answers: list[list[Answers]] = []  # of each fold: of the network as trained, then with each head
        spent = [0.0] * 4
        for trainer, samples in zip(self._trainers, self._shares(trial.samples), strict=True):
            found = trainer.probe(replace(trial, samples=samples))
            taken = found.seconds, found.setup_seconds, found.update_seconds, found.judging_seconds
            spent = [*map(sum, zip(spent, taken, strict=True))]
            if found.correct is None:
                return Probe(trial, None, spent[0], found.failure)
            answers.append([Answers(found.correct, found.retained), *found.solved])
        own, *solved = (
            Answers(
                self._joined([a.correct for a in each]), self._joined_retained([a.retained for a in each])
            )
            for each in zip(*answers, strict=True)
        )
        return Probe(trial, own.correct, spent[0], "", own.retained, tuple(solved), *spent[1:])

    def judge_base(self, samples: int) -> bytes:
        """Which of the first held-out samples the model classifies right as it is."""
        shares = zip(self._trainers, self._shares(samples), strict=True)
        return self._joined([trainer.judge_base(share) for trainer, share in shares])

    def _shares(self, samples: int) -> list[int]:
        """How many of the first held-out images are of each fold."""
        shown = self._fold_of[:samples]
        return [int((shown == fold).sum()) for fold in range(self._folds)]

    def _joined(self, answers: Sequence[bytes]) -> bytes:
        each = [iter(of_fold) for of_fold in answers]
        return bytes(next(each[fold]) for fold in self._fold_of[: sum(map(len, answers))].tolist())

    def _joined_retained(self, answers: Sequence[bytes | None]) -> bytes | None:
        return None if self.dataset.retained is None else b"".join(each or b"" for each in answers)

    def time_updates(self, candidate: Candidate) -> tuple[float, float]:
        """Of all folds together."""
        setup, each = self._trainers[0].time_updates(candidate)
        return setup * len(self._trainers), each * len(self._trainers)


def _spread(dataset: Dataset, folds: int) -> tuple[LabelledImages, torch.Tensor]:
    """All images, so that any first part holds the classes in proportion, and each one's fold."""
    images = LabelledImages.joined(dataset.train, dataset.validation)
    labels = images.labels
    place, fold_of = torch.zeros(len(labels)), torch.zeros(len(labels), dtype=torch.int64)
    for number, label in enumerate(labels.unique().tolist()):
        members = (labels == label).nonzero()[:, 0]
        place[members] = (torch.arange(len(members)) + 0.5) / len(members)
        # Classes begin at different folds, or the first folds would be larger than the last.
        own = _groups(images, label)
        fold_of[members] = (own.unique(return_inverse=True)[1] + number) % folds
    if images.groups is not None:  # one that spans classes stays whole: it goes where its first image goes
        _, first, groups = np.unique(images.groups.numpy(), return_index=True, return_inverse=True)
        fold_of = fold_of[torch.from_numpy(first)][torch.from_numpy(groups)]
    order = place.argsort(stable=True)
    return images.those(order), fold_of[order]


def _groups(images: LabelledImages, label: int) -> torch.Tensor:
    """Of the class's images: which belong together."""
    members = (images.labels == label).nonzero()[:, 0]
    return members if images.groups is None else images.groups[members]
