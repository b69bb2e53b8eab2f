"""The baseline: a small file, committed, in which a change of costs shows as a change of lines."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from advisor.check.records import LayerFigures, Snapshot
from advisor.errors import InputError, first_line
from advisor.plain import decode, encode, shortened
from advisor.records import Budget, Candidate
from advisor.system.files import opened, read_json

VERSION = 1
_VERSION_KEY = "peft_advisor_baseline"
_MEND = "write it again with `peft-advisor check --update`"
_NO_LIMITS = Budget()

Baseline = Mapping[str, Mapping[str, Snapshot]]  # by model and target


def dumps(baseline: Baseline) -> str:
    """JSON, with a line for each layer; the same content is always the same text."""
    models = {
        model: {target: _encoded(baseline[model][target]) for target in sorted(baseline[model])}
        for model in sorted(baseline)
    }
    return _text({_VERSION_KEY: VERSION, "models": models}, "") + "\n"


def read(path: Path) -> Baseline | None:
    """What the file holds; None: there is no such file. Raises InputError."""
    try:
        document = read_json(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror or first_line(error)})") from error
    except ValueError as error:
        raise InputError(f"{path}: is no baseline: it is not JSON ({first_line(error)}); {_MEND}") from error
    if not isinstance(document, dict) or _VERSION_KEY not in document:
        raise InputError(f"{path}: is no baseline: it has no {_VERSION_KEY}; {_MEND}")
    if document[_VERSION_KEY] != VERSION or isinstance(document[_VERSION_KEY], bool):
        raise InputError(
            f"{path}: {_VERSION_KEY} is {shortened(document[_VERSION_KEY])}, but this release reads "
            f"{VERSION}; {_MEND}"
        )
    try:
        models = _object(document.get("models"), "models")
        return {
            model: {
                target: _decoded(content, f"models.{model}.{target}")
                for target, content in _object(targets, f"models.{model}").items()
            }
            for model, targets in models.items()
        }
    except InputError as error:
        raise InputError(f"{path}: is no baseline: {error}; {_MEND}") from error


def is_baseline(path: str | os.PathLike[str]) -> bool:
    """Whether the file says that it is one."""
    try:
        with opened(path) as file:
            return f'"{_VERSION_KEY}"'.encode() in file.read(200)
    except OSError:
        return False


def renewed(before: Snapshot | None, now: Snapshot) -> Snapshot:
    """The snapshot to keep: what other kinds of machines take stays known where nothing else changed."""
    if before is None or replace(before, machine_peak_bytes={}) != replace(now, machine_peak_bytes={}):
        return now
    return replace(now, machine_peak_bytes={**before.machine_peak_bytes, **now.machine_peak_bytes})


_COLUMNS = tuple(item.name for item in fields(LayerFigures))


def _encoded(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "limits": {
            item.name: getattr(snapshot.budget, item.name)
            for item in fields(Budget)
            if getattr(snapshot.budget, item.name) != getattr(_NO_LIMITS, item.name)
        },
        "options": dict(sorted(snapshot.options.items())),
        "recommended": snapshot.recommended,
        "figures": encode(snapshot.figures),
        "machine_peak_bytes": dict(sorted(snapshot.machine_peak_bytes.items())),
        "of_tensors": snapshot.of_tensors,
        "layer_columns": list(_COLUMNS),
        "layers": {
            name: [_cell(getattr(layer, column)) for column in _COLUMNS]
            for name, layer in snapshot.layers.items()
        },
    }


def _cell(value: str | int | tuple[int, ...]) -> str | int:
    return "x".join(map(str, value)) if isinstance(value, tuple) else value


def _decoded(content: object, where: str) -> Snapshot:
    found = _object(content, where)
    if found.get("layer_columns") != list(_COLUMNS):
        raise InputError(f"{where}.layer_columns should be {', '.join(_COLUMNS)}")
    layers = _object(found.get("layers"), f"{where}.layers")
    document = {key: value for key, value in found.items() if key not in ("limits", "layer_columns")}
    document["budget"] = found.get("limits", {})
    document["layers"] = {name: _named(cells, f"{where}.layers.{name}") for name, cells in layers.items()}
    try:
        snapshot = decode(Snapshot, document)
        if snapshot.recommended is not None:
            Candidate.parse(snapshot.recommended)
    except ValueError as error:
        raise InputError(f"{where}.recommended: {error}") from error
    except InputError as error:
        raise InputError(f"{where}.{error}") from error
    return snapshot


def _named(cells: object, where: str) -> dict[str, Any]:
    if not isinstance(cells, list) or len(cells) != len(_COLUMNS):
        raise InputError(f"{where} should be a list of {len(_COLUMNS)}")
    document = dict(zip(_COLUMNS, cells, strict=True))
    shape = str(document["shape"])
    if not re.fullmatch(r"(\d{1,9}(x\d{1,9})*)?", shape):
        raise InputError(f"{where}: {shortened(shape)} is no shape")
    document["shape"] = [int(size) for size in shape.split("x")] if shape else []
    return document


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where} should be an object but is {shortened(value)}")
    return value


def _text(value: object, indent: str) -> str:
    """JSON with objects over several lines, and lists on one."""
    if not isinstance(value, Mapping) or not value:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    inner = indent + "  "
    items = (
        f"{inner}{json.dumps(key, ensure_ascii=False)}: {_text(item, inner)}" for key, item in value.items()
    )
    return "{\n" + ",\n".join(items) + f"\n{indent}}}"
