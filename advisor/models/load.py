"""A user's file, or a name, becomes a module. Files are untrusted: nothing in one runs without `trust`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from advisor.errors import ModelError
from advisor.models import formats, hub
from advisor.models.architectures import (
    Architecture,
    declared_input_size,
    named_architecture,
    stock_architecture,
    stock_input_size,
)
from advisor.models.folding import folded_in
from advisor.models.heads import empty_head
from advisor.models.images import ImageConfiguration, image_configuration, stem_channels
from advisor.models.layers import is_shapes
from advisor.models.pickles import StandIn, stand_ins, tensors_of
from advisor.models.printable import first_line, shown
from advisor.models.rebuild import Rebuilt, rebuild
from advisor.models.said import Said, class_names, what_is_said
from advisor.models.weights import (
    check_together,
    check_trained,
    find_weights,
    is_average,
    refuse_content,
    usable,
)
from advisor.models.whole import (
    class_of,
    complete,
    copied,
    foreign_classes,
    inner_stand_in,
    refuse_unseen,
    unwrapped,
    without_auxiliary,
)

Form = Literal["module", "state_dict", "safetensors", "named"]

_HEADLESS = (
    "it has no classifier ({} is missing), so what it gives are features, not scores of classes; with --data "
    "a classifier for its classes is added"
)
_SMALL = 32  # pixels, of what stems for small images are for


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, ready to be profiled."""

    module: nn.Module  # float32, on the CPU, in eval mode
    name: str  # the architecture's name, or the class of a module of no known architecture
    source: str  # as typed
    input_size: tuple[int, int, int] | None  # (C, H, W) where the architecture tells
    class_names: tuple[str, ...] | None  # in the order of the outputs, where the file has them
    has_trained_weights: bool  # False: built from a name, so randomly initialised
    form: Form = "module"  # what it was saved as
    key_prefix: str = ""  # such as `module.`: what the file's names have before the module's own
    images: ImageConfiguration | None = None  # what timm's configuration or the file says, where either does
    assumed: tuple[str, ...] = ()  # in words, what was found, left out or taken for granted
    warnings: tuple[str, ...] = ()
    headless: str = ""  # the path at which its classifier is missing, where it is
    size_is_default: bool = False  # the architecture's own: nothing says what this model was trained on
    has_values: bool = True  # False: all of it is on the meta device, which takes no memory
    keys: Mapping[str, str] = field(default_factory=dict)  # the file's names where a prefix doesn't tell them


