"""A user's file, or a name, becomes a module; nothing in a file runs unless it is trusted."""

from __future__ import annotations

import functools
import io
import os
import pickletools
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from torch import _weights_only_unpickler, nn

from advisor.errors import ModelError
from advisor.models.architectures import (
    NAMED_FORMS,
    Architecture,
    StateDict,
    build_with_weights,
    first_line,
    identify,
    import_torchvision,
    make_current_folder_importable,
    named_architecture,
    shown,
    stdout_to_stderr,
    stock_input_size,
    torchvision_names,
)

# Where checkpoints keep the weights, the likeliest first. Plain weights go before their moving
# average: they are what a training goes on from, and what its optimizer state belongs to.
_WEIGHT_KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "params",
    "weights",
    "module",
)
_AVERAGE_KEYS = ("ema", "state_dict_ema", "model_ema", "ema_state_dict", "params_ema")
_CLASS_KEYS = (
    "class_names",
    "classes",
    "CLASSES",
    "idx_to_class",
    "class_to_idx",
    "labels",
    "names",
)
_OPTIMIZER_KEYS = {"optimizer", "optimizer_state_dict", "param_groups"}

# Modules no model needs anything from; the second set also in the middle of a dotted name.
_HARMFUL_MODULES = {
    "asyncio",
    "code",
    "codeop",
    "commands",
    "http",
    "marshal",
    "multiprocessing",
    "nt",
}
_HARMFUL_MODULES |= {
    "operator",
    "pdb",
    "pickle",
    "pty",
    "requests",
    "runpy",
    "shutil",
    "signal",
    "smtplib",
}
_HARMFUL_MODULES |= {"socket", "tempfile", "threading", "timeit", "types", "urllib", "webbrowser"}
_HARMFUL_PARTS = {"builtins", "ctypes", "importlib", "os", "posix", "subprocess", "sys"}
_HARMFUL_BUILTINS = {
    "__import__",
    "breakpoint",
    "compile",
    "delattr",
    "eval",
    "exec",
    "execfile",
    "globals",
}
_HARMFUL_BUILTINS |= {"input", "locals", "open", "setattr", "vars"}

# First bytes of files that are certainly something else: what they are and what to give instead.
_SIGNATURES = {
    b"\x89HDF\r\n\x1a\n": "is an HDF5 file, such as Keras writes; give the PyTorch model",
    b"GGUF": "is a GGUF file; give the PyTorch model it was made from",
    b"\x1f\x8b": "is gzip-compressed; unpack it first",
    b"BZh": "is bzip2-compressed; unpack it first",
    b"\xfd7zXZ": "is xz-compressed; unpack it first",
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself; run git lfs pull",
    b"\x93NUMPY": "is a NumPy array, not a model",
}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to be examined."""

    module: nn.Module  # float32 parameters, on the CPU, in eval mode
    name: str  # the architecture's name such as "mobilenet_v2", or a pickled module's class name
    source: str  # as typed
    input_size: tuple[int, int, int] | None  # (C, H, W) where the architecture tells; None: must be asked for
    class_names: tuple[str, ...] | None  # where the checkpoint carries them
    has_trained_weights: bool  # False where it was built from a name


def load_model(source: str, *, arch: str | None = None, trust: bool = False) -> LoadedModel:
    """Load a file, or build what a name stands for, randomly initialised.

    Args:
        source: a file (whole pickled module, state dict or checkpoint dict as torch.save writes them,
            or safetensors), or `torchvision:NAME`, `timm:NAME`, `package.module:factory`.
        arch: the architecture that a state dict belongs to, in one of the last three forms; without
            it, it is looked for by names and shapes.
        trust: unpickle classes other than torch's and torchvision's, which runs code from the file.

    Raises:
        ModelError: the file or the name can't be read, recognised, built, or made to fit.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(source)
        is_there = _exists(path)
        architecture = None if is_there else named_architecture(source)
        if architecture is not None:
            if arch is not None:
                raise ModelError(f"{source} names an architecture itself; leave out --arch")
            module = _ready(architecture.build(None, None), source)
            size = architecture.input_size(module)
            return LoadedModel(module, architecture.name, source, size, None, has_trained_weights=False)
        if not is_there:
            _refuse_missing(source)
        given = named_architecture(arch) if arch is not None else None
        if arch is not None and given is None:
            raise ModelError(f"--arch {arch!r} is none of {NAMED_FORMS}")
        try:
            return _load_file(path, source, given, trust)
        except OSError as error:
            raise ModelError(f"{source}: can't be read: {error.strerror or first_line(error)}") from error


