"""A user's file, or a name, becomes a module. Files are untrusted: nothing in one runs without `trust`.

A file is recognised by its content. `torch.load(weights_only=True)` builds only what is on a list: here
torch's own and the layer classes of torch.nn and torchvision. Whatever else is asked for is named.
"""

from __future__ import annotations

import copy
import functools
import io
import os
import pickle
import pickletools
import re
import sys
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal, NoReturn, Self

import torch
from torch import _weights_only_unpickler, nn

from advisor.errors import ModelError
from advisor.models.architectures import (
    Architecture,
    StateDict,
    build_with_weights,
    declared_input_size,
    first_line,
    identify,
    import_torchvision,
    make_current_folder_importable,
    named_architecture,
    shown,
    stdout_to_stderr,
    stock_architecture,
    stock_input_size,
)
from advisor.models.images import ImageConfiguration, image_configuration
from advisor.names import NAMED_FORMS, missing_model

# Where checkpoints keep the weights, the likeliest first. Plain weights go before their moving average:
# they are what a training goes on from.
_PLAIN_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "params",
    "weights",
)
_AVERAGE_KEYS = ("ema", "state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "averaged_model")
_CLASS_KEYS = ("class_names", "classes", "CLASSES", "idx_to_class", "class_to_idx", "labels", "names")
_OPTIMIZER_KEYS = {"optimizer", "optimizer_state_dict", "optimizer_state", "optimizer_states", "param_groups"}

# Modules no model needs anything of; those of the second set also inside a dotted name (torch.os.system).
_HARMFUL = {"asyncio", "code", "commands", "http", "marshal", "multiprocessing", "operator", "pdb", "pickle"}
_HARMFUL |= {"pty", "requests", "runpy", "shutil", "signal", "smtplib", "socket", "tempfile", "threading"}
_HARMFUL |= {"timeit", "types", "urllib", "webbrowser"}
_HARMFUL_ANYWHERE = {"ctypes", "importlib", "nt", "os", "posix", "subprocess", "sys"}
_HARMFUL_PREFIXES = ["torch.load", "torch.hub.", "torch.jit.", "torch.utils.cpp_extension."]
_HARMFUL_PREFIXES += ["numpy.load", "io.open", "_io.", "codecs.open"]
_HARMFUL_BUILTINS = {"__import__", "breakpoint", "compile", "delattr", "eval", "exec", "execfile", "globals"}
_HARMFUL_BUILTINS |= {"input", "locals", "open", "setattr", "vars"}

_LEGACY_MAGIC = (
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first of torch.save's older format's pickles
)
# First bytes of files that are certainly something else.
_SIGNATURES = {
    b"\x89HDF\r\n\x1a\n": "is an HDF5 file, such as Keras writes; give the PyTorch model",
    b"GGUF": "is a GGUF file; give the PyTorch model that it was made from",
    b"\x1f\x8b": "is gzip-compressed; unpack it first",
    b"BZh": "is bzip2-compressed; unpack it first",
    b"\xfd7zXZ": "is xz-compressed; unpack it first",
    b"\x93NUMPY": "is a NumPy array, not a model",
    b"version https://git-lfs": "is a Git LFS pointer, not the model itself; run git lfs pull",
}
# Field 1, the version of the format; then the producer, its version, the domain or the graph.
_ONNX_START = re.compile(rb"\x08[\x03-\x20][\x12\x1a\x22\x3a\x42]")
_DAMAGED = "is damaged or cut short; download or save it again"


Form = Literal["module", "state_dict", "safetensors", "named"]


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
    images: ImageConfiguration | None = None  # what timm's configuration says, where it has one


def load_model(source: str, *, arch: str | None = None, trust: bool = False) -> LoadedModel:
    """Load a model from a file, or build a named one.

    Args:
        source: a file of torch.save (whole module, state dict or checkpoint dict), a safetensors file,
            `torchvision:NAME`, `timm:NAME` or `package.module:factory`.
        arch: the architecture of a bare state dict, in one of the three named forms; None: it is
            found by names and shapes.
        trust: let the file run its own code. Only for files that the user made.

    Raises:
        ModelError: the file can't be read, is no model, asks for code, or fits no architecture.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch, torchvision and timm are not the user's
        path = Path(source)
        named = None if _exists(path) else named_architecture(source)
        if named is not None:
            if arch is not None:
                raise ModelError(f"{source} names an architecture itself: leave out --arch")
            module = named.build(None, None)
            trained = _is_own_code(source) and _builds_again(named, module)
            return replace(_loaded(module, named, source), form="named", has_trained_weights=trained)
        given = None if arch is None else named_architecture(arch)
        if arch is not None and given is None:
            raise ModelError(f"--arch {arch!r} is not known; give {NAMED_FORMS}")
        try:
            return _load_file(path, source, given, trust)
        except ModelError as error:
            raise ModelError(f"{source}: {error}") from error
        except OSError as error:
            raise ModelError(f"{source}: can't be read: {error.strerror or first_line(error)}") from error


def load_module(module: nn.Module) -> LoadedModel:
    """A copy of a module that is there already, made ready as one from a file is.

    Raises:
        ModelError: it is quantised, on no device or otherwise not intact.
    """
    name = type(module).__name__
    try:
        copied = copy.deepcopy(module)
    except Exception as error:  # a module may hold anything
        raise ModelError(
            f"{name} can't be copied ({first_line(error)}); give a file, or its state dict"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `load_model`
        return replace(_loaded(_unwrapped(copied), None, name, {}), source=name)


def _is_own_code(source: str) -> bool:
    """Whether the user's own factory builds the network: it may load weights, which a mere name doesn't."""
    return source.partition(":")[0] not in ("torchvision", "timm")


def _builds_again(named: Architecture, module: nn.Module) -> bool:
    """Whether the factory gives the same weights twice: then they were not drawn at random."""
    try:
        own, again = module.state_dict(), named.build(None, None).state_dict()
        return own.keys() == again.keys() and all(torch.equal(own[name], again[name]) for name in own)
    except Exception:  # noqa: BLE001 - the user's own code, or weights that are not made yet
        return False


def _load_file(path: Path, source: str, given: Architecture | None, trust: bool) -> LoadedModel:
    content, unknown = _read(path, trust)
    weights = _find_weights(content)
    if unknown and (weights is None or (isinstance(weights, nn.Module) and _holds_stand_in(weights))):
        names = ", ".join(map(shown, unknown))
        raise ModelError(
            f"needs the classes {names}, which are not torch's or torchvision's; pass --trust if you made "
            "the file yourself: it runs code from the file; or give its state dict, with --arch"
        )
    if weights is None:
        _refuse_content(content)
    if isinstance(weights, nn.Module):
        if given is not None:
            raise ModelError("holds a whole module, not a bare state dict: leave out --arch")
        return _loaded(_unwrapped(weights), None, source, content)
    state = {name: _usable(value, name) for name, value in weights.items()}
    architecture = given or identify(state)
    loaded = _loaded(build_with_weights(architecture, state), architecture, source, content)
    return replace(
        loaded,
        form="safetensors" if path.suffix == ".safetensors" else "state_dict",
        key_prefix=_key_prefix(state, loaded.module),
    )


def _key_prefix(names: Iterable[str], module: nn.Module) -> str:
    """What wrappers put before the module's own names, where all of them carry it."""
    own = module.state_dict().keys()
    first = next(iter(module.state_dict()))
    found = [name.removesuffix(first) for name in names if name.endswith(first)]
    known = {*names}
    # A counter of batches may be missing in the file.
    return max(found, key=lambda prefix: sum(prefix + name in known for name in own), default="")


def _loaded(
    module: nn.Module, architecture: Architecture | None, source: str, content: Any = None
) -> LoadedModel:
    """The module in float32, on the CPU, in eval mode, with what else is known; content: the file's."""
    try:
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if not nn.parameter.is_lazy(tensor):
                _usable(tensor, name)
        module = module.cpu().float().eval()
        architecture = architecture or stock_architecture(module)
        size = stock_input_size(module) if architecture is None else architecture.input_size(module)
        size = declared_input_size(module) or size
        names = _class_names(content, module)
        images = image_configuration(module)
    except ModelError:
        raise
    except Exception as error:  # a pickled module may hold anything
        raise ModelError(f"its module is not intact ({first_line(error)}); save it again") from error
    name = type(module).__name__ if architecture is None else architecture.name
    return LoadedModel(
        module, name, source, size, names, has_trained_weights=content is not None, images=images
    )


# What kind of file it is


def _exists(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a null byte in the name
        return False


def _read(path: Path, trust: bool) -> tuple[Any, list[str]]:
    """What the file holds, and the names of the classes in it that were replaced by stand-ins."""
    if not _exists(path):
        raise ModelError(missing_model(str(path)))
    if path.is_dir():
        models = sorted(
            each.name for each in path.iterdir() if each.suffix in {".pt", ".pth", ".safetensors"}
        )
        raise ModelError(
            f"is a folder; give the model file in it{f', such as {shown(models[0])}' if models else ''}"
        )
    if not path.is_file():
        raise ModelError("is not a regular file")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ModelError("is empty; was it copied completely?")
    if head[:4] == b"PK\x03\x04":
        return _read_pickle(path, _zipped_pickle(path), trust)
    if head[:1] == b"\x80":
        return _read_pickle(path, None, trust, is_torch=head.startswith(_LEGACY_MAGIC))
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header < 10**8:
        return _read_safetensors(path), []
    raise ModelError(_unknown_content(head, path.suffix))


def _unknown_content(head: bytes, suffix: str) -> str:
    for signature, meaning in _SIGNATURES.items():
        if head.startswith(signature):
            return meaning
    if head[4:8] == b"TFL3":
        return "is a TensorFlow Lite model; give the PyTorch model that it was made from"
    if suffix == ".onnx" or _ONNX_START.match(head):
        return "is an ONNX model; give the PyTorch model that it was exported from"
    if head[257:262] == b"ustar":
        return "is a tar archive, or was saved by torch before 0.1.10; unpack it, or torch.save it again"
    text = head.decode("utf-8", errors="ignore")
    if text.lstrip().lower().startswith(("<!doctype html", "<html")):
        return "is a web page, not a model; the download went wrong: try it again"
    # The first bytes read may end inside a character.
    is_text = len(head) - len(text.encode()) < 4 and all(
        each.isprintable() or each.isspace() for each in text
    )
    kind = "is a text file" if is_text else "is of no known format"
    return f"{kind}, not a model; give a PyTorch .pt or .pth file, or .safetensors"


def _zipped_pickle(path: Path) -> bytes:
    """The pickle inside a file of torch.save. Raises ModelError for every other zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.rpartition("/")[2]: info for info in archive.infolist()}
            if "constants.pkl" in members:
                raise ModelError(_graph("TorchScript", "scripted"))
            if members.keys() & {"archive_format", "serialized_exported_program.json"}:
                raise ModelError(_graph("a torch.export program (.pt2)", "exported"))
            if any(name.endswith(".npy") for name in members):
                raise ModelError("is a NumPy .npz file, not a model; data goes to --data")
            if "model.weights.h5" in members:
                raise ModelError("is a Keras model; give the PyTorch model")
            if "data.pkl" not in members:
                raise ModelError("is a zip archive, but none that torch.save wrote; unpack it first")
            # torch.save compresses nothing, and a small archive must not unfold into a huge one.
            if sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
                raise ModelError("is a compressed zip archive; unpack it, or torch.save the model again")
            return archive.read(members["data.pkl"])
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ModelError(_DAMAGED) from error


def _graph(kind: str, made: str) -> str:
    return (
        f"is {kind}, a graph without modules that methods could be attached to; give the state dict or "
        f"the module that it was {made} from"
    )


def _read_safetensors(path: Path) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ModelError(_DAMAGED) from error


# Pickles


class StandIn:
    """Takes the place of a class that is not allowed; remembers nothing, does nothing.

    Training scripts keep run settings and metrics of foreign classes beside the weights: with stand-ins
    for these, the weights are read without running any foreign code.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class ModulePartial(functools.partial[nn.Module]):
    """What a pickled `functools.partial` becomes: one that can only build layers.

    Vision transformers keep `partial(LayerNorm, eps=1e-6)`. The real one would call anything.
    """

    def __new__(cls, func: Any, /, *args: Any, **kwargs: Any) -> Self:
        """Raises UnpicklingError where func is not an allowed class."""
        if func not in allowed_classes().values():
            raise pickle.UnpicklingError(f"functools.partial of {func!r} is not a layer")
        return super().__new__(cls, func, *args, **kwargs)

    def __setstate__(self, state: Any) -> None:
        func, args, keywords, _ = state
        type(self)(func)
        super().__setstate__((func, args, keywords, None))  # type: ignore[misc]

    def __reduce__(self) -> tuple[Any, ...]:
        # Saved again, it is the plain one, which other programs can read.
        func, args, keywords = self.func, self.args, self.keywords
        return functools.partial, (func,), (func, args, keywords, None)


@cache
def allowed_classes() -> Mapping[str, type]:
    """The layer classes that a file may name, by dotted path.

    A file can call each with any arguments and set any attribute of the result, so only classes that
    compute belong here: those of torch.nn.modules, of torchvision's classification models and of its
    operators. None of them opens files, imports or evaluates text. Left out is whatever holds programs
    (torch.fx, torch.jit, torchvision's feature extraction), starts processes or is no classifier.
    """
    import_torchvision()
    # Not by attribute: functions hide some modules, such as torchvision.models.googlenet.
    homes = {
        name: module
        for name, module in sys.modules.items()
        if name.rpartition(".")[0] in ("torch.nn.modules", "torchvision.models", "torchvision.ops")
        and not hasattr(module, "__path__")
        and not name.endswith((".feature_extraction", "._utils", "._api"))
    }
    allowed: dict[str, type] = {
        f"{home}.{name}": value
        for home, module in homes.items()
        for name, value in vars(module).items()  # classes that moved keep their old path here
        if isinstance(value, type)
        and issubclass(value, nn.Module)
        and value.__module__ in homes
        and not issubclass(value, torch.fx.GraphModule | torch.jit.ScriptModule)
    }
    return allowed | {"torch.nn.parallel.data_parallel.DataParallel": nn.DataParallel}


def _read_pickle(
    path: Path, zipped: bytes | None, trust: bool, is_torch: bool = True
) -> tuple[Any, list[str]]:
    """The object in a file of torch.save, and the names of the classes that became stand-ins.

    zipped: the pickle inside a file of the present format; None: the file is of the older one.
    """
    try:
        if zipped is not None:
            asked = _asked_for(io.BytesIO(zipped))
        else:
            with path.open("rb") as file:
                # In the older format a magic number and two descriptions come before the object.
                asked = set().union(*(_asked_for(file) for _ in range(4 if is_torch else 1)))
    except Exception as error:
        raise ModelError(_DAMAGED) from error
    allowed = {name: kind for name, kind in _importable().items() if name in asked}
    unknown = sorted(asked - allowed.keys() - _weights_only_unpickler._get_allowed_globals().keys())
    if unknown and trust and is_torch:
        return _read_trusted(path), []
    if harmful := [shown(name) for name in unknown if _is_harmful(name)]:
        raise ModelError(
            f"asks to run {', '.join(harmful)}, which no model needs; nothing was run; "
            "don't open it anywhere until you know who made it"
        )
    if not is_torch:
        raise ModelError("is a plain pickle; save the model with torch.save(model.state_dict(), file)")
    if any("quantized" in name for name in unknown):
        raise ModelError("is quantised; give the floating-point model that it was made from")
    stand_ins = [(StandIn, name) for name in unknown]
    try:
        with torch.serialization.safe_globals(
            [*((kind, name) for name, kind in allowed.items()), *stand_ins]
        ):
            return torch.load(path, map_location="cpu", weights_only=True), unknown
    except Exception as error:  # its text recommends to load the file unsafely
        if unknown:
            return StandIn(), unknown
        if "Unsupported operand" in str(error):
            raise ModelError(
                "is not in torch.save's default pickle protocol, the only one that can be read safely; "
                "save it again with torch.save(model.state_dict(), file)"
            ) from error
        raise ModelError(_DAMAGED) from error


def _importable() -> Mapping[str, type]:
    return {**allowed_classes(), "functools.partial": ModulePartial}


def _read_trusted(path: Path) -> Any:
    make_current_folder_importable()
    try:
        with stdout_to_stderr():
            return torch.load(path, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"needs code that can't be imported ({first_line(error)}); run from the folder that holds it, "
            "or give its state dict with --arch package.module:factory"
        ) from error
    except (Exception, SystemExit) as error:
        raise ModelError(f"can't be loaded: {type(error).__name__}: {first_line(error)}") from error


def _asked_for(stream: IO[bytes]) -> set[str]:
    """The dotted names that the stream's next pickle asks for, found without running it."""
    asked: set[str] = set()
    strings: list[str] = []
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            module, _, name = str(argument).partition(" ")
            asked.add(f"{IMPORT_MAPPING.get(module, module)}.{name}")  # __builtin__ was Python 2's builtins
        elif opcode.name == "STACK_GLOBAL":
            asked.add(".".join(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = strings[-1] if strings else ""
        elif opcode.name in ("BINGET", "LONG_BINGET") and isinstance(argument, int):
            strings.append(memo.get(argument, ""))
    return asked


def _is_harmful(name: str) -> bool:
    first, *rest = name.split(".")
    if first == "builtins":
        return rest[:1] != [] and rest[0] in _HARMFUL_BUILTINS
    return (
        name.startswith(tuple(_HARMFUL_PREFIXES))
        or first in _HARMFUL
        or not _HARMFUL_ANYWHERE.isdisjoint((first, *rest))
    )


def _holds_stand_in(module: nn.Module) -> bool:
    """Whether anything inside the module was replaced: it would not work as it was saved."""
    seen: set[int] = set()
    waiting: list[Any] = [module]
    while waiting:
        value = waiting.pop()
        if value is StandIn or isinstance(value, StandIn):
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
    """The module or the state dict in a checkpoint: itself, or at most two dicts down.

    Raises:
        ModelError: there are several under keys of their own, or they are quantised.
    """
    if isinstance(content, nn.Module):
        return content
    if not isinstance(content, dict) or "param_groups" in content:
        return None
    tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    # Some write the epoch and the like right beside the weights.
    if tensors and (len(tensors) == len(content) or any("." in key for key in tensors)):
        if any("_packed_params" in str(key) for key in content):
            raise ModelError("is quantised; give the floating-point model that it was made from")
        return tensors
    if depth == 0:
        return None
    for key in (*_PLAIN_KEYS, *_AVERAGE_KEYS):
        found = _find_weights(content.get(key), depth - 1)
        if found is not None or isinstance(content.get(key), StandIn):
            return found
    others = {
        str(key): _find_weights(value, 0) for key, value in content.items() if key not in _OPTIMIZER_KEYS
    }
    several = [key for key, found in others.items() if found is not None]
    if len(several) > 1:
        names = ", ".join(map(shown, several[:5]))
        raise ModelError(f"holds several models ({names}); save the state dict of one of them alone")
    return others[several[0]] if several else None


def _refuse_content(content: Any) -> NoReturn:
    if not isinstance(content, dict):
        raise ModelError(f"holds a {type(content).__name__}, not a model or a state dict")
    if content.keys() & _OPTIMIZER_KEYS:
        raise ModelError("holds an optimizer's state, but no weights; give the checkpoint of the model")
    keys = ", ".join(shown(str(key)) for key in list(content)[:5]) or "nothing"
    raise ModelError(f"holds no weights (its keys: {keys}); give a state dict, or a dict holding one")


def _usable(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """The tensor in float32, or as it is where it holds whole numbers.

    Raises:
        ModelError: it is quantised, sparse, complex, without values, or claims more than are stored.
    """
    problem = ""
    if tensor.is_quantized or (tensor.dtype in (torch.int8, torch.uint8) and tensor.ndim > 1):
        problem = "is quantised; give the floating-point model that it was made from"
    elif tensor.layout != torch.strided:
        problem = "is a sparse tensor; save it after .to_dense()"
    elif tensor.is_complex():
        problem = "holds complex numbers; only real ones can be fine-tuned here"
    elif tensor.is_meta:
        problem = "has a shape but no values; save the model after its weights are loaded"
    elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        # A few stored bytes may claim to be terabytes by repeating themselves.
        problem = "has more values than are stored; save it after .contiguous()"
    if problem:
        raise ModelError(f"its entry {shown(name)} {problem}")
    tensor = tensor.detach()
    return tensor.float() if tensor.is_floating_point() else tensor


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module inside the wrappers of DataParallel, torch.compile and averaging."""
    wrappers = {"DataParallel", "DistributedDataParallel", "OptimizedModule", "AveragedModel"}
    while type(module).__name__ in wrappers:
        inner = module._modules.get("module") or module._modules.get("_orig_mod")
        if inner is None:
            break
        module = inner
    return module


def _class_names(content: Any, module: nn.Module) -> tuple[str, ...] | None:
    """Class names in the order of the outputs, from the checkpoint or the module; None without."""
    places: list[Any] = [vars(module)]
    if isinstance(content, dict):
        places = [content, content.get("meta"), content.get("hyper_parameters"), *places]
    outputs = {layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear)}
    outputs |= {layer.out_channels for layer in module.modules() if isinstance(layer, nn.Conv2d)}
    for place in places:
        for key in _CLASS_KEYS if isinstance(place, dict) else ():
            names = _as_names(place.get(key))
            if names is not None and len(names) in outputs:  # else it describes something other
                return names
    return None


def _as_names(value: Any) -> tuple[str, ...] | None:
    """Names from a list, or from a mapping either way round."""
    if isinstance(value, dict) and value:
        if all(isinstance(name, str) and type(index) is int for name, index in value.items()):
            value = {index: name for name, index in value.items()}
        by_index = {int(key): name for key, name in value.items() if str(key).isdecimal()}
        value = [by_index.get(index) for index in range(len(value))]
    if not isinstance(value, list | tuple) or not value or not all(isinstance(name, str) for name in value):
        return None
    return tuple(shown(name) for name in value)
