"""Commands in a terminal of their own, and which processes are there."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The terminal becomes the controlling one, and the command its foreground.
_START = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, sys.argv[1:])
"""


class Terminal:
    """A command in a pseudo-terminal of 80 columns."""

    def __init__(self, *arguments, cwd, columns=80, **environment):
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, sys.executable, "-m", "advisor", *map(str, arguments)],
            cwd=cwd,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm"} | environment,
        )
        os.close(slave)
        self.seen = ""

    def press_ctrl_c(self):
        os.write(self._master, b"\x03")

    def wait_for(self, text, seconds=120):
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, self.seen[-2000:]
            assert self._read(), self.seen[-2000:]

    def ended(self, seconds=120):
        """The exit code, once everything is read."""
        end = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < end, self.seen[-2000:]
        return self.process.wait(seconds)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def _read(self):
        """Whether there may be more."""
        if select.select([self._master], [], [], 0.1)[0]:
            try:
                content = os.read(self._master, 65536)
            except OSError:  # the other end is closed
                return False
            self.seen += content.decode(errors="replace")
            return bool(content)
        return True


def descendants(process_id):
    """Ids of its children, their children and so on."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # ended meanwhile
            continue
    found, new = set(), {process_id}
    while new:
        new = {child for child, parent in parents.items() if parent in new}
        found |= new
    return found


def is_running(process_id):
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
