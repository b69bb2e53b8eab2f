"""What a pickle holds, read without running anything that it names, unless it is trusted.

Each class and function that a file names becomes a stand-in, which keeps what it was given and does nothing.
Tensors, and modules of listed classes - torch's own layers and torchvision's -, are then made from that, each
within what the file holds. Names that only an attack has are refused.
"""

from __future__ import annotations

import argparse
import functools
import io
import math
import os
import pickle
import struct
import sys
import types
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, ClassVar, Self

import torch
from torch import _weights_only_unpickler, nn

from advisor.errors import ModelError, is_out_of_memory
from advisor.models.architectures import (
    import_torchvision,
)
from advisor.models.named_code import make_current_folder_importable, stdout_to_stderr
from advisor.models.printable import first_line, shown

DAMAGED = "is damaged or cut short; download or save it again"
QUANTISED = "is quantised; give the floating-point model that it was made from"
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first of torch.save's older format's pickles

# Where layers stand, by library.
_HOMES = {"torch": ("torch.nn.modules",), "torchvision": ("torchvision.models", "torchvision.ops")}

# Modules no model needs anything of; those of the second set also inside a dotted name (torch.os.system).
_HARMFUL = {"asyncio", "code", "commands", "http", "marshal", "multiprocessing", "operator", "pdb", "pickle"}
_HARMFUL |= {"pty", "requests", "runpy", "shutil", "signal", "smtplib", "socket", "tempfile", "threading"}
_HARMFUL |= {"timeit", "types", "urllib", "webbrowser"}
_HARMFUL_ANYWHERE = {"ctypes", "importlib", "nt", "os", "posix", "subprocess", "sys"}
_HARMFUL_PREFIXES = ["torch.load", "torch.hub.", "torch.jit.", "torch.utils.cpp_extension."]
_HARMFUL_PREFIXES += ["numpy.load", "io.open", "_io.", "codecs.open"]
_HARMFUL_BUILTINS = {"__import__", "breakpoint", "compile", "delattr", "eval", "exec", "execfile", "globals"}
_HARMFUL_BUILTINS |= {"input", "locals", "open", "setattr", "vars"}
# Plain containers and readers of attributes, in modules that hold worse.
_HARMLESS = {"types.SimpleNamespace", "types.MappingProxyType", "types.GenericAlias"}
_HARMLESS |= {"operator.itemgetter", "operator.attrgetter", "multiprocessing.context.TimeoutError"}

_MAPPINGS = ("collections.OrderedDict", "collections.defaultdict", "collections.Counter")
# What older protocols make of a list, or, `_codecs.encode`, of a text.
_CONTAINERS = {f"builtins.{kind.__name__}": kind for kind in (set, frozenset, list, tuple, dict)}
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_HEAVIEST = 10**6  # values that a tuple may stand for, with what is inside it; real ones hold a few
_LONGEST_LINE = 10**6  # bytes


class StandIn:
    """Takes the place of a class or function that a file names: keeps what it is given, does nothing.

    Training scripts keep run settings and metrics of foreign classes beside the weights: with stand-ins
    for these, the weights and the settings are read without running any foreign code.
    """

    kind: ClassVar[str] = ""  # the dotted name
    arguments: tuple[Any, ...]
    state: Any
    elements: list[Any]  # of a list or a set
    pairs: list[tuple[Any, Any]]  # of a mapping

    def __new__(cls, *arguments: object, **_: object) -> Self:
        """Whatever the arguments are."""
        made = super().__new__(cls)
        made.arguments, made.state, made.elements, made.pairs = arguments, None, [], []
        return made

    def __init__(self, *arguments: object, **named: object) -> None:
        pass

    def __call__(self, *arguments: object, **_: object) -> StandIn:
        """As any function would be."""
        return StandIn(*arguments)

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        self.pairs.append((key, value))

    def append(self, value: object) -> None:
        """Of a list's subclass."""
        self.elements.append(value)

    def extend(self, values: list[object]) -> None:
        """Of a list's subclass."""
        self.elements.extend(values)

    def add(self, value: object) -> None:
        """Of a set's subclass."""
        self.elements.append(value)


