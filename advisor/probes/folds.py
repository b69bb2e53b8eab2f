"""Cross-validation: every image can be held out once, where a part of them tells too little apart."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, zip_longest
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import nn

from advisor.data.loading import Dataset, LabelledImages
from advisor.methods import Trainable
from advisor.models.blocks import has_replaceable_front, without_front
from advisor.probes.scenarios import features_before, imprint
from advisor.probes.train import (
    REMEMBERED,
    TIMES,
    Answers,
    Kept,
    Probe,
    Trainer,
    Trial,
    is_reestimated,
    judged_on,
    longest_begun,
)
from advisor.records import Candidate, Census, Levers
from advisor.training.accelerator import CPU, Accelerator
from advisor.training.loop import FrontOutputs
from advisor.training.update import attach
from advisor.training.views import View

_FEW, _MANY = 300, 1500  # images: of fewer, one part tells nothing apart; of more, one tells enough
_FOLDS, _PARTS = 5, 4  # of few; of more


def fold_count(dataset: Dataset) -> int:
    """Into how many parts the images go, each to be held out once; 1: the split is good as it is.

    A split that came with the data is kept, however small it is.
    """
    count = len(dataset.train) + len(dataset.validation)
    if not dataset.is_split_drawn or count >= _MANY:
        return 1
    images = LabelledImages.joined(dataset.train, dataset.validation)
    groups = [len(_groups(images, label).unique()) for label in images.labels.unique().tolist()]
    if count < _FEW:
        return min(_FOLDS, *groups)
    return _PARTS if min(groups) > 1 else 1  # every class is left in training


class CrossValidation(Trainer):
    """Judges each image by a network that was trained on the other folds.

    To the race it is a trainer: the held-out images are those of the first fold, then of the second, and so
    on, and a trial is as many trainings as it takes to judge so many of them. Of few images no less than all
    tell anything; of more, the first fold's do at first (`steps`).
    """

    def __init__(
        self,
        model: nn.Module,
        census: Census,
        dataset: Dataset,
        batch_size: int,
        folds: int,
        imprinted_from: int | None = None,
        accelerator: Accelerator = CPU,
        remembered: int = REMEMBERED,
    ) -> None:
        """Ready to judge.

        Args:
            dataset: its labels are the model's outputs; its split is not used.
            imprinted_from: the first of the head's rows that were imprinted from this data, if any were:
                they are imprinted anew for each fold, from images that it doesn't hold out.
            remembered: as for a trainer, of all folds together.
        """
        images, fold_of = _spread(dataset, folds)
        self.folds, self._imprinted_from = folds, imprinted_from
        self._fronts: dict[tuple[Any, ...], FrontOutputs] = {}
        self._before_head: torch.Tensor | None = None
        self._own = [(fold_of == fold).nonzero()[:, 0] for fold in range(folds)]
        self._others = [(fold_of != fold).nonzero()[:, 0] for fold in range(folds)]
        self._parts, begin = [], 0
        for own, others in zip(self._own, self._others, strict=True):
            old = dataset.retained
            if old is not None:  # each fold's network is judged on as many old images as on new ones
                old = old.those(torch.arange(begin, min(begin + len(own), len(old))))
                begin += len(old)
                old = old if len(old) else None
            self._parts.append(
                replace(dataset, train=images.those(others), validation=images.those(own), retained=old)
            )
        whole = replace(self._parts[0], validation=images, retained=dataset.retained)
        super().__init__(model, census, whole, batch_size, accelerator=accelerator, remembered=remembered)
        self.steps = (len(images),) if len(images) < _FEW else tuple(accumulate(self._sizes))
        self._trainers: dict[int, Trainer] = {}
        self._answered: dict[tuple[int, Trial], Probe] = {}

    def __getstate__(self) -> dict[str, Any]:
        for fold in range(self.folds):  # made here: elsewhere they would come out otherwise by rounding
            self._trainer(fold)
        return super().__getstate__() | {"_answered": {}, "_fronts": {}, "_before_head": None}

    def _trainer(self, fold: int) -> Trainer:
        """The fold's, made when it is needed: imprinting looks at the images."""
        if fold not in self._trainers:
            base, part = self.model, self._parts[fold]
            if self._imprinted_from is not None and self.census.head is not None:
                base = copy.deepcopy(self.model)
                features = self._features_before(self.census.head)[self._others[fold]]
                imprint(base, self.census.head, self._imprinted_from, features, part.train.labels)
            self._trainers[fold] = _Fold(base, self.census, part, self.batch_size, self, fold)
        return self._trainers[fold]

    def _features_before(self, head: str) -> torch.Tensor:
        """(N, F) of the images of all folds: the head is no part of what makes them."""
        if self._before_head is None:
            self._before_head = self._features_anew(head)
        return self._before_head

    def _features_anew(self, head: str) -> torch.Tensor:
        images, normalisation = self.dataset.validation, self.dataset.normalisation
        if self.accelerator != CPU or not has_replaceable_front(self.census, 0):
            return features_before(self.model, head, images, normalisation, self.pass_size)
        # Probes want the front of the head, too; and that of half the blocks, from which others go on.
        model = copy.deepcopy(self.model)
        for scope in (-(-len(self.census.blocks) // 2), 0):
            if has_replaceable_front(self.census, scope):
                one = Candidate("head", levers=Levers(scope=scope, cached_prefix="ram"))
                trainable = attach(model, self.census, one)
                made = self.front_of(trainable)
        with without_front(model, trainable.front):
            return features_before(model, head, made, normalisation, self.pass_size)

    def front_of(self, trainable: Trainable, how: tuple[Any, ...] = ()) -> FrontOutputs:
        """What a frozen front makes of the images of all folds, for which it is run once.

        Args:
            how: of a view of them, what comes after the images in a `View`.
        """
        key = trainable.front, how
        if key not in self._fronts:
            images = self.dataset.validation
            known = ((made,) for (_, other), made in self._fronts.items() if other == how)
            (nearest,) = longest_begun(known, trainable.front) or (None,)
            self._fronts[key] = self.front(trainable, View(images, *how) if how else images, nearest)
        return self._fronts[key]

    def fold(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Which images are trained on, and which are held out."""
        return self._others[number], self._own[number]

    def key(self) -> dict[str, Any]:
        """All that a probe's result depends on, besides its trial."""
        return super().key() | {"folds": self.folds}

    def trainings(self, samples: int) -> int:
        """How many networks it takes to judge the first held-out samples."""
        return len(self._shares(samples))

    def probe(self, trial: Trial) -> Probe:
        """Train a copy of the model for each fold that holds out some of the images to judge.

        Of the seconds of parts, the average over those that were trained now.
        """
        answers: list[list[Answers]] = []  # of each fold: of the network as trained, then with each head
        ran: list[Probe] = []
        for fold, samples in enumerate(self._shares(trial.samples)):
            of_fold = fold, replace(trial, samples=samples)
            found = self._answered.get(of_fold)
            if found is None:
                found = self._trainer(fold).probe(of_fold[1])
                ran.append(found)
            if found.correct is None:
                return Probe(trial, None, sum(each.seconds for each in ran), found.failure)
            self._answered[of_fold] = found
            answers.append([Answers(found.correct, found.margins, found.retained), *found.solved])
        own, *solved = map(_joined, zip(*answers, strict=True))
        spent = [sum(getattr(each, part) for each in ran) / max(len(ran), 1) for part in TIMES]
        seconds = sum(each.seconds for each in ran)
        return Probe(trial, own.correct, seconds, "", own.margins, own.retained, tuple(solved), *spent)

    def judge_base(self, samples: int) -> bytes:
        """Which of the first held-out samples the model classifies right as it is."""
        shares = enumerate(self._shares(samples))
        return b"".join(self._trainer(fold).judge_base(share) for fold, share in shares)

    def time_updates(self, candidate: Candidate) -> tuple[float, float]:
        """Of one fold."""
        return self._trainer(0).time_updates(candidate)

    @property
    def _sizes(self) -> list[int]:
        return [len(own) for own in self._own]

    def _shares(self, samples: int) -> list[int]:
        """Of the first held-out images, how many are of each fold."""
        ends = accumulate(self._sizes)
        shares = (min(size, samples - end + size) for size, end in zip(self._sizes, ends, strict=True))
        return [share for share in shares if share > 0]


class _Fold(Trainer):
    """Trains on all folds but one. What is frozen runs once for all of them."""

    def __init__(
        self, model: nn.Module, census: Census, part: Dataset, batch_size: int, of: CrossValidation, fold: int
    ) -> None:
        super().__init__(model, census, part, batch_size, accelerator=of.accelerator)
        self._of, self._number = of, fold
        self._kept, self.room = Kept(of.states // of.folds), of.room

    def fronts(
        self, trainable: Trainable, candidate: Candidate, nearest: Sequence[FrontOutputs] = ()
    ) -> tuple[FrontOutputs, ...]:
        """Of images to train on, held-out and old ones: what the front makes of them."""
        train = self.images_for(candidate)
        if is_reestimated(candidate) or train is not self.dataset.train:
            return super().fronts(trainable, candidate, nearest)
        _, *old = judged_on(self.dataset)
        every = self._of.front_of(trainable)
        own = (every.those(some) for some in self._of.fold(self._number))
        return (*own, *(self.front(trainable, *each) for each in zip_longest(old, nearest[2:])))

    def front_of_view(
        self, trainable: Trainable, candidate: Candidate, view: View, nearest: FrontOutputs | None = None
    ) -> FrontOutputs:
        """What the front makes of a view of the images to train on."""
        if is_reestimated(candidate) or self.images_for(candidate) is not self.dataset.train:
            return super().front_of_view(trainable, candidate, view, nearest)
        every = self._of.front_of(trainable, (view.augment, view.seed, view.number))
        return every.those(self._of.fold(self._number)[0])


def _joined(answers: Sequence[Answers]) -> Answers:
    """Of all folds, one after the other."""
    old = [each.retained for each in answers if each.retained is not None]
    correct, margins = (b"".join(map(attrgetter(of), answers)) for of in ("correct", "margins"))
    return Answers(correct, margins, b"".join(old) if old else None)


def _spread(dataset: Dataset, folds: int) -> tuple[LabelledImages, torch.Tensor]:
    """All images, one fold after the other, and each one's fold.

    Any first part of a fold holds the classes in proportion.
    """
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
    order = torch.from_numpy(np.lexsort((place.numpy(), fold_of.numpy())))
    return images.those(order), fold_of[order]


def _groups(images: LabelledImages, label: int) -> torch.Tensor:
    """Of the class's images: which belong together."""
    members = (images.labels == label).nonzero()[:, 0]
    return members if images.groups is None else images.groups[members]