def _load_file(path: Path, source: str, given: Architecture | None, trust: bool) -> LoadedModel:
    content, unknown = _read(path, source, trust)
    weights = _find_weights(content)
    if unknown and (weights is None or (isinstance(weights, nn.Module) and _holds_stand_in(weights))):
        raise ModelError(
            f"{source}: it asks for classes that are neither torch's nor torchvision's: "
            f"{', '.join(map(shown, unknown))}; if you trust who made it, --trust loads them, which runs "
            "code from the file; or give its state dict, with --arch"
        )
    if weights is None:
        _refuse_content(source, content)
    if isinstance(weights, nn.Module):
        if given is not None:
            raise ModelError(f"{source}: it holds a whole module, architecture included; leave out --arch")
        module = _ready(_unwrapped(weights), source)
        name = type(module).__name__
        size = stock_input_size(module) or _own_input_size(module)
    else:
        state = {key: _usable(value, key, source) for key, value in weights.items()}
        try:
            architecture = given if given is not None else identify(state)
            module = _ready(build_with_weights(architecture, state), source)
        except ModelError as error:
            raise ModelError(str(error) if str(error).startswith(source) else f"{source}: {error}") from error
        name = architecture.name
        size = architecture.input_size(module)
    return LoadedModel(module, name, source, size, _class_names(content, module), has_trained_weights=True)


# What kind of file it is


