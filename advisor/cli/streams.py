"""stdout carries results alone: whatever else prints, a model's code or a library, goes to stderr."""

from __future__ import annotations

import atexit
import ctypes
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress


@contextmanager
def results_apart() -> Iterator[None]:
    """While work is done, what is written to stdout goes to stderr: Python's prints and C's alike."""
    _flush()
    try:
        saved = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of them is closed
        saved = -1
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if saved >= 0:
            _flush()
            os.dup2(saved, 1)
            os.close(saved)


def nothing_more() -> None:
    """The result is out; what libraries print while Python ends goes to stderr."""
    _flush()
    atexit.register(_results_are_out)


def print_what_can_be() -> None:
    """Let no character stop the output: what the terminal's encoding lacks becomes a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")


def _results_are_out() -> None:
    with suppress(OSError, ValueError):
        os.dup2(2, 1)


def _flush() -> None:
    """Out with what was printed so far, before the file descriptor leads elsewhere."""
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None and not stream.closed:
            stream.flush()
    with suppress(AttributeError, OSError, TypeError):  # a platform whose C library has another name
        ctypes.CDLL(None).fflush(None)
