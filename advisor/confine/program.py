"""The command lines of a process apart, and of one that watches it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from advisor.confine.limits import Limits

# Its import path is the caller's, in the same order, and -P keeps the current folder from standing before it:
# a module there could hide one of Python's own.
_START = "import json, sys; order = json.loads(sys.argv.pop(1)); sys.path[:] = order['path']; "
_CONFINE = (
    "from advisor.confine import Limits; from advisor.confine.inside import confine; "
    "confine(Limits(**order['limits'])); "
)
_WATCH = "from advisor.confine.watch import main; main(sys.argv[1:], Limits(**order['limits']))"


def apart(program: str, arguments: Sequence[str], limits: Limits) -> list[str]:
    """The command that gives up what code of a file is not to have, and then runs a program of ours.

    Args:
        program: Python's, which imports what it needs.
        arguments: what it finds in `sys.argv[1:]`.
    """
    return [*_started(_CONFINE + program, limits), *arguments]


def watching(command: Sequence[str], limits: Limits) -> list[str]:
    """The command that runs another one as `advisor.confine.run` does, in a process of its own."""
    return [*_started("from advisor.confine import Limits; " + _WATCH, limits), *command]


def _started(program: str, limits: Limits) -> list[str]:
    path = [entry or str(Path.cwd()) for entry in sys.path]
    order = json.dumps({"path": path, "limits": asdict(limits)})
    return [sys.executable, "-P", "-c", _START + program, order]
