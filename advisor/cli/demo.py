"""`peft-advisor demo`: a real small case, self-contained."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from advisor.cli import options
from advisor.cli.outputs import say_what_is_kept
from advisor.errors import InputError
from advisor.files import make_folder


def command(
    scenario: Annotated[
        str,
        typer.Option(metavar="shift|new-classes", help="Corrupted digits, or digits never seen before."),
    ] = "shift",
    folder: Annotated[Path, typer.Option(help="Where the files go.")] = Path("demo"),
    probe_time: Annotated[str, typer.Option(help="Wall clock for the probes.")] = "60s",
    seed: Annotated[int, typer.Option(help="Of the training and the corruption.")] = 0,
) -> None:
    """Train a small network on real digits, change the situation, and ask for advice.

    Everything it needs is installed with it. It writes model.pt, new-data.npz, old-data.npz,
    report.html and advice.json into the folder.
    """
    if scenario not in ("shift", "new-classes"):
        raise InputError(f"--scenario {scenario!r} is not known; use shift or new-classes")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--folder {folder} is a file; give another folder")
    options.parse_probe_time(probe_time)
    try:
        make_folder(folder)
    except InputError as error:
        raise InputError(f"--folder {error}") from error

    from advisor.demo import FILES, make_situation

    for name in FILES:
        say_what_is_kept(folder / name)

    typer.echo("Training a small depthwise-separable network on clean digits ...", err=True)
    made = make_situation(folder, scenario=scenario, seed=seed)
    typer.echo(f"{made.model}: {made.before:.1%} right on digits as it knows them", err=True)
    typer.echo(f"{made.old}: those digits", err=True)
    typer.echo(f"{made.data}: the new situation, {made.change}", err=True)
    arguments = ["recommend", str(made.model), "--data", str(made.data), "--input-size", "1x8x8"]
    arguments += [
        "--retain",
        str(made.old),
        "--ram",
        "3MB",
        "--flops-budget",
        "--batch-size",
        "16",
        "--probe-time",
        probe_time,
    ]
    arguments += ["--report", str(folder / "report.html"), "--json", str(folder / "advice.json")]
    typer.echo(f"\n$ {shlex.join(['peft-advisor', *arguments])}\n", err=True)

    # Exactly as a user would: another process, the same command line. A terminal's Ctrl-C reaches it by
    # itself, and it gives its answer then: it has to be waited for.
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        done = subprocess.run([sys.executable, "-m", "advisor", *arguments], check=False)  # noqa: S603
    finally:
        signal.signal(signal.SIGINT, before)
    raise typer.Exit(done.returncode)
