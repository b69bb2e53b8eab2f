"""From weights alone to the network: which one it is, under which prefix, and what of it was changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from advisor.errors import ModelError
from advisor.models import foreign
from advisor.models.architectures import (
    Architecture,
    StateDict,
    describe_difference,
    named_architecture,
    shapes_of,
    stock_input_size,
    unfilled,
)
from advisor.models.folding import folded
from advisor.models.heads import classifier_of, features_of, head_of_shapes, replaced_part
from advisor.models.index import Proposal, Reading, Shapes, propose, readings, tells
from advisor.models.printable import shown
from advisor.models.widths import relative
from advisor.names import NAMED_FORMS

_TRIES = 4  # of which no more are looked at once so many were built
_TIES = 8  # equally likely networks that are built, at most
_CONTENDING = 0.15  # below the best score, for another prefix to be looked at
_CLOSE = 1.2  # of a score's 2, for a network to be named as the closest one
_POOLS = ("maxpool", "features.pool0")  # what a stem for small images lacks
_ALIKE = 1e-4  # of outputs, between networks that compute the same


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A network with the weights of a file."""

    module: nn.Module
    architecture: Architecture
    keys: Mapping[str, str]  # what the file calls each of the module's entries
    assumed: tuple[str, ...] = ()  # in words, what was found or taken for granted
    headless: str = ""  # the path where it lacks its classifier
    small: bool = False  # its stem is one for small images
    mean: tuple[float, ...] = ()  # of images in [0, 1], where the network held a layer for that
    std: tuple[float, ...] = ()


class UnfitError(ModelError):
    """The weights are not this network's; the text says what differs."""


def rebuild(
    state: StateDict, given: Architecture | None = None, said: Sequence[str] = (), file: str = "FILE"
) -> Rebuilt:
    """The network that the entries belong to, with its weights.

    Args:
        state: the file's entries, in float32.
        given: the network, where the user says it; None: it is found by names and shapes.
        said: names of networks that the file mentions.
        file: as typed, for the command in an error.

    Raises:
        ModelError: no network fits, or several that compute differently.
    """
    state, notes = folded(foreign.unwrapped_names(state))
    if given is None:
        foreign.refuse_other_kinds(state)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    with torch.random.fork_rng(devices=[]):  # networks draw what is loaded right after
        if given is not None:
            found = _fit(given, _reading_of(given, shapes), state)
        else:
            found = _identify(state, shapes, said, file)
    return replace(found, assumed=(*notes, *found.assumed))


def _identify(state: StateDict, shapes: Shapes, said: Sequence[str], file: str) -> Rebuilt:
    proposals = propose(shapes)
    first: UnfitError | None = None
    tries = 0
    for group in _groups(proposals, said):
        if tries >= _TRIES:
            break
        fits: list[tuple[str, Rebuilt]] = []
        for proposal in group[:_TIES]:
            if fits and fits[0][0].startswith("torchvision:"):
                break
            tries += 1
            try:
                architecture = named_architecture(proposal.name)
                assert architecture is not None  # noqa: S101 - the index holds such names alone
                fits.append((proposal.name, _fit(architecture, proposal.reading, state)))
            except UnfitError as error:
                first = first or error
            except ModelError as error:  # timm is not there
                first = first or UnfitError(f"they look like {proposal.name}'s, but {error}")
            if fits and (proposal.name.partition(":")[2] in said or proposal.name in said):
                break
        if fits:
            found = _one_of(fits)
            others = sorted({p.reading.prefix for p in proposals if _is_copy(p, group[0])})
            others = [o for o in others if not any(o != each and o.startswith(each) for each in others)]
            if others:
                words = f"the file holds {len(others) + 1} copies of the network: the one under "
                words += f"{shown(group[0].reading.prefix) or 'no prefix'} is taken, not "
                words += ", ".join(shown(each) or "that under none" for each in others[:3])
                found = replace(found, assumed=(*found.assumed, words))
            return found
    raise _unknown(proposals, state, first, file)


def _groups(proposals: Sequence[Proposal], said: Sequence[str]) -> Iterator[list[Proposal]]:
    """Equally likely networks under one prefix, the group to be tried first first."""
    if not proposals:
        return
    best = proposals[0].score
    groups: dict[tuple[str, float], list[Proposal]] = {}
    for proposal in proposals:
        groups.setdefault((proposal.reading.prefix, round(proposal.score, 5)), []).append(proposal)
    ranked = sorted(
        groups.values(), key=lambda g: (g[0].score < best - _CONTENDING, _rank(g[0], proposals), -g[0].score)
    )
    for group in ranked:
        yield sorted(group, key=lambda p: p.name not in said and p.name.partition(":")[2] not in said)


