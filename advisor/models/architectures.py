"""Networks that can be built by name: torchvision's, timm's, and what the user's own factories make."""

from __future__ import annotations

import contextlib
import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from advisor.errors import ModelError
from advisor.models.images import declared_size, image_configuration, stem_channels
from advisor.models.index import OUTPUTS, Shapes, propose, tells
from advisor.models.named_code import call, named_object, parameters
from advisor.models.printable import first_line, shown
from advisor.names import (
    NAMED_FORMS,
    did_you_mean,
    names_code,
    timm_models,
    torchvision_models,
    unknown_model,
)

StateDict = dict[str, torch.Tensor]

_CLASS_COUNTS = ("num_classes", "n_classes", "nb_classes", "num_labels", "n_class", "classes", "class_num")
_FILLING = {"add_", "clamp_", "div_", "erfinv_", "fill_", "mul_", "normal_", "sub_", "uniform_", "zero_"}


class _Builder(Protocol):
    def __call__(self, outputs: int | None, state: Shapes | None) -> nn.Module: ...


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network that can be built, randomly initialised, without the network."""

    name: str
    build: _Builder  # (class count or None for the default, the names and shapes to fit or None)
    input_size: Callable[[nn.Module], tuple[int, int, int] | None]  # (C, H, W); None where unknown
    is_stock: bool = True  # torchvision's or timm's, whose weights are random until they are loaded


def named_architecture(text: str, *, bare: bool = False) -> Architecture | None:
    """The architecture that `torchvision:NAME`, `timm:NAME` or `package.module:factory` names.

    So do `file.py:function`, and with `bare` a network's name alone. None where it has none of these forms.

    Raises:
        ModelError: the library lacks it, or the factory can't be imported.
    """
    library, _, name = text.partition(":")
    if bare and re.fullmatch(r"[\w.]+", text):
        for known, names in (("torchvision", torchvision_models()), ("timm", timm_models())):
            if text.partition(".")[0] in names:
                return named_architecture(f"{known}:{text.partition('.')[0]}")
        raise ModelError(f"no network is called {text!r}{_near_names(text)}; give {NAMED_FORMS}")
    if library == "torchvision" and name:
        return _torchvision_architecture(name)
    if library == "timm" and name:
        return _timm_architecture(name)
    return _factory_architecture(text) if names_code(text) else None


def _near_names(text: str) -> str:
    module, _, function = text.rpartition(".")
    file = Path(f"{module.replace('.', '/')}.py")
    if module and file.is_file():
        return f"; did you mean {file}:{function}?"
    known = [f"torchvision:{name}" for name in torchvision_models()] + [
        f"timm:{name}" for name in timm_models()
    ]
    return did_you_mean(text, {name.partition(":")[2]: name for name in reversed(known)})


def stock_architecture(module: nn.Module) -> Architecture | None:
    """The torchvision classification model that an existing module is; None for anything else."""
    home = type(module).__module__
    if not home.startswith("torchvision.models."):
        return None
    for proposal in propose(shapes_of(module.state_dict())):
        library, _, name = proposal.name.partition(":")
        same = library == "torchvision" and not proposal.reading.prefix and proposal.shapes == 1
        if same and import_torchvision().models.get_model_builder(name).__module__ == home:
            return _torchvision_architecture(name)
    return None


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


def describe_difference(found: Shapes, wanted: Shapes) -> str:
    """Up to three missing, unexpected or differently shaped entries in words; "" where they fit."""
    missing = [name for name in wanted if name not in found and tells(name)]
    unexpected = [name for name in found if name not in wanted and tells(name)]
    differing = [
        f"{shown(name)} is {_by(found[name])} instead of {_by(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    parts = [
        f"{label}{', '.join(map(shown, entries[:3]))}{_and_more(entries)}"
        for label, entries in (("missing ", missing), ("unexpected ", unexpected), ("", differing))
        if entries
    ]
    return "; ".join(parts)


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
    if state and name in ("googlenet", "inception_v3"):
        return (("aux_logits", any(key.lower().startswith("aux") for key in state)),)
    position = state.get("encoder.pos_embedding", ())
    patch = state.get("conv_proj.weight", ())
    if name.startswith("vit_") and len(position) == 3 and len(patch) == 4:
        # One position per patch and one for the class token.
        side = int(max(position[1] - 1, 0) ** 0.5) * patch[-1]
        return (("image_size", side),) if side else ()
    return ()


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
        if outputs is None and state:  # some have no classifier unless they are asked for one
            classifier = getattr(timm.get_pretrained_cfg(name), "classifier", None)
            outputs = next(iter(state.get(f"{classifier}.weight", ())), None)
        options: dict[str, Any] = {} if outputs is None else {"num_classes": outputs}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module: nn.Module = timm.create_model(name, pretrained=False, **options)
            side = _side_of_positions(module, state or {})
            if side is not None:
                module = timm.create_model(name, pretrained=False, img_size=side, **options)
                config: Any = module.pretrained_cfg
                vars(module)["pretrained_cfg"] = {**config, "input_size": (3, side, side)}
        return module

    return Architecture(name, build, stock_input_size)


def _side_of_positions(module: nn.Module, state: Shapes) -> int | None:
    """The image side that a vision transformer's positions are for, where it is not the module's."""
    wanted, own = state.get("pos_embed", ()), getattr(module, "pos_embed", None)
    patch = state.get("patch_embed.proj.weight", ())
    grid = getattr(getattr(module, "patch_embed", None), "num_patches", None)
    if len(wanted) != 3 or len(patch) != 4 or own is None or grid is None or own.shape[1] == wanted[1]:
        return None
    side = math.isqrt(wanted[1] - (own.shape[1] - grid))  # tokens of classes have positions, too
    return side * patch[-1]


# Factories: the user's own function, named on the command line


def _factory_architecture(text: str) -> Architecture:
    home, factory = named_object(text)
    module_name, _, attribute = text.rpartition(":")
    if not callable(factory):
        raise ModelError(f"{text}: {attribute} in {module_name} is no function, class or module; name one")

    def build(outputs: int | None, state: Shapes | None) -> nn.Module:
        return _call_factory(text, factory, outputs)

    def input_size(module: nn.Module) -> tuple[int, int, int] | None:
        return declared_input_size(module, factory, home) or stock_input_size(module)

    return Architecture(attribute, build, input_size, is_stock=False)


def _call_factory(text: str, factory: Any, outputs: int | None) -> nn.Module:
    if isinstance(factory, nn.Module):
        return factory
    known = parameters(factory)
    named = next((name for name in _CLASS_COUNTS if name in known), None)
    if named is not None and outputs is None and known[named].default is inspect.Parameter.empty:
        outputs = 1000  # until the weights tell
    arguments: dict[str, Any] = {} if named is None or outputs is None else {named: outputs}
    module = call(text, factory, **arguments)
    if not isinstance(module, nn.Module):
        raise ModelError(f"{text}: it must return a torch.nn.Module, but returned {type(module).__name__}")
    return module


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
        filled = _filled(func, args, kwargs)
        if filled is not None and filled.is_meta:
            return filled  # half of the time of a trial build, without effect
        return func(*args, **kwargs)


class _Unfilled(TorchFunctionMode):
    """Parameters are not initialised: they are loaded right after. Everything else is as ever."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        filled = _filled(func, args, kwargs)
        return filled if isinstance(filled, nn.Parameter) else func(*args, **kwargs)


