"""A process apart, for code that came with a file: what it may see, reach and take is limited.

    command = apart(program, arguments, Limits(memory_bytes, seconds))
    code = run(command, limits, Mends("...", "..."))    # watches it, and ends all of it that takes too much

What is denied is denied by the kernel, to the process and to all that it starts, for as long as they live:
the environment's secrets, the network, other processes' memory and environment, more memory or time than it
was given. Where the platform can't, `advisor.confine.inside.confine` tells so. Nothing here imports torch.

Files are another matter: what the user may read and write, the code may.
"""

from advisor.confine.limits import Limits, memory_by_default
from advisor.confine.program import apart, watching
from advisor.confine.watch import EXIT_CONFINED, ConfinedError, Mends, run

__all__ = [
    "EXIT_CONFINED",
    "ConfinedError",
    "Limits",
    "Mends",
    "apart",
    "memory_by_default",
    "run",
    "watching",
]
