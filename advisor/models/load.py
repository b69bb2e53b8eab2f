"""A user's file becomes a module. The file is untrusted: nothing in it is ever run without `trust`.

`torch.load(weights_only=True)` builds only what is on its list; here that is torch's own plus the
layer classes of torch.nn and torchvision. What else a file asks for is named, not loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import torch
from torch import nn

from advisor.errors import ModelError
from advisor.models.architectures import (
    Architecture,
    build_with_weights,
    first_line,
    identify,
    import_torchvision,
    make_current_folder_importable,
    named_architecture,
    shown,
    stock_input_size,
)

# Where checkpoint dicts keep their weights; a plain one before an averaged (EMA) one.
_STATE_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "weights",
    "params",
)
_EMA_KEYS = ("model_ema", "state_dict_ema", "ema_state_dict", "ema", "params_ema", "averaged_model")
_NAME_KEYS = ("class_names", "classes", "labels", "idx_to_class", "class_to_idx")
# No model has a reason to name these: the file is an attack, or damaged.
_NEVER = {"os", "posix", "nt", "subprocess", "sys", "builtins", "shutil", "socket", "runpy", "importlib"}
_NEVER |= {
    "pty",
    "commands",
    "webbrowser",
    "ctypes",
    "code",
    "pickle",
    "asyncio",
    "multiprocessing",
    "pathlib",
}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, ready to be profiled."""

    module: nn.Module  # float32, on the CPU, in eval mode
    name: str  # the architecture's name, or the class of a module of no known architecture
    source: str  # as typed
    input_size: tuple[int, int, int] | None  # (C, H, W) where the architecture tells
    class_names: tuple[str, ...] | None  # in the order of the outputs, where the file has them
    has_trained_weights: bool  # False: named or made by a factory, so randomly initialised


class ModulePartial:
    """What a pickled `functools.partial` becomes: one that can only build layers.

    Vision transformers keep `partial(LayerNorm, eps=1e-6)`. The real one would call anything.
    """

    def __init__(self, func: type) -> None:
        self._set(func, (), {})

    def __call__(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Build the layer."""
        return self.func(*self.args, *args, **{**self.keywords, **kwargs})

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):  # our own, written by __getstate__'s default
            self._set(state["func"], state["args"], state["keywords"])
        else:  # functools.partial's (func, args, keywords, namespace)
            self._set(state[0], state[1], state[2])

    def _set(self, func: Any, args: Any, keywords: Any) -> None:
        if not (isinstance(func, type) and func in _allowed_classes()):
            raise pickle.UnpicklingError(f"functools.partial of {func!r} is not a layer")
        self.func, self.args, self.keywords = func, tuple(args), dict(keywords)


def load_model(source: str, *, arch: str | None = None, trust: bool = False) -> LoadedModel:
    """Load a model from a file, or build a named one.

    Args:
        source: a .pt/.pth file (whole module, state dict or checkpoint dict), .safetensors,
            `torchvision:NAME`, `timm:NAME` or `package.module:factory`.
        arch: the architecture of a bare state dict, in one of the three named forms; None: it is
            found by names and shapes.
        trust: let the file run its own code. Only for files that the user made.

    Raises:
        ModelError: the file can't be read, is no model, asks for code, or fits no architecture.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torchvision and timm are not the user's
        return _load(source, arch, trust)


def _load(source: str, arch: str | None, trust: bool) -> LoadedModel:
    named = None if Path(source).exists() else named_architecture(source)
    if named is not None:
        return _loaded(named.build(None, None), named, source, None, trained=False)
    content = _read(Path(source), trust=trust)
    module, class_names = _find_module(content), _class_names(content)
    if module is not None:
        if arch is not None:
            raise ModelError(f"{source} holds a whole model; --arch is for bare state dicts: leave it out")
        return _loaded(module, _stock_architecture(module), source, class_names, trained=True)
    state = _find_state(content, source)
    architecture = named_architecture(arch) if arch is not None else None
    if arch is not None and architecture is None:
        raise ModelError(
            f"--arch {arch!r} is not known; give torchvision:NAME, timm:NAME or package.module:factory"
        )
    try:
        architecture = architecture or identify(state)
        module = build_with_weights(architecture, state)
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from error
    return _loaded(module, architecture, source, class_names, trained=True)


def _loaded(
    module: nn.Module,
    architecture: Architecture | None,
    source: str,
    class_names: tuple[str, ...] | None,
    *,
    trained: bool,
) -> LoadedModel:
    module = module.float().cpu().eval()
    name = type(module).__name__ if architecture is None else re.split(r"[:.]", architecture.name)[-1]
    size = stock_input_size(module) if architecture is None else architecture.input_size(module)
    return LoadedModel(module, name, source, size, class_names, trained)


def _stock_architecture(module: nn.Module) -> Architecture | None:
    """The torchvision or timm network that a whole pickled module is; None for the user's own."""
    if not type(module).__module__.startswith(("torchvision.models.", "timm.")):
        return None
    with contextlib.suppress(ModelError):
        return identify(module.state_dict())
    return None


def _read(path: Path, *, trust: bool) -> Any:
    """The file's content: a module, a mapping, or whatever else it holds."""
    _refuse_what_is_no_checkpoint(path)
    if _is_safetensors(path):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} can't be read as safetensors: {error}") from error
    import_torchvision()  # its classes are on the list, and a mismatched one is told before anything else
    try:
        with contextlib.ExitStack() as stack:
            if trust:
                make_current_folder_importable()
            else:
                stack.enter_context(torch.serialization.safe_globals(_safe_globals()))
            return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        raise ModelError(_explain_refusal(path, str(error))) from error
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"{path} needs code that can't be imported ({error}); run from the folder that holds it"
        ) from error
    except Exception as error:
        raise ModelError(
            f"{path} is damaged or no PyTorch checkpoint ({type(error).__name__}: {first_line(error)})"
        ) from error


