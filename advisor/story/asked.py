"""What is asked from Python, in keywords: checked, they become the budget and the request."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypedDict

from advisor.data import Normalisation
from advisor.errors import InputError
from advisor.methods import get_method
from advisor.names import AUGMENTS, OPTIMIZERS, SCENARIOS, check_device, check_executor, did_you_mean, one_of
from advisor.plain import shortened
from advisor.records import Augment, Budget, Framing, Preference
from advisor.solver import parse_budget
from advisor.story.situation import Request
from advisor.units import parse_input_size, parse_seconds

Size = str | int  # 512MB, or bytes


class Limits(TypedDict, total=False):
    """The keywords that become a `Budget`."""

    ram: Size
    flops: str | float
    storage: Size
    step_time: str | float
    total_time: str | float
    energy: str | float
    max_trainable: str | int
    max_overhead: str | float
    metric: str
    min_accuracy: str | float
    min_retained: str | float
    tolerance: float
    prefer: Preference
    warn: str | Sequence[str]
    runtime_overhead: Size
    ram_includes_runtime: bool


class Asked(Limits, total=False):
    """Those, and the keywords that become a `Request`."""

    data: Any
    labels: str | None
    groups: str | None
    class_names: Sequence[str] | None
    data_classes: Sequence[str] | None
    normalisation: Normalisation | tuple[Sequence[float], Sequence[float]] | None
    framing: Framing | None
    resize: Literal["center", "squash", "border"] | None
    channel_order: Literal["rgb", "bgr"]
    orientation: Literal["exif", "stored"]
    look_over: bool
    strict: bool
    augment: Augment
    rehearse: str | None
    retain: str | None
    unlabelled: str | None
    scenario: Literal["auto", "shift", "new-classes"]
    train_images: int
    input_size: str | Sequence[int] | None
    batch_size: int
    target: str | os.PathLike[str] | None
    arch: str | None
    trust: bool
    methods: str | Sequence[str] | None
    ranks: Sequence[int]
    optimizer: str
    probe_seconds: str | float | None
    epochs: int
    store: str | os.PathLike[str] | None
    executor: str
    device: str
    verify: bool
    seed: int
    command: str


def asked(budget: Budget | None, request: Request | None, given: Asked) -> tuple[Budget, Request]:
    """The budget and the request, as they are or made of keywords.

    Raises:
        InputError: a keyword is not known, its value can't be used, or it is given beside the object that it
            would be a part of.
    """
    limits = {name: value for name, value in given.items() if name in Limits.__annotations__}
    rest = {name: value for name, value in given.items() if name not in limits}
    known = (*Limits.__annotations__, *_CHECKS)
    for name in rest:
        if name not in _CHECKS:
            raise InputError(f"recommend takes no {name}{did_you_mean(name, known)}".rstrip())
    for parts, whole, kind in ((limits, budget, "Budget"), (rest, request, "Request")):
        if parts and whole is not None:
            raise InputError(f"{next(iter(parts))} is a part of the {kind}, which is given, too; give one")
    checked = {name: _CHECKS[name](name, value) for name, value in rest.items()}
    return budget or _budget(limits), request or Request(**checked)


def _budget(limits: Mapping[str, Any]) -> Budget:
    typed = {name: _as_typed(name, value) for name, value in limits.items() if value is not None}
    if "tolerance" in typed:
        typed["tolerance_points"] = typed.pop("tolerance")
    return parse_budget(**typed)


# What a plain number counts.
_UNITS = {
    **dict.fromkeys(("ram", "storage", "runtime_overhead"), "B"),
    "flops": "FLOP",
    **dict.fromkeys(("step_time", "total_time"), "s"),
    "energy": "J",
    **dict.fromkeys(("max_trainable", "min_accuracy", "min_retained"), ""),
    "max_overhead": "%",
}


def _as_typed(name: str, value: Any) -> Any:
    if name in _UNITS:
        if _is_number(value):
            return f"{value}{_UNITS[name]}"
        return _text(name, value)
    if name == "tolerance":
        if not _is_number(value):
            raise _wrong(name, value, "a number such as 0.8")
        return float(value)
    if name == "ram_includes_runtime":
        return _flag(name, value)
    return _texts(name, value) if name == "warn" else _text(name, value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _wrong(name: str, value: Any, wanted: str) -> InputError:
    return InputError(f"{name}={shortened(value)} can't be used; give {wanted}")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, "a text")
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
        raise _wrong(name, value, "a list of texts")
    return tuple(value)


def _methods(name: str, value: Any) -> tuple[str, ...]:
    found = _texts(name, value)
    for each in found:
        get_method(each)
    return found


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "True or False")
    return value


def _whole(least: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise _wrong(name, value, f"a whole number, {least} or more")
        return int(value)

    return check


def _wholes(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise _wrong(name, value, "a list of whole numbers")
    return tuple(_whole(1)(name, each) for each in value)


def _word(*known: str) -> Callable[[str, Any], str]:
    return lambda name, value: one_of(name, _text(name, value), known)


def _kind(kind: type) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if not isinstance(value, kind):
            raise _wrong(name, value, f"a {kind.__name__}")
        return value

    return check


def _or_none(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


def _path(name: str, value: Any) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise _wrong(name, value, "a path")
    return Path(value)


def _source(_: str, value: Any) -> Any:
    """Text as on the command line; whatever else is looked at when it is read."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _size(name: str, value: Any) -> tuple[int, int, int]:
    if isinstance(value, str):
        return parse_input_size(value)
    found = _wholes(name, value)
    if len(found) != 3:
        raise _wrong(name, value, "(channels, height, width)")
    return found


