"""The process that starts one apart: it hands on signals, and ends all of it that takes too much or long."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from advisor.confine.environment import stripped
from advisor.confine.limits import Limits, spell
from advisor.errors import InputError
from advisor.system.machine import end_with_parent
from advisor.units import format_bytes

EXIT_CONFINED = 3  # of `main`: it was ended, and the last line says why
_EVERY = 0.2  # seconds
_PR_SET_CHILD_SUBREAPER = 36  # of sys/prctl.h
_HANDED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")


class ConfinedError(InputError):
    """The process was ended for what it took, or ended in no way that a program should."""


@dataclass(frozen=True, slots=True)
class Mends:
    """What to do where a limit is too tight, in words."""

    memory: str
    time: str


def main(command: Sequence[str], limits: Limits) -> NoReturn:
    """As a program, for `check`: why it ended a process is the last line that it prints."""
    end_with_parent()
    try:
        sys.exit(
            run(
                command,
                limits,
                Mends("run it where there is more", "find what it waits for, or raise time-limit"),
            )
        )
    except ConfinedError as error:
        sys.stdout.flush()
        sys.stderr.write(f"{error}\n")
        sys.exit(EXIT_CONFINED)


def run(command: Sequence[str], limits: Limits, mends: Mends) -> int:
    """Run a program that confines itself (`advisor.confine.inside`), in an environment without secrets.

    Its streams are this process's, and so are the signals that this one gets, in the main thread. Whatever it
    has started ends with it.

    Returns:
        Its exit code.

    Raises:
        ConfinedError: it took too much memory or too long, or was killed.
    """
    others = frozenset(_children(os.getpid()))
    group = {"process_group": 0} if os.name == "posix" else {}
    with _orphans_adopted():
        process = subprocess.Popen(command, env=stripped(os.environ), **group)  # type: ignore[call-overload]  # noqa: S603 - our own
        try:
            with _signals_handed_on(process):
                code = _watched(process, limits, mends, others)
        finally:
            _end(process, others)
    if code < 0:
        raise ConfinedError(
            f"the process in which the file's code ran was ended by {signal.Signals(-code).name}: "
            "it asked for more memory than it may have, or something else ended it"
        )
    return code


def _watched(process: subprocess.Popen[bytes], limits: Limits, mends: Mends, others: frozenset[int]) -> int:
    took_long = f"the file's code ran for over {spell(limits.seconds)} and was ended; {mends.time}"
    end = time.monotonic() + limits.seconds
    while True:
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(_EVERY)
            if code < 0 and signal.Signals(-code).name == "SIGXCPU":
                raise ConfinedError(took_long)
            return code
        if time.monotonic() > end:
            raise ConfinedError(took_long)
        if _taken_bytes(others) > limits.memory_bytes:
            raise ConfinedError(
                f"the file's code took more than {format_bytes(limits.memory_bytes)} of memory "
                f"and was ended; {mends.memory}"
            )


@contextmanager
def _signals_handed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """What this process is sent goes to that one, which is in a group of its own: it gets each but once."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            process.send_signal(number)

    def stop(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        with suppress(OSError):  # somebody has this process go on
            os.killpg(process.pid, signal.SIGCONT)

    handlers = dict.fromkeys(_HANDED_ON, hand_on) | {"SIGTSTP": stop}
    before = {}
    try:
        for name, handler in handlers.items():
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


@contextmanager
def _orphans_adopted() -> Iterator[None]:
    """What the process has started becomes this one's as soon as nobody else has it, wherever it hides."""
    if not sys.platform.startswith("linux"):
        yield
        return
    prctl = getattr(ctypes.CDLL(None), "prctl", lambda *_: None)
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _end(process: subprocess.Popen[bytes], others: frozenset[int]) -> None:
    """Kill it and all that it has started, also what has left its group."""
    process.kill()
    process.wait()
    while found := _descendants(others):
        for each in found:
            with suppress(OSError):
                os.kill(each, signal.SIGKILL)
        for each in found:
            with suppress(OSError):  # a child of this process by now, or soon
                os.waitpid(each, 0)


def _taken_bytes(others: frozenset[int]) -> int:
    """What all of them hold that no file backs."""
    total = 0
    for each in _descendants(others):
        with suppress(OSError):
            lines = Path(f"/proc/{each}/status").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
    return total * 1024


def _descendants(others: frozenset[int]) -> list[int]:
    """This process's children but those that it had before, their children and so on, as far as is told."""
    found = [each for each in _children(os.getpid()) if each not in others]
    for each in found:  # which grows meanwhile
        found += _children(each)
    return found


def _children(process: int) -> list[int]:
    found: list[int] = []
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):  # it has ended
            found += [int(each) for each in children.read_text().split()]
    return found
