"""Every error that a user can cause, in one tree.

AdvisorError            one clear line: what was found, what is allowed, what to do next
└── InputError          the model, the data or the command line is wrong      (exit code 2)
    ├── ModelError      the model can't be read, recognised or built
    ├── DataError       the data can't be read or can't be used with the model
    └── UnitError       a size, a FLOP count or a duration can't be parsed

That nothing fits is no error but an answer; the command line tells it with exit code 1.
"""

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


class DataError(InputError):
    """The data can't be read, or can't be used with this model."""


class UnitError(InputError):
    """A size, a FLOP count or a duration can't be parsed."""