def _filled(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The tensor that a call fills, by itself or through one of `torch.nn.init`; None: it fills none."""
    name = getattr(func, "__name__", "")
    if name in _FILLING or (name.endswith("_") and getattr(func, "__module__", "") == "torch.nn.init"):
        return args[0] if args else kwargs.get("tensor")
    return None


def unfilled(wanted: bool) -> contextlib.AbstractContextManager[object]:
    """While networks are built whose weights come from a file: most of the time is in initialising them."""
    return _Unfilled() if wanted else contextlib.nullcontext()


def trial(build: Callable[[], nn.Module]) -> Shapes:
    """Names and shapes of what is built, without its memory."""
    with torch.random.fork_rng(devices=[]), _EmptyOnMeta():
        return shapes_of(build().state_dict())


def library_names() -> list[str]:
    """What torchvision and, where it is there, timm can build, as `--arch` takes it."""
    names = [f"torchvision:{name}" for name in torchvision_names()]
    try:
        return names + [f"timm:{name}" for name in import_module("timm").list_models()]
    except ImportError:
        return names


def trial_shapes(name: str) -> Shapes:
    """Of a network of `library_names`, with `OUTPUTS` classes; {} where it can't be built without memory."""
    try:
        architecture = named_architecture(name)
        assert architecture is not None  # noqa: S101 - the names are of that form
        return trial(lambda: architecture.build(OUTPUTS, None))
    except Exception:  # noqa: BLE001 - some need packages or data that are not there
        return {}


def shapes_of(state: Mapping[str, Any]) -> Shapes:
    """Of its tensors, by name."""
    return {name: tuple(value.shape) for name, value in state.items() if hasattr(value, "shape")}


def _with_channels(module: nn.Module, size: tuple[int, ...]) -> tuple[int, int, int]:
    """The image size with the channels that the first convolution takes."""
    return stem_channels(module) or 3, size[0], size[1]


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _and_more(entries: list[str]) -> str:
    return f" and {len(entries) - 3} more" if len(entries) > 3 else ""
