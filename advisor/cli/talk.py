"""What is said on stderr beside the result: nothing with --quiet, more of it with --verbose.

Errors are said in any case (`advisor.cli.main`); warnings that belong to an answer stand in the answer.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import Literal

import typer

from advisor.errors import InputError

_log = logging.getLogger("advisor")  # the whole package's: what it says at DEBUG is for --verbose

Loudness = Literal["quiet", "normal", "verbose"]


@dataclass(slots=True)
class _State:
    """Of this process: there is one stderr."""

    loudness: Loudness = "normal"


_state = _State()


def speak(loudness: Loudness) -> None:
    """From now on, say so much."""
    _state.loudness = loudness
    _log.setLevel(logging.DEBUG if loudness == "verbose" else logging.WARNING)
    _log.propagate = False
    _log.handlers = [_Handler()]


def is_quiet() -> bool:
    """Whether there is nothing to say but the result and errors."""
    return _state.loudness == "quiet"


def is_verbose() -> bool:
    """Whether there is more to say: each step as it is done, tracebacks."""
    return _state.loudness == "verbose"


def options() -> list[str]:
    """What has another command of ours say as much."""
    return [] if _state.loudness == "normal" else [f"--{_state.loudness}"]


def hint(line: str) -> None:
    """What is good to know beside the result: where it went, what to do next."""
    if not is_quiet():
        typer.echo(line, err=True)


def notice(line: str) -> None:
    """A hint that says by itself who speaks."""
    hint(f"peft-advisor: {line}")


def loudness_of(asked: dict[str, int]) -> Loudness:
    """What was asked for, the options by how strongly they were: those that were typed outdo others.

    Raises InputError where both were typed.
    """
    quiet, verbose = asked.get("quiet", 0), asked.get("verbose", 0)
    if quiet and quiet == verbose:
        raise InputError("--quiet and --verbose exclude each other; leave one out")
    return "quiet" if quiet > verbose else "verbose" if verbose else "normal"


class _Handler(logging.Handler):
    """To whatever stderr is at that time: progress bars stand in for it, and keep lines out of their way."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:  # it may be closed
            sys.stderr.write(f"{self.format(record)}\n")
