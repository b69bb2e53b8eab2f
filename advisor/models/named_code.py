"""The user's own objects, named on the command line: `package.module:name`, or `file.py:name`.

What is typed there is imported, and a function called: that is what it was named for. A name out of a file is
another matter, see `advisor.models.pickles`.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from advisor.errors import InputError, ModelError
from advisor.models.printable import first_line
from advisor.names import did_you_mean

Wrong = Callable[[str], InputError]  # which error it is: of a model, or of data


def named_object(text: str, wrong: Wrong = ModelError) -> tuple[ModuleType, Any]:
    """The module or file that the text names, imported, and the object in it.

    Raises:
        InputError: it can't be imported, or holds no such name.
    """
    module_name, _, attribute = text.rpartition(":")
    is_file = module_name.endswith(".py")
    home = _imported_file(text, Path(module_name), wrong) if is_file else _imported(text, module_name, wrong)
    found: Any = home
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if found is None:
        offered = [name for name in vars(home) if not name.startswith("_")]
        hint = did_you_mean(attribute, offered)
        raise wrong(f"{text}: {module_name} has no function {attribute}{hint}")
    return home, found


def call(text: str, factory: Any, wrong: Wrong = ModelError, **arguments: Any) -> Any:
    """What the factory returns; what it prints goes to stderr.

    Raises:
        InputError: it needs other arguments, or fails.
    """
    wants = [
        name
        for name, each in parameters(factory).items()
        if each.default is each.empty
        and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        and name not in arguments
    ]
    if wants:
        raise wrong(
            f"{text}: calling it needs {', '.join(wants)}; write a function without arguments that calls it"
        )
    try:
        with stdout_to_stderr():
            return factory(**arguments)
    except (Exception, SystemExit) as error:
        raise wrong(f"{text}: calling it failed: {type(error).__name__}: {first_line(error)}") from error


def parameters(factory: Any) -> Mapping[str, inspect.Parameter]:
    """Those of a function or class; none where it doesn't tell."""
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return MappingProxyType({})


def _imported(text: str, name: str, wrong: Wrong) -> ModuleType:
    make_current_folder_importable()
    try:
        with stdout_to_stderr():
            return import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and name.startswith(error.name or "\0"):
            mend = "run from the folder that holds it, or put that folder on PYTHONPATH"
            raise wrong(f"{text}: can't import {name} ({first_line(error)}); {mend}") from error
        raise wrong(
            f"{text}: importing {name} failed: {type(error).__name__}: {first_line(error)}"
        ) from error


def _imported_file(text: str, path: Path, wrong: Wrong) -> ModuleType:
    """Under its own name, with its folder first on sys.path, so that it finds what lies beside it."""
    if not path.is_file():
        beside = [each.name for each in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise wrong(f"{text}: there is no file {path}{did_you_mean(path.name, beside)}")
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    home = _imported(text, path.stem, wrong)
    if not Path(home.__file__ or "").resolve() == path.resolve():
        raise wrong(f"{text}: another module is called {path.stem}, too; rename the file")
    return home


def make_current_folder_importable() -> None:
    """Put the current folder first on sys.path, and leave it: child processes need it as well."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """What the user's code prints must not end up in the JSON on stdout."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
