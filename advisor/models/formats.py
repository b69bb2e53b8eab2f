"""What kind of file or folder a model is in, told by its content, and what it holds."""

from __future__ import annotations

import io
import lzma
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advisor.errors import ModelError
from advisor.models import hub
from advisor.models.pickles import (
    DAMAGED,
    LEGACY_MAGIC,
    StandIn,
    as_mapping,
    read_data,
    read_inert_pickle,
    read_pickle,
    read_scripted,
)
from advisor.models.printable import shown
from advisor.models.program import ExportedNetwork
from advisor.models.weights import check_together, usable
from advisor.names import missing_model
from advisor.system.files import opened, parse_json, read_json

_BACK = "give the PyTorch model that it was made from, or its state dict"
# First bytes of files that are certainly something else.
_SIGNATURES = {
    b"\x89HDF\r\n\x1a\n": "is an HDF5 file, such as Keras writes; give the PyTorch model",
    b"GGUF": "is a GGUF file; give the PyTorch model that it was made from",
    b"\x1f\x8b": "is gzip-compressed; unpack it first",
    b"BZh": "is bzip2-compressed; unpack it first",
    b"\xfd7zXZ": "is xz-compressed; unpack it first",
    b"\x93NUMPY": "is a NumPy array, not a model",
    b"version https://git-lfs": "is a Git LFS pointer, not the model itself; run git lfs pull",
    b"ftrt": f"is a TensorRT engine; {_BACK}",
    b"ptrt": f"is a TensorRT engine; {_BACK}",
}
_SUFFIXES = {
    ".engine": "a TensorRT engine",
    ".plan": "a TensorRT engine",
    ".mlmodel": "a Core ML model",
    ".mlpackage": "a Core ML model",
    ".pte": "an ExecuTorch program",
    ".ptl": "a model for PyTorch Mobile",
    ".keras": "a Keras model",
    ".pb": "a TensorFlow graph",
    ".rknn": "an RKNN model",
    ".dlc": "a Qualcomm SNPE model",
    ".caffemodel": "a Caffe model",
    ".param": "an ncnn model",
}
# Field 1, the version of the format; then the producer, its version, the domain or the graph.
_ONNX_START = re.compile(rb"\x08[\x03-\x20][\x12\x1a\x22\x3a\x42]")
_MODELS = {".pt", ".pth", ".safetensors", ".ckpt", ".bin", ".th", ".tar", ".pkl", ".pt2"}
# In a folder, the likeliest first.
_IN_FOLDER = (
    *("merged.safetensors", "merged.pt", "model.safetensors", "pytorch_model.bin"),
    *("open_clip_model.safetensors", "model.pt", "model.pth"),
)
_CONFIGURATIONS = ("config.json", "preprocessor_config.json", "recipe.json")
_PROGRAM, _WEIGHTS = "a torch.export program (.pt2)", "model_weights_config.json"
_UNZIPPING = (zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, struct.error)
_EXPORTED = {1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16}
_EXPORTED |= {7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file or a folder holds."""

    value: Any
    unknown: tuple[str, ...] = ()  # names of classes in it that became stand-ins
    said: tuple[Mapping[str, Any], ...] = ()  # what configurations beside the weights say
    safetensors: bool = False
    graph: str = ""  # what kind of program it was, where only its weights were read
    network: Callable[[], nn.Module] | None = None  # what that program computes, where it can be made of it


def exists(path: Path) -> bool:
    """Whether there is anything of that name."""
    try:
        return os.path.lexists(path)
    except ValueError:  # a null byte in the name
        return False


def read(path: Path, trust: bool) -> Contents:
    """What the file or folder holds.

    Raises:
        ModelError: it is not there, damaged, no model of PyTorch's, or asks to run code.
    """
    if not exists(path):
        raise ModelError(missing_model(str(path)))
    if path.is_dir():
        return _read_folder(path, trust)
    if not path.is_file():
        raise ModelError("is not a regular file")
    if path.name.endswith(".index.json"):
        return Contents(_read_shards(path, trust), said=_configurations(path.parent), safetensors=True)
    return _read_file(path, trust)


def _read_file(path: Path, trust: bool) -> Contents:
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ModelError("is empty; was it copied completely?")
    if head[:4] == b"PK\x03\x04":
        return _read_zip(path, trust)
    header = int.from_bytes(head[:8], "little")  # of safetensors; it may begin as a pickle does
    if head[8:9] == b"{" and header < 10**8:
        return Contents(_read_safetensors(path), said=_metadata(path, header), safetensors=True)
    if head[:1] == b"\x80":
        content, unknown = read_pickle(path, None, trust, is_torch=head.startswith(LEGACY_MAGIC))
        return Contents(content, tuple(unknown))
    if path.suffix == ".py":
        raise ModelError(
            f"is Python code; give {path}:FUNCTION, with the function or class that makes the network"
        )
    raise ModelError(_unknown_content(head, path.suffix))


def _unknown_content(head: bytes, suffix: str) -> str:  # noqa: PLR0911 - one for each kind
    for signature, meaning in _SIGNATURES.items():
        if head.startswith(signature):
            return meaning
    if head[4:8] == b"TFL3":
        return f"is a TensorFlow Lite model; {_BACK}"
    if head[4:6] == b"ET":
        return f"is an ExecuTorch program (.pte); {_BACK}"
    if suffix == ".onnx" or _ONNX_START.match(head):
        return "is an ONNX model; give the PyTorch model that it was exported from, or its state dict"
    if suffix in _SUFFIXES:
        return f"is {_SUFFIXES[suffix]}; {_BACK}"
    if head[257:262] == b"ustar":
        return "is a tar archive, or was saved by torch before 0.1.10; unpack it, or torch.save it again"
    text = head.decode("utf-8", errors="ignore")
    if text.lstrip().lower().startswith(("<!doctype html", "<html")):
        return "is a web page, not a model; the download went wrong: try it again"
    if "<net " in text[:300] and "<?xml" in text[:100]:
        return f"is an OpenVINO model; {_BACK}"
    # The first bytes read may end inside a character.
    is_text = len(head) - len(text.encode()) < 4 and all(
        each.isprintable() or each.isspace() for each in text
    )
    kind = "is a text file" if is_text else "is of no known format"
    return f"{kind}, not a model; give a PyTorch .pt or .pth file, or .safetensors"


def _read_zip(path: Path, trust: bool) -> Contents:
    """A file of torch.save, torch.jit.save or torch.export.save. Raises ModelError for any other archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.rpartition("/")[2]: info for info in archive.infolist()}
            if any(name.endswith(".npy") for name in members):
                raise ModelError("is a NumPy .npz file, not a model; data goes to --data")
            if "model.weights.h5" in members:
                raise ModelError("is a Keras model; give the PyTorch model")
            is_program = _WEIGHTS in members
            if not is_program and members.keys() & {"archive_format", "serialized_exported_program.json"}:
                raise ModelError(no_network(_PROGRAM))
            if not is_program and "data.pkl" not in members:
                raise ModelError("is a zip archive, but none that torch.save wrote; unpack it first")
            # torch compresses nothing, and a small archive must not unfold into a huge one.
            # TorchScript's program is, but it is not read.
            stored = [info for info in archive.infolist() if info.filename.partition("/")[2][:5] != "code/"]
            if sum(info.file_size for info in stored) > path.stat().st_size:
                raise ModelError("is a compressed zip archive; unpack it, or torch.save the model again")
            if is_program:
                return _exported(archive)
            pickled = archive.read(members["data.pkl"])
        if "constants.pkl" in members:
            return Contents(_scripted(path, pickled), graph="TorchScript")
        content, unknown = read_pickle(path, pickled, trust)
        return Contents(content, tuple(unknown))
    except (*_UNZIPPING, NotImplementedError, RuntimeError, ValueError) as error:
        raise ModelError(DAMAGED) from error


