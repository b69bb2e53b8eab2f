"""Ctrl-C where there is something to answer already: the work ends, and the answer is given.

The first one ends what is running inside `stoppable`, whose caller goes on with what is known; outside
of it, it waits for the next such work to begin. A second one ends the whole run at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

EXIT_INTERRUPTED = 130  # as shells have it: 128 + SIGINT

_FIRST = "interrupted: the answer follows from what is known; once more ends at once"


class EndedAtOnceError(SystemExit):
    """The second Ctrl-C: nothing is waited for any more."""


@dataclass(slots=True)
class _State:
    """Of this process: there is one signal handler."""

    can_answer: bool = False  # an answer is possible already
    depth: int = 0  # of `stoppable`
    seen: bool = False  # there was one after which an answer is due
    waits: bool = False  # it has not ended any work yet


_state = _State()


@contextmanager
def answering() -> Iterator[None]:
    """Handle Ctrl-C as said above, for as long as the context lasts. The main thread only; else nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _reset()
    before = signal.signal(signal.SIGINT, _on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _reset()


def answer_is_possible() -> None:
    """From now on Ctrl-C is to be answered; until then it ends the run."""
    _state.can_answer = True


@contextmanager
def stoppable() -> Iterator[None]:
    """Work that Ctrl-C may end: the caller catches the KeyboardInterrupt, and goes on without it."""
    _state.depth += 1
    try:
        if _state.waits:
            _state.waits = False
            raise KeyboardInterrupt
        yield
    finally:
        _state.depth -= 1


def _on_interrupt(number: int, frame: object) -> None:
    if not _state.can_answer:
        raise KeyboardInterrupt
    if _state.seen:
        _end()
    _state.seen = True
    _say(_FIRST)
    if _state.depth:
        raise KeyboardInterrupt
    _state.waits = True


def _end() -> NoReturn:
    # No KeyboardInterrupt: that could be caught for the sake of an answer.
    _say("interrupted")
    raise EndedAtOnceError(EXIT_INTERRUPTED)


def _say(line: str) -> None:
    # Not through sys.stderr: the signal may have come while that was being written to.
    with suppress(OSError):
        os.write(2, f"\npeft-advisor: {line}\n".encode())


def _reset() -> None:
    _state.can_answer = _state.seen = _state.waits = False
    _state.depth = 0