def _refuse_what_is_no_checkpoint(path: Path) -> None:
    """Tell files of other kinds apart by what they hold, not by their names."""
    if not path.exists():
        raise ModelError(
            f"{path} does not exist; give a file, torchvision:NAME, timm:NAME or package.module:factory"
        )
    if path.is_dir():
        raise ModelError(f"{path} is a folder; give the checkpoint file in it")
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise ModelError(f"{path} can't be opened: {error.strerror}") from error
    if not start:
        raise ModelError(f"{path} is empty; was it copied completely?")
    if start[:4] == b"\x89HDF":
        raise ModelError(f"{path} is an HDF5 (Keras) file; give a PyTorch checkpoint")
    if start[4:8] == b"TFL3":
        raise ModelError(
            f"{path} is a TensorFlow Lite model; give the PyTorch checkpoint that it was made from"
        )
    if path.suffix == ".onnx":
        raise ModelError(f"{path} is an ONNX model; give the PyTorch checkpoint that it was exported from")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith(("constants.pkl",)) or "/code/" in name for name in names):
            raise ModelError(
                f"{path} is TorchScript, which holds no Python modules that methods could be attached to; "
                "give the state dict or the module that it was scripted from"
            )
        exported = ("serialized_exported_program.json", "archive_format", "models/model.json")
        if any(name.endswith(exported) for name in names):
            raise ModelError(
                f"{path} is a torch.export program (.pt2), a graph without modules that methods could be "
                "attached to; give the state dict or the module that it was exported from"
            )
        if not any(name.endswith("data.pkl") for name in names):
            raise ModelError(f"{path} is a zip archive, but holds no PyTorch checkpoint")


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    header = int.from_bytes(start[:8], "little")
    return path.suffix == ".safetensors" or (start[8:9] == b"{" and 0 < header < path.stat().st_size)


@cache
def _allowed_classes() -> frozenset[type]:
    """The layer classes of torch.nn, torchvision.models and torchvision.ops: building one runs no other code.

    Wrappers that start processes, or hold programs, are left out.
    """
    import_torchvision()
    excluded = ("torch.nn.parallel.distributed", "torch.nn.intrinsic", "torch.nn.qat", "torch.nn.quantized")
    found: set[type] = set()
    waiting = [nn.Module]
    while waiting:
        for child in waiting.pop().__subclasses__():
            if child not in found:
                found.add(child)
                waiting.append(child)
    homes = ("torch.nn.", "torchvision.models.", "torchvision.ops.")
    return frozenset(
        kind
        for kind in {nn.Module, *found}
        if kind is nn.Module
        or (kind.__module__.startswith(homes) and not kind.__module__.startswith(excluded))
        if not issubclass(kind, torch.fx.GraphModule | torch.jit.ScriptModule)
    )


