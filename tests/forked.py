"""Runs `peft-advisor` once for each line on stdin, a JSON list of arguments, in a fork: torch loads once.

Prints the fork's process id, then how it ended: its exit code, or minus the signal that killed it.
"""

from __future__ import annotations

import json
import os
import sys

import torch

import advisor.advise  # noqa: F401 - imported once, for all forks
from advisor.cli import main


def run(arguments):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        main(arguments)
    except SystemExit as done:
        sys.stderr.flush()
        os._exit(int(done.code or 0))
    finally:
        os._exit(99)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            run(json.loads(line))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
