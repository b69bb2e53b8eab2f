"""What this machine and this installation offer: versions, devices, limits, the store, and what is wrong."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from advisor.errors import ModelError, first_line
from advisor.store import default_path
from advisor.system.processor import processor_name

# What `pip install 'peft-advisor[...]'` adds: the extra, its package, and what it gives.
_EXTRAS = (
    ("timm", "timm", "networks by name, timm:NAME, and bare state dicts of them"),
    ("dask", "distributed", "probes on a Dask cluster, --executor dask://HOST:PORT"),
    ("ray", "ray", "probes on a Ray cluster, --executor ray"),
    ("nvml", "nvidia-ml-py", "energy of updates on NVIDIA GPUs"),
)
_REQUIREMENT = re.compile(r"([\w.-]+)\s*(?:>=\s*([\d.]+))?")
_NEEDED_PYTHON = (3, 11)
_CAP, _OVER = 256 * 2**20, 512 * 2**20  # bytes
_TRY_THE_CAP = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, ({_CAP}, {_CAP}))
try:
    bytearray({_OVER})
except MemoryError:
    sys.exit(0)
sys.exit(1)
"""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is needed and isn't as it should be."""

    what: str
    mend: str


@dataclass(frozen=True, slots=True)
class Package:
    """A package that may be there."""

    name: str
    version: str | None  # None: not installed
    gives: str = ""
    install: str = ""  # how, where it is optional


@dataclass(frozen=True, slots=True)
class Device:
    """Something that computes."""

    kind: str  # cpu, cuda, mps
    name: str
    memory_bytes: int | None  # all that it has
    available_bytes: int | None = None  # what a process may still take, control groups' limits included
    cores: int | None = None
    usable_cores: int | None = None  # that this process may run on
    threads: int | None = None  # that torch would use


@dataclass(frozen=True, slots=True)
class StoreState:
    """Where finished work is kept."""

    path: str | None
    exists: bool
    size_bytes: int
    results: int


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All of it."""

    problems: tuple[Problem, ...]
    needed: tuple[Package, ...]
    optional: tuple[Package, ...]
    devices: tuple[Device, ...]
    memory_limit_works: bool
    store: StoreState


def examine() -> Diagnosis:
    """Look at everything; nothing is changed, and nothing is raised for what is missing."""
    problems: list[Problem] = []
    needed = tuple(_needed(problems))
    devices = tuple(_devices(problems))
    store = _store(problems)
    optional = tuple(
        Package(package, _version(package), gives, f"pip install 'peft-advisor[{extra}]'")
        for extra, package, gives in _EXTRAS
    )
    return Diagnosis(tuple(problems), needed, optional, devices, _memory_limit_works(), store)


def _needed(problems: list[Problem]) -> Iterator[Package]:
    """Python and the packages that the installation asks for, as many as are told."""
    yield Package("python", platform.python_version())
    if sys.version_info[:2] < _NEEDED_PYTHON:
        wanted = ".".join(map(str, _NEEDED_PYTHON))
        problems.append(Problem(f"Python {platform.python_version()} is too old", f"use {wanted} or later"))
    own = _version("peft-advisor")
    yield Package("peft-advisor", own)
    if own is None:
        problems.append(Problem("peft-advisor runs from its sources, not installed", "pip install ."))
        return
    for line in requires("peft-advisor") or ():
        if "extra ==" in line:
            continue
        match = _REQUIREMENT.match(line)
        assert match is not None  # noqa: S101 - a requirement begins with a name
        name, least = match[1], match[2]
        found = _version(name)
        yield Package(name, found)
        if found is None:
            problems.append(Problem(f"{name} is not installed", f"pip install '{line}'"))
        elif least and _numbers(found) < _numbers(least):
            problems.append(Problem(f"{name} {found} is too old", f"pip install '{line}'"))


def _devices(problems: list[Problem]) -> Iterator[Device]:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    affinity = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity else None
    try:
        import torch

        from advisor.costs import available_bytes
        from advisor.models.architectures import import_torchvision

        import_torchvision()
    except ModelError as error:
        what, _, mend = str(error).partition(": ")
        problems.append(Problem(what, mend or "install torch and torchvision of one release"))
    except Exception as error:  # noqa: BLE001 - a package may break in any way: that is what is to be told
        problems.append(
            Problem(f"torch can't be used: {first_line(error)}", "pip install --force-reinstall torch")
        )
        yield Device("cpu", processor_name(), total, None, os.cpu_count(), usable)
        return
    yield Device(
        "cpu", processor_name(), total, available_bytes(), os.cpu_count(), usable, torch.get_num_threads()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a driver that is not there
        if torch.cuda.is_available():
            for index in range(torch.cuda.device_count()):
                found = torch.cuda.get_device_properties(index)
                free, _ = torch.cuda.mem_get_info(index)
                yield Device("cuda", found.name, found.total_memory, free)
        if torch.backends.mps.is_available():
            yield Device("mps", "Apple GPU", None)


def _memory_limit_works() -> bool:
    """Whether the kernel stops a process that takes more than its limit: tried, in one of its own."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        done = subprocess.run(  # noqa: S603 - our own few lines
            [sys.executable, "-I", "-S", "-c", _TRY_THE_CAP], capture_output=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _store(problems: list[Problem]) -> StoreState:
    mend = "give another one with --store FILE, or --no-store"
    try:
        path = default_path()
    except RuntimeError:  # the user has no home folder
        problems.append(Problem("there is no home folder to keep finished work in", mend))
        return StoreState(None, False, 0, 0)
    if not path.exists():
        folder = next(parent for parent in path.parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            problems.append(Problem(f"finished work can't be kept: {folder} can't be written to", mend))
        return StoreState(str(path), False, 0, 0)
    files = [file for file in (path, Path(f"{path}-wal")) if file.exists()]
    size = sum(file.stat().st_size for file in files)
    if not os.access(path, os.W_OK):
        problems.append(Problem(f"finished work can't be kept: {path} can't be written to", mend))
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            (results,) = database.execute("SELECT count(*) FROM results").fetchone()
    except sqlite3.Error as error:
        problems.append(
            Problem(f"the store {path} can't be read: {error}", "the next run sets it aside; or delete it")
        )
        results = 0
    return StoreState(str(path), True, size, results)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    """`2.10.1+cpu` -> (2, 10, 1)."""
    return tuple(int(number) for number in re.findall(r"\d+", text.partition("+")[0])[:3])
