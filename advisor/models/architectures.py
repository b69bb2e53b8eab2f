"""Networks that can be built by name, and which of them a bare state dict belongs to."""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from advisor import errors
from advisor.errors import ModelError
from advisor.models.images import declared_size, image_configuration, stem_channels
from advisor.names import NAMED_FORMS, did_you_mean, unknown_model

StateDict = dict[str, torch.Tensor]
Shapes = Mapping[str, tuple[int, ...]]
_Value = TypeVar("_Value")

_PREFIXES = ("module.", "model.", "net.")
_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_OUTPUTS = 7919  # a class count that no hidden layer has: it marks the heads of a trial build
_FILLING = {"add_", "clamp_", "div_", "erfinv_", "fill_", "mul_", "normal_", "sub_", "uniform_", "zero_"}
_TIMM_SECONDS = 30.0
_FEWEST_SHARED = 0.5  # of a state dict's name patterns, for a family of networks to be searched
_CLOSE = 0.8  # of the entries, for a network to be named as the closest one


class _Builder(Protocol):
    def __call__(self, outputs: int | None, state: Shapes | None) -> nn.Module: ...


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network that can be built, randomly initialised, without the network."""

    name: str
    build: _Builder  # (class count or None for the default, the names and shapes to fit or None)
    input_size: Callable[[nn.Module], tuple[int, int, int] | None]  # (C, H, W); None where unknown


def named_architecture(text: str) -> Architecture | None:
    """The architecture that `torchvision:NAME`, `timm:NAME` or `package.module:factory` names.

    None where the text has none of these forms.

    Raises:
        ModelError: the library lacks it, or the factory can't be imported.
    """
    library, _, name = text.partition(":")
    if library == "torchvision" and name:
        return _torchvision_architecture(name)
    if library == "timm" and name:
        return _timm_architecture(name)
    return _factory_architecture(text) if _CALLABLE.fullmatch(text) else None


def identify(state: StateDict) -> Architecture:
    """The architecture whose names and shapes the state dict has, its class count aside.

    torchvision's classification models are searched first, timm's only where none of them fits.

    Raises:
        ModelError: none fits, or several of timm's do and the weights can't tell which.
    """
    forms = [_shapes(form) for form in unprefixed(state)]
    name, closest = _search_torchvision(forms, _torchvision_families().values())
    if name is not None:
        return _torchvision_architecture(name)
    matches, searched = _search_timm(forms)
    if len(matches) == 1:
        return _timm_architecture(matches[0])
    if matches:
        names = ", ".join(f"timm:{name}" for name in matches[:8])
        raise ModelError(
            f"its weights fit several networks, which may compute differently; pick one with --arch: {names}"
        )
    raise ModelError(
        f"it holds weights alone, and their names and shapes fit no {searched} classification model"
        f"{closest}; say which network they belong to with --arch {NAMED_FORMS}"
    )


def stock_architecture(module: nn.Module) -> Architecture | None:
    """The torchvision classification model that an existing module is; None for anything else."""
    family = _torchvision_families().get(type(module).__module__)
    if family is None:
        return None
    name, _ = _search_torchvision([_shapes(module.state_dict())], [family])
    return None if name is None else _torchvision_architecture(name)


def build_with_weights(architecture: Architecture, state: StateDict) -> nn.Module:
    """Build the architecture with the state dict's class count and load it, strictly.

    Raises:
        ModelError: names are missing or unexpected, shapes differ, or weights are quantised.
    """
    module = architecture.build(None, _shapes(state))
    wanted = _shapes(module.state_dict())
    # An architecture's own names may start like a wrapper's prefix: the form that fits best counts.
    state = max(
        unprefixed(state), key=lambda form: (_share(_shapes(form), wanted), len(form.keys() & wanted))
    )
    shapes = _shapes(state)
    outputs = [shapes[f"{name}.weight"][0] for name, _ in _unfit_heads(module, shapes)]
    if outputs:
        module = architecture.build(outputs[-1], shapes)
    for name, layer in _unfit_heads(module, shapes):
        _replace(module, name, _with_outputs(layer, shapes[f"{name}.weight"][0]))

    own = module.state_dict()
    if difference := describe_difference(shapes, _shapes(own)):
        raise ModelError(f"its weights don't fit {architecture.name}: {difference}")
    complete = {name: state.get(name, value) for name, value in own.items()}
    for name, value in complete.items():
        if own[name].is_floating_point() and not value.is_floating_point():
            raise ModelError(
                f"its entry {shown(name)} holds {value.dtype} values: a quantised model can't be "
                "fine-tuned; give the floating-point one it was made from"
            )
    # With its own versions the model takes the values as they are: the names fit already.
    loadable = type(own)(complete)
    loadable._metadata = own._metadata  # type: ignore[attr-defined]
    module.load_state_dict(loadable)
    return module


def import_torchvision() -> ModuleType:
    """Import torchvision. Raises ModelError with the mend where it doesn't go with this torch."""
    try:
        return import_module("torchvision")
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "torchvision":
            raise ModelError("torchvision is not installed: pip install torchvision") from error
        raise ModelError(_torchvision_mend(error)) from error


