"""What the kernel tells of this machine's memory, and does as a process ends: nothing heavy is imported."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_PR_SET_PDEATHSIG = 1  # of Linux's sys/prctl.h
_AMPLE = 2**31  # bytes


def available_bytes(root: Path = Path("/")) -> int:
    """What the machine can still give, without swapping; where that can't be told, all that it has.

    A container or a batch system may grant less than the machine has: the tightest limit counts of the
    control groups (v1 and v2) that this process is in.

    Args:
        root: of the file system that says so.
    """
    return min([_of_machine(root), *_of_groups(root)])


def is_ample() -> bool:
    """Whether so much memory is left that processes may wait with PyTorch in them and keep what they free."""
    return available_bytes() > _AMPLE


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


def end_first() -> None:
    """Have the kernel kill this process rather than another where memory runs out."""
    with suppress(OSError):  # elsewhere than on Linux there is no such file
        Path("/proc/self/oom_score_adj").write_text("1000")


def end_with_parent() -> None:
    """Have the kernel kill this process as soon as the one that started it is gone, however it ended.

    Where memory runs out, it goes before that one. Elsewhere than on Linux a child that nobody waits for runs
    to the end of its work.
    """
    end_first()
    if sys.platform.startswith("linux"):
        getattr(ctypes.CDLL(None), "prctl", lambda *_: None)(_PR_SET_PDEATHSIG, signal.SIGKILL)