def _rank(proposal: Proposal, proposals: Sequence[Proposal]) -> int:
    rank = foreign.rank(proposal.reading.prefix)
    # The teacher of the same kind is an average of the student, and what is evaluated.
    if "teacher" in proposal.reading.prefix.lower() and any(_is_copy(each, proposal) for each in proposals):
        return 0
    return rank


def _is_copy(one: Proposal, other: Proposal) -> bool:
    return (
        one.name == other.name
        and one.reading.prefix != other.reading.prefix
        and abs(one.shapes - other.shapes) < 0.1
        and not {*one.reading.names} & {*other.reading.names}
    )


def _one_of(fits: list[tuple[str, Rebuilt]]) -> Rebuilt:
    """The first, if all compute the same. Raises ModelError where the weights can't tell."""
    name, first = fits[0]
    if len(fits) > 1:
        image = torch.randn(1, *(stock_input_size(first.module) or (3, 224, 224)))
        expected = _outputs(first.module, image)
        differing = [
            other
            for other, fit in fits[1:]
            if expected is None
            or (got := _outputs(fit.module, image)) is None
            or got.shape != expected.shape
            or (got - expected).abs().max() > _ALIKE * expected.abs().max()
        ]
        if differing:
            names = ", ".join([name, *differing][:8])
            raise ModelError(
                "its weights fit several networks, which may compute differently; pick one with --arch: "
                f"{names}"
            )
    return first


def _outputs(module: nn.Module, image: torch.Tensor) -> torch.Tensor | None:
    try:
        with torch.no_grad():
            outputs: torch.Tensor = module.eval()(image)
            return outputs
    except Exception:  # noqa: BLE001 - of another size than it takes
        return None


def _reading_of(architecture: Architecture, shapes: Shapes) -> Reading:
    """Under which prefix most of the given network's names stand."""
    own = shapes_of(architecture.build(None, shapes).state_dict())
    return max(
        readings(shapes, fewest=1),
        key=lambda reading: (
            sum(own.get(name) == shapes[key] for key, name in reading.names.items()),
            sum(name in own for name in reading.names.values()),
            not reading.prefix,
            -len(reading.names),
        ),
        default=Reading("", {name: name for name in shapes}),
    )


def _fit(architecture: Architecture, reading: Reading, state: StateDict) -> Rebuilt:
    """The architecture, changed to what the shapes say, with the weights. Raises UnfitError."""
    words = [f"the network stands under {shown(reading.prefix)} in the file"] if reading.prefix else []
    with unfilled(architecture.is_stock):
        module = architecture.build(None, {name: tuple(state[k].shape) for k, name in reading.names.items()})
        own = module.state_dict().keys()
        keys = {
            name: k for k, name in reading.names.items() if name in own or not foreign.is_of_training(name)
        }
        shapes = {name: tuple(state[key].shape) for name, key in keys.items()}
        rest = [key for key in state if key not in keys.values()]
        strange = [key for key in rest if not foreign.is_of_training(key)]
        module = _with_widths(module, architecture, shapes, words)
        small = _change_stem(module, shapes, words)
        headless, of_head = _change_head(
            module, shapes, {key: tuple(state[key].shape) for key in strange}, words
        )
    keys |= of_head
    strange = [key for key in strange if key not in of_head.values()]
    mean, std, of_images = _normalisation(strange, state)
    strange = [key for key in strange if key not in of_images]
    wanted = shapes_of(module.state_dict())
    found = {name: tuple(state[key].shape) for name, key in keys.items()}
    if difference := describe_difference(found, wanted):
        raise UnfitError(f"its weights don't fit {architecture.name}: {difference}")
    if unknown := [key for key in strange if not _is_another_copy(key, reading, state)]:
        raise UnfitError(
            f"beside {architecture.name} it holds {_listed(unknown)}, whose part in the network can't be told"
        )
    left = [key for key in rest if key not in keys.values() and key not in of_images and tells(key)]
    left = [key for key in left if not _is_another_copy(key, reading, state)]
    if left:
        words.append(f"left out, as it is none of the network's: {_listed(left)}")
    _load(module, {name: state[keys[name]] for name in wanted if name in keys})
    used = {name: keys[name] for name in wanted if name in keys}
    return Rebuilt(module, architecture, used, tuple(words), headless, small, mean, std)


