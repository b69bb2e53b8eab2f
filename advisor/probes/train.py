"""Candidates are trained on copies of one model, with what is frozen run once for all, and judged."""

from __future__ import annotations

import copy
import logging
import math
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import starmap, zip_longest
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
from advisor.data.loading import Dataset, LabelledImages
from advisor.data.pixels import Normalisation
from advisor.methods import Trainable, get_method
from advisor.methods.recalibrate import reestimation
from advisor.models.blocks import evaluating, front_modules, has_replaceable_front
from advisor.models.fingerprint import code_fingerprint, fingerprint
from advisor.models.layers import logits
from advisor.parts.closed_form import Examples, feature_blocks, feature_sizes, inputs_of, pooled_outputs
from advisor.records import FEATURES, Block, Candidate, Census, Features
from advisor.training.accelerator import CPU, Accelerator, host
from advisor.training.loop import (
    FrontOutputs,
    Training,
    evaluate,
    head_of,
    images_at_once,
    level_updates,
    reestimated,
    right,
)
from advisor.training.views import Images, View, Views

_log = logging.getLogger(__name__)
_TIMED_UPDATES, _TIMING_SECONDS = 8, 0.5  # of each candidate: enough to plan with
REMEMBERED, _STATES = 2**32, 2**29  # bytes: of all that a trainer remembers, and of states to go on from


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
    """Which images one network classifies right, and how clearly."""

    correct: bytes  # of the held-out ones: one byte each, 1 = right
    margins: bytes  # of these, as float32: the right class's output less the highest of the others
    retained: bytes | None = None  # right of as many of the old data's; None where there is none


@dataclass(frozen=True, slots=True)
class Probe:
    """What a trial found."""

    trial: Trial
    correct: bytes | None  # one byte per held-out sample, 1 = right; None where it failed
    seconds: float
    failure: str = ""  # why, in words
    margins: bytes = b""  # of the held-out samples, as in `Answers`
    retained: bytes | None = None  # right of as many of the old data's; None where there is none
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


TIMES = ("setup_seconds", "update_seconds", "judging_seconds")  # what a probe tells of its parts


