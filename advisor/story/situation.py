"""What every command starts from: the request, the model and the data, made to fit each other."""

from __future__ import annotations

import base64
import io
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from advisor.data import Dataset, Normalisation, corrupt, load_data, load_unlabelled, parse_corruption
from advisor.data.loading import LabelledImages
from advisor.data.pixels import Frame
from advisor.data.pools import Found
from advisor.data.sources import find
from advisor.errors import DataError, InputError, ModelError
from advisor.models import LoadedModel, load_model, load_module, take_census
from advisor.models.fingerprint import model_fingerprint
from advisor.models.heads import probabilities, with_head
from advisor.models.pickles import read_data
from advisor.names import check_at_least_one, listed
from advisor.probes import Situation, adapt_head, imprint_where_better, key_of, relabel, situate
from advisor.probes.lookalikes import held_out_together
from advisor.probes.pipeline import misread
from advisor.records import Augment, Census, Finding, Framing
from advisor.store import Store
from advisor.story.assumed import Images, assume
from advisor.training.accelerator import accelerator_for

Progress = Callable[[str, float, str], None]  # stage, fraction of it done, what is running

_OLD = 1000  # images, at most
_PACKAGES = ("peft-advisor", "torch", "torchvision", "fvcore", "scikit-learn", "numpy")


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for, besides the model and the budget."""

    batch_size: int = 8
    input_size: tuple[int, int, int] | None = None  # None: that of the architecture
    target: Path | None = None  # the profile of the device that the advice is for; None: this machine
    arch: str | None = None
    trust: bool = False
    methods: tuple[str, ...] | None = None  # None: all
    ranks: tuple[int, ...] = (2, 4, 8)
    optimizer: str = "adam"
    data: Any = None  # as typed, or what `find_given` takes: arrays, datasets; None: costs alone
    labels: str | None = None  # a table of classes; `first` or `leaf`: which folders are the classes
    look_over: bool = True  # tell where the model reads the images otherwise than in its training
    strict: bool = False  # what is found in the data is an error
    groups: str | None = None  # a table, or a pattern of names, that tells which images belong together
    train_images: int = 2048  # at most; a larger set is sampled
    data_classes: tuple[str, ...] | None = None  # that the data must have, in that order; None: any
    class_names: tuple[str, ...] | None = None  # the model's, in the order of its outputs
    normalisation: Normalisation | None = None  # None: the network's own, or ImageNet's for 3 channels
    framing: Framing | None = None  # of images of other sizes; None: the network's own, or a centre crop
    resize: Literal["center", "squash", "border"] | None = None  # that part of it; None: as it says
    channel_order: Literal["rgb", "bgr"] = "rgb"
    orientation: Literal["exif", "stored"] = "exif"  # images are turned as theirs says, or not
    augment: Augment = "none"  # what is trained on: images as they are, mirrored too, or random crops
    rehearse: str | None = None  # a corruption of the images, see `parse_corruption`
    retain: str | None = None  # old data, to tell what is forgotten
    unlabelled: str | None = None  # more images of the new world, for methods that look at no labels
    scenario: Literal["auto", "shift", "new-classes"] = "auto"
    # None: no probes; auto: as long as a full fine-tune of the data takes, within limits
    probe_seconds: float | Literal["auto"] | None = "auto"
    epochs: int = 10  # of a whole fine-tune: what the race's finalists train for, if there is time
    store: Path | None = None  # where finished probes and costs are kept; None: nowhere
    executor: str = "here"  # what runs the probes, see `executor_for`
    device: str = "cpu"  # what they train on, see `accelerator_for`; costs are not its
    verify: bool = True
    seed: int = 0
    command: str = ""  # as typed, for the report


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be learned."""

    dataset: Dataset  # its labels are the model's outputs
    situation: Situation
    found: Found  # all images of the data, of which the dataset is a sample
    imprinted_from: int | None  # the first of the head's rows that were imprinted; None: none was