def _is_another_copy(key: str, reading: Reading, state: StateDict) -> bool:
    """Whether it is an entry of a teacher, an average or the like of the network, as its prefix says."""
    parts = key.split(".")
    for depth in range(len(parts)):
        twin = reading.prefix + ".".join(parts[depth:])
        other = ".".join(parts[:depth])
        if twin != key and twin in reading.names and state[twin].ndim == state[key].ndim:
            return foreign.rank(other) != foreign.rank(reading.prefix)
    return False


def _with_widths(
    module: nn.Module, architecture: Architecture, shapes: Shapes, words: list[str]
) -> nn.Module:
    """Its relative of other widths or depths, where the shapes show one; else the module itself."""
    own = shapes_of(module.state_dict())
    classifier = classifier_of(module)
    top, stem = classifier.partition(".")[0], _stem(module)
    body = [name for name in own if not name.startswith((f"{top}.", f"{stem}."))]
    if not architecture.is_stock or all(shapes.get(name, own[name]) == own[name] for name in body):
        return module
    build = relative(architecture.name, shapes)
    last = [shape for name, shape in shapes.items() if name.startswith(f"{top}.") and len(shape) > 1]
    if build is None:
        return module
    words.append(f"its widths and depths are not those of {architecture.name}, but as the shapes say")
    return build(last[-1][0] if last else 2)


def _stem(module: nn.Module) -> str:
    return next((name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d)), "")