class Trainer:
    """Trains copies of one model on one dataset. What is frozen runs once for all candidates.

    Pickled without what it remembers, so that it can be sent to other processes.
    """

    def __init__(
        self,
        model: nn.Module,
        census: Census,
        dataset: Dataset,
        batch_size: int,
        as_advised: int | None = None,
        accelerator: Accelerator = CPU,
        remembered: int = REMEMBERED,
    ) -> None:
        """Prepare to train.

        Args:
            dataset: its labels are the model's outputs (`scenarios.relabel`).
            as_advised: every lever is pulled as on the device, where so many images run at once when no
                gradient is needed; None: training runs in the quickest way that comes out the same.
            accelerator: what trains, and judges.
            remembered: bytes in memory that states to go on from, and what frozen fronts make, may take.
        """
        self.accelerator = accelerator
        self.model, self.census, self.dataset, self.batch_size = model, census, dataset, batch_size
        self.as_advised = as_advised
        self._recalibrated: nn.Module | None = None
        self._features: dict[tuple[Any, ...], tuple[FrontOutputs, ...]] = {}
        self.states = min(_STATES, remembered // 2)
        self._kept, self.room = Kept(self.states), Room(remembered - self.states)
        self._without_labels: LabelledImages | None = None
        # How many of the held-out images a trial may be judged on: each step is another training.
        self.steps: tuple[int, ...] = (len(dataset.validation),)

    @property
    def pass_size(self) -> int:
        """How many images run at once where no gradient is needed."""
        return self.as_advised or images_at_once(self.census.input_size)

    def __getstate__(self) -> dict[str, Any]:
        forgotten: dict[str, Any] = {"_recalibrated": None, "_features": {}, "_without_labels": None}
        return self.__dict__ | forgotten | {"_kept": Kept(self.states)}

    def key(self) -> dict[str, Any]:
        """All that a probe's result depends on, besides its trial: to find it in a store."""
        data = self.dataset
        how = {
            "batch_size": self.batch_size,
            "augment": data.augment,
            "device": self.accelerator.described,
        }
        return key_of(self.model, data.normalisation, *data.parts) | how

    def trainings(self, samples: int) -> int:  # noqa: ARG002 - it matters where there are folds
        """How many networks it takes to judge the first held-out samples."""
        return 1

    def probe(self, trial: Trial) -> Probe:
        """Train a copy of the model, and classify the first held-out samples.

        Where the same was trained for less time before, training goes on from there: nothing else is found.
        """
        _decode(self.dataset)
        start = begun = trained = time.perf_counter()
        own, failure, run_now = None, "", 0
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
                own = fine_tune.answered(trial.samples)
            else:
                failure = "diverged"
        except Exception as error:  # noqa: BLE001 - what one candidate breaks must not end the others
            _log.debug("training %s failed", trial.candidate.id, exc_info=True)
            failure = self.accelerator.failure(error)
        end = time.perf_counter()
        each = max(trained - begun, 0.0) / max(run_now, 1)
        return Probe(
            trial,
            None if own is None else own.correct,
            end - start,
            failure,
            b"" if own is None else own.margins,
            None if own is None else own.retained,
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
        return self._judged(self.dataset.validation, samples)

    def judge_base_retained(self, samples: int) -> bytes | None:
        """Likewise of the old data; None where there is none."""
        if self.dataset.retained is None:
            return None
        return self._judged(self.dataset.retained, samples)

    def _judged(self, images: LabelledImages, samples: int) -> bytes:
        """Of the model as it is; elsewhere than here it is a copy that is classified with."""
        model, on = self.model, self.accelerator
        if on != CPU:
            model = on.place(copy.deepcopy(model))
        normalisation = self.dataset.normalisation
        return evaluate(model, images, normalisation, samples, pass_size=self.pass_size, accelerator=on)

    def time_updates(self, candidate: Candidate) -> tuple[float, float]:
        """Wall clock before the candidate's first update, and of one on average, in seconds.

        They are timed on a few of the images: what runs on each of them beforehand takes as much longer on
        all as there are more.
        """
        images = self._few(_TIMED_UPDATES * self.batch_size)
        few = Trainer(self.model, self.census, images, self.batch_size, accelerator=self.accelerator)
        _decode(few.dataset)
        start = time.perf_counter()
        fine_tune = FineTune(few, candidate, 0.0, _TIMED_UPDATES, seed=0)
        prepared = time.perf_counter()
        fine_tune.run(1)  # slower than others where it compiles kernels
        begun = time.perf_counter()
        while fine_tune.done < _TIMED_UPDATES and time.perf_counter() - begun < _TIMING_SECONDS:
            fine_tune.run(fine_tune.done + 1)
        each = (time.perf_counter() - begun) / max(fine_tune.done - 1, 1)
        own = trained_as(candidate, self.census)
        runs_before = is_reestimated(own) or own.levers.cached_prefix != "no"
        times = sum(map(len, self.dataset.parts)) / sum(map(len, few.dataset.parts)) if runs_before else 1
        return (prepared - start) * times + begun - prepared, each

    def _few(self, count: int) -> Dataset:
        """At most so many images of each kind."""
        data = self.dataset

        def first(part: LabelledImages) -> LabelledImages:
            return part.those(torch.arange(min(count, len(part))))

        old, more = data.retained, data.unlabelled
        return replace(
            data,
            train=first(data.train),
            validation=first(data.validation),
            retained=None if old is None else first(old),
            unlabelled=None if more is None else first(more),
        )

    def copy_of_base(self, candidate: Candidate) -> nn.Module:
        """What the candidate starts from: the model, with its statistics re-estimated if it wants that."""
        if not is_reestimated(candidate):
            return copy.deepcopy(self.model)
        if self._recalibrated is None:
            self._recalibrated = reestimated(
                copy.deepcopy(self.model),
                self.census,
                self.images_for(reestimation()),
                self.batch_size,
                self.dataset.normalisation,
                self.pass_size,
                self.accelerator,
            )
        return copy.deepcopy(self._recalibrated)

    def images_for(self, candidate: Candidate) -> LabelledImages:
        """What the candidate trains on: where it looks at no labels, those without one, too."""
        train, more = self.dataset.train, self.dataset.unlabelled
        if more is None or get_method(candidate.method).learns_classes:
            return train
        if self._without_labels is None:
            self._without_labels = LabelledImages.joined(train, more)
        return self._without_labels

    def inputs(self, trainable: Trainable, candidate: Candidate, seed: int) -> tuple[Views, Sequence[Images]]:
        """Views to train on, and held-out images and old ones, or what a frozen front makes of them."""
        train = self.images_for(candidate)
        views = Views.of(train, candidate, self.census, self.dataset.augment, seed)
        if trainable.levers.cached_prefix == "no":
            return views, judged_on(self.dataset)
        key = trainable.front, is_reestimated(candidate), train is self.dataset.train
        if key not in self._features:
            self._features[key] = self.fronts(trainable, candidate, self._begun(key))
        plain, *judged = self._features[key]

        def made(view: Images) -> FrontOutputs:
            if not isinstance(view, View):
                return plain
            own = (*key, view.seed, view.number)
            if own not in self._features:
                nearest = next(iter(self._begun(own)), None)
                self._features[own] = (self.front_of_view(trainable, candidate, view, nearest),)
            return self._features[own][0]

        return views.run_through(made), judged

    def _begun(self, key: tuple[Any, ...]) -> tuple[FrontOutputs, ...]:
        """What is there of the longest part of the key's front, its other parts being the same."""
        front, *rest = key
        known = (made for (_, *other), made in self._features.items() if other == rest)
        return longest_begun(known, front) or ()

    def fronts(
        self, trainable: Trainable, candidate: Candidate, nearest: Sequence[FrontOutputs] = ()
    ) -> tuple[FrontOutputs, ...]:
        """Of images to train on, held-out and old ones: what the candidate's frozen front makes of them.

        Args:
            nearest: what a part of the front made of each, if any did.
        """
        parts = (self.images_for(candidate), *judged_on(self.dataset))
        return tuple(self.front(trainable, *each) for each in zip_longest(parts, nearest))

    def front_of_view(
        self, trainable: Trainable, candidate: Candidate, view: View, nearest: FrontOutputs | None = None
    ) -> FrontOutputs:
        """What the candidate's frozen front makes of a view of the images to train on."""
        del candidate
        return self.front(trainable, view, nearest)

    def front(
        self, trainable: Trainable, images: Images, nearest: FrontOutputs | None = None
    ) -> FrontOutputs:
        """What a frozen front makes of images, or of what a part of it made of them."""
        made = FrontOutputs.of(
            images,
            trainable,
            self.dataset.normalisation,
            self.census,
            self.pass_size,
            self.room.left,
            accelerator=self.accelerator,
            nearest=nearest,
        )
        self.room.left -= made.outputs.nbytes if made.folder is None else 0
        return made


def longest_begun(
    found: Iterable[tuple[FrontOutputs, ...]], front: Sequence[str]
) -> tuple[FrontOutputs, ...] | None:
    """Of what fronts made, each of some parts of the images, what the longest part of this front did."""
    begun = (made for made in found if made[0].begins(front))
    return max(begun, key=lambda made: len(made[0].front), default=None)


class FineTune(Training):
    """One candidate being trained on a copy of the model."""

    def __init__(
        self, trainer: Trainer, candidate: Candidate, learning_rate: float | None, updates: int, seed: int
    ) -> None:
        """`updates`: after which the learning rate is zero."""
        own = candidate if trainer.as_advised else trained_as(candidate, trainer.census)
        super().__init__(
            trainer.copy_of_base(own),
            trainer.census,
            own,
            learning_rate,
            updates,
            batch_size=trainer.batch_size,
            seed=seed,
            normalisation=trainer.dataset.normalisation,
            inputs=partial(trainer.inputs, candidate=own, seed=seed),
            pass_size=trainer.pass_size,
            accelerator=trainer.accelerator,
        )

    def answered(self, samples: int) -> Answers:
        """On the first held-out samples, and on as many of the old data's."""
        parts = list(self._answers(self._held_out, samples))
        retained = self._judged(self._others[0], samples) if self._others else None
        return Answers(b"".join(starmap(right, parts)), b"".join(starmap(_margins, parts)), retained)

    def judge_solved(self, heads: Sequence[Features], samples: int | None = None) -> tuple[Answers, ...]:
        """As `answered`, with each of these heads solved in the place of the trained one.

        What was trained stays as it is.
        """
        if not heads:
            return ()
        census = self._census
        widest = max(heads, key=FEATURES.index)
        (features, labels), *judged = self._pooled_features(widest, samples)
        examples = Examples.of(feature_sizes(census, widest), census.classes or 0, features, labels)
        found = []
        for head in heads:
            weight, bias = examples.solve(groups=len(feature_sizes(census, head)))
            new, *old = [(F.linear(part[:, : weight.shape[1]], weight, bias), own) for part, own in judged]
            found.append(Answers(right(*new), _margins(*new), right(*old[0]) if old else None))
        return tuple(found)

    def _pooled_features(
        self, features: Features, samples: int | None
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Features (n, F) and labels (n,) of images to train on, held-out and old ones."""
        census, model = self._census, self.trainable.model.eval()
        blocks = feature_blocks(census, features)
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        for number, part in enumerate((self._train, self._held_out, *self._others)):
            count = len(part) if samples is None or number == 0 else min(samples, len(part))
            if not count:
                found.append((found[0][0][:0], part.labels[:0]))  # there are images to train on
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
                self._precision.forward(),
            ):
                for indices in torch.arange(count).split(self._pass_size):
                    model(self._accelerator.placed(part.batch(indices, self._normalisation)[0]))
                    inputs.append(host(head[0]))
                    for block in missing:
                        made[block].append(host(outputs[block]))
            pooled |= {block: torch.cat(parts) for block, parts in made.items()}
            found.append(
                (torch.cat([torch.cat(inputs), *map(pooled.__getitem__, blocks)], 1), part.labels[:count])
            )
        return found


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


class Room:
    """Bytes in memory that are left for what fronts make, of all candidates; more goes into files."""

    def __init__(self, left: int) -> None:
        self.left = left


def _margins(outputs: torch.Tensor, labels: torch.Tensor) -> bytes:
    """How far each label's output is above the highest of the others: float32."""
    own = outputs.float()
    others = own.scatter(1, labels[:, None], -math.inf).amax(1)
    return host(own.gather(1, labels[:, None])[:, 0] - others).numpy().tobytes()


def judged_on(data: Dataset) -> tuple[LabelledImages, ...]:
    """The images held out, and old ones, where there are any."""
    return data.validation, *([data.retained] if data.retained is not None else [])


def _decode(data: Dataset) -> None:
    """What is not decoded yet: it should count as no candidate's time."""
    for part in data.parts:
        part.decode()


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


def without_head(candidate: Candidate) -> Candidate:
    """What is trained before the candidate's head is solved: the same for every such head."""
    method, levers = get_method(candidate.method), replace(candidate.levers, head="trained")
    if method.solves(dict(candidate.setting)) is not None:
        return Candidate.of(method.name, method.variants[0], levers)
    return replace(candidate, levers=levers)


def training_of(candidate: Candidate, census: Census) -> Candidate:
    """The training that the candidate shares with all that differ in costs, or in the head in the end."""
    return trained_as(without_head(candidate), census)


def is_reestimated(candidate: Candidate) -> bool:
    """Whether its statistics are those of the new images before anything is trained."""
    return candidate.levers.statistics == "reestimated"
