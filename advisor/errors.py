"""Every error that a user can cause, in one tree.

AdvisorError            one clear line: what was found, what is allowed, what to do next
└── InputError          the model, the data or the command line is wrong      (exit code 2)
    ├── ModelError      the model can't be read, recognised or built
    ├── DataError       the data can't be read or can't be used with the model
    └── UnitError       a size, a FLOP count or a duration can't be parsed

That nothing fits is no error but an answer; the command line tells it with exit code 1.
"""

from __future__ import annotations

import sys
import traceback

DEBUG = "PEFT_ADVISOR_DEBUG"  # the environment variable that lets tracebacks through
EXIT_OK = 0
EXIT_NOTHING_FITS = 1
EXIT_WRONG_INPUT = 2


class AdvisorError(Exception):
    """Root of all expected failures; its text is shown to the user as it is."""

    exit_code = EXIT_WRONG_INPUT


class InputError(AdvisorError):
    """What the user gave can't be used as it is."""


class ModelError(InputError):
    """The model can't be read, recognised or built."""

    def __init__(self, text: str, more: str = "") -> None:
        super().__init__(text)
        self.more = (
            more  # lines to begin with, such as a factory of the closest network; "" if there are none
        )


class DataError(InputError):
    """The data can't be read, or can't be used with this model."""


class UnitError(InputError):
    """A size, a FLOP count or a duration can't be parsed."""


# Where the user's model is called: what is raised below is its own, unless other code of ours comes after.
_CALLERS = {
    f"advisor.{name}"
    for name in (
        "training.accelerator",
        "training.update",
        "costs.recorder",
        "models.blocks",
        "models.layers",
    )
}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or torch was given no more memory."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def first_line(error: BaseException) -> str:
    """The error's text, its first line; its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_fault_of_ours(error: BaseException) -> bool:
    """Whether the error was raised by code of this package, rather than by the user's model.

    The model's code runs below ours and both run torch's, so it is the innermost code that is not a
    library's which counts.
    """
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames or frames[-1].startswith("advisor."):
        return bool(frames)
    known = sys.stdlib_module_names | {"torch", "numpy"}
    inner = [name for name in frames if name.partition(".")[0] not in known]
    return bool(inner) and inner[-1].startswith("advisor.") and inner[-1] not in _CALLERS
