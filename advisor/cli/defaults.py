"""Options that `[tool.peft-advisor]` of the nearest pyproject.toml sets, where nothing else does.

[tool.peft-advisor]
ram = "64MB"                    # limits and what is priced: of check, recommend and profile alike

[tool.peft-advisor.recommend]   # any option of one command
data = "new-images/"
probe-time = "5m"
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from advisor.errors import InputError
from advisor.names import did_you_mean
from advisor.system.files import read_text

# A file that came with a folder may not allow a model to run its code, nor have files written.
_NEVER = ("trust", "help", "version", "report", "json", "output", "quiet", "verbose")


def from_file(name: str, command: Any, folder: Path) -> dict[str, Any]:
    """One command's, by parameter; empty where no file has our table.

    Args:
        command: click's, of that name.

    Raises:
        InputError: the file can't be read, or sets what is no option of the command.
    """
    if not any(_may_have_table(path) for path in _files(folder)):
        return {}  # the import below is as slow as all of --help
    from advisor.check.configuration import COMMANDS, SHARED, find_file, read_table

    file = find_file(folder) if name in COMMANDS else None
    if file is None:
        return {}
    table = read_table(file)
    own = table.get(name, {})
    if not isinstance(own, dict):
        raise InputError(f"{file}: {name} should be a table, [tool.peft-advisor.{name}]")
    known = {_key(param): param.name for param in command.params if param.param_type_name == "option"}
    for key in own:
        if key not in known or key in _NEVER:
            hint = did_you_mean(key, known) if key not in known else "; it has to be typed"
            raise InputError(f"{file}: {name}.{key} can't be set there{hint}")
    given = {key: table[key] for key in SHARED if key in table and key in known} | own
    return {known[key]: _as_typed(key, value) for key, value in given.items()}


def _files(folder: Path) -> Iterable[Path]:
    return (each / "pyproject.toml" for each in (folder, *folder.parents))


def _may_have_table(path: Path) -> bool:
    try:
        text = read_text(path)
        return "peft-advisor" in text and "peft-advisor" in tomllib.loads(text).get("tool", {})
    except OSError:
        return False
    except (ValueError, TypeError, RecursionError):  # what is wrong with it is told where it is read
        return True


def _key(param: Any) -> str:
    return str(max(param.opts, key=len)).lstrip("-")


def _as_typed(key: str, value: Any) -> Any:
    """What the command line would hold; the parser judges it."""
    if key == "flops-budget" and value is True:
        return "fewest"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return value if isinstance(value, bool) else str(value)
