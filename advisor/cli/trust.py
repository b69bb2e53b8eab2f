"""What --trust has run: the whole command, in a process apart.

The file's code may do its work at any time - as it is loaded, in a forward pass, as a result is written - so
all of the command runs where the code does. Commands that price models in children of their own
(`advisor.check`) have these confined instead.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from advisor.cli import talk
from advisor.errors import InputError

OWN_CHILDREN = ("check", "init", "diff")
_HOUR = 3600.0
_WHERE_LONG = ("apply", "recommend", "compare")  # they train; how long, the data says
_LEAST_MEMORY = 10**9
_PROGRAM = "from advisor.cli import main; sys.argv[0] = 'peft-advisor'; main()"

TrustMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Most memory that the command may take with --trust; default: 3/4 of what is free.",
    ),
]
TrustTime = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Longest that the command may run with --trust; default: 1h, and where it trains 24h.",
    ),
]


def has_to_be_apart(context: Any) -> bool:
    """Whether the command lets a file run its code, and this process is not the one for that."""
    return bool(context.params.get("trust")) and context.command.name not in OWN_CHILDREN and not _is_apart()


def run_apart(context: Any, arguments: Sequence[str], memory: str | None, time: str | None) -> int:
    """Run the command line once more, in a process apart: its exit code.

    Raises:
        InputError: what is asked for needs the network, or a limit is nonsense; ConfinedError: it was ended.
    """
    from advisor.confine import Limits, Mends, apart, memory_by_default, run
    from advisor.units import format_bytes, parse_bytes, parse_seconds

    executor = context.params.get("executor") or ""
    if executor.startswith(("dask", "ray")):
        raise InputError(
            f"--trust denies the file's code the network, which --executor {executor} needs; leave one out"
        )
    most = memory_by_default() if memory is None else parse_bytes(memory)
    if most < _LEAST_MEMORY:
        what = "only" if memory is None else "--trust-memory is"
        raise InputError(
            f"{what} {format_bytes(most)}{' of memory are free' if memory is None else ''}; "
            f"with --trust the command needs {format_bytes(_LEAST_MEMORY)} at least"
        )
    hours = 24 if context.command.name in _WHERE_LONG else 1
    limits = Limits(most, hours * _HOUR if time is None else parse_seconds(time))
    mends = Mends("give --trust-memory if it needs more", "give --trust-time if it needs longer")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    return run(apart(_PROGRAM, arguments, limits), limits, mends)


def tell() -> None:
    """Once in the process apart: what is denied, and what can't be."""
    if _is_apart():
        from advisor.confine.inside import confinement

        talk.notice(f"--trust: {confinement()}")


def _is_apart() -> bool:
    # Not worth an import where nobody trusts.
    inside = sys.modules.get("advisor.confine.inside")
    return inside is not None and inside.confinement() is not None
