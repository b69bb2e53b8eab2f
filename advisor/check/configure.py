"""A first `[tool.peft-advisor]`, written into the pyproject.toml that is there or into a new one."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advisor.errors import InputError, first_line
from advisor.system import files

_TABLE = "tool.peft-advisor"


def with_model(text: str, name: str, target: str | None, values: Mapping[str, Any]) -> str:
    """The file's text with a table for one more model appended; nothing else of it changes.

    Args:
        text: "" for a new file.
        target: the name of the target that the limits among `values` are of; None: the only one.
        values: by key, as in the configuration.

    Raises:
        InputError: the model is there already, or the file's tables leave no place for it.
    """
    document = _parsed(text)
    ours = document.get("tool", {}).get("peft-advisor")
    if isinstance(ours, dict) and name in ours.get("models", {}):
        raise InputError(f"the model {name} is configured already; change it by hand, or give another --name")
    if isinstance(ours, dict) and "model" in ours:
        raise InputError(
            "one model is configured as `model` of [tool.peft-advisor]; give it a table of its own first"
        )
    of_model = {key: value for key, value in values.items() if target is None or key not in _OF_TARGET}
    of_target = {key: value for key, value in values.items() if key not in of_model}
    header = f"[{_TABLE}.models.{_key(name)}"
    parts = [text.rstrip("\n") + "\n"] if text.strip() else []
    parts.append(
        "".join([f"{header}]\n", *(f"{key} = {_value(value)}\n" for key, value in of_model.items())])
    )
    if target is not None:
        lines = (f"{key} = {_value(value)}\n" for key, value in of_target.items())
        parts.append("".join([f"{header}.targets.{_key(target)}]\n", *lines]))
    written = "\n".join(parts)
    try:
        _parsed(written)
    except InputError as error:
        raise InputError(
            f"a table can't be added to it ({error}), as where `tool` is written in one line; "
            f"add by hand: {parts[-1]}"
        ) from error
    return written


_OF_TARGET = ("ram", "flops-budget", "storage", "runtime-overhead", "candidate")


def read_text(path: Path) -> str:
    """The file's text; "" where there is none. Raises InputError."""
    try:
        return files.read_text(path)
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read ({first_line(error)})") from error


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"it is not valid TOML: {first_line(error)}") from error


def _key(name: str) -> str:
    is_bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if is_bare else _string(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return _string(str(value))


def _string(text: str) -> str:
    """A basic string: JSON's escapes are TOML's, but for what lies beyond the first plane, and DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
