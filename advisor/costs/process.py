"""This process's memory as the kernel and the C library see it: how much, and how much at most."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from advisor.system.machine import is_ample

# glibc and MKL keep freed memory for later; under a cap it has to go back at once, or the cap would count it.
BACK_AT_ONCE = 2**16  # bytes of an allocation from which on it does
GIVE_BACK = {  # of a process's environment, as it starts
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(BACK_AT_ONCE),
    "MALLOC_TRIM_THRESHOLD_": str(BACK_AT_ONCE),
    # What is kept aside for the next of its size stands between free ones: the heap grew from update to
    # update, by 8 MB in eighty of a ResNet-50, and now by 1.5.
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
    "MKL_DISABLE_FAST_MM": "1",  # of a head's solver it kept up to 23 MB
}
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8  # of glibc's malloc.h
_ALL = 2**31 - 1  # of a C int


@contextmanager
def data_limit(cap: int | None) -> Iterator[bool]:
    """Hold the process to `cap` bytes of private writable memory; yields whether the kernel enforces it."""
    if cap is None or not sys.platform.startswith("linux"):
        yield False
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    most = before[1]  # of a process apart, which can't be given more
    resource.setrlimit(resource.RLIMIT_DATA, (cap if most < 0 else min(cap, most), most))
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


def return_freed_memory() -> None:
    """Give what was freed back to the kernel."""
    gc.collect()
    if sys.platform.startswith("linux"):
        # Only glibc has it; other C libraries give freed memory back by themselves.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)


def give_back_freed_memory() -> None:
    """What of `GIVE_BACK` can still be said to glibc once a process runs."""
    if sys.platform.startswith("linux"):
        set_option = getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)
        set_option(_M_ARENA_MAX, int(GIVE_BACK["MALLOC_ARENA_MAX"]))
        set_option(_M_MMAP_THRESHOLD, int(GIVE_BACK["MALLOC_MMAP_THRESHOLD_"]))
        set_option(_M_TRIM_THRESHOLD, int(GIVE_BACK["MALLOC_TRIM_THRESHOLD_"]))


def keep_freed_memory() -> None:
    """Let glibc keep all freed memory for later: else the kernel hands an update's pages out anew each time.

    At large images that is a good part of an update's time; a little more memory stays resident, so nothing
    is kept where little is left.
    """
    if sys.platform.startswith("linux") and is_ample():
        set_option = getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)
        set_option(_M_MMAP_MAX, 0)
        set_option(_M_TRIM_THRESHOLD, _ALL)


def reset_resident_peak() -> None:
    """Let VmHWM begin anew, where the kernel allows it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