def _safe_globals() -> list[Any]:
    listed: list[Any] = sorted(_allowed_classes(), key=lambda kind: kind.__qualname__)
    # Their configuration records hold numbers and layer classes.
    for module in ("mobilenetv3", "efficientnet"):
        namespace = inspect.getmodule(getattr(import_torchvision().models, module))
        listed += [
            v for v in vars(namespace).values() if inspect.isclass(v) and v.__name__.endswith("Config")
        ]
    # What training scripts keep beside the weights: plain values all.
    listed += [(ModulePartial, "functools.partial"), set, argparse.Namespace, PosixPath, np.dtype]
    listed.append(np._core.multiarray.scalar)  # type: ignore[attr-defined]
    listed += [
        type(np.dtype(kind)) for kind in (np.float16, np.float32, np.float64, np.int32, np.int64, bool)
    ]
    return listed


def _explain_refusal(path: Path, message: str) -> str:
    asked = [shown(name) for name in _asked_for(path, message)]
    dangerous = [name for name in asked if name.split(".")[0] in _NEVER]
    if dangerous:
        return (
            f"{path} asks to run {', '.join(dangerous)}, which no model needs: nothing was run; "
            "don't open it anywhere until you know who made it"
        )
    if asked:
        return (
            f"{path} needs the classes {', '.join(asked)}, which are not torch's or torchvision's: "
            "pass --trust if you made the file yourself (it may then run any code), "
            "or give its state dict with --arch"
        )
    return f"{path} is damaged or no PyTorch checkpoint ({first_line(ValueError(message))})"


def _asked_for(path: Path, message: str) -> list[str]:
    """What the file wants that is not on the list, `module.name` each."""
    # Files of the older format can't be listed; the refusal names the first.
    with contextlib.suppress(Exception), torch.serialization.safe_globals(_safe_globals()):
        return sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(path)))
    return sorted(set(re.findall(r"GLOBAL ([\w.]+)", message)))


def _find_module(content: Any) -> nn.Module | None:
    """The module that the file is, or holds under a usual key; wrappers taken off."""
    candidates = [content]
    if isinstance(content, Mapping):
        candidates += [content[key] for key in (*_STATE_KEYS, *_EMA_KEYS) if key in content]
    module = next((candidate for candidate in candidates if isinstance(candidate, nn.Module)), None)
    # DataParallel keeps the model as `module`, torch.compile as `_orig_mod`.
    while module is not None and list(module._modules) in (["module"], ["_orig_mod"]):
        module = next(module.children())
    return module


def _find_state(content: Any, source: str) -> dict[str, torch.Tensor]:
    """The state dict in it, as dense float32."""
    if not isinstance(content, Mapping):
        raise ModelError(f"{source} holds a {type(content).__name__}, not a model or a state dict")
    state = next(_states(content), None)
    if state is None:
        keys = ", ".join(map(repr, list(content)[:6])) or "nothing"
        raise ModelError(
            f"{source} holds no weights (its keys: {keys}); give a state dict, or a dict holding one"
        )
    return {name: _as_float(name, tensor, source) for name, tensor in state.items()}


def _states(content: Mapping[Any, Any]) -> Iterator[dict[str, torch.Tensor]]:
    """Every mapping of names to tensors: the content itself, then under the usual keys, one level deeper."""
    # An averaged model counts its averages beside its weights.
    tensors = {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor) and name != "n_averaged"
    }
    if len(tensors) > len(content) / 2 and any(value.ndim > 1 for value in tensors.values()):
        yield tensors
        return
    for key in (*_STATE_KEYS, *_EMA_KEYS):
        if isinstance(content.get(key), Mapping):
            yield from _states(content[key])


def _as_float(name: str, tensor: torch.Tensor, source: str) -> torch.Tensor:
    if tensor.is_quantized or (tensor.dtype in (torch.int8, torch.uint8) and tensor.ndim > 1):
        raise ModelError(
            f"{source} is quantised ({name} is {tensor.dtype}); give the float checkpoint it was made from"
        )
    dense = tensor if tensor.layout == torch.strided else tensor.to_dense()
    return dense.float() if dense.is_floating_point() else dense


def _class_names(content: Any) -> tuple[str, ...] | None:
    """Class names in the order of the outputs, from a list or from a mapping either way round."""
    if not isinstance(content, Mapping):
        return None
    for key in _NAME_KEYS:
        value = content.get(key)
        if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
            return tuple(value)
        if isinstance(value, Mapping) and value:
            by_index = {i: n for n, i in value.items()} if isinstance(next(iter(value)), str) else dict(value)
            if sorted(by_index) == list(range(len(by_index))):
                return tuple(str(by_index[index]) for index in range(len(by_index)))
    return None
