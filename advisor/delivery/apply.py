"""The recommended fine-tune, for real: all training images, whole epochs, files to ship.

The held-out images are the probe's. They choose nothing here: the weights are those of the last epoch, for
which the learning rate falls to zero, so the accuracy that is told is one of images not seen before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from advisor.costs import available_bytes
from advisor.costs.passes import pass_size
from advisor.data import Normalisation
from advisor.delivery.adapters import Recipe
from advisor.delivery.folder import CHECKPOINT, check_folder, deliver
from advisor.delivery.kept_sums import KeptSums, marks_of
from advisor.errors import InputError
from advisor.methods import learning_rates
from advisor.models.pickles import read_data
from advisor.names import answered, check_at_least_one, did_you_mean, names_code
from advisor.probes import FineTune, Trainer, judged_in_groups, metric_of
from advisor.records import Accuracy, Candidate, DataSummary, Evaluation, Framing, Recommendation
from advisor.solver import allowed_memory
from advisor.story.situation import Progress, Request, Story, prepare, versions
from advisor.training.epochs import EpochReport, Epochs, Length
from advisor.units import format_percent

_SHARE_FOR_IMAGES = 0.5  # of the memory that is left


@dataclass(frozen=True, slots=True)
class Application:
    """What to carry out, besides the recommendation, and where to write."""

    output: Path
    data: str | None = None  # None: the data that the probes were run on
    unlabelled: str | None = None  # None: likewise
    candidate: str | None = None  # an id, or a short name; None: the recommended one
    learning_rate: float | None = None  # None: the one that was best in the probes
    epochs: int = 10
    restart: bool = False  # begin anew where the folder holds a checkpoint
    as_advised: bool = False  # with every lever, in the memory that was promised, as on a board
    arch: str | None = None  # None: as for the recommendation
    trust: bool = False


@dataclass(frozen=True, slots=True)
class Applied:
    """What came of it."""

    recipe: Recipe
    accuracy: Accuracy  # of the weights that are written
    base: Accuracy | None  # the model as it was, on the same images; None where its head was replaced
    predicted: Accuracy | None  # by the probe
    metric: str  # of all three
    epochs_run: int
    files: tuple[Path, ...]
    notes: tuple[str, ...]  # what there is no form of, and why
    warnings: tuple[str, ...]
    unwritten: tuple[str, ...] = ()  # what failed to be written, and why


def apply_advice(
    model: str,
    recommendation: Recommendation,
    application: Application,
    progress: Progress = lambda stage, fraction, running: None,
    on_epoch: EpochReport = lambda epoch, epochs, accuracy: None,
) -> Applied:
    """Train the recommended candidate on all training images and write what it became.

    A checkpoint is kept in the output folder after each epoch. Where there is one of the same recipe,
    training goes on from it and ends as if it had never been interrupted.

    Args:
        model: what the recommendation was made for, as for `load_model`.
        progress: called often, with the stage, the fraction of it that is done, and what is running.
        on_epoch: called after each epoch that is trained now.

    Raises:
        InputError: the recommendation, the model, the data or the folder can't be used, training
            diverged, or the folder holds another recipe's checkpoint.
    """
    evaluation = chosen(recommendation, application.candidate)
    rate = learning_rate_of(evaluation, application.learning_rate)
    check_folder(model, application.output)
    story = advised(model, recommendation, evaluation, application, progress)
    module, passes = story.loaded.module, None
    if application.as_advised:
        promised = promised_bytes(recommendation, evaluation)
        passes = pass_size(module, story.census, evaluation.cost, promised)
    dataset = story.given.dataset
    trainer = Trainer(module, story.census, dataset, recommendation.batch_size, passes)
    path = application.output / CHECKPOINT
    if application.restart:
        path.unlink(missing_ok=True)
    run = _Run(trainer, evaluation.candidate, rate, application.epochs, _seed(recommendation), path)
    run.resume()
    run.train(progress, on_epoch)
    progress("write", 0.0, "")
    applied = _written(run, story, evaluation, recommendation, application)
    progress("write", 1.0, "")
    return applied


class _Run(Epochs):
    """The training of a candidate on a trainer's data."""

    def __init__(
        self, trainer: Trainer, candidate: Candidate, rate: float | None, epochs: int, seed: int, path: Path
    ) -> None:
        """Ready for the first epoch; `path` is the checkpoint's."""
        self.trainer, self.learning_rate = trainer, rate
        length = Length.of(candidate, rate, len(trainer.images_for(candidate)), trainer.batch_size, epochs)
        known = trainer.key()
        key = {
            "candidate": candidate.id,
            "learning rate": rate,
            "epochs": length.epochs,
            "batch size": trainer.batch_size,
            "seed": seed,
            "augment": trainer.dataset.augment,
            "model": known["model"][:12],
            "data": known["data"][:12],
        }
        super().__init__(
            FineTune(trainer, candidate, rate, length.updates, seed), length, key, path, read_data
        )


