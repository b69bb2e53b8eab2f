"""`[tool.peft-advisor]` in pyproject.toml: which models are checked, for which targets.

    [tool.peft-advisor]
    fail-on-increase = "5%"
    ram = "64MB"                              # what stands here holds for every model

    [tool.peft-advisor.models.classifier]
    model = "package.module:factory"          # as on the command line; paths are relative to this file
    input-size = "3x96x96"

    [tool.peft-advisor.models.classifier.targets.phone]
    ram = "48MB"                              # the narrower place wins: target, model, then all of them

A model without `targets` has one, `default`. One model alone may be given as `model`, without a table.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from advisor.errors import InputError, first_line
from advisor.names import did_you_mean
from advisor.records import Budget, Candidate, Optimizer
from advisor.solver import parse_budget
from advisor.system.files import read_text
from advisor.units import parse_input_size, parse_seconds

FILE = "pyproject.toml"
BASELINE = "peft-advisor-baseline.json"
DEFAULT_TARGET = "default"
FAIL_ON_INCREASE = "5%"
TIME_LIMIT = "5min"

_LIMITS = (
    *("ram", "flops-budget", "storage", "runtime-overhead"),
    *("max-trainable", "max-overhead", "prefer", "warn"),
)
# Of what is priced; each may stand in a target, in a model, or for all of them.
SHARED = (*_LIMITS, "input-size", "batch-size", "methods", "ranks", "optimizer", "candidate")
_OF_MODEL = (*SHARED, "model", "arch", "trust", "targets")
COMMANDS = ("recommend", "profile", "apply", "demo")  # whose options may stand in tables of their own
_OF_ALL = (
    *(*SHARED, "model", "arch", "trust", "models", "baseline", "fail-on-increase", "time-limit"),
    *COMMANDS,
)
_HEADER = re.compile(r"""\s*\[\s*tool\s*\.\s*["']?peft-advisor["']?\s*(?:\.\s*models\s*\.\s*(.+?))?\s*\]""")


@dataclass(frozen=True, slots=True)
class Target:
    """One model with the limits of one device, as text: what the command line would be given."""

    model: str  # its name in the configuration
    name: str
    source: str  # what `load_model` takes
    arch: str | None = None
    trust: bool = False
    input_size: tuple[int, int, int] | None = None  # None: the architecture's
    batch_size: int = 8
    methods: tuple[str, ...] | None = None
    ranks: tuple[int, ...] = (2, 4, 8)
    optimizer: str = "adam"
    candidate: str | None = None  # the id of the one that is used, whatever else may be cheaper
    budget: Budget = field(default_factory=Budget)

    @property
    def options(self) -> dict[str, str]:
        """All but the limits, as text."""
        return {
            "model": self.source,
            "arch": self.arch or "",
            "batch-size": str(self.batch_size),
            "optimizer": self.optimizer,
            "methods": ",".join(self.methods) if self.methods else "all",
            "ranks": ",".join(map(str, self.ranks)),
            "candidate": self.candidate or "the recommended one",
        }


@dataclass(frozen=True, slots=True)
class Configuration:
    """What is to be checked."""

    targets: tuple[Target, ...]
    folder: Path  # that paths are relative to
    file: Path | None = None
    lines: Mapping[str, int] = field(default_factory=dict)  # of the file: where each model is named, from 1
    baseline: str | None = None  # as it stands in the file
    fail_on_increase: float = 0.05
    time_limit: float = 300.0  # seconds, for each model
    is_whole: bool = True  # False: only a part of what the file names

    def only(self, model: str | None) -> Configuration:
        """With this model's targets alone; None: all of them."""
        if model is None:
            return self
        targets = tuple(target for target in self.targets if target.model == model)
        return replace(self, targets=targets, is_whole=len(targets) == len(self.targets))

    @property
    def baseline_path(self) -> Path:
        """Where the baseline is."""
        return self.folder / (self.baseline or BASELINE)


def find_file(start: Path) -> Path | None:
    """The nearest pyproject.toml with our table, in the folder or above it; None: there is none."""
    for folder in (start, *start.parents):
        path = folder / FILE
        if path.is_file() and _table_of(_text_of(path), path) is not None:
            return path
    return None


def read_configuration(path: Path, given: Mapping[str, Any] | None = None) -> Configuration:
    """What the file says.

    Args:
        given: on the command line, by key: it wins over what the file says.

    Raises:
        InputError: the file can't be read, lacks our table, or holds what it can't: one line says which.
    """
    return parse_configuration(_text_of(path), path, given)


def read_table(path: Path) -> Mapping[str, Any]:
    """The file's [tool.peft-advisor] as it is; empty where it has none. Raises InputError."""
    return _table_of(_text_of(path), path) or {}


def parse_configuration(text: str, path: Path, given: Mapping[str, Any] | None = None) -> Configuration:
    """Likewise, of what is or will be the file's text."""
    table = _table_of(text, path)
    if table is None:
        raise InputError(
            f"{path} has no [tool.peft-advisor] table; `peft-advisor init MODEL` writes one, with a baseline"
        )
    try:
        return _configuration(table, text, path, given or {})
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def one_model(source: str, given: Mapping[str, Any], folder: Path) -> Configuration:
    """Of a model that no file names. Raises InputError."""
    target = _target(source, DEFAULT_TARGET, {**given, "model": source}, "")
    return Configuration(
        (target,),
        folder,
        baseline=_text(given, "baseline", ""),
        fail_on_increase=_increase(given),
        time_limit=_time_limit(given),
        is_whole=False,
    )


def parse_increase(text: object) -> float:
    """`5%` -> 0.05. Raises InputError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*%\s*", text) if isinstance(text, str) else None
    if not match:
        raise InputError(f"fail-on-increase {text!r} is no percentage; write it like {FAIL_ON_INCREASE!r}")
    return float(match[1]) / 100


def _text_of(path: Path) -> str:
    try:
        return read_text(path)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror or first_line(error)})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text, which TOML has to be") from error


def _table_of(text: str, path: Path) -> dict[str, Any] | None:
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path}: is not valid TOML: {first_line(error)}") from error
    table = document.get("tool", {})
    table = table.get("peft-advisor") if isinstance(table, dict) else None
    if table is not None and not isinstance(table, dict):
        raise InputError(f"{path}: tool.peft-advisor is no table; write [tool.peft-advisor]")
    return table


def _configuration(
    table: Mapping[str, Any], text: str, path: Path, given: Mapping[str, Any]
) -> Configuration:
    _check_keys(table, _OF_ALL, "")
    models = dict(_tables(table, "models", ""))
    common = {key: value for key, value in table.items() if key in SHARED}
    if "model" in table:
        if models:
            raise InputError("give `model` alone, or several models in tables of their own, not both")
        own = {key: table[key] for key in ("model", "arch", "trust") if key in table}
        models = {short_name(table["model"]): own}
    elif "arch" in table or "trust" in table:
        raise InputError("`arch` and `trust` belong to a model: put them into its table")
    if not models:
        raise InputError(
            'names no model; write [tool.peft-advisor.models.NAME] with model = "...", '
            "or let `peft-advisor init MODEL` do it"
        )
    targets = [
        _target(name, target, {**common, **model, **limits, **given}, where)
        for name, model in models.items()
        for target, limits, where in _targets_of(name, model)
    ]
    of_all = {**table, **given}
    return Configuration(
        tuple(targets),
        path.parent,
        path,
        _lines(text, list(models)),
        _text(of_all, "baseline", ""),
        _increase(of_all),
        _time_limit(of_all),
    )


def _targets_of(name: str, model: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    where = f"models.{name}."
    _check_keys(model, _OF_MODEL, where)
    if "model" not in model:
        raise InputError(f"{where}model is missing: a file, torchvision:NAME or package.module:factory")
    targets = list(_tables(model, "targets", where))
    if not targets:
        yield DEFAULT_TARGET, {}, where
    for target, limits in targets:
        _check_keys(limits, SHARED, f"{where}targets.{target}.")
        yield target, limits, f"{where}targets.{target}."


def _increase(table: Mapping[str, Any]) -> float:
    return parse_increase(table.get("fail-on-increase", FAIL_ON_INCREASE))


def _time_limit(table: Mapping[str, Any]) -> float:
    return parse_seconds(_text(table, "time-limit", "") or TIME_LIMIT)


def _target(model: str, name: str, table: Mapping[str, Any], where: str) -> Target:
    """Raises InputError on a value that can't be used."""
    candidate = _text(table, "candidate", where)
    if candidate is not None:
        try:
            Candidate.parse(candidate)
        except ValueError as error:
            raise InputError(
                f"{where}candidate: {error}; `peft-advisor profile MODEL` lists them, such as lora-rank=4"
            ) from error
    batch_size = table.get("batch-size", 8)
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise InputError(f"{where}batch-size should be a whole number of 1 or more but is {batch_size!r}")
    ranks = _list(table, "ranks", int, where)
    if ranks is not None and (not ranks or min(ranks) < 1):
        raise InputError(f"{where}ranks should be positive whole numbers, such as [2, 4, 8]")
    methods = _list(table, "methods", str, where)
    if methods is not None and not methods:
        raise InputError(f"{where}methods names no method; leave it out for all of them")
    trust = table.get("trust", False)
    if not isinstance(trust, bool):
        raise InputError(f"{where}trust should be true or false but is {trust!r}")
    optimizer = _text(table, "optimizer", where) or "adam"
    if optimizer not in get_args(Optimizer):
        raise InputError(f"{where}optimizer {optimizer!r} is not known; use {', '.join(get_args(Optimizer))}")
    flops = table.get("flops-budget")
    fewest = flops is True or flops == "fewest"
    if not fewest and not isinstance(flops, str | None):
        raise InputError(f'{where}flops-budget should be such as "2GFLOPs", or true for the fewest')
    try:
        budget = parse_budget(
            ram=_text(table, "ram", where),
            flops="fewest" if fewest else flops,
            storage=_text(table, "storage", where),
            max_trainable=_text(table, "max-trainable", where),
            max_overhead=_text(table, "max-overhead", where),
            prefer=_text(table, "prefer", where),
            warn=_list(table, "warn", str, where) or (),
            runtime_overhead=_text(table, "runtime-overhead", where),
        )
    except InputError as error:
        raise InputError(f"{where.removesuffix('.')}: {error}" if where else str(error)) from error
    source = _text(table, "model", where)
    assert source is not None  # noqa: S101 - the callers have seen to it
    return Target(
        model=model,
        name=name,
        source=source,
        arch=_text(table, "arch", where),
        trust=trust,
        input_size=_input_size(table, where),
        batch_size=batch_size,
        methods=tuple(dict.fromkeys(methods)) if methods is not None else None,
        ranks=tuple(sorted(set(ranks))) if ranks is not None else (2, 4, 8),
        optimizer=optimizer,
        candidate=candidate,
        budget=budget,
    )


def _check_keys(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            hint = did_you_mean(key, known) or f"; it may hold {', '.join(known)}"
            raise InputError(f"{where}{key} is unknown{hint}")


def _tables(table: Mapping[str, Any], key: str, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    found = table.get(key, {})
    if not isinstance(found, dict):
        raise InputError(f"{where}{key} should be a table; write [tool.peft-advisor.{where}{key}.NAME]")
    for name, item in found.items():
        if not isinstance(item, dict):
            raise InputError(
                f"{where}{key}.{name} should be a table; write [tool.peft-advisor.{where}{key}.{name}]"
            )
        yield name, item


def _text(table: Mapping[str, Any], key: str, where: str) -> str | None:
    value = table.get(key)
    if value is None or (isinstance(value, str) and value.strip()):
        return value
    raise InputError(f"{where}{key} should be text but is {value!r}")


def _list(table: Mapping[str, Any], key: str, kind: type, where: str) -> list[Any] | None:
    value = table.get(key)
    if value is None:
        return None
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
        value = [int(part) if kind is int and part.isdecimal() else part for part in value]
    if not isinstance(value, list | tuple) or not all(type(item) is kind for item in value):
        wanted = "whole numbers" if kind is int else "names"
        raise InputError(f"{where}{key} should be a list of {wanted} but is {table[key]!r}")
    return list(value)


def _input_size(table: Mapping[str, Any], where: str) -> tuple[int, int, int] | None:
    text = _text(table, "input-size", where)
    try:
        return None if text is None else parse_input_size(text)
    except InputError as error:
        raise InputError(f"{where}input-size {error}") from error


def short_name(source: object) -> str:
    """A name for a model that has none: of its file, or of what stands behind the colon."""
    text = str(source)
    name = text.rpartition(":")[2] if ":" in text else Path(text).stem
    return name or text


def _lines(text: str, models: Sequence[str]) -> dict[str, int]:
    """Where each model's table begins, as far as plain headers tell; else where ours does."""
    found: dict[str, int] = {}
    first = 1
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(
            r"\s*\[\s*tool\s*\.\s*[\"']?peft-advisor[\"']?\s*(?:\.\s*models\s*\.\s*(.+?))?\s*\]", line
        )
        if header and header[1] is None:
            first = number
        elif header:
            found.setdefault(re.split(r"[\"']?\s*\.\s*targets", header[1])[0].strip("\"' "), number)
    return {name: found.get(name, first) for name in models}
