"""What is wrong with a command line, in one line with what was probably meant."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import typer

from advisor.names import did_you_mean

# typer has the class, and no public name for it.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def in_one_line(error: Any, arguments: Sequence[str]) -> str:
    """The message of a UsageError that the parser raised on these arguments."""
    problem = _PROBLEMS.get(type(error).__name__, _other)(error, arguments)
    return f"{problem}{' See' if problem.endswith('?') else '; see'} {error.ctx.command_path} --help"


def _no_such_option(error: Any, arguments: Sequence[str]) -> str:
    typed = _as_typed(error.option_name, arguments)
    commands = getattr(error.ctx.find_root().command, "commands", {})
    having = [name for name, command in commands.items() if typed in _options(command)]
    if having:
        *first, last = having
        others = f"{', '.join(first)} and {last} have" if first else f"{last} has"
        return f"{error.ctx.info_name} has no option {typed}, but {others}"
    return f"there is no option {_quoted(typed)}{did_you_mean(typed, _options(error.ctx.command))}"


def _bad_use(error: Any, arguments: Sequence[str]) -> str:
    return f"{error.option_name} {'needs a value' if 'requires' in error.message else 'takes no value'}"


def _missing(error: Any, arguments: Sequence[str]) -> str:
    return f"{_name(error.param)} is missing"


def _bad_value(error: Any, arguments: Sequence[str]) -> str:
    source = error.ctx.get_parameter_source(error.param.name)
    where = f" (from {error.param.envvar})" if source and source.name == "ENVIRONMENT" else ""
    return f"{_name(error.param)} {error.message.rstrip('.')}{where}"


def _other(error: Any, arguments: Sequence[str]) -> str:
    commands = getattr(error.ctx.command, "commands", {})
    if commands and error.message.startswith("No such command"):
        typed = next(argument for argument in arguments if repr(argument) in error.message)
        return f"there is no command {_quoted(typed)}{did_you_mean(typed, commands)}"
    if commands:
        return f"give a command: {', '.join(commands)}"
    extra = re.search(r"unexpected extra arguments? ?\(?s?\)? ?\((.*)\)", error.message)
    if extra:
        takes = (param for param in error.ctx.command.params if param.param_type_name == "argument")
        taken = " ".join(map(_name, takes)) or "options alone"
        return f"{_quoted(extra[1])} is too much: {error.ctx.info_name} takes {taken}"
    return error.message[:1].lower() + error.message[1:].rstrip(".")


# By the name of the error's class: their texts differ between typer's releases.
_PROBLEMS: dict[str, Callable[[Any, Sequence[str]], str]] = {
    "NoSuchOption": _no_such_option,
    "BadOptionUsage": _bad_use,
    "MissingParameter": _missing,
    "BadParameter": _bad_value,
}


def _as_typed(option: str, arguments: Sequence[str]) -> str:
    """Of `-methods` the parser names `-m` alone."""
    whole = (word for word in arguments if word.startswith(option) and not word.startswith("--"))
    return next(whole, option).partition("=")[0] if len(option) == 2 else option


def _options(command: Any) -> list[str]:
    own = (name for param in command.params if param.param_type_name == "option" for name in param.opts)
    return [*own, "--help"]


def _name(param: Any) -> str:
    if param.param_type_name == "argument":
        return str(param.metavar)
    return str(max(param.opts, key=len))


def _quoted(word: str) -> str:
    return shlex.quote("".join(letter for letter in word if letter.isprintable()))
