"""What is new in the data: the same classes under other conditions, or classes never seen.

A model's outputs are numbered; the data's classes have names, or only label numbers. Which class is
which output is told by the model's class names where they are known, else assumed, with a warning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, NoReturn

import torch
from torch import nn

from advisor.data.loading import Dataset, LabelledImages
from advisor.data.pixels import Normalisation
from advisor.errors import DataError, ModelError
from advisor.models.blocks import evaluating
from advisor.models.layers import logits
from advisor.training.loop import images_at_once
from advisor.training.views import Images

_NOISE = 0.1  # of the old rows' mean norm: a new row's own part
_LOOKED_AT = 512  # images, to imprint new rows


@dataclass(frozen=True, slots=True)
class Situation:
    """How the data's classes relate to the model's outputs."""

    scenario: Literal["shift", "new-classes"]
    classes: int  # outputs of the model after adaptation
    new_classes: int  # how many of them the model has never seen
    head_replaced: bool  # none of the old rows is kept
    label_map: tuple[int, ...]  # the data's class index -> the model's output after adaptation
    warnings: tuple[str, ...] = ()


def situate(
    dataset: Dataset,
    model_classes: int,
    *,
    scenario: Literal["auto", "shift", "new-classes"] = "auto",
    model_class_names: tuple[str, ...] | None = None,
) -> Situation:
    """Which of the data's classes the model knows, and what its head must become.

    Args:
        dataset: as loaded.
        model_classes: the model's outputs.
        scenario: what the user says it is; `auto` tells from the classes.
        model_class_names: in the order of the outputs; matched without regard to case. Names on one
            side and mere numbers on the other say nothing about each other: then they are ignored.

    Raises:
        DataError: the scenario asked for contradicts the data, or the classes can't be matched.
    """
    if model_class_names is not None and len(model_class_names) != model_classes:
        raise DataError(
            f"{len(model_class_names)} class names were given, the model has {model_classes} "
            "outputs; name every output, in order"
        )
    if model_class_names is not None and _comparable(dataset, model_class_names):
        situation = _by_name(dataset.class_names, model_class_names)
    elif model_classes == 1:
        situation = _replaced(
            dataset.class_names,
            "the model has a single output, which can't tell classes apart: its head is replaced",
        )
    elif not dataset.named:
        situation = _by_number([int(name) for name in dataset.class_names], model_classes)
    else:
        situation = _by_order(dataset.class_names, model_classes, scenario)
    if scenario not in ("auto", situation.scenario):
        _refuse(scenario, dataset.class_names, model_classes, model_class_names, situation)
    return situation


def relabel(dataset: Dataset, situation: Situation) -> Dataset:
    """The data with the model's output numbers for labels.

    `class_names` stays the list of the data's own classes; it is no longer indexed by the labels.
    """
    outputs = torch.tensor(situation.label_map, dtype=torch.int64)

    def mapped(images: LabelledImages) -> LabelledImages:
        return images.labelled(outputs[images.labels])

    return replace(dataset, train=mapped(dataset.train), validation=mapped(dataset.validation))


def adapt_head(model: nn.Module, head: str, situation: Situation, *, seed: int = 0) -> nn.Module:
    """Give the classifier at path `head` a row for each of the situation's classes, in place.

    Old rows are kept bit for bit. A new row is the mean of the old ones plus a small random part,
    its bias the mean of the old biases. Its logit is then near the mean of the old logits, which
    never exceeds their maximum: until it is trained, a new class takes hardly a prediction from the
    old ones. The random part tells new classes apart. (The least of the old biases would be safer
    still, but leaves a classifier that ends in a ReLU, such as SqueezeNet's, without a gradient.) A
    replaced head starts as a fresh layer does.

    Returns:
        The model. Its `num_classes`, and that of the modules on the way to the head, follow.

    Raises:
        ModelError: the head is not a plain Linear or 1x1 convolution, or shares its weights.
    """
    layer = _head_layer(model, head)
    old = layer.weight.shape[0]
    kept = 0 if situation.head_replaced else situation.classes - situation.new_classes
    if kept not in (0, old):
        raise ModelError(
            f"the head {head!r} has {old} outputs, the data was matched to {kept}; "
            "give the path of the model's last classifier"
        )
    if kept == situation.classes:
        return model
    generator = torch.Generator().manual_seed(seed)
    weight, bias = layer.weight, layer.bias
    with torch.no_grad():
        new = _uniform((situation.classes - kept, *weight.shape[1:]), weight, generator)
        if kept:
            own = new / new.flatten(1).norm(dim=1).view(-1, *[1] * (new.ndim - 1))
            norm = weight.flatten(1).float().norm(dim=1).mean()
            new = weight.float().mean(0) + _NOISE * norm * own
        layer.weight = _joined(weight, kept, new)
        if bias is not None:
            new = _uniform((situation.classes - kept,), weight, generator)
            layer.bias = _joined(bias, kept, new.fill_(bias.float().mean()) if kept else new)
    _tell_outputs(model, head, old, situation.classes)
    return model


def imprint(model: nn.Module, head: str, kept: int, features: torch.Tensor, labels: torch.Tensor) -> None:
    """Imprint the head's rows from `kept` on, in place (Qi et al., arXiv 1712.07136).

    A class's row is how far the mean of its features is from the mean of all, as long as the old rows'
    own distances from their mean; or, without old rows, by the features' variance in a class, as linear
    discriminant analysis has it.

    Args:
        features: (N, F) of images of all classes, as they reach the head; some of them are looked at.
        labels: (N,), outputs of the model.
    """
    layer = _head_layer(model, head)
    count = _looked_at(len(features), layer)
    _imprint(layer, kept, features[:count], labels[:count])


def imprint_where_better(model: nn.Module, head: str, kept: int, data: Dataset) -> bool:
    """Imprint where that gets more of the images right, in place; returns whether it does."""
    layer = _head_layer(model, head)
    features, answers = _seen_by(model, layer, data)
    labels = data.train.labels[: len(features)]

    def told() -> torch.Tensor:
        """What follows from the features, if nothing but an average comes between them and the answer."""
        return layer(features.to(layer.weight).view(len(features), -1, *[1] * (layer.weight.ndim - 2)))

    with torch.no_grad():
        is_last = torch.equal(told().flatten(1).argmax(1), answers)
        state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        _imprint(layer, kept, features, labels)
        imprinted = told().flatten(1).argmax(1) if is_last else _seen_by(model, layer, data)[1]
    better = bool((imprinted == labels).sum() > (answers == labels).sum())
    if not better:
        layer.load_state_dict(state)
    return better


def features_before(
    model: nn.Module,
    head: str,
    images: Images,
    normalisation: Normalisation,
    pass_size: int,
    changed: Callable[[torch.Tensor], torch.Tensor] = lambda batch: batch,
) -> torch.Tensor:
    """The features (N, F) that reach the head.

    Args:
        pass_size: how many images run at once.
        changed: what becomes of a batch (B, C, H, W) before the model sees it.
    """
    features: list[torch.Tensor] = []
    with _heard(_head_layer(model, head), features), torch.no_grad(), evaluating(model):
        for part in torch.arange(len(images)).split(pass_size):
            model(changed(images.batch(part, normalisation)[0]))
    return torch.cat(features)


def _seen_by(
    model: nn.Module, layer: nn.Linear | nn.Conv2d, data: Dataset
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of some training images the features (N, F) that reach the head, and the answers (N,)."""
    count = _looked_at(len(data.train), layer)
    parts = torch.arange(count).split(images_at_once(data.train.undecoded.shape[1:]))
    features: list[torch.Tensor] = []
    with _heard(layer, features), torch.no_grad(), evaluating(model):
        answers = [logits(model(data.train.batch(part, data.normalisation)[0])).argmax(1) for part in parts]
    return torch.cat(features), torch.cat(answers)


def _looked_at(images: int, layer: nn.Linear | nn.Conv2d) -> int:
    """How many of the images are, the first ones, to imprint new rows."""
    classes = layer.weight.shape[0]
    return min(images, max(_LOOKED_AT // classes, 1) * classes)


@contextmanager
def _heard(layer: nn.Linear | nn.Conv2d, features: list[torch.Tensor]) -> Iterator[None]:
    """While inside, what reaches the layer is added to the features: (B, F) for each batch."""

    def remember(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        x = args[0].float()
        # (N, F), or of each place: (N, F, H, W) before a convolution, (N, ..., F) before a Linear.
        x = x.flatten(2) if isinstance(layer, nn.Conv2d) else x.reshape(len(x), -1, x.shape[-1]).mT
        features.append(x.mean(2))

    handle = layer.register_forward_pre_hook(remember)
    try:
        yield
    finally:
        handle.remove()


def _imprint(layer: nn.Linear | nn.Conv2d, kept: int, features: torch.Tensor, labels: torch.Tensor) -> None:
    """Set the rows from `kept` on, from features (N, F) of images of all classes."""
    present = labels.unique().tolist()
    means = {label: features[labels == label].mean(0) for label in present}
    centre = torch.stack(list(means.values())).mean(0)
    new = [label for label in present if label >= kept]
    if not new:
        return
    directions = torch.stack([means[label] - centre for label in new])
    with torch.no_grad():
        rows = layer.weight.flatten(1)
        if kept:
            middle = rows[:kept].float().mean(0)
            length = (rows[:kept].float() - middle).norm(dim=1).mean()
            scale = length / directions.norm(dim=1).mean().clamp(min=1e-12)
        else:
            middle = torch.zeros_like(centre)
            inside = torch.stack([means[int(label)] for label in labels])
            scale = 1 / (features - inside).var(unbiased=False).clamp(min=1e-12)
        rows[new] = (middle + scale * directions).to(rows.dtype)
        if layer.bias is not None:
            level = layer.bias[:kept].float().mean() if kept else 0.0
            # At the centre, no class is more likely than the old ones are on average.
            layer.bias[new] = (level - scale * directions @ centre).to(layer.bias.dtype)


# Matching classes


def _by_name(names: Sequence[str], model_names: Sequence[str]) -> Situation:
    outputs: dict[str, list[int]] = {}
    for index, name in enumerate(model_names):
        outputs.setdefault(_key(name), []).append(index)
    found = [outputs.get(_key(name), []) for name in names]
    if not any(found):
        return _replaced(
            names,
            f"the model knows none of the data's classes ({_listed(names)}; it knows "
            f"{_listed(model_names)}): its head is replaced; if they are the same classes, "
            "give the data's names for them with --classes",
        )
    _refuse_twins(names)
    # ImageNet has two cranes and two maillots.
    warnings = [
        f"class {name!r} names {len(matches)} outputs of the model: output {matches[0]} is taken"
        for name, matches in zip(names, found, strict=True)
        if len(matches) > 1
    ]
    fresh = iter(range(len(model_names), len(model_names) + len(names)))
    label_map = tuple(matches[0] if matches else next(fresh) for matches in found)
    return _matched(label_map, len(model_names), *warnings)


def _by_number(numbers: Sequence[int], model_classes: int) -> Situation:
    """Labels without names are output numbers, unless they plainly count from 1."""
    count, first = len(numbers), numbers[0]
    consecutive = numbers[-1] - first == count - 1
    if consecutive and first <= 1 and count >= model_classes:
        from_one = f"the labels count from 1 to {count}: label 1 is taken for the model's first class"
        return _matched(tuple(range(count)), model_classes, *([from_one] if first else []))
    new = [number for number in numbers if number >= model_classes]
    if new != list(range(model_classes, model_classes + len(new))):
        raise DataError(
            f"the labels {_listed(numbers)} don't go on from the model's outputs 0 to "
            f"{model_classes - 1}: number the classes that it knows as its outputs and new ones "
            f"from {model_classes} without gaps, or name them (class_names in an .npz)"
        )
    warnings = []
    if count - len(new) < model_classes:
        warnings.append(
            f"the labels {_listed(numbers)} are taken for the numbers, from 0, of the model's "
            f"{model_classes} outputs; if they are other classes, name them "
            "(class_names in an .npz)"
        )
    return _matched(tuple(numbers), model_classes, *warnings)


def _by_order(names: Sequence[str], model_classes: int, scenario: str) -> Situation:
    """Names on the data's side alone."""
    count = len(names)
    numbers = [int(name) for name in names] if _all_numbers(names) else None
    from_zero = numbers == list(range(count))
    if count < model_classes:
        if scenario == "shift" and numbers is not None and max(numbers) < model_classes:
            return _by_number(numbers, model_classes)
        return _replaced(
            names,
            f"the data's {count} classes ({_listed(names)}) are taken for new ones, as which of "
            f"the model's {model_classes} they are can't be told: its head is replaced; "
            "name the model's classes with --classes to keep it",
        )
    if count == model_classes and scenario == "new-classes" and not from_zero:
        return _replaced(names)
    warnings = []
    if not from_zero:
        which = "classes" if count == model_classes else f"first {model_classes} classes"
        warnings.append(
            f"the data's {which} ({_listed(names[:model_classes])}) are taken for the model's "
            "outputs in that order; if the model's order is another, give it with --classes"
        )
    elif count > 10:
        warnings.append(
            f"the classes {_listed(names)} are taken in the order of their numbers; a model "
            "trained with torchvision's ImageFolder has them in alphabetical order: "
            "--classes sets it"
        )
    return _matched(tuple(range(count)), model_classes, *warnings)


def _matched(label_map: tuple[int, ...], model_classes: int, *warnings: str) -> Situation:
    """Old classes have outputs below `model_classes`, new ones the outputs after them."""
    new = sum(output >= model_classes for output in label_map)
    return Situation(
        scenario="new-classes" if new else "shift",
        classes=model_classes + new,
        new_classes=new,
        head_replaced=False,
        label_map=label_map,
        warnings=warnings,
    )


def _replaced(names: Sequence[str], *warnings: str) -> Situation:
    count = len(names)
    return Situation("new-classes", count, count, True, tuple(range(count)), warnings)


def _refuse(
    scenario: str,
    names: Sequence[str],
    model_classes: int,
    model_names: Sequence[str] | None,
    situation: Situation,
) -> NoReturn:
    if scenario == "new-classes":
        raise DataError(
            f"--scenario new-classes, but the model knows all {len(names)} classes of the data; "
            "use --scenario shift, or name the model's classes with --classes if it doesn't"
        )
    if len(names) > model_classes:
        why = f"the data has {len(names)} classes and the model {model_classes}"
    elif situation.head_replaced and model_names is None:
        why = f"which of the model's {model_classes} the data's {len(names)} are can't be told"
    else:
        new = [n for n, out in zip(names, situation.label_map, strict=True) if out >= model_classes]
        why = f"the model doesn't know {_listed(names if situation.head_replaced else new)}"
    raise DataError(
        f"--scenario shift, but {why}; use --scenario new-classes, "
        "or name the model's classes as the data does with --classes"
    )


def _refuse_twins(names: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        twin = seen.setdefault(_key(name), name)
        if twin != name:
            raise DataError(
                f"the classes {twin!r} and {name!r} differ only in case or blanks; "
                "put them together or rename one"
            )


def _comparable(dataset: Dataset, model_names: Sequence[str]) -> bool:
    names = dataset.class_names
    shared = {_key(name) for name in names} & {_key(name) for name in model_names}
    return bool(shared) or (dataset.named and _all_numbers(names) == _all_numbers(model_names))


def _all_numbers(names: Sequence[str]) -> bool:
    return all(name.isascii() and name.isdigit() and len(name) <= 18 for name in names)


def _key(name: str) -> str:
    return name.strip().casefold()


def _listed(names: Sequence[object], most: int = 4) -> str:
    shown = ", ".join(str(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown}, ... {names[-1]}"


# The classifier layer


def _head_layer(model: nn.Module, head: str) -> nn.Linear | nn.Conv2d:
    try:
        layer = model.get_submodule(head)
    except AttributeError as error:
        raise ModelError(f"the model has no layer {head!r}; give the path of its classifier") from error
    plain = isinstance(layer, nn.Linear) or (
        isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1
    )
    if not plain:
        raise ModelError(
            f"the head {head!r} is {type(layer).__name__}; "
            "classes can only be added to a Linear layer or an ungrouped 1x1 Conv2d"
        )
    assert isinstance(layer, nn.Linear | nn.Conv2d)  # noqa: S101 - tells mypy what `plain` says
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        raise ModelError(
            f"the head {head!r} computes its weight (a parametrization such as weight norm); "
            "fold it into a plain weight first"
        )
    for other, parameter in _parameters_outside(model, layer):
        if any(_overlap(parameter, own) for own in layer.parameters()):
            raise ModelError(
                f"the head {head!r} shares its weights with {other!r}, so no class can be added; "
                "give the head a copy of its own: nn.Parameter(weight.detach().clone())"
            )
    return layer


def _parameters_outside(model: nn.Module, layer: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    own = set(layer.modules())
    for path, module in model.named_modules():
        if module not in own:
            yield from module.named_parameters(path, recurse=False)


def _overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold any byte in common; tensors side by side in one buffer don't."""
    starts = [tensor.data_ptr() for tensor in (one, other)]
    ends = [
        start + tensor.numel() * tensor.element_size()
        for start, tensor in zip(starts, (one, other), strict=True)
    ]
    return one.device == other.device and max(starts) < min(ends)


def _uniform(shape: tuple[int, ...], weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random float32 values as torch gives the fresh weight and bias of such a layer."""
    bound = 1 / math.sqrt(weight[0].numel())
    return torch.empty(shape).uniform_(-bound, bound, generator=generator).to(weight.device)


def _joined(old: torch.Tensor, kept: int, new: torch.Tensor) -> nn.Parameter:
    rows = torch.cat([old[:kept], new.to(old.dtype)])
    return nn.Parameter(rows, requires_grad=old.requires_grad)


def _tell_outputs(model: nn.Module, head: str, old: int, new: int) -> None:
    layer = model.get_submodule(head)
    setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", new)
    # SqueezeNet, Inception and timm's models and classifiers keep the number of classes themselves.
    path = head.split(".")
    for depth in range(len(path)):
        module = model.get_submodule(".".join(path[:depth]))
        if getattr(module, "num_classes", None) == old:
            setattr(module, "num_classes", new)  # noqa: B010 - nothing that nn.Module declares
