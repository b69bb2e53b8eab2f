"""Records as plain dicts, lists, strings, numbers, booleans and None, as JSON has them, and back.

Within a schema version keys are only ever added, so a reader takes what it knows and a key whose
record has a default may be missing. Totals and `fits` are written for scripts and worked out again
when read. Bytes - the held-out samples' own results, without which a saved answer's candidates could
not be told apart as the solver did - are deflated and in base64; in a metric in which samples count
differently they are not written, nor how much each counts. Pictures of the user's images, and the work
that seconds are predicted from, are not written.
"""

from __future__ import annotations

import base64
import binascii
import math
import types
import zlib
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from advisor.errors import InputError
from advisor.records import (
    Accuracy,
    Budget,
    Candidate,
    Cost,
    Evaluation,
    Finding,
    Flops,
    LayerCost,
    LayerTypeCost,
    Levers,
    Recommendation,
)

LARGEST_INTEGER = 2**63 - 1
_Record = TypeVar("_Record")

# Where a key's name in JSON differs from the record's field.
_RENAMED: dict[tuple[type, str], str] = {
    (Cost, "flops"): "update_flops",
    (LayerTypeCost, "flops"): "update_flops",
    (LayerCost, "flops"): "update_flops",
    (Recommendation, "evaluations"): "candidates",
}
# Properties that are written for scripts' sake, and not read.
_DERIVED: dict[type, tuple[str, ...]] = {
    Flops: ("total",),
    Cost: ("peak_memory_bytes",),
    Evaluation: ("fits",),
    Budget: ("fewest_flops",),
}
_NOT_WRITTEN = {(Accuracy, "weights"), (Finding, "pictures"), (Cost, "work")}
_MOST_BYTES = 2**24  # that a text of them may come to: more held-out samples than anybody judges


def encode(value: Any) -> Any:
    """A record, or what one may hold, as plain values."""
    if isinstance(value, Evaluation):
        candidate = value.candidate
        head = {"id": candidate.id, "method": candidate.method, "setting": dict(candidate.setting)}
        rest = _encode_record(value)
        del rest["candidate"]
        return head | {"levers": encode(candidate.levers)} | rest
    if is_dataclass(value):
        return _encode_record(value)
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(zlib.compress(value, 9)).decode("ascii") if value else ""
    return value


def _encode_record(record: Any) -> dict[str, Any]:
    kind = type(record)
    if kind is Accuracy and record.weights is not None:
        record = replace(record, correct=b"")
    encoded = {
        _RENAMED.get((kind, item.name), item.name): encode(getattr(record, item.name))
        for item in fields(record)
        if (kind, item.name) not in _NOT_WRITTEN
    }
    return encoded | {name: getattr(record, name) for name in _DERIVED.get(kind, ())}


def decode(kind: type[_Record], document: object) -> _Record:
    """The record that `encode` wrote. Raises InputError on anything else."""
    record: _Record = _decode(kind, document, "")
    return record


def _decode(hint: Any, value: Any, where: str) -> Any:  # noqa: PLR0911 - one for each kind
    """`value` as `hint` says, checked. Knows the kinds of field that the records have."""
    if hint is Any:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _decode_union(arguments, value, where)
    if origin is Literal:
        if value not in arguments:
            raise _wrong(where, "one of " + ", ".join(map(str, arguments)), value)
        return value
    if origin is tuple:
        items = _checked(value, list, "a list", where)
        return tuple(_decode(arguments[0], item, f"{where}[{n}]") for n, item in enumerate(items))
    if origin is Mapping:
        pairs = _checked(value, dict, "an object", where).items()
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in pairs}
    if hint is Evaluation:
        return _decode_evaluation(value, where)
    if is_dataclass(hint):
        return _decode_record(hint, value, where)
    return _decode_scalar(hint, value, where)


def _decode_union(members: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and types.NoneType in members:
        return None
    rest = [member for member in members if member is not types.NoneType]
    if len(rest) == 1:
        return _decode(rest[0], value, where)
    exact = next((member for member in rest if type(value) is member), None)
    if exact is None:
        raise _wrong(where, "a number, a string or a boolean", value)
    return _decode_scalar(exact, value, where)


def _decode_evaluation(value: Any, where: str) -> Evaluation:
    given = _checked(value, dict, "an object", where)
    setting = given.get("setting")
    settings = _decode(Mapping[str, int | float | str | bool], setting, f"{where}.setting")
    method = _decode(str, given.get("method"), f"{where}.method")
    levers = _decode(Levers, given.get("levers", {}), f"{where}.levers")
    candidate = Candidate.of(method, settings, levers)
    decoded: Evaluation = _decode_record(Evaluation, given, where, candidate=candidate)
    return decoded


def _decode_record(kind: Any, value: Any, where: str, **given: Any) -> Any:
    document = _checked(value, dict, "an object", where)
    hints = _hints_of(kind)
    values = dict(given)
    for item in fields(kind):
        key = _RENAMED.get((kind, item.name), item.name)
        place = f"{where}.{key}".lstrip(".")
        if item.name in given:
            continue
        if key in document:
            values[item.name] = _decode(hints[item.name], document[key], place)
        elif kind is Budget and item.name == "prefer" and document.get("fewest_flops") is True:
            values["prefer"] = "flops"  # so it was written before other costs could come first
        elif item.default is MISSING and item.default_factory is MISSING:
            raise InputError(f"{place} is missing")
    return kind(**values)


@cache  # to work them out again for each of a thousand layers would take longer than all the rest
def _hints_of(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _decode_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(where, "a number", value)
        if not math.isfinite(value) or abs(value) > LARGEST_INTEGER:
            raise _wrong(where, "a finite number below 2^63", value)
        return float(value)
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(where, "an integer", value)
        if abs(value) > LARGEST_INTEGER:
            raise _wrong(where, "an integer below 2^63", value)
        return value
    if hint is bytes:
        return _decode_bytes(value, where)
    return _checked(value, hint, {str: "a string", bool: "true or false"}[hint], where)


def _decode_bytes(value: Any, where: str) -> bytes:
    text = _checked(value, str, "a string", where)
    if not text:
        return b""
    try:
        inflating = zlib.decompressobj()
        found = inflating.decompress(base64.b64decode(text, validate=True), _MOST_BYTES)
    except (binascii.Error, ValueError, zlib.error):
        found = None
    if found is None or not inflating.eof:
        raise _wrong(where, "deflated bytes in base64", value)
    return found


def _checked(value: Any, kind: type, wanted: str, where: str) -> Any:
    if not isinstance(value, kind):
        raise _wrong(where, wanted, value)
    return value


def _wrong(where: str, wanted: str, value: object) -> InputError:
    return InputError(f"{where or 'the document'} should be {wanted} but is {shortened(value)}")


def shortened(value: object) -> str:
    """The value as Python writes it, in 40 characters at most."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
