"""This process's memory as the kernel and the C library see it: how much, and how much at most."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

# glibc keeps freed memory for later; under a cap it has to go back at once, or the cap would count it.
GIVE_BACK = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
_PR_SET_PDEATHSIG = 1  # of Linux's sys/prctl.h
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


def available_bytes(root: Path = Path("/")) -> int:
    """What the machine can still give, without swapping; where that can't be told, all that it has.

    A container or a batch system may grant less than the machine has: the tightest limit counts of the
    control groups (v1 and v2) that this process is in.

    Args:
        root: of the file system that says so.
    """
    return min([_of_machine(root), *_of_groups(root)])


def _of_machine(root: Path) -> int:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        if not hasattr(os, "sysconf"):
            return sys.maxsize
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _of_groups(root: Path) -> Iterator[int]:
    """What each control group above this process that limits memory can still give."""
    for folder, is_v2 in _group_folders(root):
        limits, used = (
            (("memory.max", "memory.high"), "memory.current")
            if is_v2
            else (("memory.limit_in_bytes",), "memory.usage_in_bytes")
        )
        # In v1 the group's own figure leaves out those below it, which its usage holds.
        reclaimable = "inactive_file" if is_v2 else "total_inactive_file"
        with suppress(OSError, ValueError):
            taken = int((folder / used).read_text())
            for line in (folder / "memory.stat").read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == reclaimable:
                    taken -= int(value)
            for limit in limits:
                with suppress(OSError, ValueError):  # the root has none; without one it says "max"
                    yield max(int((folder / limit).read_text()) - max(taken, 0), 0)


def _group_folders(root: Path) -> Iterator[tuple[Path, bool]]:
    """The folders of this process's control groups that account for memory, each up to its mount."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    paths: dict[str, PurePosixPath] = {}
    for line in groups:  # such as `4:memory:/some/group`, and in v2 `0::/some/group`
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            paths["cgroup2"] = PurePosixPath(path)
        elif "memory" in controllers.split(","):
            paths["cgroup"] = PurePosixPath(path)
    for mounted in mounts:
        # `36 35 98:0 /mounted/part /mnt/point rw,noatime - cgroup source rw,memory`
        before, _, after = mounted.partition(" - ")
        kind, _, options = after.partition(" ")
        if kind not in paths or (kind == "cgroup" and "memory" not in options.split(" ")[-1].split(",")):
            continue
        part, point = before.split(" ")[3:5]
        mount, group = root / point.lstrip("/"), paths[kind]
        # Inside a container the mount may show a part of the tree that the path does not lie in.
        inside = group.is_relative_to(part) and ".." not in group.parts
        below = group.relative_to(part) if inside else PurePosixPath()
        for folder in (mount / below, *(mount / parent for parent in below.parents)):
            yield folder, kind == "cgroup2"


def return_freed_memory() -> None:
    """Give what was freed back to the kernel."""
    gc.collect()
    if sys.platform.startswith("linux"):
        # Only glibc has it; other C libraries give freed memory back by themselves.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)


def give_back_freed_memory() -> None:
    """What `GIVE_BACK` says in the environment, of a process that runs already."""
    if sys.platform.startswith("linux"):
        set_option = getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)
        set_option(_M_ARENA_MAX, int(GIVE_BACK["MALLOC_ARENA_MAX"]))
        set_option(_M_MMAP_THRESHOLD, int(GIVE_BACK["MALLOC_MMAP_THRESHOLD_"]))
        set_option(_M_TRIM_THRESHOLD, int(GIVE_BACK["MALLOC_TRIM_THRESHOLD_"]))


def keep_freed_memory() -> None:
    """Let glibc keep all freed memory for later: else the kernel hands an update's pages out anew each time.

    At large images that is a good part of an update's time; a little more memory stays resident.
    """
    if sys.platform.startswith("linux"):
        set_option = getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)
        set_option(_M_MMAP_MAX, 0)
        set_option(_M_TRIM_THRESHOLD, _ALL)


def reset_resident_peak() -> None:
    """Let VmHWM begin anew, where the kernel allows it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def end_with_parent() -> None:
    """Have the kernel kill this process as soon as the one that started it is gone, however it ended.

    Elsewhere than on Linux a child that nobody waits for runs to the end of its work.
    """
    if sys.platform.startswith("linux"):
        getattr(ctypes.CDLL(None), "prctl", lambda *_: None)(_PR_SET_PDEATHSIG, signal.SIGKILL)
