"""The processor, without torch: which one it is, and how threads wait on it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_BUSY = 0.5  # processes that ran in the last minute, on average


def processor_name() -> str:
    """What the kernel calls it; where it doesn't, what Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def wait_without_spinning() -> None:
    """Have threads that wait for each other sleep soon. OpenMP reads it as torch is loaded.

    By default they spin for milliseconds. Beside another busy process that holds up the very thread that
    they wait for: an update of mobilenet_v2 at 96 pixels then takes 25 times as long on two cores, and 1.4
    times with the shortest spin. On a quiet machine that one costs a quarter, so there it is longer.
    """
    if "OMP_WAIT_POLICY" in os.environ or not hasattr(os, "getloadavg"):
        return
    is_busy = os.getloadavg()[0] > _BUSY
    os.environ.setdefault("GOMP_SPINCOUNT", "1000" if is_busy else "10000")