def load_model(source: str, *, arch: str | None = None, trust: bool = False, seed: int = 0) -> LoadedModel:
    """Load a model from a file or folder, or build a named one.

    Args:
        source: a file of torch.save (whole module, state dict or checkpoint dict), torch.jit.save or
            torch.export.save, a safetensors file, a folder of a model hub, `torchvision:NAME`, `timm:NAME`,
            `package.module:factory` or `file.py:factory`.
        arch: the architecture of a bare state dict, in one of the named forms or as a network's bare name;
            None: it is found by names and shapes.
        trust: let the file run its own code. Only for files that the user made.
        seed: of weights that are random, as a name's alone are: an adapter fits those that it was trained on.

    Raises:
        ModelError: the file can't be read, is no model, asks for code, or fits no architecture.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # deprecations inside torch, torchvision and timm are not the user's
        torch.manual_seed(seed)
        path = Path(source)
        named = None if formats.exists(path) else named_architecture(source)
        if named is not None:
            if arch is not None:
                raise ModelError(f"{source} names an architecture itself: leave out --arch")
            module = named.build(None, None)
            trained = not named.is_stock and _builds_again(named, module)
            return replace(_loaded(module, named, source), form="named", has_trained_weights=trained)
        given = None if arch is None else named_architecture(arch, bare=True)
        if arch is not None and given is None:
            raise ModelError(
                f"--arch {arch!r} is not known; give torchvision:NAME, timm:NAME or FILE.py:FUNCTION"
            )
        try:
            return _load_file(path, source, given, trust)
        except ModelError as error:
            raise ModelError(f"{source}: {error}", error.more) from error
        except OSError as error:
            raise ModelError(f"{source}: can't be read: {error.strerror or first_line(error)}") from error


def load_module(module: nn.Module) -> LoadedModel:
    """A copy of a module that is there already, made ready as one from a file is.

    Raises:
        ModelError: it is quantised, on no device or otherwise not intact.
    """
    name = type(module).__name__
    try:
        own = copied(module)
    except Exception as error:  # a module may hold anything
        raise ModelError(
            f"{name} can't be copied ({first_line(error)}); give a file, or its state dict"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `load_model`
        return replace(_loaded(own, None, name, ({},)), source=name)


def _builds_again(named: Architecture, module: nn.Module) -> bool:
    """Whether the factory gives the same weights twice: then they were not drawn at random."""
    try:
        own, again = module.state_dict(), named.build(None, None).state_dict()
        return own.keys() == again.keys() and all(torch.equal(own[name], again[name]) for name in own)
    except Exception:  # noqa: BLE001 - the user's own code, or weights that are not made yet
        return False


def _load_file(path: Path, source: str, given: Architecture | None, trust: bool) -> LoadedModel:
    if (path / hub.ADAPTER).is_file():
        return _adapted(path, source, given, trust)
    contents = formats.read(path, trust)
    found = find_weights(contents.value)
    if not found:
        if contents.unknown:
            raise ModelError(_needs(contents.unknown))
        refuse_content(contents.value)
    problems: list[ModelError] = []
    for key, weights in found:
        try:
            loaded = _of_weights(weights, source, given, contents)
        except ModelError as error:
            problems.append(error)
            continue
        if len(found) > 1:
            others = ", ".join(other for other, _ in found if other != key)
            kind = "the average of the weights" if is_average(key) else "what stands"
            words = f"{kind} under {key} is taken, not {others}"
            loaded = replace(loaded, assumed=(words, *loaded.assumed))
        return loaded
    raise problems[-1]


def _adapted(folder: Path, source: str, given: Architecture | None, trust: bool) -> LoadedModel:
    """The network that a folder's PEFT adapters go on, with these merged in."""
    named = hub.base_of_adapter(folder)
    if named == str(folder) or (Path(named) / hub.ADAPTER).is_file():
        raise ModelError(f"its adapters go on {shown(named)}, which holds adapters, too; merge those first")
    base = _load_file(Path(named), named, given, trust) if Path(named).exists() else load_model(named)
    module = hub.with_adapter(base.module, folder).eval()
    words = f"its PEFT adapters are merged into {shown(named)}, which they go on"
    form: Form = "state_dict" if base.form == "named" else base.form
    return replace(base, module=module, source=source, form=form, assumed=(words, *base.assumed))


def _of_weights(
    weights: Any, source: str, given: Architecture | None, contents: formats.Contents
) -> LoadedModel:
    holders = (contents.value, *contents.said)
    if isinstance(weights, nn.Module) and next(stand_ins(weights), None) is None:
        if given is not None:
            raise ModelError("holds a whole module, not a bare state dict: leave out --arch")
        loaded = _loaded(weights, None, source, holders)
        return replace(loaded, form="safetensors") if contents.safetensors else loaded
    form: Form = "safetensors" if contents.safetensors else "state_dict"
    words: tuple[str, ...] = ()
    if isinstance(weights, nn.Module | StandIn):
        weights = inner_stand_in(weights)
        foreign = foreign_classes(weights)
        if foreign and given is None:
            raise ModelError(_needs(foreign))
        words = (f"the file's {shown(class_of(weights))} is made anew, with its weights",)
        weights = dict(tensors_of(weights))
    if contents.graph:
        words = (f"the file is {contents.graph}: its weights are read, and the network is made anew",)
    check_together(weights)
    state = {name: usable(value, name) for name, value in weights.items()}
    said = what_is_said(*holders)
    try:
        rebuilt = rebuild(state, given, said.networks, source)
    except ModelError as error:
        if contents.network is not None and given is None:
            made = "the file's own steps are run, with its layers made anew: it is of no known network"
            loaded = _loaded(contents.network(), None, source, holders, said)
            return replace(loaded, form=form, assumed=(made, *loaded.assumed))
        if contents.graph and given is None:
            raise ModelError(formats.no_network(contents.graph), error.more) from error
        raise
    loaded = _loaded(rebuilt.module, rebuilt.architecture, source, holders, said, rebuilt)
    prefix, keys = _naming(rebuilt)
    return replace(
        loaded,
        form=form,
        key_prefix=prefix,
        keys=keys,
        assumed=(*words, *rebuilt.assumed, *loaded.assumed),
    )