def no_network(graph: str) -> str:
    """Of a program whose weights fit no known network."""
    return (
        f"is {graph}, a graph without modules that methods could be attached to, and its weights are of no "
        "known network; give the module's state dict, with --arch FILE.py:FUNCTION, or export the module "
        "itself with torch.export, for batches of any size"
    )


def _scripted(path: Path, pickled: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a TorchScript module, by their attributes' names; its program is not read."""
    try:
        root = read_scripted(path, pickled)
    except ModelError:
        raise
    except Exception as error:  # whatever was put into the file
        raise ModelError(no_network("TorchScript")) from error
    found: dict[str, torch.Tensor] = {}
    waiting = [("", root)]
    while waiting:
        prefix, each = waiting.pop(0)
        for name, value in as_mapping(each).items():
            if isinstance(value, torch.Tensor):
                found[f"{prefix}{name}"] = value
            elif isinstance(value, StandIn) and len(prefix) < 500:
                waiting.append((f"{prefix}{name}.", value))
    if not found:
        raise ModelError(no_network("TorchScript"))
    return found


def _exported(archive: zipfile.ZipFile) -> Contents:
    """The weights of a torch.export program, and its description; nothing of it is run."""
    names = archive.namelist()
    weights = _stored(archive, next(name for name in names if name.endswith(_WEIGHTS)))
    constants = next((name for name in names if name.endswith("model_constants_config.json")), None)
    program = next((name for name in names if name.endswith("models/model.json")), None)
    network = None
    if program is not None:
        tensors = weights | (_stored(archive, constants) if constants is not None else {})
        network = partial(_network, parse_json(archive.read(program)), tensors)
    return Contents(weights, graph=_PROGRAM, network=network)


def _network(program: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    try:
        check_together(tensors)
        return ExportedNetwork(program, {name: usable(each, name) for name, each in tensors.items()})
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise ModelError(no_network(_PROGRAM)) from error  # of another version, or damaged


def _stored(archive: zipfile.ZipFile, listed: str) -> dict[str, torch.Tensor]:
    """The tensors that a list in the archive names."""
    try:
        entries = parse_json(archive.read(listed))["config"]
        # Several may be of the same bytes, which are then there once.
        stored = cache(lambda name: bytearray(archive.read(f"{listed.rpartition('/')[0]}/{name}")))
        return {name: _tensor(entry, stored) for name, entry in entries.items()}
    except (AttributeError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise ModelError(DAMAGED) from error


def _tensor(entry: Mapping[str, Any], stored: Callable[[str], bytearray]) -> torch.Tensor:
    meta = entry["tensor_meta"]
    sizes, strides = (tuple(int(side["as_int"]) for side in meta[key]) for key in ("sizes", "strides"))
    dtype = _EXPORTED.get(meta["dtype"])
    if dtype is None or entry["use_pickle"] or not all(size >= 0 for size in sizes):
        raise ModelError(no_network(_PROGRAM))
    content = stored(entry["path_name"])
    flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
    offset = int(meta["storage_offset"]["as_int"])
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if math.prod(sizes) and not 0 <= last < len(flat):
        raise ModelError(DAMAGED)
    return flat.as_strided(sizes, strides, offset)


# Safetensors and folders


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ModelError(DAMAGED) from error


def _metadata(path: Path, header: int) -> tuple[Mapping[str, Any], ...]:
    """What a safetensors file says in its header, and configurations of a hub's folder that it lies in."""
    with path.open("rb") as file:
        said = parse_json(file.read(8 + header)[8:]).get("__metadata__", {})
    beside = _configurations(path.parent) if path.name in _IN_FOLDER else ()
    return (said if isinstance(said, dict) else {}, *beside)


def _configurations(folder: Path) -> tuple[Mapping[str, Any], ...]:
    found = []
    for name in _CONFIGURATIONS:
        try:
            said = read_json(folder / name)
        except (OSError, ValueError):
            continue
        if isinstance(said, dict):
            found.append(said)
    return tuple(found)


def _read_folder(folder: Path, trust: bool) -> Contents:
    names = {each.name for each in folder.iterdir()}
    if folder.suffix in _SUFFIXES:
        raise ModelError(f"is {_SUFFIXES[folder.suffix]}; {_BACK}")
    if "saved_model.pb" in names:
        raise ModelError(f"is a TensorFlow SavedModel; {_BACK}")
    said = _configurations(folder)
    config = said[0] if said and "config.json" in names else {}
    if hub.is_of_transformers(config):
        return Contents(hub.of_transformers(folder, config), said=said, safetensors=True)
    for name in _IN_FOLDER:
        if name in names:
            contents = _read_file(folder / name, trust)
            return Contents(contents.value, contents.unknown, said, contents.safetensors, contents.graph)
    shards = [name for name in names if name.endswith(".index.json")]
    if shards:
        return Contents(_read_shards(folder / sorted(shards)[0], trust), said=said, safetensors=True)
    if ".metadata" in names:
        return Contents(_read_distributed(folder))
    if {"adapter.safetensors", "recipe.json"} <= names:
        base = next((each.get("base_model") for each in said if each.get("base_model")), "the base model")
        raise ModelError(
            f"holds an adapter of peft-advisor without a merged model; give {shown(str(base))}, or save the "
            "state dict of advisor.load_adapter(...)"
        )
    models = sorted(name for name in names if Path(name).suffix in _MODELS)
    if len(models) == 1 and (folder / models[0]).is_file() and (folder / models[0]).stat().st_size:
        contents = _read_file(folder / models[0], trust)
        return Contents(contents.value, contents.unknown, said, contents.safetensors, contents.graph)
    raise ModelError(
        f"is a folder; give the model file in it{f', such as {shown(models[0])}' if models else ''}"
    )


def _read_shards(index: Path, trust: bool) -> dict[str, Any]:
    """All tensors of a model that was saved in several files."""
    try:
        names = {str(name) for name in read_json(index)["weight_map"].values()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index.name} is damaged; download it again") from error
    found: dict[str, Any] = {}
    for name in sorted(names):
        shard = index.parent / Path(name).name  # nothing outside of the folder
        if not shard.is_file():
            raise ModelError(f"{index.name} asks for {shown(name)}, which is not there; download it, too")
        found |= as_mapping(_read_file(shard, trust).value)
    return found


def _read_distributed(folder: Path) -> dict[str, torch.Tensor]:
    """A checkpoint of torch.distributed: its list is read with stand-ins, and then each piece by itself."""
    try:
        with opened(folder / ".metadata") as file:
            listed = as_mapping(read_inert_pickle(file))
        tensors = as_mapping(listed["state_dict_metadata"])
        stored = sum(each.stat().st_size for each in folder.iterdir())  # a byte for each value, at the least
        found: dict[str, torch.Tensor] = {}
        for place, where in listed["storage_data"].items():
            name, offset = as_mapping(place)["fqn"], as_mapping(place).get("offset")
            about = as_mapping(tensors[name])
            if "size" not in about:
                continue  # a number or a setting
            size = tuple(about["size"])
            if math.prod(size) > stored:
                raise ModelError(DAMAGED)
            whole = found.setdefault(name, torch.empty(size))
            piece = _piece(folder, as_mapping(where))
            corner = tuple(offset or (0,) * piece.ndim)
            whole[tuple(slice(at, at + side) for at, side in zip(corner, piece.shape, strict=True))] = piece
    except ModelError:
        raise
    except Exception as error:  # whatever was put into the files
        raise ModelError(
            "is a checkpoint of torch.distributed that can't be read here; make one file of it: python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {shown(str(folder))} model.pt"
        ) from error
    return found


def _piece(folder: Path, where: Mapping[str, Any]) -> torch.Tensor:
    path = folder / Path(where["relative_path"]).name
    with opened(path) as file:
        file.seek(where["offset"])
        piece = read_data(io.BytesIO(file.read(min(where["length"], path.stat().st_size))))
    return usable(piece, "")


def names_of(values: Iterable[str]) -> str:
    """Up to five of them."""
    listed = list(values)
    return ", ".join(map(shown, listed[:5])) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
