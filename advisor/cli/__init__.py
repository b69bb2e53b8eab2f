"""The command line. One file per command; heavy imports happen inside the commands."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from advisor.cli import apply, check, demo, diff, init, methods, options, profile, recommend, report, store
from advisor.cli.streams import print_what_can_be
from advisor.errors import DEBUG, EXIT_WRONG_INPUT, AdvisorError, first_line
from advisor.interrupts import EXIT_INTERRUPTED, EndedAtOnceError

app = typer.Typer(
    name="peft-advisor",
    help="Which fine-tuning method fits this model, this data and this device, and what it will cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes longer to import than --help may
)
app.command("recommend")(recommend.command)
app.command("profile")(profile.command)
app.command("check")(check.command)
app.command("init")(init.command)
app.command("diff")(diff.command)
app.command("apply")(apply.command)
app.command("report")(report.command)
app.command("methods")(methods.command)
app.command("demo")(demo.command)
app.add_typer(store.app, name="store")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; every failure that a user can cause is one line on stderr."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    print_what_can_be()
    try:
        app(expand_bare_flops_budget(arguments))
    except AdvisorError as error:
        _fail(str(error), error.exit_code)
    except EndedAtOnceError:
        os._exit(EXIT_INTERRUPTED)  # without torch's teardown
    except KeyboardInterrupt:
        _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader, such as `head`, has what it wanted; Python would complain while flushing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except MemoryError:
        _fail(
            "this machine ran out of memory; use a smaller --batch-size or --input-size",
            EXIT_WRONG_INPUT,
        )
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        _fail(
            f"unexpected {type(error).__name__}: {first_line(error)}; "
            "please report it with the traceback that PEFT_ADVISOR_DEBUG=1 shows",
            EXIT_WRONG_INPUT,
        )
    sys.exit(0)


def expand_bare_flops_budget(arguments: Sequence[str]) -> list[str]:
    """Give a `--flops-budget` without a value one that stands for it: the parser wants a value.

    What follows is its value if it looks like a number, `2GFLOPs` or `-1` say.
    """
    expanded: list[str] = []
    for position, argument in enumerate(arguments):
        expanded.append(argument)
        following = arguments[position + 1] if position + 1 < len(arguments) else ""
        if argument == "--flops-budget" and not re.match(r"[+-]?\.?\d", following):
            expanded[-1] = f"--flops-budget={options.FEWEST}"
    return expanded


def _fail(message: str, exit_code: int) -> NoReturn:
    sys.stderr.write(f"peft-advisor: error: {message}\n")
    sys.exit(exit_code)
