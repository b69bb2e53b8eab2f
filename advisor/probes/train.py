"""The one training loop: a candidate is trained on the user's images, then judged on held-out ones."""

from __future__ import annotations

import copy
import logging
import math
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_flatten

import advisor.data
import advisor.methods
import advisor.models
import advisor.parts
import advisor.probes
import advisor.training
from advisor.data.loading import Dataset, LabelledImages, Normalisation
from advisor.errors import first_line
from advisor.methods import Trainable, get_method
from advisor.methods.recalibrate import reestimation
from advisor.models.blocks import evaluating, front_modules, has_replaceable_front, run_front, without_front
from advisor.models.fingerprint import code_fingerprint, fingerprint
from advisor.models.layers import logits
from advisor.parts.closed_form import Examples, feature_blocks, feature_sizes, inputs_of, pooled_outputs
from advisor.records import FEATURES, Block, Candidate, Census, Features
from advisor.training.update import begin, reestimation_updates, solve_head, update

_log = logging.getLogger(__name__)
_EVALUATION_BATCH = 64
_TIMED_UPDATES, _TIMING_SECONDS = 8, 0.5  # of each candidate: enough to plan with
_MOST_IN_MEMORY = 2**30  # bytes of one front's outputs; more go into a file
_COOL_DOWN = 0.2  # of the updates, at the end
MOST_KEPT = 2**29  # bytes of states to go on from


@dataclass(frozen=True, slots=True)
class Trial:
    """One probe to run: on the same model, data and machine it always finds the same."""

    candidate: Candidate
    learning_rate: float | None  # None where nothing is trained
    updates: int
    samples: int  # how many of the held-out images it is judged on: the first ones
    seed: int
    heads: tuple[Features, ...] = ()  # solved for the trained network, and judged as well


@dataclass(frozen=True, slots=True)
class Answers:
    """Which images one network classifies right: one byte each, 1 = right."""

    correct: bytes  # of the held-out ones
    retained: bytes | None = None  # of as many of the old data's; None where there is none


@dataclass(frozen=True, slots=True)
class Probe:
    """What a trial found."""

    trial: Trial
    correct: bytes | None  # one byte per held-out sample, 1 = right; None where it failed
    seconds: float
    failure: str = ""  # why, in words
    retained: bytes | None = None  # likewise of as many of the old data's; None where there is none
    solved: tuple[Answers, ...] = ()  # with each of the trial's heads in the place of the trained one
    setup_seconds: float = 0.0  # of them, before the first update
    update_seconds: float = 0.0  # that each update took which was run now
    judging_seconds: float = 0.0  # of them, after the last update


def key_of(model: nn.Module, normalisation: Normalisation, *images: LabelledImages) -> dict[str, Any]:
    """All that depends on the model and on these images: to find what comes of them in a store."""
    own = advisor.models, advisor.parts, advisor.methods, advisor.training, advisor.data, advisor.probes
    return {
        "model": fingerprint(repr(model), model.state_dict().items()),
        "data": fingerprint(repr((normalisation, *(part.key for part in images))), []),
        "code": code_fingerprint(model, *own),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }


