"""The race of the candidates that the limits admit, on the user's images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch

from advisor.costs import available_bytes
from advisor.data import Dataset
from advisor.methods import learning_rates
from advisor.probes import (
    CrossValidation,
    Trainer,
    by_class,
    executor_for,
    fold_count,
    in_quick_layout,
    metric_of,
    training_of,
)
from advisor.probes.race import race
from advisor.records import Accuracy, Budget, Candidate, DataSummary, Evaluation
from advisor.solver import cheapest_first, violations
from advisor.store import Store
from advisor.story.situation import Progress, Request, Story, Task
from advisor.training.accelerator import CPU, accelerator_for
from advisor.units import format_percent, format_seconds

_LEAST_PROBING, _MOST_PROBING, _ROUNDED = 60.0, 1200.0, 30.0  # seconds
# Of the memory that is left beside the images: a training in this process; what probes remember.
_SAFE_SHARE, _REMEMBERED_SHARE = 0.25, 0.25


def probe_all(
    story: Story,
    task: Task,
    evaluations: list[Evaluation],
    budget: Budget,
    request: Request,
    progress: Progress,
    store: Store,
) -> tuple[list[Evaluation], DataSummary]:
    """Race the candidates that the limits admit."""
    dataset, situation = task.dataset, task.situation
    base: Accuracy | None = None
    train, held_out, folds = len(dataset.train), dataset.validation, 1
    seconds, probes_run, probes_recalled = 0.0, 0, 0
    if request.probe_seconds is not None:
        trainer, folds = _trainer(story, task, request)
        train, held_out = len(trainer.dataset.train), trainer.dataset.validation
        fitting = [evaluation for evaluation in cheapest_first(evaluations, budget) if evaluation.fits]
        most = _SAFE_SHARE * _left(dataset) if trainer.accelerator == CPU else math.inf
        peaks = {each.candidate: each.cost.peak_memory_bytes for each in evaluations}
        trainings = {each.candidate: training_of(each.candidate, story.census) for each in fitting}
        # Trained here without the levers that only spare memory, a candidate takes more.
        risky = {its for one, its in trainings.items() if max(peaks[one], peaks.get(its, 0)) > most}
        updates = request.epochs * max(train // request.batch_size, 1)
        with executor_for(request.executor, trainer, risky.__contains__) as executor:
            result = race(
                trainer,
                {evaluation.candidate: evaluation.cost for evaluation in fitting},
                seconds=_probe_seconds(request, trainer, evaluations, most, updates, store, progress),
                updates=updates,
                seed=request.seed,
                new_head=situation.head_replaced,
                metric=metric_of(budget.metric, held_out.labels, dataset.class_names, situation.label_map),
                min_retained=budget.min_retained,
                unaffordable=[evaluation.candidate for evaluation in evaluations if not evaluation.fits],
                store=store,
                key=trainer.key(),
                executor=executor,
                report=lambda fraction, running: progress("probe", fraction, running),
                lead=lambda best, told: progress(
                    "lead", 0.0, f"{best.short}, about {format_percent(told.mean, 0)}"
                ),
            )
        progress("probe", 1.0, "")
        story.warnings[:0] = result.warnings
        known = situation.classes - situation.new_classes

        def told(accuracy: Accuracy | None) -> Accuracy | None:
            if accuracy is None:
                return None
            return by_class(accuracy, held_out.labels, held_out.groups, situation.label_map, known)

        base, seconds = told(result.base), result.seconds
        probes_run, probes_recalled = result.probes_run, result.probes_recalled
        evaluations = [
            replace(
                evaluation,
                accuracy=told(result.accuracies.get(evaluation.candidate)),
                predicted=result.predicted.get(evaluation.candidate),
                probe_failure=result.failures.get(evaluation.candidate, ""),
                violations=violations(
                    budget,
                    evaluation.cost,
                    result.accuracies.get(evaluation.candidate),
                    forecast=evaluation.forecast,
                ),
            )
            for evaluation in evaluations
        ]
    summary = DataSummary(
        source=dataset.source,
        scenario=situation.scenario,
        classes=len(dataset.class_names),
        new_classes=situation.new_classes,
        train_samples=train,
        validation_samples=len(held_out),
        folds=folds,
        base_accuracy=base,
        probe_seconds=seconds,
        probes_run=probes_run,
        probes_recalled=probes_recalled,
        class_names=request.class_names,
        mean=dataset.normalisation.mean,
        std=dataset.normalisation.std,
        crop=dataset.framing.crop,
        interpolation=dataset.framing.interpolation,
        crop_mode=dataset.framing.mode,
        channel_order=dataset.framing.order,
        orientation=dataset.framing.orientation,
        labels=request.labels,
        groups=request.groups,
        findings=dataset.findings,
        unreadable_samples=dataset.unreadable,
        augment=dataset.augment,
        device=accelerator_for(request.device).described,
        rehearse=request.rehearse,
        retain=request.retain,
        unlabelled=request.unlabelled,
        unlabelled_samples=story.unlabelled_images,
        largest_class_share=_largest_share(held_out.labels),
        data_classes=dataset.class_names,
    )
    return evaluations, summary


def _probe_seconds(
    request: Request,
    trainer: Trainer,
    evaluations: Sequence[Evaluation],
    most_bytes: float,
    updates: int,
    store: Store,
    progress: Progress,
) -> float:
    """What the probes may take: as asked, or what a fine-tune of every weight would take on this machine.

    That is so whatever the limits admit: they are the device's. Where it might not fit into this machine's
    memory, or isn't asked about, the one of those that train and do fit that has most FLOPs is timed.
    """
    if request.probe_seconds != "auto":
        assert request.probe_seconds is not None  # noqa: S101 - the caller probes
        return request.probe_seconds
    key = trainer.key() | {"updates": updates, "of": [evaluation.candidate.id for evaluation in evaluations]}
    known = store.get("auto", key)
    if known is not None:
        return float(known["seconds"])
    able = [e for e in evaluations if learning_rates(e.candidate) and e.cost.peak_memory_bytes <= most_bytes]
    full = (e for e in able if e.candidate == Candidate("full"))
    timed = next(full, None) or max(able, default=None, key=lambda e: e.cost.flops.total)
    seconds = _LEAST_PROBING
    if timed is not None:
        progress("probe", 0.0, f"timing {timed.candidate.id}")
        with suppress(Exception):  # its probe will say why
            seconds = updates * trainer.time_updates(training_of(timed.candidate, trainer.census))[1]
    # Rounded, so that how busy the machine is hardly matters.
    seconds = min(max(round(seconds / _ROUNDED) * _ROUNDED, _LEAST_PROBING), _MOST_PROBING)
    store.put("auto", key, {"seconds": seconds})
    progress("probe", 0.0, f"for {format_seconds(seconds)}, as long as one full fine-tune")
    return seconds


def _trainer(story: Story, task: Task, request: Request) -> tuple[Trainer, int]:
    """What the race trains with, and on how many splits: on several where images are few."""
    module, census = in_quick_layout(story.loaded.module, story.census), story.census
    folds, accelerator = fold_count(task.dataset), accelerator_for(request.device)
    given = module, census, task.dataset, request.batch_size
    remembered = int(_REMEMBERED_SHARE * _left(task.dataset))
    if folds == 1:
        return Trainer(*given, accelerator=accelerator, remembered=remembered), 1
    return CrossValidation(*given, folds, task.imprinted_from, accelerator, remembered), folds


def _left(dataset: Dataset) -> int:
    """Bytes that are available beside the images, which may be decoded in parts and joined."""
    images = sum(math.prod(part.undecoded.shape) for part in dataset.parts)
    return max(available_bytes() - 2 * images, 0)


def _largest_share(labels: torch.Tensor) -> float:
    """Of the most frequent label: what always giving the same answer gets right."""
    return float(labels.unique(return_counts=True)[1].max()) / len(labels)
