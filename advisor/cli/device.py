"""`peft-advisor device`: what this machine does in how many seconds, for `--target`."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import typer

from advisor.cli.commands import App
from advisor.errors import AdvisorError
from advisor.names import check_at_least_one

app = App(help="Measure a device, for the --target of other commands.")


@app.command("measure")
def measure(
    threads: Annotated[int | None, typer.Option(help="Default: as many as PyTorch would take.")] = None,
) -> None:
    """Print the profile of this machine: seconds by kind of operator, and what the runtime takes.

    It takes a minute or two, in which the machine should do nothing else. Then
    peft-advisor recommend MODEL --target here.json predicts the seconds of every candidate.

    Examples:
        peft-advisor device measure > here.json
        peft-advisor device measure --threads 1 > one-thread.json
    """
    if threads is not None:
        check_at_least_one("--threads", threads)

    from advisor.device.program import program

    more = ["--threads", str(threads)] if threads is not None else []
    # The very program that runs on a board, in a process that has loaded nothing else.
    command = [sys.executable, "-P", "-c", program(), *more]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 - our own
    if done.returncode:
        raise AdvisorError(f"the device can't be measured: the program ended with {done.returncode}")
    typer.echo(done.stdout, nl=False)


@app.command("program")
def program() -> None:
    """Print the program that measures, one file that needs PyTorch alone: to be copied to a board.

    There, python measure_device.py > board.json does what device measure does here.

    Examples:
        peft-advisor device program > measure_device.py
    """
    from advisor.device.program import program

    typer.echo(program(), nl=False)
