"""What the kernel says of this process's memory, and what is done with freed memory."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

import pytest

from advisor.costs.process import give_back_freed_memory, keep_freed_memory, process_bytes

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
MEGABYTES = 64


def test_bytes_are_the_kernels_pages():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    assert process_bytes("VmSize") == pytest.approx(pages * resource.getpagesize(), rel=3e-4)


def still_resident(prepare):
    """Of 64 MB that were used and freed, in a process apart: how much it still has."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            prepare()
            libc = ctypes.CDLL(None)
            libc.malloc.restype = ctypes.c_void_p
            before = process_bytes("VmRSS")
            block = ctypes.c_void_p(libc.malloc(MEGABYTES * 10**6))
            ctypes.memset(block, 1, MEGABYTES * 10**6)
            libc.free(block)
            os.write(write, str((process_bytes("VmRSS") - before) / 1e6).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        found = float(said.read())
    os.waitpid(child, 0)
    return found


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's")
def test_freed_memory_is_kept_or_given_back_as_asked():
    assert still_resident(keep_freed_memory) > 0.9 * MEGABYTES
    assert still_resident(give_back_freed_memory) < 0.1 * MEGABYTES