def declared_input_size(*holders: object) -> tuple[int, int, int] | None:
    """The first `input_size` attribute that is a (C, H, W); None where there is none."""
    for holder in holders:
        size = declared_size(getattr(holder, "input_size", None))
        if size is not None:
            return size
    return None


def stock_input_size(module: nn.Module) -> tuple[int, int, int] | None:
    """(C, H, W) of a torchvision or timm network, told from the module alone; None for others."""
    configuration = image_configuration(module)
    if configuration is not None:
        return configuration.input_size
    if type(module).__module__.startswith("torchvision.models."):
        default = 299 if type(module).__name__ == "Inception3" else 224
        side = getattr(module, "image_size", default)
        return _with_channels(module, (side, side))
    return None


def torchvision_names() -> list[str]:
    """torchvision's classification models."""
    models = import_torchvision().models
    names: list[str] = models.list_models(module=models)
    return names


def unprefixed(state: Mapping[str, _Value]) -> Iterator[dict[str, _Value]]:
    """The state dict as it is, then without each wrapper's prefix that all of its names carry.

    `_orig_mod.` (torch.compile) goes at once, wherever it stands; so does the counter of
    `torch.optim.swa_utils.AveragedModel`.
    """
    form = {name.replace("_orig_mod.", ""): value for name, value in state.items() if name != "n_averaged"}
    yield form
    while form:
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in form)), None)
        if prefix is None:
            return
        form = {name.removeprefix(prefix): value for name, value in form.items()}
        yield form


def describe_difference(found: Shapes, wanted: Shapes) -> str:
    """Up to three missing, unexpected or differently shaped entries in words; "" where they fit."""
    missing = [name for name in wanted if name not in found and not _is_counter(name)]
    unexpected = [name for name in found if name not in wanted and not _is_counter(name)]
    differing = [
        f"{shown(name)} is {_by(found[name])} instead of {_by(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape and not _is_trial_head(found[name], shape)
    ]
    parts = [
        f"{label}{', '.join(map(shown, entries[:3]))}{_and_more(entries)}"
        for label, entries in (("missing ", missing), ("unexpected ", unexpected), ("", differing))
        if entries
    ]
    return "; ".join(parts)


def shown(text: str) -> str:
    """A name out of a file, safe to print: no control characters, at most 100 characters."""
    printable = "".join(character for character in text if character.isprintable())
    return printable if len(printable) <= 100 else f"{printable[:97]}..."


def first_line(error: BaseException) -> str:
    """What an exception says, as a short single line that is safe to print."""
    return shown(errors.first_line(error))


# torchvision


