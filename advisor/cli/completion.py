"""Completion in bash: command names, options, and the values of options, without importing what they name.

The shell runs the command with the line so far in its environment, and gets the words that may stand at the
cursor. Where there are none it completes file names itself.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from advisor import names
from advisor.errors import InputError
from advisor.system.files import write_whole

_ASKED = "_PEFT_ADVISOR_COMPLETE"
_SCRIPT = """\
# Completion of peft-advisor in bash.
_peft_advisor() {
    local IFS=$'\\n'
    COMPREPLY=($(_PEFT_ADVISOR_COMPLETE=bash COMP_LINE="${COMP_LINE}" COMP_POINT="${COMP_POINT}" \\
        COMP_WORDBREAKS="${COMP_WORDBREAKS}" "$1" 2>/dev/null))
    # More follows on a prefix and on a folder.
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[:=/] ]]; then
        compopt -o nospace
    fi
}
complete -o default -F _peft_advisor peft-advisor
"""
_MODEL_FILES = (".pt", ".pth", ".safetensors")


def is_asked_for() -> bool:
    """Whether it is the shell that runs this, to complete a word."""
    return os.environ.get(_ASKED) == "bash"


def answer(root: Any) -> None:
    """Print what may stand at the cursor, one to a line."""
    line = os.environ.get("COMP_LINE", "")
    before = line.encode()[: int(os.environ.get("COMP_POINT", len(line.encode())))].decode(errors="replace")
    *words, unfinished = _words(before)
    # The shell takes a word's part behind a colon for a word of its own, and replaces that alone.
    kept = 0
    for mark in ":=":
        if mark in os.environ.get("COMP_WORDBREAKS", ""):
            kept = max(kept, unfinished.rfind(mark) + 1)
    for found in completions(root, words[1:], unfinished):
        typer.echo(found[kept:])


def completions(root: Any, words: Iterable[str], unfinished: str) -> list[str]:
    """What the unfinished word may become, after the words before it."""
    command, param = _place(root, words)
    name, equals, value = unfinished.partition("=")
    if param is not None and param.param_type_name == "option":
        return _values(param, unfinished)
    if name.startswith("--") and equals:
        option = _options(command).get(name)
        return [f"{name}={found}" for found in _values(option, value)] if option is not None else []
    if unfinished.startswith("-"):
        return _beginning(
            [option for option in (*_options(command), "--help") if option[:2] == "--"], unfinished
        )
    return _values(param, unfinished) if param is not None else _beginning(_commands(command), unfinished)


def _place(root: Any, words: Iterable[str]) -> tuple[Any, Any]:
    """The command that the words lead to, and the option or argument that comes next, if any does."""
    command, arguments, waiting = root, 0, None
    options = _options(command)
    for word in words:
        name, equals, _ = word.partition("=")
        if waiting is not None:
            waiting = None
        elif word.startswith("-"):
            param = options.get(name)
            waiting = None if param is None or param.is_flag or equals else param
        elif word in _commands(command):
            command, arguments = command.commands[word], 0
            options = _options(command)
        else:
            arguments += 1
    taken = [param for param in command.params if param.param_type_name == "argument"]
    if waiting is not None or not taken:
        return command, waiting
    if arguments < len(taken):
        return command, taken[arguments]
    return command, taken[-1] if taken[-1].nargs == -1 else None


def _values(param: Any, unfinished: str) -> list[str]:
    kind = getattr(getattr(param, "type_descriptor", None), "annotation", None)
    if get_origin(kind) is Literal:
        return _beginning(get_args(kind), unfinished)
    find = _FINDERS.get(param.name)
    return find(unfinished) if find is not None else []


def _models(unfinished: str) -> list[str]:
    """Names of networks, and files beside them; for files alone the shell does better."""
    library, colon, _ = unfinished.partition(":")
    if colon and library in ("torchvision", "timm"):
        known = names.torchvision_models() if library == "torchvision" else names.timm_models()
        return _beginning((f"{library}:{name}" for name in known), unfinished)
    named = _beginning(("torchvision:", "timm:"), unfinished)
    return [*named, *_files(unfinished)] if named else []


def _data(unfinished: str) -> list[str]:
    named = _beginning(("digits", "hf:", "torchvision:"), unfinished)
    return [*named, *_files(unfinished)] if named else []


def _files(unfinished: str) -> list[str]:
    """Files and folders of the current folder; hidden ones only where a dot was typed."""
    found = sorted(path for path in Path().glob("*") if path.is_dir() or path.suffix in _MODEL_FILES)
    shown = (path for path in found if not path.name.startswith(".") or unfinished.startswith("."))
    return _beginning((f"{path}/" if path.is_dir() else str(path) for path in shown), unfinished)


def _methods(unfinished: str) -> list[str]:
    """Of a list the last word is completed by those that it doesn't hold yet."""
    before, comma, last = unfinished.rpartition(",")
    others = [name for name in names.method_names() if name not in before.split(",")]
    return [f"{before}{comma}{name}" for name in _beginning(others, last)]