@dataclass(slots=True)
class Story:
    """What is known so far."""

    loaded: LoadedModel
    census: Census
    task: Task | None  # None: no data was given
    base_classes: int | None  # the model's outputs, before its head is made to fit
    base_fingerprint: str  # of the model as loaded, before its head is made to fit
    warnings: list[str]
    not_applicable: dict[str, str]
    assumed: tuple[str, ...] = ()  # what was taken for granted, because nothing said so
    base_forward_flops: dict[str, int] = field(default_factory=dict)

    @property
    def given(self) -> Task:
        """The task, for what nothing can be done without. Raises InputError where no data was given."""
        if self.task is None:
            raise InputError("no data was given; give a folder with one folder of images for each class")
        return self.task

    @property
    def images(self) -> int:
        """How many there are to train on."""
        return len(self.task.dataset.train) if self.task is not None else 0

    @property
    def unlabelled_images(self) -> int:
        """How many there are that nobody has labelled."""
        found = self.task.dataset.unlabelled if self.task is not None else None
        return len(found) if found is not None else 0


def prepare(
    model: str | nn.Module, request: Request, progress: Progress, store: Store | None = None
) -> Story:
    """Load the model and the data, make the head fit the data's classes, take the census.

    What the store knows of the data is not found out again: then no image is decoded yet.
    """
    _check(request)
    progress("load", 0.0, "model")
    loaded = _load(model, request)
    found = None
    if request.data is not None:
        progress("load", 0.5, "data")
        found = find(request.data, request.labels)
    images = _as_asked(
        assume(loaded, found, request.input_size, request.normalisation, request.framing), request
    )
    input_size, census = images.input_size, images.census
    warnings = [*loaded.warnings, *_of_weights(loaded)]
    known = census.classes
    base = model_fingerprint(loaded.module)
    task = imprinted_from = None
    if found is not None:
        dataset = _read(found, images, request, store)
        loaded, census = _with_classifier(loaded, census)
        names = loaded.class_names if request.class_names is None else request.class_names
        if names is not None and len(names) != census.classes:
            raise InputError(f"{len(names)} class names were given, the model has {census.classes} outputs")
        assert census.classes is not None  # noqa: S101 - take_census refuses what is not a classifier
        situation = situate(dataset, census.classes, scenario=request.scenario, model_class_names=names)
        if loaded.headless:
            situation = replace(situation, warnings=())  # of the output that stood for its missing head
        if request.unlabelled is not None and situation.scenario == "new-classes":
            raise InputError(
                "--unlabelled serves methods that look at no labels, and those can't learn new classes; "
                "leave it out"
            )
        if request.rehearse is None and request.look_over:
            dataset = _looked_over(loaded.module, found, dataset, situation, request.seed, store)
        unseen = situation.head_replaced and loaded.has_trained_weights  # else it finds all of a class alike
        if unseen and census.head and dataset.is_split_drawn and request.groups is None:
            dataset = held_out_together(
                loaded.module, census.head, dataset, len(found.train.labels), request.seed, store
            )
        wrong = _told(dataset.findings, "error", "warning")
        if request.strict and wrong:
            raise DataError(f"--strict: {wrong[0]}")
        warnings += [*wrong, *dataset.warnings, *situation.warnings]
        dataset = relabel(dataset, situation)
        if request.retain is not None:
            old, unread = _old_images(request, images, census.classes, names, situation, store)
            warnings += unread
            dataset = replace(dataset, retained=old)
        if situation.classes != census.classes or situation.head_replaced:
            imprinted_from = _fit_head(loaded.module, census, situation, dataset, request.seed, store)
            census = take_census(loaded.module, input_size)
        task = Task(dataset, situation, found, imprinted_from)
    warnings += _of_outputs(loaded.module, input_size)
    if census.whole_because:
        warnings.append(f"only the whole network can be trained, no last part of it: {census.whole_because}")
    progress("load", 1.0, "")
    assumed = (*loaded.assumed, *images.assumed, *(found.said if found is not None else ()))
    assumed += _told(task.dataset.findings if task else (), "note")
    return Story(loaded, census, task, known, base, warnings, {}, assumed)