def _torchvision_architecture(name: str) -> Architecture:
    known = torchvision_names()
    if name not in known:
        raise ModelError(unknown_model("torchvision", name, known))

    def build(outputs: int | None, state: Shapes | None) -> nn.Module:
        options = dict(_torchvision_options(name, state or {}))
        return _build_torchvision(name, outputs, options)

    def input_size(module: nn.Module) -> tuple[int, int, int] | None:
        if hasattr(module, "image_size"):  # a ViT takes no other
            return stock_input_size(module)
        weights = import_torchvision().models.get_model_weights(name)
        # Several published weights differ in their crop; the smallest is the plain training's.
        sides = [entry.transforms.keywords.get("crop_size", 224) for entry in weights]
        side = min(sides, default=224)
        return _with_channels(module, (side, side))

    return Architecture(name, build, input_size)


def _build_torchvision(name: str, outputs: int | None, options: dict[str, Any]) -> nn.Module:
    if outputs is not None:
        options["num_classes"] = outputs
    builders = import_torchvision().models
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about torchvision's own future
        module: nn.Module = builders.get_model(name, weights=None, **options)
    return module


def _torchvision_options(name: str, state: Shapes) -> tuple[tuple[str, int | bool], ...]:
    """Constructor arguments that a state dict's names and shapes call for; () without one."""
    *_, shapes = unprefixed(state)
    if shapes and name in ("googlenet", "inception_v3"):
        return (("aux_logits", any(key.lower().startswith("aux") for key in shapes)),)
    position = shapes.get("encoder.pos_embedding", ())
    patch = shapes.get("conv_proj.weight", ())
    if name.startswith("vit_") and len(position) == 3 and len(patch) == 4:
        # One position per patch and one for the class token.
        side = int(max(position[1] - 1, 0) ** 0.5) * patch[-1]
        return (("image_size", side),) if side else ()
    return ()


def _torchvision_families() -> dict[str, list[str]]:
    """The classification models by the module that defines them."""
    models = import_torchvision().models
    families: dict[str, list[str]] = {}
    for name in torchvision_names():
        families.setdefault(models.get_model_builder(name).__module__, []).append(name)
    return families


def _search_torchvision(forms: list[Shapes], families: Iterable[list[str]]) -> tuple[str | None, str]:
    """The model that one of the forms fits, or None; and the closest one, in words."""
    closest = (_CLOSE, "")
    for shapes in forms:
        for family in families:
            # One member stands for its family: building all 80 models would take seconds.
            if _shared_patterns(shapes, _torchvision_shapes(family[0], ())) < _FEWEST_SHARED:
                continue
            for name in family:
                signature = _torchvision_shapes(name, _torchvision_options(name, shapes))
                if _same_network(shapes, signature):
                    return name, ""
                share = _share(shapes, signature)
                if share > closest[0]:
                    difference = describe_difference(shapes, signature)
                    closest = (share, f"; the closest is torchvision:{name}, but {difference}")
    return None, closest[1]


@lru_cache(maxsize=256)
def _torchvision_shapes(name: str, options: tuple[tuple[str, int | bool], ...]) -> Shapes:
    return _trial(lambda: _build_torchvision(name, _OUTPUTS, dict(options)))


def _torchvision_mend(error: Exception) -> str:
    versions = {name: metadata.version(name) for name in ("torch", "torchvision")}
    public, _, variant = versions["torch"].partition("+")
    vision = versions["torchvision"].partition("+")[0]
    requirements = " ".join(metadata.requires("torchvision") or ())
    built_for = re.search(r"\btorch==([\d.]+\d)", requirements)
    packages = f"torchvision=={vision}"
    if built_for and built_for[1] != public:
        packages = f"torch=={built_for[1]} {packages}"
    # Both must come from where this torch came from: PyPI's torchvision lacks the CPU-only build.
    index = f" --index-url https://download.pytorch.org/whl/{variant}" if variant else ""
    return (
        f"torchvision {versions['torchvision']} can't run beside torch {versions['torch']} "
        f"({first_line(error)}); install two that match: pip install --force-reinstall {packages}{index}"
    )


