"""In the process apart: it gives up what it is not to have, before any other code is there."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass

from advisor.confine.kernel import deny_sockets, drop_privileges, hide_others
from advisor.confine.limits import Limits, spell
from advisor.system.machine import end_with_parent
from advisor.units import format_bytes

_EXTRA_BYTES = 2**26  # the interpreter's own, which is there before anything is taken


@dataclass(frozen=True, slots=True)
class Confinement:
    """What holds in this process, and what the platform can't deny."""

    limits: Limits
    network: bool
    others: bool
    memory: bool

    def __str__(self) -> str:
        """In one line."""
        denied = ["secrets of the environment"]
        denied += ["network"] * self.network + ["other processes"] * self.others
        most = [format_bytes(self.limits.memory_bytes)] * self.memory + [spell(self.limits.seconds)]
        left = ["the network"] * (not self.network)
        left += ["looking into other processes"] * (not self.others) + ["memory"] * (not self.memory)
        said = f"the file's code runs in a process apart: no {_listed(denied)}, {' and '.join(most)} at most"
        return f"{said}; this platform can't limit {_listed(left)}" if left else said


def _listed(words: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


_held: list[Confinement] = []


def confinement() -> Confinement | None:
    """What holds in this process; None: nothing was denied."""
    return _held[-1] if _held else None


def confine(limits: Limits) -> Confinement:
    """Give up the network, other processes, and all but so much memory and time; it can't be undone.

    To be called while the process has one thread: others would keep what they have. It ends with the one
    that has started it.
    """
    end_with_parent()
    has_limits = _limit(limits)
    drop_privileges()
    # In this order: what is looked up for the second is a system call, which the first doesn't deny.
    others = hide_others()
    _held.append(Confinement(limits, network=deny_sockets(), others=others, memory=has_limits))
    return _held[-1]


def _limit(limits: Limits) -> bool:
    """Of this process alone, by the kernel: the one that watches adds up. Whether it limits memory."""
    try:
        import resource
    except ImportError:
        return False
    processor = math.ceil(limits.seconds) * (os.cpu_count() or 1)
    for kind, value in ((resource.RLIMIT_CPU, processor), (resource.RLIMIT_CORE, 0)):
        _lower(resource, kind, value)
    if not sys.platform.startswith("linux"):
        return False  # there is a call, but nothing comes of it
    _lower(resource, resource.RLIMIT_DATA, limits.memory_bytes + _EXTRA_BYTES)
    return True


def _lower(resource: object, kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)  # type: ignore[attr-defined]
    value = value if hard < 0 else min(value, hard)
    resource.setrlimit(kind, (value, value))  # type: ignore[attr-defined]