def _read(found: Found, images: Images, request: Request, store: Store | None) -> Dataset:
    """The images that the request names, and those without labels; corrupted, where that is rehearsed."""
    dataset = load_data(
        found,
        images.input_size,
        normalisation=images.normalisation,
        framing=images.framing,
        max_train=request.train_images,
        seed=request.seed,
        store=store,
        grouping=request.groups,
    )
    if request.data_classes is not None and dataset.class_names != request.data_classes:
        raise DataError(_other_classes(dataset, request.data_classes))
    if request.unlabelled is not None:
        more, unread = load_unlabelled(
            request.unlabelled,
            Frame(images.input_size, dataset.framing, dataset.normalisation.mean),
            apart_from=found.source,
            most=request.train_images,
            seed=request.seed,
            store=store,
        )
        dataset = replace(dataset, unlabelled=more, warnings=(*dataset.warnings, *unread))
    if request.rehearse is not None:
        dataset = corrupt(dataset, parse_corruption(request.rehearse), request.seed)
    return replace(dataset, augment=request.augment)


def _of_weights(loaded: LoadedModel) -> list[str]:
    """The warning that they are random, if they are."""
    if loaded.has_trained_weights:
        return []
    if not loaded.has_values:
        return [f"{loaded.source} is on the meta device: its costs are exact, but nothing of it can be run"]
    random = f"{loaded.source} has random weights: its costs are exact, "
    return [random + "but any accuracy is that of an untrained network"]


def _as_asked(images: Images, request: Request) -> Images:
    """The same, but framed as the user says, where he does."""
    framing = images.framing or Framing()
    if request.framing is None:
        framing = replace(
            framing,
            mode=request.resize or framing.mode,
            order=request.channel_order,
            orientation=request.orientation,
        )
    return replace(images, framing=framing)


def _looked_over(
    model: nn.Module, found: Found, dataset: Dataset, situation: Situation, seed: int, store: Store | None
) -> Dataset:
    """The data with what the model as it is tells of how its images are read."""
    _, channels, height, width = dataset.train.undecoded.shape
    frame = Frame((channels, height, width), dataset.framing, dataset.normalisation.mean)
    wrong = misread(model, found, frame, dataset.normalisation, situation, seed, store)
    return dataset if wrong is None else replace(dataset, findings=(wrong, *dataset.findings))


def _told(findings: Sequence[Finding], *weights: str) -> tuple[str, ...]:
    """Those of these weights, in words."""
    return tuple(finding.text for finding in findings if finding.weight in weights)


def _with_classifier(loaded: LoadedModel, census: Census) -> tuple[LoadedModel, Census]:
    """A network that gives features gets a classifier of one output, to be replaced by the data's classes."""
    if not loaded.headless or census.head is not None:
        return loaded, census
    module = with_head(loaded.module, census.classes or 0, census.input_size)
    return replace(loaded, module=module, class_names=None), take_census(module, census.input_size)


def _of_outputs(module: nn.Module, size: tuple[int, ...]) -> list[str]:
    """A warning of outputs that are no scores."""
    ends_in = probabilities(module, size)
    text = (
        f"the model ends in a {ends_in}: it gives probabilities where training takes scores, so it learns "
        f"slowly; leave the {ends_in} out of it"
    )
    return [text] if ends_in else []


def _fit_head(
    model: nn.Module, census: Census, situation: Situation, dataset: Dataset, seed: int, store: Store | None
) -> int | None:
    """Give the head a row for each class, in place; the first of those that were imprinted, if any were."""
    if census.head is None:
        raise ModelError("the model has no classifier layer that could learn the new classes")
    adapt_head(model, census.head, situation, seed=seed)
    kept = 0 if situation.head_replaced else situation.classes - situation.new_classes
    if store is None:
        return kept if imprint_where_better(model, census.head, kept, dataset) else None
    rows = {name: tensor[kept:] for name, tensor in model.get_submodule(census.head).state_dict().items()}
    key = key_of(model, dataset.normalisation, dataset.train) | {"head": census.head, "kept": kept}
    known = store.get("imprint", key)
    if known is None:
        better = imprint_where_better(model, census.head, kept, dataset)
        known = {"rows": _text(rows) if better else None}
        store.put("imprint", key, known)
    elif known["rows"] is not None:
        for name, tensor in _tensors(known["rows"]).items():
            rows[name].copy_(tensor)
    return kept if known["rows"] is not None else None