def _normalisation(name: str, value: Any) -> Normalisation:
    if isinstance(value, Normalisation):
        return value
    try:
        mean, std = (tuple(float(each) for each in part) for part in value)
    except (TypeError, ValueError) as error:
        raise _wrong(name, value, "(mean, std), each a list with a number for each channel") from error
    return Normalisation(mean, std)


def _seconds(name: str, value: Any) -> float | str:
    if value == "auto":
        return "auto"
    seconds = parse_seconds(value) if isinstance(value, str) else value
    if not _is_number(seconds) or not seconds > 0:
        raise _wrong(name, value, "seconds, such as 90, a time such as 5m, auto, or None for no probes")
    return float(seconds)


def _executor(name: str, value: Any) -> str:
    check_executor(_text(name, value))
    return str(value)


_OPTIONAL_TEXT = _or_none(_text)
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "data": _source,
    **dict.fromkeys(("labels", "groups", "rehearse", "arch"), _OPTIONAL_TEXT),
    **dict.fromkeys(("retain", "unlabelled"), lambda name, value: _OPTIONAL_TEXT(name, _source(name, value))),
    **dict.fromkeys(("class_names", "data_classes"), _or_none(_texts)),
    **dict.fromkeys(("look_over", "strict", "trust", "verify"), _flag),
    **dict.fromkeys(("train_images", "batch_size", "epochs"), _whole(1)),
    "normalisation": _or_none(_normalisation),
    "framing": _or_none(_kind(Framing)),
    "resize": _or_none(_word("center", "squash", "border")),
    "channel_order": _word("rgb", "bgr"),
    "orientation": _word("exif", "stored"),
    "augment": _word(*AUGMENTS),
    "scenario": _word(*SCENARIOS),
    "input_size": _or_none(_size),
    "methods": _or_none(_methods),
    "ranks": _wholes,
    "optimizer": _word(*OPTIMIZERS),
    "probe_seconds": _or_none(_seconds),
    **dict.fromkeys(("store", "target"), _or_none(_path)),
    "executor": _executor,
    "device": lambda name, value: check_device(_text(name, value)),
    "seed": _whole(0),
    "command": _text,
}
