"""`peft-advisor demo`: a real small case, self-contained."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from advisor.cli import options, talk
from advisor.cli.outputs import say_what_is_kept
from advisor.errors import InputError
from advisor.system.files import make_folder
from advisor.units import format_percent


def command(
    scenario: Annotated[
        Literal["shift", "new-classes"], typer.Option(help="Corrupted digits, or digits never seen before.")
    ] = "shift",
    folder: Annotated[Path, typer.Option(metavar="DIR", help="Where the files go.")] = Path("demo"),
    probe_time: Annotated[
        str, typer.Option(metavar="TIME", help="Wall clock for the probes, such as 60s.")
    ] = "60s",
    seed: Annotated[int, typer.Option(help="Of the training and the corruption.")] = 0,
) -> None:
    """Train a small network on real digits, change the situation, and ask for advice.

    Everything it needs is installed with it. It writes model.pt, new-data.npz, old-data.npz,
    report.html and advice.json into the folder. Exit codes are those of recommend.

    Examples:
        peft-advisor demo
        peft-advisor demo --scenario new-classes --folder demo2 --probe-time 20s
    """
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

    talk.hint("Training a small depthwise-separable network on clean digits ...")
    made = make_situation(folder, scenario=scenario, seed=seed)
    talk.hint(f"{made.model}: {format_percent(made.before)} right on digits as it knows them")
    talk.hint(f"{made.old}: those digits")
    talk.hint(f"{made.data}: the new situation, {made.change}")
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
    arguments += talk.options()
    talk.hint(f"\n$ {shlex.join(['peft-advisor', *arguments])}\n")

    # Exactly as a user would: another process, the same command line. A terminal's Ctrl-C reaches it by
    # itself, and it gives its answer then: it has to be waited for.
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        done = subprocess.run([sys.executable, "-m", "advisor", *arguments], check=False)  # noqa: S603
    finally:
        signal.signal(signal.SIGINT, before)
    raise typer.Exit(done.returncode)