def verdict(applied: Applied) -> str:
    """One line: the accuracy, against what the probe predicted and what the model had."""
    found, predicted, base = applied.accuracy, applied.predicted, applied.base
    told = answered(format_percent(found.mean), found.samples, applied.metric)
    parts = [f"{told} (95 % interval {_interval(found)})"]
    if predicted is None:
        parts.append("no probe predicted it")
    else:
        place = "within"
        if not predicted.low <= found.mean <= predicted.high:
            place = "above" if found.mean > predicted.high else "below"
        parts.append(
            f"the probe predicted {format_percent(predicted.mean)} ({_interval(predicted)}): "
            f"{place} its interval"
        )
    if base is not None:
        parts.append(
            f"the model before had {format_percent(base.mean)} ({100 * (found.mean - base.mean):+.1f} points)"
        )
    return "; ".join(parts) + "."


def _interval(accuracy: Accuracy) -> str:
    return f"{100 * accuracy.low:.1f} to {100 * accuracy.high:.1f} %"


# What to do


def advised(
    model: str,
    recommendation: Recommendation,
    evaluation: Evaluation,
    application: Application,
    progress: Progress,
) -> Story:
    """The model and the data that the recommendation was made for, made to fit each other.

    Raises:
        InputError: they can't be read, or are others.
    """
    check_at_least_one("--epochs", application.epochs)
    story = prepare(model, _request(recommendation, evaluation.candidate, application), progress)
    _check_model(story, recommendation)
    return story


def promised_bytes(recommendation: Recommendation, evaluation: Evaluation) -> int:
    """What the fine-tune may take: `--ram` if that was given and kept to, else the candidate's own peak."""
    cost = evaluation.cost
    return max(cost.peak_memory_bytes, allowed_memory(recommendation.budget, cost) or 0)


def chosen(recommendation: Recommendation, wanted: str | None) -> Evaluation:
    """The one that was asked for, or else recommended. Raises InputError."""
    if wanted is None:
        if recommendation.recommended is None:
            advice = "to leave the model as it is" if recommendation.outcome == "leave" else "nothing"
            raise InputError(
                f"the report recommends {advice}; run recommend with other limits or data, "
                "or give --candidate"
            )
        return recommendation.evaluation(recommendation.recommended)
    try:
        return recommendation.evaluation(wanted)
    except KeyError:
        candidates = [evaluation.candidate for evaluation in recommendation.evaluations]
        known = [*(candidate.short for candidate in candidates), *(candidate.id for candidate in candidates)]
        hint = did_you_mean(wanted, known, most=3) or f"; it has {', '.join(known[:3])} and others"
        raise InputError(f"--candidate {wanted!r} is not in the report{hint}") from None


