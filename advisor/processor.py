"""Which processor this is, told without torch."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_name() -> str:
    """What the kernel calls it; where it doesn't, what Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