def as_mapping(value: object) -> Mapping[Any, Any]:
    """What a dict, or a stand-in for an object or a dict's subclass, holds by name; {} for anything else."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, argparse.Namespace | types.SimpleNamespace):
        return vars(value)
    if not isinstance(value, StandIn):
        return {}
    states = value.state if isinstance(value.state, tuple) else (value.state,)
    held = {key: each for state in states if isinstance(state, dict) for key, each in state.items()}
    content = held.get("_content")  # OmegaConf's
    if isinstance(content, dict):
        return content
    return held | {key: each for key, each in value.pairs if isinstance(key, str | int)}


def plain(value: object) -> object:
    """A stand-in for a box around one value, as OmegaConf has, becomes that; others stay."""
    if isinstance(value, StandIn) and isinstance(value.state, dict) and "_val" in value.state:
        return value.state["_val"]
    if isinstance(value, StandIn) and value.elements:
        return value.elements
    return value


def is_module(value: object) -> bool:
    """Whether it is a module, or the stand-in for one."""
    return isinstance(value, nn.Module) or (
        isinstance(value, StandIn) and {"_modules", "_parameters"} <= as_mapping(value).keys()
    )


class ModulePartial(functools.partial[nn.Module]):
    """What a pickled `functools.partial` becomes: one that can only build layers.

    Vision transformers keep `partial(LayerNorm, eps=1e-6)`. The real one would call anything.
    """

    def __new__(cls, func: Any, /, *args: Any, **kwargs: Any) -> Self:
        """Raises UnpicklingError where func is not an allowed class."""
        if not _is_allowed(func):
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
def allowed_classes(library: str) -> Mapping[str, type]:
    """The layer classes of `torch` or `torchvision` that a file may name, by dotted path; none of others.

    A file can call each with any arguments and set any attribute of the result, so only classes that
    compute belong here: those of torch.nn.modules, of torchvision's classification models and of its
    operators. None of them opens files, imports or evaluates text. Left out is whatever holds programs
    (torch.fx, torch.jit, torchvision's feature extraction), starts processes or is no classifier.
    """
    if library == "torchvision":  # of files that name it alone: a second, for torch's compiler comes along
        import_torchvision()
    # Not by attribute: functions hide some modules, such as torchvision.models.googlenet.
    homes = {
        name: module
        for name, module in sys.modules.items()
        if name.rpartition(".")[0] in _HOMES.get(library, ())
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
    if library == "torch":
        allowed["torch.nn.parallel.data_parallel.DataParallel"] = nn.DataParallel
    return allowed


def _layer_class(name: str) -> type | None:
    """The listed layer of a dotted path; what a file says it is called costs nothing else."""
    library = name.partition(".")[0]
    return allowed_classes(library).get(name) if library in _HOMES else None


def _is_allowed(kind: Any) -> bool:
    return isinstance(kind, type) and _layer_class(f"{kind.__module__}.{kind.__qualname__}") is kind


def _importable(name: str) -> type | None:
    """What a file may name; None: nothing that it may."""
    return ModulePartial if name == "functools.partial" else _layer_class(name)


def read_pickle(
    path: Path, zipped: bytes | None, trust: bool, is_torch: bool = True
) -> tuple[Any, list[str]]:
    """The object in a file of torch.save, and the names in it that no list has: each is a stand-in now.

    Args:
        path: of the file.
        zipped: the pickle inside a file of the present format; None: the file is of the older one.
        trust: run what the file asks for, if it asks for anything that is not listed.
        is_torch: False: a plain pickle, which is refused with the right reason.

    Raises:
        ModelError: it is damaged, quantised, or asks to run what no model needs.
    """
    asked: set[str] = set()
    failure: Exception | None = None
    content = None
    try:
        with path.open("rb") as file:
            if not is_torch:
                _Inert(file, asked).load()
            else:
                content = _read_older(file, asked) if zipped is None else _read_zipped(file, zipped, asked)
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever was put into the file
        failure = error
    known = _weights_only_unpickler._get_allowed_globals().keys()
    unknown = sorted(name for name in asked - known if _importable(name) is None)
    if unknown and trust and is_torch:
        return _read_trusted(path), []
    if harmful := [shown(name) for name in unknown if _is_harmful(name)]:
        raise ModelError(
            f"asks to run {', '.join(harmful)}, which no model needs; nothing was run; "
            "don't open it anywhere until you know who made it"
        )
    if failure is not None:
        raise ModelError(DAMAGED) from failure
    if not is_torch:
        raise ModelError("is a plain pickle; save the model with torch.save(model.state_dict(), file)")
    if any("quantized" in name for name in unknown):
        raise ModelError(QUANTISED)
    return content, [name for name in unknown if not name.startswith("collections.")]


def read_scripted(path: Path, zipped: bytes) -> Any:
    """What a file of torch.jit.save holds; all but data and listed layers are stand-ins.

    Args:
        path: of the file.
        zipped: its `data.pkl`.

    Raises:
        Exception: of any kind, where the file is damaged.
    """
    with path.open("rb") as file:
        return _read_zipped(file, zipped, set())


def read_inert_pickle(file: IO[bytes]) -> Any:
    """What a pickle of any protocol holds, which keeps no tensors; all but data is a stand-in."""
    nothing: dict[str, bytes] = {}
    return _Settled(_Inert(file, set()).load(), nothing.__getitem__).value


def read_data(file: IO[bytes]) -> Any:
    """What torch.save wrote of tensors and plain values alone.

    Raises:
        Exception: of any kind, where it is damaged or holds anything else.
    """
    with zipfile.ZipFile(file) as archive:
        pickled = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
    asked: set[str] = set()
    value = _read_zipped(file, pickled, asked)
    if others := asked - _weights_only_unpickler._get_allowed_globals().keys():
        raise pickle.UnpicklingError(f"it holds {', '.join(map(shown, others))}")
    return value


def _read_zipped(file: IO[bytes], pickled: bytes, asked: set[str]) -> Any:
    content = _Inert(io.BytesIO(pickled), asked).load()
    with zipfile.ZipFile(file) as archive:
        folder = next(iter(archive.namelist())).partition("/")[0]
        if f"{folder}/byteorder" in archive.namelist() and archive.read(f"{folder}/byteorder") != b"little":
            raise ModelError("was saved on a machine of another byte order; save its state dict on this one")
        return _Settled(content, lambda key: archive.read(f"{folder}/data/{key}")).value


def _read_older(file: IO[bytes], asked: set[str]) -> Any:
    """Of the format before 1.6: pickles one after the other, and then each storage."""
    within = _Within(file)
    for _ in range(3):  # a magic number and two descriptions
        _Inert(within, asked).load()
    reader = _Inert(within, asked)
    content = reader.load()
    bytes_of = {}
    for key in _Inert(within, asked).load():
        count = int.from_bytes(within.read(8), "little")
        bytes_of[key] = within.read(count * reader.storages[key].dtype.itemsize)
    return _Settled(content, bytes_of.__getitem__).value


class _Within:
    """A file of which no more memory is asked for than there is to read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._end = file.seek(0, os.SEEK_END)
        file.seek(0)

    def read(self, count: int) -> bytes:
        """At most so many bytes."""
        return self._file.read(min(count, self._end - self._file.tell()))

    def readline(self) -> bytes:
        """Up to a line's end."""
        return self._file.readline(_LONGEST_LINE)


def _then(first: Callable[[Any], None], second: Callable[[Any], None]) -> Callable[[Any], None]:
    def both(reader: Any) -> None:
        first(reader)
        second(reader)

    return both


@dataclass(frozen=True, slots=True)
class _Storage:
    """Where a tensor's values are."""

    key: str
    dtype: torch.dtype
    count: int


class _Inert(pickle._Unpickler):  # the one in C takes what memory a file says that it needs
    """Only builtin values and stand-ins come out of it, so nothing that a file names can be reached."""

    stack: list[Any]
    read: Callable[[int], bytes]
    append: Callable[[Any], None]

    def __init__(self, file: IO[bytes] | _Within, asked: set[str]) -> None:
        """Read from the file; each name that it asks for is put into `asked`."""
        super().__init__(file, encoding="latin1")
        self.storages: dict[str, _Storage] = {}
        self._asked = asked
        self._weights: dict[int, tuple[object, int]] = {}  # by identity, which the object keeps

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in, whatever is asked for."""
        asked = f"{IMPORT_MAPPING.get(module, module)}.{name}"  # __builtin__ was Python 2's builtins
        self._asked.add(asked)
        return _stand_in(asked)

    def persistent_load(self, pid: Any) -> Any:
        """Tensors' values, which are kept outside of the pickle."""
        if pid[0] == "module":  # the older format keeps a class together with its source
            return pid[1]
        what, kind, key, _, count = pid[:5]
        if what != "storage":
            raise pickle.UnpicklingError(f"a persistent {what!r}")
        storage = _Storage(str(key), _STORAGES[kind.kind.rpartition(".")[2]], int(count))
        return self.storages.setdefault(storage.key, storage)

    def _load_bytearray(self) -> None:
        (count,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(count)))

    def _weighed(self) -> None:
        """Refuse a tuple that holds one twice that holds one twice, and so on: it takes forever to hash."""
        made = self.stack[-1]
        weight = 1 + sum(self._weights.get(id(each), (each, 1))[1] for each in made)
        if weight > _HEAVIEST:
            raise pickle.UnpicklingError("a tuple of tuples without an end")
        self._weights[id(made)] = made, weight

    def _refuse_long(self) -> None:
        raise pickle.UnpicklingError("a number of hundreds of digits, which Python itself refuses to print")

    dispatch: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch | {
        pickle.BYTEARRAY8[0]: _load_bytearray,
        pickle.LONG4[0]: _refuse_long,
    }
    for opcode in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.FROZENSET):
        dispatch[opcode[0]] = _then(dispatch[opcode[0]], _weighed)


