"""Cross-validation where there are too few images to hold a part of them out."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from advisor.probes.data import Dataset, LabelledImages
from advisor.probes.train import Probe, Trainer, Trial
from advisor.records import Candidate, Census

_FEW = 300  # images: of fewer, 30 % tell too little apart
_FOLDS = 5


def fold_count(dataset: Dataset) -> int:
    """Of how many parts each is to be held out once; 1: the split is good as it is.

    A split that came with the data is kept, however small it is.
    """
    if not dataset.is_split_drawn or len(dataset.train) + len(dataset.validation) >= _FEW:
        return 1
    labels = torch.cat([dataset.train.labels, dataset.validation.labels])
    return min(_FOLDS, int(labels.unique(return_counts=True)[1].min()))


class CrossValidation(Trainer):
    """Judges on every image, each time by a network that was trained on the other folds.

    To the race it is a trainer: a trial is one training for each fold, and its answers are those of all
    folds put together.
    """

    def __init__(
        self, model: nn.Module, census: Census, dataset: Dataset, batch_size: int, folds: int
    ) -> None:
        """`dataset`: its labels are the model's outputs; the split is not used."""
        images, fold_of = _spread(dataset, folds)
        held_out = [fold_of == fold for fold in range(folds)]
        parts = [
            replace(dataset, train=_those(images, ~own), validation=_those(images, own)) for own in held_out
        ]
        super().__init__(model, census, replace(parts[0], validation=images), batch_size)
        self._fold_of = fold_of
        self._trainers = [Trainer(model, census, part, batch_size) for part in parts]

    def probe(self, trial: Trial) -> Probe:
        """Train as many copies as there are folds; the first held-out images are of all folds."""
        shown = self._fold_of[: trial.samples]
        correct = torch.zeros(len(shown), dtype=torch.uint8)
        seconds = 0.0
        for fold, trainer in enumerate(self._trainers):
            own = shown == fold
            if not own.any():
                continue
            found = trainer.probe(replace(trial, samples=int(own.sum())))
            seconds += found.seconds
            if found.correct is None:
                return Probe(trial, None, seconds, found.failure)
            correct[own] = torch.frombuffer(bytearray(found.correct), dtype=torch.uint8)
        return Probe(trial, bytes(correct.tolist()), seconds)

    def time_updates(self, candidate: Candidate) -> tuple[float, float]:
        """Of all folds together."""
        setup, each = self._trainers[0].time_updates(candidate)
        return setup * len(self._trainers), each * len(self._trainers)


def _spread(dataset: Dataset, folds: int) -> tuple[LabelledImages, torch.Tensor]:
    """All images, so that any first part holds the classes in proportion, and each one's fold."""
    images = torch.cat([dataset.train.images, dataset.validation.images])
    labels = torch.cat([dataset.train.labels, dataset.validation.labels])
    place, fold_of = torch.zeros(len(labels)), torch.zeros(len(labels), dtype=torch.int64)
    for number, label in enumerate(labels.unique().tolist()):
        members = (labels == label).nonzero()[:, 0]
        place[members] = (torch.arange(len(members)) + 0.5) / len(members)
        # Classes begin at different folds, or the first folds would be larger than the last.
        fold_of[members] = (torch.arange(len(members)) + number) % folds
    order = place.argsort(stable=True)
    return LabelledImages(images[order], labels[order]), fold_of[order]


def _those(images: LabelledImages, wanted: torch.Tensor) -> LabelledImages:
    return LabelledImages(images.images[wanted], images.labels[wanted])