def _needs(unknown: tuple[str, ...] | list[str]) -> str:
    names = formats.names_of(unknown)
    mine = [name for name in unknown if name.startswith("__main__.")]
    put = (mine or list(unknown))[0].rpartition(".")[2]
    trusted = (
        ""  # it would be looked for in this program
        if mine
        else "pass --trust if you made the file yourself: it runs code from the file; or "
    )
    return (
        f"needs the classes {names}, which are not torch's or torchvision's; {trusted}put {shown(put)} "
        f"into a file and give that with --arch FILE.py:{shown(put)}: the weights are read, no more is run"
    )


def _naming(rebuilt: Rebuilt) -> tuple[str, dict[str, str]]:
    """What the file's names have before the module's own; and all of them, where that is not one prefix."""
    prefixes = {key.removesuffix(name) if key.endswith(name) else None for name, key in rebuilt.keys.items()}
    if len(prefixes) == 1 and None not in prefixes:
        return str(prefixes.pop()), {}
    return "", dict(rebuilt.keys)


def _loaded(
    module: nn.Module,
    architecture: Architecture | None,
    source: str,
    holders: tuple[Any, ...] = (),
    said: Said | None = None,
    rebuilt: Rebuilt | None = None,
) -> LoadedModel:
    """The module in float32, on the CPU, in eval mode, with what else is known.

    One that is all on the meta device stays there: it has shapes, and costs follow from these.

    holders: what the file says beside the weights; () for a name, whose weights are random.
    """
    try:
        module = unwrapped(module)
        refuse_unseen(module)
        if holders:
            complete(module)
        folds = folded_in(module)
        held = (*module.named_parameters(), *module.named_buffers())
        tensors = {name: tensor for name, tensor in held if not nn.parameter.is_lazy(tensor)}
        has_values = not is_shapes(module)
        if has_values:
            check_together(tensors)
            check_trained(tensors)
            module = module.cpu()
        module = module.float().eval()
        architecture = architecture or stock_architecture(module)
        own = stock_input_size(module) if architecture is None else architecture.input_size(module)
        images = image_configuration(module)
        said = said or what_is_said(*holders)
        size, default, words = _size(module, own, said, rebuilt)
        words += folds
        auxiliary = without_auxiliary(module)
        if auxiliary:
            words.append(f"the auxiliary heads {auxiliary} are left out: they serve training alone")
        images = _images(images, said, rebuilt, size)
        names = class_names(module, *holders)
        missing = empty_head(module)
    except ModelError:
        raise
    except Exception as error:  # a pickled module may hold anything
        raise ModelError(f"its module is not intact ({first_line(error)}); save it again") from error
    return LoadedModel(
        module,
        type(module).__name__ if architecture is None else architecture.name,
        source,
        size,
        names,
        has_trained_weights=bool(holders) and has_values,
        has_values=has_values,
        images=images,
        assumed=tuple(words),
        warnings=(_HEADLESS.format(missing),) if missing else (),
        headless=missing,
        size_is_default=default,
    )


def _size(
    module: nn.Module, own: tuple[int, int, int] | None, said: Said, rebuilt: Rebuilt | None
) -> tuple[tuple[int, int, int] | None, bool, list[str]]:
    """The input size, whether it is but the architecture's default, and in words where it comes from."""
    declared = declared_input_size(module)
    if declared is not None:
        return declared, False, []
    channels = stem_channels(module) or (own[0] if own else 3)
    if said.size:
        size = (channels, said.size[-2], said.size[-1])
        return (
            size,
            False,
            [f"the input size is {'x'.join(map(str, size))}, as the file says"] * (size != own),
        )
    if rebuilt is not None and rebuilt.small:
        return (channels, _SMALL, _SMALL), True, []
    return own, own is not None, []


def _images(
    known: ImageConfiguration | None,
    said: Said,
    rebuilt: Rebuilt | None,
    size: tuple[int, int, int] | None,
) -> ImageConfiguration | None:
    """What is known of the images, with the mean and std that the file says."""
    mean, std, origin = said.mean, said.std, "the file"
    if rebuilt is not None and rebuilt.mean:
        mean, std, origin = (
            rebuilt.mean,
            rebuilt.std,
            "the network's own normalising layer, which is left out",
        )
    if not mean or size is None or len(mean) not in (1, size[0]):
        return known
    mean, std = (values * size[0] if len(values) == 1 else values for values in (mean, std))
    if known is not None:
        return replace(known, mean=mean, std=std)
    return ImageConfiguration("", size, mean, std, None, origin=origin)
