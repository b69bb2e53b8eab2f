"""A second process that prices the same candidates from the other end, where the machine has a core for it.

What it finds is what would be found without it, only sooner: a cost depends on the candidate alone. Both work
through the methods, in opposite orders, until they meet.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection

from advisor.records import Candidate, Cost

Found = Callable[[Candidate, Cost], None]


@contextmanager
def priced_ahead(work: Callable[[Found], object]) -> Iterator[Callable[[], list[tuple[Candidate, Cost]]]]:
    """While it lasts, `work` runs in a fork of this process; yields what tells the costs found since then.

    The process must run one thread: others don't live on in the fork.

    Args:
        work: is called with what to call for each cost that it finds.
    """
    if not sys.platform.startswith("linux") or len(os.sched_getaffinity(0)) < 2:
        yield list
        return
    receiving, sending = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_run, args=(work, sending), daemon=True)
    process.start()
    sending.close()
    try:
        yield lambda: _received(receiving)
    finally:
        process.kill()
        process.join()
        receiving.close()


def _run(work: Callable[[Found], object], sending: Connection) -> None:
    import torch

    # torch makes its pool of threads anew after a fork at the first such call; autograd's own threads would
    # race each other to it, and end the process.
    torch.set_num_threads(1)
    with suppress(Exception):  # the process that it helps meets the same failure, and says it
        work(lambda candidate, cost: sending.send((candidate, cost)))
    os._exit(0)


def _received(receiving: Connection) -> list[tuple[Candidate, Cost]]:
    found = []
    with suppress(EOFError, OSError):  # it is done
        while receiving.poll():
            found.append(receiving.recv())
    return found