@cache
def _stand_in(name: str) -> type[StandIn]:
    return type("StandIn", (StandIn,), {"kind": name})


class _Settled:
    """Makes tensors, plain containers and listed layers of stand-ins that are for such."""

    def __init__(self, content: Any, bytes_of: Callable[[str], bytes]) -> None:
        self._bytes_of = bytes_of
        self._storages: dict[str, torch.UntypedStorage] = {}
        self._known: dict[int, tuple[Any, Any]] = {}  # by identity; the first keeps it alive
        self.value = self._of(content)

    def _of(self, value: Any) -> Any:
        if id(value) in self._known:
            return self._known[id(value)][1]
        if isinstance(value, dict):
            made: Any = self._remember(value, {})
            made.update((self._of(key), self._of(each)) for key, each in value.items())
        elif isinstance(value, list):
            made = self._remember(value, [])
            made += map(self._of, value)
        elif isinstance(value, tuple | set | frozenset):
            made = self._remember(value, type(value)(map(self._of, value)))
        elif isinstance(value, type) and issubclass(value, StandIn):
            name = value.kind
            made = _DTYPES.get(name.removeprefix("torch.")) or _importable(name) or value
        elif isinstance(value, StandIn):
            made = self._of_stand_in(value)
        else:
            made = value
        return made

    def _remember(self, value: Any, made: Any) -> Any:
        self._known[id(value)] = (value, made)
        return made

    def _of_stand_in(self, value: StandIn) -> Any:
        kind = type(value).kind
        home, _, name = kind.rpartition(".")
        if kind in _MAPPINGS:
            mapping: OrderedDict[Any, Any] = self._remember(value, OrderedDict())
            first = value.arguments[0] if value.arguments else ()
            pairs = (
                first if isinstance(first, list) else list(first.items()) if isinstance(first, dict) else []
            )
            mapping.update((self._of(key), self._of(each)) for key, each in (*pairs, *value.pairs))
            return mapping
        if kind in _CONTAINERS or kind == "_codecs.encode":
            held = self._of(value.arguments[0]) if value.arguments else ()
            if isinstance(held, str):
                held = held.encode("latin1")
            elif kind in _CONTAINERS:
                with suppress(TypeError, ValueError):  # of what no such container holds, it stays what it is
                    held = _CONTAINERS[kind](held)
            return self._remember(value, held)
        if home in ("torch", "torch._utils", "torch._tensor", "torch.nn.parameter"):
            tensor = self._tensor(name, value.arguments)
            if tensor is not None:
                return self._remember(value, tensor)
        layer = _layer_class(kind)
        if layer is not None:
            return self._layer(value, layer)
        if kind == "functools.partial" and isinstance(value.state, tuple) and len(value.state) == 4:
            func, arguments, named, _ = (self._of(each) for each in value.state)
            if _is_allowed(func):
                return self._remember(value, ModulePartial(func, *arguments, **named))
        self._remember(value, value)
        value.arguments, value.state = self._of(value.arguments), self._of(value.state)
        value.elements, value.pairs = self._of(value.elements), self._of(value.pairs)
        return value

    def _layer(self, value: StandIn, kind: type) -> Any:
        """As unpickling makes one: without its constructor."""
        made: Any = self._remember(value, object.__new__(kind))
        made.__setstate__(self._of(value.state))
        return made

    def _tensor(self, function: str, arguments: tuple[Any, ...]) -> Any:
        """What torch's own function of that name rebuilds; None where it is not known here."""
        if function in ("_rebuild_parameter", "_rebuild_parameter_with_state", "Parameter"):
            data, needs_gradient = self._of(arguments[0]), all(arguments[1:2])
            return nn.Parameter(data, needs_gradient and data.is_floating_point())
        if function == "_rebuild_from_type_v2":
            return self._tensor(arguments[0].kind.rpartition(".")[2], arguments[2])
        if function in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
            storage, offset, size, stride = arguments[:4]
            dtype = self._of(arguments[6]) if function.endswith("v3") else storage.dtype
            return self._strided(storage, offset, size, stride, dtype)
        if function == "_rebuild_meta_tensor_no_storage":
            return torch.empty(self._of(arguments[1]), dtype=self._of(arguments[0]), device="meta")
        if function == "_rebuild_sparse_tensor":
            return torch.zeros(1).to_sparse()  # enough to be refused by its name
        if function == "_rebuild_qtensor":
            raise ModelError(QUANTISED)
        return self._of(arguments[0]) if function == "Size" else None

    def _strided(
        self, storage: _Storage, offset: int, size: Any, stride: Any, dtype: torch.dtype
    ) -> torch.Tensor:
        size, stride = tuple(self._of(size)), tuple(self._of(stride))
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        stored = storage.count * storage.dtype.itemsize
        if min((offset, *size, *stride)) < 0 or (math.prod(size) and (last + 1) * dtype.itemsize > stored):
            raise pickle.UnpicklingError("a tensor reaches beyond what is stored")
        if storage.key not in self._storages:
            content = bytearray(self._bytes_of(storage.key))
            if len(content) < stored:
                raise pickle.UnpicklingError("a storage is cut short")
            flat = (
                torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
            )
            self._storages[storage.key] = flat.untyped_storage()
        return torch.empty(0, dtype=dtype).set_(self._storages[storage.key], offset, size, stride)


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
        if is_out_of_memory(error):
            raise ModelError("can't be loaded: its code asks for more memory than there is for it") from error
        raise ModelError(f"can't be loaded: {type(error).__name__}: {first_line(error)}") from error