# timm


def _timm_architecture(name: str) -> Architecture:
    try:
        timm = import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise ModelError(f"timm can't be imported: {first_line(error)}") from error
        raise ModelError(f"timm:{name} needs timm: pip install 'peft-advisor[timm]'") from error
    # Also keeps out timm's `hf-hub:` and `local-dir:` names, which fetch and read files.
    if not timm.is_model(name):
        raise ModelError(unknown_model("timm", name, timm.list_models()))

    def build(outputs: int | None, state: Shapes | None) -> nn.Module:
        options = {} if outputs is None else {"num_classes": outputs}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module: nn.Module = timm.create_model(name, pretrained=False, **options)
        return module

    return Architecture(name, build, stock_input_size)


def _search_timm(forms: list[Shapes]) -> tuple[list[str], str]:
    """The timm models that one of the forms fits, and what was searched, in words."""
    try:
        timm = import_module("timm")
    except ImportError:
        return [], "torchvision"
    deadline = time.monotonic() + _TIMM_SECONDS
    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        families.setdefault(timm.model_entrypoint(name).__module__, []).append(name)
    found: list[str] = []
    for shapes in forms:
        for family in families.values():
            # timm tells the first and last layers' names of every model without building it.
            fitting = [name for name in family if _has_timm_ends(timm, name, shapes)]
            for name in fitting:
                if time.monotonic() > deadline:
                    fits = "".join(f", but timm:{name} fits" for name in found[:1])
                    return [], f"torchvision (timm's could not all be tried in time{fits})"
                signature = _timm_shapes(name)
                if _same_network(shapes, signature):
                    found.append(name)
                elif name == fitting[0] and _shared_patterns(shapes, signature) < _FEWEST_SHARED:
                    break
    return found, "torchvision or timm"


def _has_timm_ends(timm: ModuleType, name: str, shapes: Shapes) -> bool:
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return False
    ends = []
    for end in (config.first_conv, config.classifier):
        ends += [end] if isinstance(end, str) else list(end or ())
    # A stem is named by its layer or by the block that holds it.
    return all(any(key.startswith(f"{end}.") for key in shapes) for end in ends if end)


@lru_cache(maxsize=2048)
def _timm_shapes(name: str) -> Shapes:
    try:
        return _trial(lambda: _timm_architecture(name).build(_OUTPUTS, None))
    except Exception:  # noqa: BLE001 - some need packages or data that are not there: they can't match
        return {}


# Factories: the user's own function, named on the command line


