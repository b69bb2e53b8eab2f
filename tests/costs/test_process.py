"""What the kernel says of this process's memory, and what is done with freed memory."""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from advisor.costs import process
from advisor.costs.process import give_back_freed_memory, keep_freed_memory, process_bytes

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
MEGABYTES = 64


def test_bytes_are_the_kernels_pages():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    assert process_bytes("VmSize") == pytest.approx(pages * resource.getpagesize(), rel=3e-4)


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 1), ("freebsd14", 1024)])
def test_without_proc_the_peak_resident_set_stands_for_all(platform, unit, tmp_path, monkeypatch):
    """macOS tells it in bytes, other systems in kilobytes."""
    monkeypatch.setattr(process, "Path", lambda _: tmp_path / "status")
    monkeypatch.setattr(process, "sys", SimpleNamespace(platform=platform))
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=70_000))
    assert process_bytes("VmSize") == process_bytes("VmRSS") == 70_000 * unit


ALONE = f"""
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
before = process_bytes("VmRSS")
block = ctypes.c_void_p(libc.malloc({MEGABYTES} * 10**6))
ctypes.memset(block, 1, {MEGABYTES} * 10**6)
libc.free(block)
print((process_bytes("VmRSS") - before) / 1e6)
"""


def still_resident(prepare):
    """Of 64 MB that were used and freed, how much a process still has that did nothing else before."""
    # The module itself, without the package: torch would take and free memory of its own before.
    module = Path(sys.modules[prepare.__module__].__file__).read_text()
    code = f"{module}\n{prepare.__name__}()\n{ALONE}"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return float(found.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's")
def test_freed_memory_is_kept_or_given_back_as_asked():
    assert still_resident(keep_freed_memory) > 0.9 * MEGABYTES
    assert still_resident(give_back_freed_memory) < 0.1 * MEGABYTES