def _is_harmful(name: str) -> bool:
    first, *rest = name.split(".")
    if name in _HARMLESS:
        return False
    if first == "builtins":
        return rest[:1] != [] and rest[0] in _HARMFUL_BUILTINS
    return (
        name.startswith(tuple(_HARMFUL_PREFIXES))
        or first in _HARMFUL
        or not _HARMFUL_ANYWHERE.isdisjoint((first, *rest))
    )


def stand_ins(value: Any) -> Iterator[StandIn]:
    """Every stand-in that is anywhere in a value: what holds one would not work as it was saved."""
    seen: set[int] = set()
    waiting: list[Any] = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, type) and issubclass(value, StandIn):
            value = value()
        if isinstance(value, StandIn):
            yield value
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module | StandIn):
            waiting.append(vars(value))
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
        elif isinstance(value, functools.partial):
            waiting += [value.args, value.keywords]


def tensors_of(module: StandIn | nn.Module, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The state dict of a module, or of the stand-in for one, as far as it is intact."""
    held = vars(module) if isinstance(module, nn.Module) else as_mapping(module)
    passing = held.get("_non_persistent_buffers_set")
    passing = passing if isinstance(passing, set) else ()
    for group in ("_parameters", "_buffers"):
        for name, value in as_mapping(held.get(group)).items():
            if isinstance(value, torch.Tensor) and name not in (passing if group == "_buffers" else ()):
                yield prefix + str(name), value
    for name, child in as_mapping(held.get("_modules")).items():
        if is_module(child):
            yield from tensors_of(child, f"{prefix}{name}.")