def _text(tensors: dict[str, torch.Tensor]) -> str:
    buffer = io.BytesIO()
    torch.save({name: tensor.clone() for name, tensor in tensors.items()}, buffer)  # else all it is a part of
    return base64.b64encode(buffer.getvalue()).decode()


def _tensors(text: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = read_data(io.BytesIO(base64.b64decode(text)))
    return found


def _check(request: Request) -> None:
    """What can be told before anything is loaded."""
    accelerator_for(request.device)
    if request.rehearse is not None:
        parse_corruption(request.rehearse)
    check_at_least_one("--batch-size", request.batch_size)
    check_at_least_one("--epochs", request.epochs)
    if request.methods is not None and not request.methods:
        raise InputError("methods names no method; leave it out for all of them")
    if not request.ranks or min(request.ranks) < 1:
        raise InputError("--ranks takes positive whole numbers such as 2,4,8")
    if request.data is None:
        if request.rehearse is not None:
            raise InputError("--rehearse corrupts the images of --data; give it, too")
        if request.retain is not None:
            raise InputError("--retain tells what is forgotten for the sake of --data; give it, too")
        if request.unlabelled is not None:
            raise InputError("what is learned from --unlabelled is judged on labelled images: give --data")


def _old_images(
    request: Request,
    images: Images,
    classes: int,
    class_names: tuple[str, ...] | None,
    situation: Situation,
    store: Store | None,
) -> tuple[LabelledImages, tuple[str, ...]]:
    """Images of the old data, with the model's outputs for labels, and warnings. They are not corrupted."""
    assert request.retain is not None  # noqa: S101 - the caller has seen it
    if situation.head_replaced:
        raise InputError("--retain: the model's head is replaced, so nothing of it can be retained")
    old = load_data(
        request.retain,
        images.input_size,
        normalisation=images.normalisation,
        framing=images.framing,
        max_train=_OLD,
        seed=request.seed,
        store=store,
    )
    known = situate(old, classes, model_class_names=class_names)
    if known.new_classes or known.head_replaced:
        raise DataError(
            f"--retain {request.retain}: holds classes that the model has never seen; "
            "give data of the classes it was trained on"
        )
    old = relabel(old, known)
    if not old.is_split_drawn:
        return (
            old.validation,
            old.warnings,
        )  # what the model was trained on would seem better remembered than it is
    return LabelledImages.joined(old.train, old.validation), old.warnings


def _load(model: str | nn.Module, request: Request) -> LoadedModel:
    if isinstance(model, str):
        loaded = load_model(model, arch=request.arch, trust=request.trust, seed=request.seed)
    else:
        loaded = load_module(model)
    if request.data is not None and not loaded.has_values:
        raise InputError(
            f"{loaded.source} is on the meta device, so it has no values to be trained; give no data, "
            "for its costs alone, or a model with its weights"
        )
    return loaded


def _other_classes(dataset: Dataset, wanted: tuple[str, ...]) -> str:
    new = [name for name in dataset.class_names if name not in wanted]
    lacking = [name for name in wanted if name not in dataset.class_names]
    found = [f"{listed(new)} more"] if new else []
    found += [f"not {listed(lacking)}"] if lacking else []
    which = " and ".join(found) or "the same ones in another order"
    return (
        f"data {dataset.source}: its classes are not those of the report's data: {which}; give data of the "
        "same classes, or run recommend on this"
    )


def versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree
            continue
    return found