class Trainer:
    """Trains copies of one model on one dataset. What is frozen runs once for all candidates.

    Pickled without what it remembers, so that it can be sent to other processes.
    """

    def __init__(self, model: nn.Module, census: Census, dataset: Dataset, batch_size: int) -> None:
        """`dataset`: its labels are the model's outputs (`scenarios.relabel`)."""
        self.model, self.census, self.dataset, self.batch_size = model, census, dataset, batch_size
        self._recalibrated: nn.Module | None = None
        self._features: dict[tuple[tuple[str, ...], bool, bool], tuple[_Images, ...]] = {}
        self._kept = Kept(MOST_KEPT)
        self._without_labels: LabelledImages | None = None
        # How many of the held-out images a trial may be judged on: each step is another training.
        self.steps: tuple[int, ...] = (len(dataset.validation),)

    def __getstate__(self) -> dict[str, Any]:
        forgotten: dict[str, Any] = {"_recalibrated": None, "_features": {}, "_without_labels": None}
        return self.__dict__ | forgotten | {"_kept": Kept(MOST_KEPT)}

    def key(self) -> dict[str, Any]:
        """All that a probe's result depends on, besides its trial: to find it in a store."""
        data = self.dataset
        return key_of(self.model, data.normalisation, *_parts(data)) | {"batch_size": self.batch_size}

    def trainings(self, samples: int) -> int:  # noqa: ARG002 - it matters where there are folds
        """How many networks it takes to judge the first held-out samples."""
        return 1

    def probe(self, trial: Trial) -> Probe:
        """Train a copy of the model, and classify the first held-out samples.

        Where the same was trained for less time before, training goes on from there: nothing else is found.
        """
        _decode(self.dataset)
        start = begun = trained = time.perf_counter()
        correct, retained, failure, run_now = None, None, "", 0
        solved: tuple[Answers, ...] = ()
        try:
            fine_tune = FineTune(self, trial.candidate, trial.learning_rate, trial.updates, trial.seed)
            there = self._thaw(fine_tune, trial)
            begun = time.perf_counter()
            is_finite = self._train(fine_tune, trial)
            trained, run_now = time.perf_counter(), fine_tune.done - there
            if is_finite:
                solved = fine_tune.judge_solved(trial.heads, trial.samples)
                fine_tune.finish()
                correct = fine_tune.judge(trial.samples)
                retained = fine_tune.judge_retained(trial.samples)
            else:
                failure = "diverged"
        except Exception as error:  # noqa: BLE001 - what one candidate breaks must not end the others
            _log.debug("training %s failed", trial.candidate.id, exc_info=True)
            failure = first_line(error)
        end = time.perf_counter()
        each = max(trained - begun, 0.0) / max(run_now, 1)
        return Probe(
            trial,
            correct,
            end - start,
            failure,
            retained,
            solved,
            begun - start,
            each,
            end - max(trained, begun),
        )

    def _thaw(self, fine_tune: FineTune, trial: Trial) -> int:
        """Go on from a shorter training, if one is at hand; how many updates that spares."""
        kept = self._kept.get(training_key(trial))
        if kept is not None and kept["done"] <= level_updates(trial.updates):
            fine_tune.restore(kept)
        return fine_tune.done

    def _train(self, fine_tune: FineTune, trial: Trial) -> bool:
        """To the end; where the learning rate begins to fall, longer trainings can go on."""
        if trial.learning_rate is not None:
            if not fine_tune.run(level_updates(trial.updates)):
                return False
            self._kept.put(training_key(trial), fine_tune.state())
        return fine_tune.run(trial.updates)

    def judge_base(self, samples: int) -> bytes:
        """Which of the first held-out samples the model classifies right as it is."""
        return evaluate(self.model, self.dataset.validation, self.dataset.normalisation, samples)

    def judge_base_retained(self, samples: int) -> bytes | None:
        """Likewise of the old data; None where there is none."""
        if self.dataset.retained is None:
            return None
        return evaluate(self.model, self.dataset.retained, self.dataset.normalisation, samples)

    def time_updates(self, candidate: Candidate) -> tuple[float, float]:
        """Wall clock before the candidate's first update, and of one on average, in seconds."""
        _decode(self.dataset)
        start = time.perf_counter()
        fine_tune = FineTune(self, candidate, 0.0, _TIMED_UPDATES, seed=0)
        fine_tune.run(1)  # slower than others where it compiles kernels
        setup = time.perf_counter() - start
        start = time.perf_counter()
        while fine_tune.done < _TIMED_UPDATES and time.perf_counter() - start < _TIMING_SECONDS:
            fine_tune.run(fine_tune.done + 1)
        return setup, (time.perf_counter() - start) / max(fine_tune.done - 1, 1)

    def copy_of_base(self, candidate: Candidate) -> nn.Module:
        """What the candidate starts from: the model, with its statistics re-estimated if it wants that."""
        if not is_reestimated(candidate):
            return copy.deepcopy(self.model)
        if self._recalibrated is None:
            updates = reestimation_updates(len(self.images_for(reestimation())), self.batch_size)
            recalibration = FineTune(self, reestimation(), None, updates, seed=0)
            recalibration.run(updates)
            self._recalibrated = recalibration.trainable.model.eval()
        return copy.deepcopy(self._recalibrated)

    def images_for(self, candidate: Candidate) -> LabelledImages:
        """What the candidate trains on: where it looks at no labels, those without one, too."""
        train, more = self.dataset.train, self.dataset.unlabelled
        if more is None or get_method(candidate.method).learns_classes:
            return train
        if self._without_labels is None:
            self._without_labels = LabelledImages.joined(train, more)
        return self._without_labels

    def inputs(self, trainable: Trainable, candidate: Candidate) -> tuple[_Images, ...]:
        """Inputs to train on, held-out and old ones: images, or what a frozen front makes of them."""
        train = self.images_for(candidate)
        parts = (train, *_judged_on(self.dataset))
        if trainable.levers.cached_prefix == "no":
            return parts
        key = trainable.front, is_reestimated(candidate), train is self.dataset.train
        if key not in self._features:
            self._features[key] = self.fronts(trainable, candidate)
        return self._features[key]

    def fronts(self, trainable: Trainable, candidate: Candidate) -> tuple[FrontOutputs, ...]:
        """Of images to train on, held-out and old ones: what the candidate's frozen front makes of them."""
        normalisation = self.dataset.normalisation
        parts = (self.images_for(candidate), *_judged_on(self.dataset))
        return tuple(FrontOutputs.of(part, trainable, normalisation, self.census) for part in parts)