def _factory_architecture(text: str) -> Architecture:
    module_name, _, attribute = text.partition(":")
    make_current_folder_importable()
    try:
        with stdout_to_stderr():
            home = import_module(module_name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and module_name.startswith(error.name or "\0"):
            mend = "run from the folder that holds it, or put that folder on PYTHONPATH"
            raise ModelError(f"{text}: can't import {module_name} ({first_line(error)}); {mend}") from error
        raise ModelError(
            f"{text}: importing {module_name} failed: {type(error).__name__}: {first_line(error)}"
        ) from error
    factory: Any = home
    for part in attribute.split("."):
        factory = getattr(factory, part, None)
    if not callable(factory):
        offered = [name for name in vars(home) if not name.startswith("_")]
        raise ModelError(
            f"{text}: {module_name} has no function {attribute}{did_you_mean(attribute, offered)}"
        )

    def build(outputs: int | None, state: Shapes | None) -> nn.Module:
        return _call_factory(text, factory, outputs)

    def input_size(module: nn.Module) -> tuple[int, int, int] | None:
        return declared_input_size(module, factory, home) or stock_input_size(module)

    return Architecture(attribute, build, input_size)


def _call_factory(text: str, factory: Any, outputs: int | None) -> nn.Module:
    if isinstance(factory, nn.Module):
        return factory
    try:
        adaptable = outputs is not None and "num_classes" in inspect.signature(factory).parameters
    except (TypeError, ValueError):
        adaptable = False
    try:
        with stdout_to_stderr():
            module = factory(num_classes=outputs) if adaptable else factory()
    except (Exception, SystemExit) as error:
        raise ModelError(f"{text}: calling it failed: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{text}: it must return a torch.nn.Module, but returned {type(module).__name__}")
    return module


def make_current_folder_importable() -> None:
    """Put the current folder first on sys.path, and leave it: child processes need it as well."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """What the user's code prints must not end up in the JSON on stdout."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


# Names and shapes


class _EmptyOnMeta(TorchFunctionMode):
    """Uninitialised tensors hold no memory, as under `torch.device("meta")`, and stay uninitialised.

    Every other tensor is real: regnet and many timm models read values while they are built.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        elif getattr(func, "__name__", "") in _FILLING and args and args[0].is_meta:
            return args[0]  # half of the time of a trial build, without effect
        return func(*args, **kwargs)


def _trial(build: Callable[[], nn.Module]) -> Shapes:
    with torch.random.fork_rng(devices=[]), _EmptyOnMeta():
        return _shapes(build().state_dict())


def _shapes(state: Mapping[str, Any]) -> Shapes:
    return {name: tuple(value.shape) for name, value in state.items() if hasattr(value, "shape")}


def _is_counter(name: str) -> bool:
    # Written since torch 0.4.1 only, and of no consequence.
    return name.endswith("num_batches_tracked")


def _is_trial_head(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return wanted[:1] == (_OUTPUTS,) and len(found) == len(wanted) and found[1:] == wanted[1:]


def _same_network(shapes: Shapes, signature: Shapes) -> bool:
    return bool(signature) and not describe_difference(shapes, signature)


def _share(shapes: Shapes, signature: Shapes) -> float:
    """Entries with the same name and shape, as a share of all."""
    agreeing = sum(
        shapes[name] == shape or _is_trial_head(shapes[name], shape)
        for name, shape in signature.items()
        if name in shapes
    )
    return agreeing / max(len(shapes.keys() | signature.keys()), 1)


def _shared_patterns(shapes: Shapes, signature: Shapes) -> float:
    """How many of the names, their numbers aside, the other network has as well."""
    found, known = ({re.sub(r"\d+", "#", name) for name in each} for each in (shapes, signature))
    return len(found & known) / max(len(found), 1)


def _unfit_heads(module: nn.Module, shapes: Shapes) -> list[tuple[str, nn.Module]]:
    """The layers that differ from the state dict in nothing but their number of outputs."""
    unfit: list[tuple[str, nn.Module]] = []
    for name, layer in module.named_modules():
        wanted = shapes.get(f"{name}.weight", ())
        if isinstance(layer, nn.Linear | nn.Conv2d) and not nn.parameter.is_lazy(layer.weight):
            own = tuple(layer.weight.shape)
            if len(own) == len(wanted) and own[1:] == wanted[1:] and own[0] != wanted[0]:
                unfit.append((name, layer))
    return unfit


def _with_outputs(layer: nn.Module, outputs: int) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, outputs, bias=layer.bias is not None)
    if isinstance(layer, nn.Conv2d) and layer.groups == 1 and set(layer.kernel_size) == {1}:
        bias = layer.bias is not None
        return nn.Conv2d(layer.in_channels, outputs, 1, stride=layer.stride, bias=bias)  # type: ignore[arg-type]
    return layer


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, layer)


def _with_channels(module: nn.Module, size: tuple[int, ...]) -> tuple[int, int, int]:
    """The image size with the channels that the first convolution takes."""
    return stem_channels(module) or 3, size[0], size[1]


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _and_more(entries: list[str]) -> str:
    return f" and {len(entries) - 3} more" if len(entries) > 3 else ""
