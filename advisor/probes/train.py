"""The one training loop: a candidate is trained on the user's images, then judged on held-out ones."""

from __future__ import annotations

import copy
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from advisor.methods import Trainable
from advisor.methods.update import begin, run_front, update
from advisor.models.layers import logits
from advisor.probes.data import Dataset, LabelledImages, Normalisation
from advisor.records import Accuracy, Candidate, Census

_EVALUATION_BATCH = 64
_TIMED_UPDATES, _TIMING_SECONDS = 8, 0.5  # of each candidate: enough to plan with
_Z95 = 1.959964  # the normal distribution's 97.5 % quantile


@dataclass(frozen=True, slots=True)
class Probe:
    """What a short fine-tune of one candidate at one learning rate found."""

    candidate: Candidate
    learning_rate: float | None
    updates: int
    correct: bytes | None  # one byte per held-out sample, 1 = right; None where it diverged
    seconds: float


def probe(
    model: nn.Module,
    census: Census,
    candidate: Candidate,
    dataset: Dataset,
    *,
    learning_rate: float | None,
    updates: int,
    batch_size: int,
    validation_samples: int,
    seed: int,
) -> Probe:
    """Train a copy of the model for `updates` updates and classify the first held-out samples."""
    start = time.perf_counter()
    trainable = fine_tune(
        model,
        census,
        candidate,
        dataset,
        learning_rate=learning_rate,
        updates=updates,
        batch_size=batch_size,
        seed=seed,
    )
    correct = None
    if trainable is not None:
        correct = evaluate(trainable.model, dataset.validation, dataset.normalisation, validation_samples)
    return Probe(candidate, learning_rate, updates, correct, time.perf_counter() - start)


def fine_tune(
    model: nn.Module,
    census: Census,
    candidate: Candidate,
    dataset: Dataset,
    *,
    learning_rate: float | None,
    updates: int,
    batch_size: int,
    seed: int,
) -> Trainable | None:
    """Train a copy of the model; the learning rate falls to zero along half a cosine.

    Every candidate sees the same batches for the same seed. None: the loss became NaN or infinite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trainable, optimizer = begin(copy.deepcopy(model), census, candidate, learning_rate or 0.0)
        schedule = None
        if optimizer is not None:
            schedule = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda done: 0.5 + 0.5 * math.cos(math.pi * done / updates)
            )
        batches = list(_batches(len(dataset.train), batch_size, updates, seed))
        for images, labels in _drawn(trainable, dataset, batches):
            loss = update(trainable, optimizer, images, labels)
            if loss is not None and not torch.isfinite(loss):
                return None
            if schedule is not None:
                schedule.step()
    if not all(tensor.isfinite().all() for tensor in trainable.delta().values()):
        return None
    return trainable


def _drawn(
    trainable: Trainable, dataset: Dataset, batches: Sequence[torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each batch's inputs and labels; with a cached prefix, the front runs once for each image."""
    where = trainable.levers.cached_prefix
    if where == "no" or not batches:
        for indices in batches:
            yield dataset.train.batch(indices, dataset.normalisation)
        return
    needed = torch.cat(list(batches)).unique()
    labels = torch.empty(len(needed), dtype=torch.int64)
    with tempfile.TemporaryDirectory(prefix="peft-advisor-") if where == "disk" else nullcontext() as folder:
        cache = None
        for positions in torch.arange(len(needed)).split(_EVALUATION_BATCH):
            images, labels[positions] = dataset.train.batch(needed[positions], dataset.normalisation)
            outputs = run_front(trainable, images)
            if cache is None:
                cache = _empty(len(needed), outputs, folder)
            cache[positions] = outputs
        assert cache is not None  # noqa: S101 - there is at least one batch
        for indices in batches:
            positions = torch.searchsorted(needed, indices)
            yield cache[positions], labels[positions]


def _empty(count: int, outputs: torch.Tensor, folder: str | None) -> torch.Tensor:
    """Room for `count` images' outputs, in memory or in a file in the folder."""
    shape = (count, *outputs.shape[1:])
    if folder is None:
        return torch.empty(shape, dtype=outputs.dtype)
    path = str(Path(folder, "front"))
    return torch.from_file(path, shared=True, size=math.prod(shape), dtype=outputs.dtype).view(shape)


def seconds_per_update(
    model: nn.Module, census: Census, candidate: Candidate, dataset: Dataset, batch_size: int
) -> float:
    """Mean wall clock of an update of the candidate, the first left out where others are quick."""
    trainable, optimizer = begin(copy.deepcopy(model), census, candidate, learning_rate=0.0)
    indices = torch.arange(min(batch_size, len(dataset.train)))
    images, labels = next(_drawn(trainable, dataset, [indices]))
    times: list[float] = []
    while sum(times) < _TIMING_SECONDS and len(times) < _TIMED_UPDATES:
        start = time.perf_counter()
        update(trainable, optimizer, images, labels)
        times.append(time.perf_counter() - start)
    return statistics.mean(times[1:] or times)


def evaluate(
    model: nn.Module,
    images: LabelledImages,
    normalisation: Normalisation,
    samples: int | None = None,
) -> bytes:
    """Which of the first `samples` images the model classifies right: one byte each, 1 = right."""
    model.eval()
    right: list[torch.Tensor] = []
    with torch.inference_mode():
        for indices in torch.arange(samples or len(images)).split(_EVALUATION_BATCH):
            inputs, labels = images.batch(indices, normalisation)
            right.append(logits(model(inputs)).argmax(1) == labels)
    return bytes(torch.cat(right).to(torch.uint8).tolist())


def accuracy_of(
    correct: bytes, *, learning_rate: float | None = None, updates: int = 0, finalist: bool = True
) -> Accuracy:
    """The share of right answers with its 95 % Wilson score interval."""
    samples = len(correct)
    mean = sum(correct) / samples
    denominator = 1 + _Z95**2 / samples
    centre = (mean + _Z95**2 / (2 * samples)) / denominator
    spread = _Z95 * math.sqrt(mean * (1 - mean) / samples + _Z95**2 / (4 * samples**2)) / denominator
    return Accuracy(
        mean=mean,
        # Rounding must not put the mean outside its own interval at 0 and 1.
        low=min(max(centre - spread, 0.0), mean),
        high=max(min(centre + spread, 1.0), mean),
        samples=samples,
        correct=correct,
        learning_rate=learning_rate,
        updates=updates,
        finalist=finalist,
    )


def _batches(samples: int, batch_size: int, count: int, seed: int) -> Iterator[torch.Tensor]:
    """`count` batches of indices; every epoch in a new order, an incomplete last batch left out."""
    generator = torch.Generator().manual_seed(seed)
    size = min(batch_size, samples)
    while True:
        for indices in torch.randperm(samples, generator=generator).split(size):
            if count == 0:
                return
            if len(indices) == size:
                count -= 1
                yield indices