class FineTune:
    """One candidate being trained on a copy of the model.

    The learning rate stays level, and falls to zero over the last fifth of the updates, as one minus the
    square root of the part of them that is done (arXiv 2405.18392): a longer training is the same as a
    shorter one until that one begins to cool down, so what was trained can go on from there.

    Every candidate sees the same batches for the same seed.
    """

    def __init__(
        self, trainer: Trainer, candidate: Candidate, learning_rate: float | None, updates: int, seed: int
    ) -> None:
        """`updates`: after which the learning rate is zero."""
        self.done = 0
        self._trainer, self._candidate, self._updates = trainer, candidate, updates
        self._random = torch.Generator().manual_seed(seed).get_state()
        with self._own_random_numbers():
            quick = trained_as(candidate, trainer.census)
            self.trainable, self.optimizer = begin(
                trainer.copy_of_base(quick), trainer.census, quick, learning_rate or 0.0
            )
        self._schedule = None
        if self.optimizer is not None:
            self._schedule = torch.optim.lr_scheduler.LambdaLR(
                self.optimizer, partial(_share_of_rate, updates=updates)
            )
        self._train, self._validation, *self._retained = trainer.inputs(self.trainable, quick)
        self._batches = _batches(len(self._train), trainer.batch_size, seed)

    def run(self, until: int) -> bool:
        """Train until so many updates are done; False: the loss or a weight is no longer finite."""
        with self._own_random_numbers():
            self.trainable.train_mode()
            while self.done < until:
                images, labels = self._train.batch(next(self._batches), self._trainer.dataset.normalisation)
                loss = update(self.trainable, self.optimizer, images, labels)
                if loss is not None and not torch.isfinite(loss):
                    return False
                if self._schedule is not None:
                    self._schedule.step()
                self.done += 1
        return all(tensor.isfinite().all() for tensor in self.trainable.delta().values())

    def judge(self, samples: int | None = None) -> bytes:
        """Which of the first held-out samples it classifies right now: one byte each, 1 = right."""
        return self._judged(self._validation, samples)

    def judge_retained(self, samples: int) -> bytes | None:
        """Likewise of the old data; None where there is none."""
        return self._judged(self._retained[0], samples) if self._retained else None

    def _judged(self, images: _Images, samples: int | None) -> bytes:
        with self._without_front():
            return evaluate(self.trainable.model, images, self._trainer.dataset.normalisation, samples)

    def judge_solved(self, heads: Sequence[Features], samples: int | None = None) -> tuple[Answers, ...]:
        """As `judge` and `judge_retained`, with each of these heads solved in the place of the trained one.

        What was trained stays as it is.
        """
        if not heads:
            return ()
        census = self._trainer.census
        widest = max(heads, key=FEATURES.index)
        (features, labels), *judged = self._pooled_features(widest, samples)
        examples = Examples.of(feature_sizes(census, widest), census.classes or 0, features, labels)
        found = []
        for head in heads:
            weight, bias = examples.solve(groups=len(feature_sizes(census, head)))
            found.append(Answers(*(_right(weight, bias, part) for part in judged)))
        return tuple(found)

    def finish(self) -> None:
        """What follows training: a head in closed form is solved, and takes its place."""
        if head_of(self._candidate) is None:
            return
        normalisation = self._trainer.dataset.normalisation
        every = torch.arange(len(self._train)).split(_EVALUATION_BATCH)
        with self._without_front():
            batches = (self._train.batch(indices, normalisation) for indices in every)
            solve_head(self.trainable, self._trainer.census, batches)

    def _pooled_features(
        self, features: Features, samples: int | None
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Features (n, F) and labels (n,) of images to train on, held-out and old ones."""
        census, model = self._trainer.census, self.trainable.model.eval()
        blocks = feature_blocks(census, features)
        found = []
        for number, part in enumerate((self._train, self._validation, *self._retained)):
            count = len(part) if samples is None or number == 0 else min(samples, len(part))
            if not count:
                found.append((torch.empty(0, 0), part.labels[:0]))
                continue
            # What is frozen and left out makes of images what it made of them when it was run.
            pooled = {b: t[:count] for b, t in part.pooled.items()} if isinstance(part, FrontOutputs) else {}
            inputs: list[torch.Tensor] = []
            missing = [block for block in blocks if block not in pooled]
            made: dict[Block, list[torch.Tensor]] = {block: [] for block in missing}
            with (
                self._without_front(),
                inputs_of(model.get_submodule(census.head or "")) as head,
                pooled_outputs(model, missing) as outputs,
                torch.inference_mode(),
            ):
                for indices in torch.arange(count).split(_EVALUATION_BATCH):
                    model(part.batch(indices, self._trainer.dataset.normalisation)[0])
                    inputs.append(head[0])
                    for block in missing:
                        made[block].append(outputs[block])
            pooled |= {block: torch.cat(parts) for block, parts in made.items()}
            found.append(
                (torch.cat([torch.cat(inputs), *map(pooled.__getitem__, blocks)], 1), part.labels[:count])
            )
        return found

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to go on from here as if nothing had happened."""
        return {
            "done": self.done,
            "model": self._changing(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "schedule": None if self._schedule is None else self._schedule.state_dict(),
            "random": self._random,
            "batches_seen": self.trainable.batches_seen,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where another one with the same arguments was when it gave its `state`."""
        while self.done < state["done"]:
            next(self._batches)
            self.done += 1
        with torch.no_grad():
            for name, tensor in self._changing().items():
                tensor.copy_(state["model"][name])
        if self.optimizer is not None and self._schedule is not None:
            self.optimizer.load_state_dict(state["optimizer"])
            self._schedule.load_state_dict(state["schedule"])
        self._random, self.trainable.batches_seen = state["random"], state["batches_seen"]

    def _changing(self) -> dict[str, torch.Tensor]:
        """All that training may change."""
        parameters = {name: p.detach() for name, p in self.trainable.parameters.items()}
        return parameters | dict(self.trainable.model.named_buffers())

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Dropout's and the initialisations' random numbers neither take from others' nor depend on them."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random)
            yield
            self._random = torch.get_rng_state()

    def _without_front(self) -> AbstractContextManager[None]:
        if self.trainable.levers.cached_prefix == "no":
            return nullcontext()
        return without_front(self.trainable.model, self.trainable.front)


def level_updates(updates: int) -> int:
    """How many of a training's updates come before its learning rate falls."""
    return updates - max(round(_COOL_DOWN * updates), 1)


def _share_of_rate(done: int, updates: int) -> float:
    """Of the learning rate, for the update after so many."""
    level = level_updates(updates)
    return 1.0 if done <= level else max(1 - math.sqrt((done - level) / (updates - level)), 0.0)


def training_key(trial: Trial) -> tuple[Any, ...]:
    """The same for trials of which the longer one can go on where the shorter one was."""
    return trial.candidate, trial.learning_rate, trial.seed


class Kept:
    """States of trainings, the ones used last, within so many bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._states: dict[tuple[Any, ...], tuple[int, dict[str, Any]]] = {}

    def get(self, key: tuple[Any, ...]) -> dict[str, Any] | None:
        """The one that was kept, if it still is."""
        found = self._states.pop(key, None)
        if found is None:
            return None
        self._states[key] = found
        return found[1]

    def put(self, key: tuple[Any, ...], state: dict[str, Any]) -> None:
        """Keep a copy of it."""
        copied = copy.deepcopy(state)
        leaves = (leaf for leaf in tree_flatten(copied)[0] if isinstance(leaf, torch.Tensor))
        self._states.pop(key, None)
        self._states[key] = sum(leaf.numel() * leaf.element_size() for leaf in leaves), copied
        while sum(size for size, _ in self._states.values()) > self._most_bytes:
            del self._states[next(iter(self._states))]


@dataclass(frozen=True, slots=True, eq=False)
class FrontOutputs:
    """What a frozen front makes of images: computed once."""

    outputs: torch.Tensor  # (M, ...): of these images, and perhaps of others
    places: torch.Tensor  # (N,) int64: where in them each image's are
    labels: torch.Tensor  # (N,) int64
    folder: tempfile.TemporaryDirectory[str] | None  # of the file that holds the outputs, if one does
    pooled: dict[Block, torch.Tensor]  # of the front's blocks, for a head in closed form

    @classmethod
    def of(
        cls, images: LabelledImages, trainable: Trainable, normalisation: Normalisation, census: Census
    ) -> FrontOutputs:
        """Run the front on all images."""
        outputs, folder = torch.empty(0), None
        blocks = [b for b in feature_blocks(census, "all") if b.modules[-1] in trainable.front]
        pooled: dict[Block, list[torch.Tensor]] = {block: [] for block in blocks}
        for positions in torch.arange(len(images)).split(_EVALUATION_BATCH):
            with pooled_outputs(trainable.model, blocks) as of_blocks:
                made = run_front(trainable.model, trainable.front, images.batch(positions, normalisation)[0])
            for block in blocks:
                pooled[block].append(of_blocks[block])
            if not outputs.numel():
                shape = (len(images), *made.shape[1:])
                if math.prod(shape) * made.element_size() > _MOST_IN_MEMORY:
                    folder = tempfile.TemporaryDirectory(prefix="peft-advisor-")
                    path = str(Path(folder.name, "front"))
                    flat = torch.from_file(path, shared=True, size=math.prod(shape), dtype=made.dtype)
                    outputs = flat.view(shape)
                else:
                    outputs = made.new_empty(shape)
            outputs[positions] = made
        places = torch.arange(len(images))
        joined = {block: torch.cat(parts) for block, parts in pooled.items()}
        return cls(outputs, places, images.labels, folder, joined)

    def those(self, indices: torch.Tensor) -> FrontOutputs:
        """Of the images at these indices."""
        pooled = {block: of_block[indices] for block, of_block in self.pooled.items()}
        return FrontOutputs(self.outputs, self.places[indices], self.labels[indices], self.folder, pooled)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: torch.Tensor, _: Normalisation) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs at `indices` (B,), and their labels (B,)."""
        return self.outputs[self.places[indices]], self.labels[indices]


_Images = LabelledImages | FrontOutputs


def _right(weight: torch.Tensor, bias: torch.Tensor, judged: tuple[torch.Tensor, torch.Tensor]) -> bytes:
    """Which images a head gets right that reads the first of these features."""
    features, labels = judged
    if not len(labels):
        return b""
    answers = F.linear(features[:, : weight.shape[1]], weight, bias).argmax(1)
    return bytes((answers == labels).to(torch.uint8).tolist())


def _judged_on(data: Dataset) -> tuple[LabelledImages, ...]:
    """The images held out, and old ones, where there are any."""
    return data.validation, *([data.retained] if data.retained is not None else [])


def _parts(data: Dataset) -> tuple[LabelledImages, ...]:
    """All images."""
    return data.train, *_judged_on(data), *([data.unlabelled] if data.unlabelled is not None else [])


def _decode(data: Dataset) -> None:
    """What is not decoded yet: it should count as no candidate's time."""
    for part in _parts(data):
        part.images  # noqa: B018 - looked at


def in_quick_layout(model: nn.Module, census: Census) -> nn.Module:
    """A copy whose convolutions run channels-last, which takes a CPU less time; the model if it can't.

    It computes the same up to rounding. A model can't where its code wants its activations in one piece
    as (N, C, H, W), with `view`.
    """
    random = torch.Generator().manual_seed(0)
    images = torch.randn(2, *census.input_size, generator=random)  # as images are, normalised
    quick = copy.deepcopy(model).to(memory_format=torch.channels_last)
    tried = copy.deepcopy(quick)
    try:
        with torch.random.fork_rng(devices=[]), evaluating(model):
            with torch.no_grad():
                wanted, got = logits(model(images)), logits(tried.eval()(images))
            logits(tried.train()(images)).sum().backward()
    except Exception:  # noqa: BLE001 - a model's own code raises what it likes
        return model
    return quick if torch.allclose(wanted, got, rtol=1e-3, atol=1e-4) else model


def trained_as(candidate: Candidate, census: Census) -> Candidate:
    """The quickest candidate whose training comes out the same.

    Checkpointing, when a parameter is stepped, a cache and fused norms change costs, not results.
    """
    levers = replace(candidate.levers, checkpoint=False, update="end", fuse=False, cached_prefix="no")
    if head_of(candidate) not in (None, "last"):
        return replace(candidate, levers=levers)  # its head reads what a cache leaves out
    only_head = get_method(candidate.method).only_head
    if only_head and levers.scope is None and levers.statistics in ("own", "reestimated"):
        levers = replace(levers, scope=0)  # with frozen statistics, all before the head is its front
    if levers.scope is not None:
        if has_replaceable_front(census, levers.scope):
            levers = replace(levers, cached_prefix="ram")
        elif not front_modules(census, levers.scope) or only_head:
            levers = replace(levers, scope=None)
    return replace(candidate, levers=levers)


def head_of(candidate: Candidate) -> Features | None:
    """The features of the head that is solved for the candidate once it is trained, if one is."""
    return get_method(candidate.method).solves(dict(candidate.setting)) or candidate.levers.solved_head


def without_head(candidate: Candidate) -> Candidate:
    """What is trained before the candidate's head is solved: the same for every such head."""
    method, levers = get_method(candidate.method), replace(candidate.levers, head="trained")
    if method.solves(dict(candidate.setting)) is not None:
        return Candidate.of(method.name, method.variants[0], levers)
    return replace(candidate, levers=levers)


def training_of(candidate: Candidate, census: Census) -> Candidate:
    """The training that the candidate shares with all that differ in costs, or in the head in the end."""
    return trained_as(without_head(candidate), census)


def evaluate(
    model: nn.Module, images: _Images, normalisation: Normalisation, samples: int | None = None
) -> bytes:
    """Which of the first `samples` images the model classifies right: one byte each, 1 = right.

    `samples`: None: all; of none, nothing.
    """
    count = len(images) if samples is None else min(samples, len(images))
    if not count:
        return b""
    model.eval()
    right: list[torch.Tensor] = []
    with torch.inference_mode():
        for indices in torch.arange(count).split(_EVALUATION_BATCH):
            inputs, labels = images.batch(indices, normalisation)
            right.append(logits(model(inputs)).argmax(1) == labels)
    return bytes(torch.cat(right).to(torch.uint8).tolist())


def is_reestimated(candidate: Candidate) -> bool:
    """Whether its statistics are those of the new images before anything is trained."""
    return candidate.levers.statistics == "reestimated"


def _batches(samples: int, batch_size: int, seed: int) -> Iterator[torch.Tensor]:
    """Batches of indices without end; every epoch in a new order, an incomplete last batch left out."""
    generator = torch.Generator().manual_seed(seed)
    size = min(batch_size, samples)
    while True:
        for indices in torch.randperm(samples, generator=generator).split(size):
            if len(indices) == size:
                yield indices