def _exists(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a null byte
        return False


def _refuse_missing(source: str) -> NoReturn:
    if source.isidentifier() and source in torchvision_names():
        raise ModelError(f"there is no file {source!r}; for torchvision's network write torchvision:{source}")
    raise ModelError(f"there is no file {source!r}; MODEL is a file, {NAMED_FORMS}")


def _read(path: Path, source: str, trust: bool) -> tuple[Any, list[str]]:
    """What the file holds, and the classes it asks for that were replaced by stand-ins."""
    if path.is_dir():
        models = sorted(
            entry.name for entry in path.iterdir() if entry.suffix in {".pt", ".pth", ".safetensors"}
        )
        hint = f", such as {source.rstrip('/')}/{shown(models[0])}" if models else ""
        raise ModelError(f"{source}: is a folder; give the model file in it{hint}")
    if not path.is_file():
        raise ModelError(f"{source}: is not a regular file")
    size = path.stat().st_size
    if size == 0:
        raise ModelError(f"{source}: is empty; save or download it again")
    with path.open("rb") as file:
        head = file.read(512)
    for signature, meaning in _SIGNATURES.items():
        if head.startswith(signature):
            raise ModelError(f"{source}: {meaning}")
    if head[4:8] == b"TFL3":
        raise ModelError(f"{source}: is a TensorFlow Lite model; give the PyTorch model it was made from")
    if head[:4] == b"PK\x03\x04":
        return _read_pickle(path, source, trust, _zipped_pickle(path, source))
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        return _read_safetensors(path, source), []
    if head[:1] == b"\x80":
        return _read_pickle(path, source, trust, None)
    raise ModelError(f"{source}: {_unknown_content(head, path)}")


def _unknown_content(head: bytes, path: Path) -> str:
    give = "give a PyTorch .pt, .pth or .safetensors file"
    # ONNX: field 1, the IR version; then producer, domain or graph.
    is_onnx = (
        len(head) > 2 and head[0] == 8 and 3 <= head[1] <= 32 and head[2] in (0x12, 0x1A, 0x22, 0x3A, 0x42)
    )
    if is_onnx or path.suffix == ".onnx":
        return "is an ONNX model; give the PyTorch model it was exported from"
    if head[257:262] == b"ustar":
        return (
            "is a tar archive, or was saved before torch 0.1.10; unpack it, or save it again with torch.save"
        )
    try:
        text = head.decode("utf-8", errors="strict" if len(head) < 512 else "ignore")
    except UnicodeDecodeError:
        return f"is not a model file: its first bytes are of no known format; {give}"
    if not all(character.isprintable() or character.isspace() for character in text):
        return f"is not a model file: its first bytes are of no known format; {give}"
    if text.lstrip().lower().startswith(("<!doctype html", "<html")):
        return "is a web page, not a model: the download went wrong; download it again"
    return f"is a text file, not a model; {give}"


def _zipped_pickle(path: Path, source: str) -> bytes:
    """The pickle inside a file of torch.save. Raises ModelError for every other zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.partition("/")[2] or info.filename: info for info in archive.infolist()}
            if "constants.pkl" in members:
                _refuse_graph(source, "TorchScript", "torch.jit")
            if members.keys() & {"archive_format", "serialized_exported_program.json"} or any(
                name.endswith(("models/model.json", "serialized_exported_program.json")) for name in members
            ):
                _refuse_graph(source, ".pt2 (torch.export)", "torch.export")
            if any(info.filename.endswith(".npy") for info in archive.infolist()):
                raise ModelError(f"{source}: is a NumPy .npz file, not a model; data goes to --data")
            if (
                members.keys() & {"model.weights.h5", "config.json", "metadata.json"}
                and "data.pkl" not in members
            ):
                raise ModelError(f"{source}: is a Keras model; give a PyTorch model")
            if "data.pkl" not in members:
                raise ModelError(f"{source}: is a zip archive, but not one of torch.save's; unpack it first")
            # torch.save compresses nothing; a small archive must not unfold into a huge one.
            if sum(info.file_size for info in members.values()) > path.stat().st_size:
                raise ModelError(f"{source}: is a compressed zip archive; unpack it, or torch.save it again")
            return archive.read(members["data.pkl"])
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ModelError(_damaged(source)) from error


def _refuse_graph(source: str, kind: str, saver: str) -> NoReturn:
    raise ModelError(
        f"{source}: is a {kind} file, whose layers can't be adapted and which is not supported yet; give the "
        f"module's state dict, or the whole module saved with torch.save instead of {saver}.save"
    )


def _damaged(source: str) -> str:
    return f"{source}: is damaged or cut short; download or save it again"


def _read_safetensors(path: Path, source: str) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ModelError(_damaged(source)) from error


# Pickles


class _StandIn:
    """Takes the place of a class that is not allowed; it remembers nothing and does nothing.

    Training scripts put run settings and metrics of their own classes beside the weights: with
    stand-ins for these the weights can be read without running any of their code.
    """

    def __new__(cls, *args: object, **kwargs: object) -> _StandIn:  # noqa: ARG004
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Drop it."""


class _ModulePartial(functools.partial):  # type: ignore[type-arg]
    """`functools.partial` of allowed module classes only, as vision transformers keep one."""

    def __new__(cls, func: Any, /, *args: Any, **kwargs: Any) -> _ModulePartial:
        _check_partial(func)
        return super().__new__(cls, func, *args, **kwargs)

    def __setstate__(self, state: Any) -> None:
        func, args, kwargs, _ = state
        _check_partial(func)
        super().__setstate__((func, args, kwargs, None))

    def __reduce__(self) -> tuple[Any, ...]:
        # Saved again, it is the plain one, so that other programs can read it.
        rebuilt = functools.partial(self.func, *self.args, **self.keywords)
        return rebuilt.__reduce__()


def _check_partial(func: object) -> None:
    if not isinstance(func, type) or func not in set(allowed_classes().values()) - {_ModulePartial}:
        raise ValueError("functools.partial of something that is not a module class")


@lru_cache(maxsize=1)
def allowed_classes() -> Mapping[str, type]:
    """What a file may name, by dotted path: the layers of torch.nn and torchvision's classifiers.

    A file can call each of these with any arguments and set any attribute of theirs, so only classes
    that compute belong here. None of them reads files, imports, compiles or evaluates text;
    torchvision's feature extraction is left out since a GraphModule runs the code it is given, and so
    are torch.jit, torch.fx and everything distributed.
    """
    vision = import_torchvision()
    homes = [module for name, module in vars(nn.modules).items() if _is_home(module, "torch.nn.modules.")]
    homes += [module for module in vars(vision.models).values() if _is_home(module, "torchvision.models.")]
    homes += [module for module in vars(vision.ops).values() if _is_home(module, "torchvision.ops.")]
    allowed: dict[str, type] = {"torch.nn.parallel.data_parallel.DataParallel": nn.DataParallel}
    home_names = {home.__name__ for home in homes}
    for home in homes:
        for name, value in vars(home).items():
            if (
                isinstance(value, type)
                and issubclass(value, nn.Module)
                and value.__module__ in home_names
                and not issubclass(value, torch.fx.GraphModule | torch.jit.ScriptModule)
            ):
                allowed[f"{home.__name__}.{name}"] = value
    return allowed | {"functools.partial": _ModulePartial}


def _is_home(value: object, prefix: str) -> bool:
    """Whether it is a plain module file right inside the package, other than the excluded ones."""
    name = getattr(value, "__name__", "") if hasattr(value, "__file__") else ""
    rest = name.removeprefix(prefix)
    is_inside = name.startswith(prefix) and "." not in rest and not hasattr(value, "__path__")
    return is_inside and not rest.startswith("_") and rest != "feature_extraction"


def _read_pickle(path: Path, source: str, trust: bool, zipped: bytes | None) -> tuple[Any, list[str]]:
    """The object in a file of torch.save, old format or new, and the stand-ins' class names."""
    try:
        if zipped is not None:
            asked = _globals([io.BytesIO(zipped)])
        else:
            with path.open("rb") as file:
                # A magic number, the format's version, the machine's, and the object.
                asked = _globals([file] * 4)
    except (ValueError, IndexError, UnicodeDecodeError, MemoryError, OverflowError) as error:
        raise ModelError(_damaged(source)) from error
    allowed = {name: allowed_classes()[name] for name in asked if name in allowed_classes()}
    unknown = sorted(asked - allowed.keys() - _weights_only_unpickler._get_allowed_globals().keys())
    harmful = [name for name in unknown if _is_harmful(name)]
    if trust and unknown:
        return _read_trusted(path, source), []
    if harmful:
        raise ModelError(
            f"{source}: refused: loading it would call {', '.join(map(shown, harmful))}, which no model "
            "needs; nothing in it was run; it may be malicious, get the model from its makers"
        )
    if any("quantized" in name for name in unknown):
        raise ModelError(
            f"{source}: is a quantised model, which can't be fine-tuned; give the floating-point one"
        )
    stand_ins = [(_StandIn, name) for name in unknown]
    permitted = [(value, name) for name, value in allowed.items()]
    try:
        with torch.serialization.safe_globals([*permitted, *stand_ins]):
            return torch.load(path, map_location="cpu", weights_only=True), unknown
    except Exception as error:
        # torch's own text recommends to load it unsafely.
        if unknown:
            return _StandIn(), unknown
        if "Unsupported operand" in str(error):
            raise ModelError(
                f"{source}: is a pickle that can't be read safely (not torch.save's default protocol); "
                "save the model again with torch.save(model.state_dict(), file)"
            ) from error
        raise ModelError(_damaged(source)) from error


def _read_trusted(path: Path, source: str) -> Any:
    make_current_folder_importable()
    try:
        with stdout_to_stderr():
            return torch.load(path, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"{source}: a class that it asks for can't be imported ({first_line(error)}); run from the folder "
            "that holds its module, or give its state dict with --arch package.module:factory"
        ) from error
    except (Exception, SystemExit) as error:
        raise ModelError(f"{source}: can't be loaded: {type(error).__name__}: {first_line(error)}") from error


def _globals(streams: Iterable[BinaryIO]) -> set[str]:
    """The dotted names of everything that the pickles ask for, found without running them."""
    asked: set[str] = set()
    for stream in streams:
        strings: list[str] = []
        memo: dict[int, str] = {}
        is_magic_number = False
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in ("GLOBAL", "INST"):
                asked.add(_dotted(*argument.split(" ", 1)))
            elif opcode.name == "STACK_GLOBAL":
                asked.add(_dotted(*strings[-2:]) if len(strings) > 1 else "an unnamed function")
            elif isinstance(argument, str):
                strings.append(argument)
            elif opcode.name == "MEMOIZE" and strings:
                memo[len(memo)] = strings[-1]
            elif opcode.name in ("BINGET", "LONG_BINGET") and argument in memo:
                strings.append(memo[argument])
            is_magic_number |= argument == torch.serialization.MAGIC_NUMBER
        if not is_magic_number and isinstance(stream, io.BufferedReader) and stream.tell() == 0:
            break
    return asked


def _dotted(module: str, name: str) -> str:
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def _is_harmful(name: str) -> bool:
    parts = name.split(".")
    if parts[0] == "builtins":
        return parts[1] in _HARMFUL_BUILTINS
    return parts[0] in _HARMFUL_MODULES or not _HARMFUL_PARTS.isdisjoint(parts)


def _holds_stand_in(module: nn.Module) -> bool:
    """Whether any attribute of a module was replaced: the module would then not work as saved."""
    seen: set[int] = set()
    waiting: list[Any] = [module]
    while waiting:
        value = waiting.pop()
        if isinstance(value, _StandIn) or value is _StandIn:
            return True
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            waiting.append(vars(value))
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
        elif isinstance(value, functools.partial):
            waiting += [value.args, value.keywords]
    return False


# What the file holds


def _find_weights(content: Any, depth: int = 2) -> nn.Module | StateDict | None:
    """The module or the state dict in a checkpoint, its weights before their moving average."""
    if isinstance(content, nn.Module):
        return content
    if not isinstance(content, dict) or not content:
        return None
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    # Some write the epoch and the like right beside the weights.
    if tensors and (len(tensors) == len(content) or any("." in str(key) for key in tensors)):
        return {str(key): value for key, value in tensors.items()}
    if not depth or "param_groups" in content:
        return None
    others = [key for key in content if key not in _OPTIMIZER_KEYS]
    for key in dict.fromkeys((*_WEIGHT_KEYS, *_AVERAGE_KEYS, *others)):
        found = _find_weights(content.get(key), depth - 1)
        if found is not None:
            return found
    return None


def _refuse_content(source: str, content: Any) -> NoReturn:
    if isinstance(content, dict) and content.keys() & _OPTIMIZER_KEYS:
        raise ModelError(
            f"{source}: holds an optimizer's state, but no model; give the checkpoint of the model"
        )
    if isinstance(content, dict):
        keys = ", ".join(shown(str(key)) for key in list(content)[:5]) or "nothing"
        raise ModelError(f"{source}: holds no weights (it has {keys}); give a state dict or a whole module")
    kind = type(content).__name__
    raise ModelError(f"{source}: holds a {kind}, not a model; give a state dict or a whole module")


def _usable(tensor: torch.Tensor, name: str, source: str) -> torch.Tensor:
    """The tensor in float32, or as it is where it holds whole numbers.

    Raises:
        ModelError: it is sparse, quantised or complex, or claims more values than are stored.
    """
    problem = ""
    if tensor.is_quantized or tensor.dtype in (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2):
        problem = "is quantised, which can't be fine-tuned; give the floating-point model"
    elif tensor.layout != torch.strided:
        problem = "is a sparse tensor; save it after .to_dense()"
    elif tensor.is_complex():
        problem = "holds complex numbers; only real ones are supported"
    elif tensor.is_meta:
        problem = "has a shape but no values; save the model after its weights are loaded"
    elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        # A few bytes may claim to be a terabyte by repeating themselves.
        problem = "has more values than the file stores; save it after .contiguous()"
    if problem:
        raise ModelError(f"{source}: its entry {shown(name)} {problem}")
    tensor = tensor.detach()
    return tensor.float() if tensor.is_floating_point() else tensor


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module inside DataParallel, torch.compile and weight-averaging wrappers."""
    wrappers = {"DataParallel", "DistributedDataParallel", "OptimizedModule", "AveragedModel"}
    while type(module).__name__ in wrappers:
        inner = getattr(module, "_orig_mod", None) or getattr(module, "module", None)
        if not isinstance(inner, nn.Module):
            break
        module = inner
    return module


def _ready(module: nn.Module, source: str) -> nn.Module:
    """The module in float32, on the CPU, in eval mode."""
    try:
        for name, tensor in _tensors(module):
            _usable(tensor, name, source)
        return module.cpu().float().eval()
    except ModelError:
        raise
    except Exception as error:  # a pickled module can hold anything
        raise ModelError(f"{source}: its module is not intact ({first_line(error)})") from error


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if not nn.parameter.is_lazy(tensor):
            yield name, tensor


def _own_input_size(module: nn.Module) -> tuple[int, int, int] | None:
    size = getattr(module, "input_size", None)
    if isinstance(size, tuple | list) and len(size) == 3 and all(type(n) is int and n > 0 for n in size):
        return (size[0], size[1], size[2])
    return None


def _class_names(content: Any, module: nn.Module) -> tuple[str, ...] | None:
    """The class names in a checkpoint or on a module, in the order of the outputs."""
    places = [content] if isinstance(content, dict) else []
    places += (
        [place for key in ("meta", "args", "hyper_parameters") if isinstance(place := content.get(key), dict)]
        if places
        else []
    )
    places += [vars(module)]
    outputs = [layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear)]
    outputs += [layer.out_channels for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    for place in places:
        for key in _CLASS_KEYS:
            names = _as_names(place.get(key))
            # A list of another length describes something else.
            if names is not None and len(names) in outputs:
                return names
    return None


def _as_names(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, dict):
        if all(type(index) is int for index in value.values()):
            value = {index: name for name, index in value.items()}  # class_to_idx
        indices = {int(key): name for key, name in value.items() if str(key).isdecimal()}
        value = [indices.get(index) for index in range(len(value))]
    if not isinstance(value, list | tuple) or not value or not all(isinstance(name, str) for name in value):
        return None
    return tuple(shown(name) for name in value)