def _change_stem(module: nn.Module, shapes: Shapes, words: list[str]) -> bool:
    """Give the first convolution the shape that it has in the file; whether that is one for small images."""
    name = _stem(module)
    shape = shapes.get(f"{name}.weight", ())
    stem: Any = module.get_submodule(name) if name else None
    if (
        len(shape) != 4
        or stem.groups != 1
        or shape == tuple(stem.weight.shape)
        or shape[0] != stem.out_channels
    ):
        return False
    kernel, bias = shape[2:], f"{name}.bias" in shapes
    if kernel == stem.kernel_size:
        made = nn.Conv2d(shape[1], shape[0], stem.kernel_size, stem.stride, stem.padding, bias=bias)
        replace_module(module, name, made)
        return False
    height, width = kernel
    made = nn.Conv2d(shape[1], shape[0], (height, width), 1, (height // 2, width // 2), bias=bias)
    replace_module(module, name, made)
    pools = [pool for pool in _POOLS if pool in dict(module.named_modules())]
    for pool in pools:
        replace_module(module, pool, nn.Identity())
    words.append(
        f"the stem {name} is {height}x{width}, so it has stride 1{', no pooling follows' * bool(pools)} "
        "(shapes don't tell; give another network with --arch FILE.py:FUNCTION)"
    )
    return True


def _change_head(
    module: nn.Module, shapes: Shapes, outside: Shapes, words: list[str]
) -> tuple[str, dict[str, str]]:
    """Give the network the classifier of the file.

    Args:
        outside: entries that stand beside the network's own, of which the classifier may be.

    Returns:
        Where a classifier is missing, "" where it is not; and the file's names of entries that stood outside.
    """
    _match_outputs(module, shapes)
    classifier = classifier_of(module)
    part = replaced_part(shapes_of(module.state_dict()), shapes, classifier)
    if part is None:
        return "", {}
    features = features_of(module.get_submodule(part))
    inside = {name[len(part) + 1 :]: shape for name, shape in shapes.items() if name.startswith(f"{part}.")}
    names: dict[str, str] = {}
    at = part
    if not inside and outside:
        at = _common(outside)
        inside = {name[len(at) + 1 :]: shape for name, shape in outside.items()} if at else {}
        names = {f"{part}.{name}": f"{at}.{name}" for name in inside}
    if not inside:
        replace_module(module, part, nn.Identity())
        return part, {}
    made = None if features is None else head_of_shapes(inside, features, at)
    if made is None:
        if names:
            replace_module(module, part, nn.Identity())
        return part * bool(names), {}
    head, assumed = made
    replace_module(module, part, head)
    if names:
        words.append(f"{shown(at)} is its classifier, on its own pooled features")
    if assumed:
        words.append(f"{assumed} (shapes don't tell; give another network with --arch FILE.py:FUNCTION)")
    return "", names


def _common(names: Iterable[str]) -> str:
    """The path under which all of the entries stand; "" if there is none."""
    first, *others = (name.split(".")[:-1] for name in names)
    shared = first
    for other in others:
        shared = [a for a, b in zip(shared, other, strict=False) if a == b]
    return ".".join(shared)


def _match_outputs(module: nn.Module, shapes: Shapes) -> None:
    """Give layers that differ in nothing but their number of outputs that of the file."""
    for name, layer in [*module.named_modules()]:
        wanted = shapes.get(f"{name}.weight", ())
        if not isinstance(layer, nn.Linear | nn.Conv2d) or nn.parameter.is_lazy(layer.weight):
            continue
        own = tuple(layer.weight.shape)
        if len(own) != len(wanted) or own[1:] != wanted[1:] or own[0] == wanted[0]:
            continue
        bias = f"{name}.bias" in shapes
        if isinstance(layer, nn.Linear):
            replace_module(module, name, nn.Linear(layer.in_features, wanted[0], bias=bias))
        elif layer.groups == 1 and set(layer.kernel_size) == {1}:
            made = nn.Conv2d(layer.in_channels, wanted[0], 1, layer.stride, bias=bias)  # type: ignore[arg-type]
            replace_module(module, name, made)
        for holder in (module, module.get_submodule(name.rpartition(".")[0])):
            if getattr(holder, "num_classes", None) == own[0]:
                setattr(holder, "num_classes", wanted[0])  # noqa: B010 - nothing that nn.Module declares


def _normalisation(
    names: Sequence[str], state: StateDict
) -> tuple[tuple[float, ...], tuple[float, ...], set[str]]:
    """Mean and std of a layer that normalises images before the network, and its entries."""
    found: dict[str, tuple[str, tuple[float, ...]]] = {}
    for name in names:
        for what in ("mean", "std"):
            if name.lower().endswith(what) and state[name].numel() in (1, 3):
                found[what] = (name, tuple(state[name].flatten().tolist()))
    if len(found) < 2 or min(found["std"][1]) <= 0 or max(found["mean"][1]) > 1:
        return (), (), set()
    return found["mean"][1], found["std"][1], {name for name, _ in found.values()}


def _load(module: nn.Module, entries: StateDict) -> None:
    """With its own versions the model takes the values as they are: the names fit already."""
    own = module.state_dict()
    for name, value in entries.items():
        if own[name].is_floating_point() and not value.is_floating_point():
            raise ModelError(
                f"its entry {shown(name)} holds {value.dtype} values: a quantised model can't be "
                "fine-tuned; give the floating-point one it was made from"
            )
    complete = {name: entries[name] if name in entries else torch.zeros_like(own[name]) for name in own}
    loadable = type(own)(complete)
    loadable._metadata = own._metadata  # type: ignore[attr-defined]
    module.load_state_dict(loadable)


def replace_module(module: nn.Module, name: str, part: nn.Module) -> None:
    """Put another part in the place of that path."""
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, part)


def _unknown(
    proposals: Sequence[Proposal], state: StateDict, error: UnfitError | None, file: str
) -> ModelError:
    """Why none fits; with a factory to begin with, where one is near."""
    text = (
        "it holds weights alone, and their names and shapes fit no torchvision or timm classification model"
    )
    mend = f"; say which network they belong to with --arch {NAMED_FORMS}"
    if not proposals or proposals[0].score < _CLOSE or error is None:
        return ModelError(text + mend)
    near = proposals[0]
    under = f" under {shown(near.reading.prefix)}" if near.reading.prefix else ""
    why = str(error).replace("its weights don't fit ", "")
    why = why.partition(": ")[2] if why.startswith(near.name.partition(":")[2]) else why
    return ModelError(
        f"{text}; the closest is {near.name}{under}, but {why}{mend}", factory_file(near.name, why, file)
    )


def factory_file(name: str, why: str, file: str) -> str:
    """The file to begin with where a network is like a known one."""
    library, _, network = name.partition(":")
    build = (
        f"torchvision.models.{network}(weights=None, num_classes=num_classes)"
        if library == "torchvision"
        else f'timm.create_model("{network}", num_classes=num_classes)'
    )
    return f"""\
# my_network.py: the closest network that is known. Make it yours where it differs:
#   {why}
# then run: peft-advisor profile {file} --arch my_network.py:build
import {library}


def build(num_classes: int = 10):
    model = {build}
    return model
"""


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(shown, names[:3])) + more