def learning_rate_of(evaluation: Evaluation, given: float | None) -> float | None:
    """The one to train at; None where nothing is trained by gradients."""
    rates = learning_rates(evaluation.candidate)
    if not any(rate is not None for rate in rates):
        return None
    if given is not None:
        if not 0 < given < float("inf"):
            raise InputError(f"--learning-rate {given} must be greater than 0")
        return given
    if evaluation.accuracy is not None and evaluation.accuracy.learning_rate is not None:
        return evaluation.accuracy.learning_rate
    return rates[len(rates) // 2]


def _request(recommendation: Recommendation, candidate: Candidate, application: Application) -> Request:
    """What the recommendation was asked with."""
    known = recommendation.data
    data = application.data
    if data is None and known is not None:
        data = _source(known)
        if names_code(data) and not application.trust:
            raise InputError(
                f"the report names code for its data, {data}, which would be run: give it with --data, or "
                "pass --trust if you made the report yourself"
            )
    if data is None:
        raise InputError("the report was made without data; give the images to train on with --data")
    size = cast(tuple[int, int, int], recommendation.input_size)
    request = Request(
        batch_size=recommendation.batch_size,
        input_size=size,
        arch=recommendation.model.arch if application.arch is None else application.arch,
        trust=application.trust,
        data=data,
        train_images=_most_images(size),
        look_over=False,  # the report says it already
        seed=_seed(recommendation),
    )
    if known is not None:
        request = replace(request, **_recorded(known))
    if application.unlabelled is not None:
        request = replace(request, unlabelled=application.unlabelled)
    return request


def _most_images(size: tuple[int, int, int]) -> int:
    """How many images, a byte for each value, fit beside the training."""
    return max(int(_SHARE_FOR_IMAGES * available_bytes()) // max(math.prod(size), 1), 1)


def _source(data: DataSummary) -> str:
    """As typed: where a shift was rehearsed, the summary's source says so behind it."""
    return data.source.removesuffix(f", rehearsing {data.rehearse}")


def _recorded(data: DataSummary) -> dict[str, Any]:
    found: dict[str, Any] = {
        "class_names": data.class_names,
        "augment": data.augment,
        "rehearse": data.rehearse,
        "unlabelled": data.unlabelled,
        "labels": data.labels,
        "groups": data.groups,
        "scenario": data.scenario,
        "data_classes": data.data_classes or None,
    }
    if data.mean and data.std:
        found["normalisation"] = Normalisation(data.mean, data.std)
        found["framing"] = Framing(
            data.crop, data.interpolation, data.crop_mode, data.channel_order, data.orientation
        )
    return found


def _seed(recommendation: Recommendation) -> int:
    seed = recommendation.provenance.get("seed", 0)
    return seed if type(seed) is int else 0


def _check_model(story: Story, recommendation: Recommendation) -> None:
    wanted = recommendation.model.fingerprint
    if wanted and wanted != story.base_fingerprint:
        raise InputError(
            f"{story.loaded.source} has other weights than {recommendation.model.source}, which the report "
            "was made for; give that model, or run recommend on this one"
        )
    if story.census.parameters != recommendation.model.parameters:
        raise InputError(
            f"{story.loaded.source} has {story.census.parameters:,} parameters on this data, the model of "
            f"the report {recommendation.model.parameters:,}; give the same model and data, or run "
            "recommend on these"
        )


# What came of it


def _written(
    run: _Run,
    story: Story,
    evaluation: Evaluation,
    recommendation: Recommendation,
    application: Application,
) -> Applied:
    """Judge the kept weights and write all files."""
    data, situation = story.given.dataset, story.given.situation
    folder, trainable, held_out = application.output, run.training.trainable, data.validation
    metric = metric_of(recommendation.budget.metric, held_out.labels, data.class_names, situation.label_map)
    accuracy = judged_in_groups(metric.of(run.training.judge()), held_out.groups)
    base = None
    if not situation.head_replaced:
        base = judged_in_groups(metric.of(run.trainer.judge_base(len(held_out))), held_out.groups)
    recipe = recipe_of(
        story, recommendation, evaluation, run.learning_rate, run.length.epochs, run.epochs_run
    )
    recipe = replace(
        recipe,
        accuracy=_figures(accuracy),
        base_accuracy=_figures(base),
        predicted_accuracy=_figures(evaluation.accuracy),
    )
    sums = None
    if trainable.examples is not None:
        train = run.trainer.dataset.train
        sums = KeptSums(trainable.examples.sums(), marks_of(train.images, train.labels))
    images, _ = held_out.batch(torch.arange(min(8, len(held_out))), data.normalisation)
    delivered = deliver(folder, story.loaded, trainable, recipe, images, sums)
    return Applied(
        recipe=delivered.recipe,
        accuracy=accuracy,
        base=base,
        predicted=evaluation.accuracy,
        metric=metric.name,
        epochs_run=run.epochs_run,
        files=delivered.files,
        notes=delivered.notes,
        warnings=tuple(_warnings(run, story, evaluation, recommendation)),
        unwritten=delivered.unwritten,
    )


def recipe_of(
    story: Story,
    recommendation: Recommendation,
    evaluation: Evaluation,
    learning_rate: float | None,
    epochs: int,
    epochs_run: int,
) -> Recipe:
    """How the candidate is trained, or was, for so many epochs."""
    data, situation, candidate = story.given.dataset, story.given.situation, evaluation.candidate
    adapted = situation.head_replaced or situation.new_classes > 0
    known = recommendation.data
    return Recipe(
        method=candidate.method,
        setting=dict(candidate.setting),
        levers=candidate.levers,
        input_size=story.census.input_size,
        classes=situation.classes,
        base_fingerprint=story.base_fingerprint,
        head_replaced=situation.head_replaced,
        base_classes=story.base_classes if adapted else None,
        base_model=story.loaded.source,
        learning_rate=learning_rate,
        batch_size=recommendation.batch_size,
        epochs=epochs,
        epochs_run=epochs_run,
        seed=_seed(recommendation),
        data=data.source,
        augment=data.augment,
        rehearse=known.rehearse if known is not None else None,
        class_names=data.class_names,
        class_outputs=situation.label_map,
        mean=data.normalisation.mean,
        std=data.normalisation.std,
        crop=data.framing.crop,
        interpolation=data.framing.interpolation,
        crop_mode=data.framing.mode,
        channel_order=data.framing.order,
        orientation=data.framing.orientation,
        versions=versions(),
    )


def _figures(accuracy: Accuracy | None) -> dict[str, float | int] | None:
    if accuracy is None:
        return None
    return {name: getattr(accuracy, name) for name in ("mean", "low", "high", "samples")}


def _warnings(run: _Run, story: Story, evaluation: Evaluation, recommendation: Recommendation) -> list[str]:
    # What the report has said already was read, and answered where it asked for an option.
    found = [warning for warning in story.warnings if warning not in recommendation.warnings]
    found += [f"assumed: {each}" for each in story.assumed if each not in recommendation.assumed]
    known = recommendation.data
    held_out = len(story.given.dataset.validation)
    cross_validated = known is not None and known.folds > 1  # the probe held out all images in turn
    if known is not None and not cross_validated and held_out != known.validation_samples:
        found.append(
            f"held out are {held_out:,} images, not the {known.validation_samples:,} of "
            "the probe: other data was given, so its prediction is of other images"
        )
    if run.learning_rate is not None and evaluation.accuracy is None:
        found.append(
            f"no probe tells a learning rate for {evaluation.candidate.short}: "
            f"{run.learning_rate:g} was taken"
        )
    if run.diverged:
        found.append(
            f"training diverged in epoch {run.epochs_run + 1}: the weights of epoch {run.epochs_run} were "
            "kept; a lower --learning-rate would go on"
        )
    return found
