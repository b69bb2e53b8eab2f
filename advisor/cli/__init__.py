"""The command line. One file per command; heavy imports happen inside the commands."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from advisor.cli import (
    apply,
    check,
    compare,
    completion,
    data,
    defaults,
    demo,
    device,
    diff,
    doctor,
    export,
    init,
    methods,
    options,
    profile,
    recommend,
    report,
    store,
    talk,
)
from advisor.cli.commands import App, Quiet, Verbose
from advisor.cli.streams import print_what_can_be
from advisor.cli.usage import UsageError, in_one_line
from advisor.errors import DEBUG, EXIT_WRONG_INPUT, AdvisorError, InputError, first_line
from advisor.system.interrupts import EXIT_INTERRUPTED, EndedAtOnceError
from advisor.system.processor import wait_without_spinning
from advisor.system.temporary import remove_all

_FLOPS_BUDGET = "PEFT_ADVISOR_FLOPS_BUDGET"


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"peft-advisor {version('peft-advisor')}")
        except PackageNotFoundError:
            typer.echo("peft-advisor, run from its sources")
        raise typer.Exit


def _root(
    quiet: Quiet = False,
    verbose: Verbose = False,
    show_completion: completion.Show = False,
    install_completion: completion.Install = False,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", is_eager=True, callback=_print_version, help="Print it, and exit."),
    ] = False,
) -> None:
    """Which fine-tuning method fits this image classifier, this data and this device, and what it will cost.

    Examples:
        peft-advisor demo
        peft-advisor recommend model.pt --data new-images/ --ram 64MB --report report.html
        peft-advisor profile torchvision:mobilenet_v2
        peft-advisor doctor
    """


app = App(name="peft-advisor", callback=_root)
app.command("recommend")(recommend.command)
app.command("profile")(profile.command)
app.command("compare")(compare.command)
app.command("data")(data.command)
app.command("check")(check.command)
app.command("init")(init.command)
app.command("diff")(diff.command)
app.command("apply")(apply.command)
app.command("export")(export.command)
app.command("report")(report.command)
app.command("methods")(methods.command)
app.command("demo")(demo.command)
app.command("doctor")(doctor.command)
app.add_typer(device.app, name="device")
app.add_typer(store.app, name="store")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; every failure that a user can cause is one line on stderr."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    wait_without_spinning()
    print_what_can_be()
    talk.speak("normal")
    try:
        _run(arguments)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except AdvisorError as error:
        _fail(str(error), error.exit_code, getattr(error, "more", ""))
    except EndedAtOnceError:
        remove_all()
        os._exit(EXIT_INTERRUPTED)  # without torch's teardown
    except (KeyboardInterrupt, typer.Abort):
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
        if talk.is_verbose():
            traceback.print_exc()
        _fail(
            f"unexpected {type(error).__name__}: {first_line(error)}; "
            "please report it with the traceback that --verbose shows",
            EXIT_WRONG_INPUT,
        )
    sys.exit(0)


def _run(arguments: Sequence[str]) -> None:
    """Parse the command line, and run the command that it names."""
    root = typer.main.get_command(app)
    if completion.is_asked_for():
        completion.answer(root)
        return
    if os.environ.get(_FLOPS_BUDGET) == "":
        os.environ[_FLOPS_BUDGET] = options.FEWEST
    try:
        # What is typed, and what the environment says, go before what a file says.
        name = next((argument for argument in arguments if not argument.startswith("-")), "")
        command = root.commands.get(name)  # type: ignore[attr-defined]
        from_file = {name: defaults.from_file(name, command, Path.cwd())} if command else {}
        given = expand_bare_flops_budget(arguments)
        with root.make_context("peft-advisor", given, default_map=from_file, obj=tuple(arguments)) as context:
            root.invoke(context)
    except UsageError as error:
        if type(error).__name__ != "NoArgsIsHelpError":
            raise InputError(in_one_line(error, arguments)) from error
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_WRONG_INPUT) from None


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


def _fail(message: str, exit_code: int, more: str = "") -> NoReturn:
    # A path or a name may hold what a terminal would obey.
    plain = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in message)
    sys.stderr.write(f"peft-advisor: error: {plain}\n{more}")
    sys.exit(exit_code)
