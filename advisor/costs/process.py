"""This process's memory as the kernel and the C library see it: how much, and how much at most."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# glibc keeps freed memory for later; under a cap it has to go back at once, or the cap would count it.
GIVE_BACK = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
# glibc's malloc.h, and the ceiling of its own dynamic threshold on 64-bit machines.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _MOST_REUSED_BYTES = -1, -3, 32 * 2**20


@contextmanager
def data_limit(cap: int | None) -> Iterator[bool]:
    """Hold the process to `cap` bytes of private writable memory; yields whether the kernel enforces it."""
    if cap is None or not sys.platform.startswith("linux"):
        yield False
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (cap, before[1]))
    try:
        yield True
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def process_bytes(field: str) -> int:
    """A field of /proc/self/status in bytes; elsewhere the peak resident set stands for all of them."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def available_bytes() -> int:
    """What the machine can still give, without swapping; where that can't be told, all that it has."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except FileNotFoundError:
        if not hasattr(os, "sysconf"):
            return sys.maxsize
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def return_freed_memory() -> None:
    """Give what was freed back to the kernel."""
    gc.collect()
    if sys.platform.startswith("linux"):
        # Only glibc has it; other C libraries give freed memory back by themselves.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory again, as it does by default: giving it back makes updates slow."""
    if sys.platform.startswith("linux"):
        set_option = getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)
        set_option(_M_MMAP_THRESHOLD, _MOST_REUSED_BYTES)
        set_option(_M_TRIM_THRESHOLD, 2 * _MOST_REUSED_BYTES)


def reset_resident_peak() -> None:
    """Let VmHWM begin anew, where the kernel allows it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
