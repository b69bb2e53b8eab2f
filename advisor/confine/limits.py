"""How much a process apart may take."""

from __future__ import annotations

from dataclasses import dataclass

from advisor.system.machine import available_bytes
from advisor.units import format_seconds

_SHARE = 0.75  # of what the machine can give now: the rest goes on


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a process, and of all that it starts together."""

    memory_bytes: int
    seconds: float  # wall clock, from its start to its end


def memory_by_default() -> int:
    """Three quarters of what the machine can give now."""
    return int(_SHARE * available_bytes())


def spell(seconds: float) -> str:
    """A limit as it was most likely typed: in hours where these are whole."""
    return format_seconds(seconds) if seconds % 3600 else f"{seconds / 3600:.0f} h"