def _rehearsals(unfinished: str) -> list[str]:
    kind, colon, _ = unfinished.partition(":")
    if colon:
        return _beginning((f"{kind}:{severity}" for severity in range(1, 6)), unfinished)
    return _beginning(names.CORRUPTIONS, unfinished)


_FINDERS: dict[str, Callable[[str], list[str]]] = {
    "model": _models,
    "models": _models,
    "arch": _models,
    "data": _data,
    "add": _data,
    "retain": _data,
    "methods": _methods,
    "names": _methods,  # of `methods`
    "rehearse": _rehearsals,
    "optimizer": lambda unfinished: _beginning(names.OPTIMIZERS, unfinished),
    "augment": lambda unfinished: _beginning(names.AUGMENTS, unfinished),
    "device": lambda unfinished: _beginning(names.DEVICES, unfinished),
    "scenario": lambda unfinished: _beginning(names.SCENARIOS, unfinished),
    "executor": lambda unfinished: _beginning(names.EXECUTORS, unfinished),
}


def _beginning(words: Iterable[str], unfinished: str) -> list[str]:
    return [word for word in words if word.startswith(unfinished)]


def _commands(command: Any) -> dict[str, Any]:
    return getattr(command, "commands", {})


def _options(command: Any) -> dict[str, Any]:
    options = (param for param in command.params if param.param_type_name == "option")
    return {name: param for param in options for name in (*param.opts, *param.secondary_opts)}


def _words(line: str) -> list[str]:
    """As the shell would split it; the last one is unfinished, and empty after a space."""
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    try:
        words.extend(lexer)
    except ValueError:  # a quote that is still open
        words.append(lexer.token)
    return words if words and not line[-1:].isspace() else [*words, ""]


def _show(wanted: bool) -> None:
    if wanted:
        typer.echo(_SCRIPT, nl=False)
        raise typer.Exit


def _install(wanted: bool) -> None:
    """A file that ~/.bashrc sources: that works with and without the package bash-completion."""
    if not wanted:
        return
    try:
        home = Path.home()
        script, settings = home / ".local" / "share" / "peft-advisor" / "completion.bash", home / ".bashrc"
        script.parent.mkdir(parents=True, exist_ok=True)
        write_whole(script, _SCRIPT)
        line = f"source {shlex.quote(str(script))}\n"
        content = settings.read_text() if settings.exists() else ""
        if line not in content:
            with settings.open("a") as file:
                file.write(f"{'' if content.endswith(chr(10)) or not content else chr(10)}{line}")
    except (OSError, RuntimeError, UnicodeDecodeError) as error:  # RuntimeError: the user has no home folder
        raise InputError(
            f"--install-completion: {error}; put what --show-completion prints where bash reads it"
        ) from error
    typer.echo(f"{script}: written, and {settings} sources it: new shells complete peft-advisor")
    raise typer.Exit


Show = Annotated[
    bool,
    typer.Option(
        "--show-completion", is_eager=True, callback=_show, help="Print the completion script for bash."
    ),
]
Install = Annotated[
    bool,
    typer.Option(
        "--install-completion", is_eager=True, callback=_install, help="Have ~/.bashrc load it from now on."
    ),
]
