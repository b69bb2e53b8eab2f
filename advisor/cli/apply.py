"""`peft-advisor apply`: run the recommended fine-tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from advisor.cli import options, talk
from advisor.cli.streams import results_apart
from advisor.errors import EXIT_WRONG_INPUT

RECIPE = "recipe.json"  # what a finished run leaves


def command(
    model: options.Model,
    report: Annotated[
        str,
        typer.Argument(metavar="REPORT.json", help="What recommend --json wrote.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Where to write; made if need be.", show_default=False)
    ],
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="The images to train on; default: those of the report."),
    ] = None,
    unlabelled: Annotated[
        str | None,
        typer.Option(metavar="IMAGES", help="Images without labels; default: those of the report."),
    ] = None,
    candidate: Annotated[
        str | None, typer.Option(metavar="ID", help="Another candidate of the report than its choice.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(metavar="RATE", help="Default: the best one of the candidate's probes.")
    ] = None,
    epochs: Annotated[
        int, typer.Option(help="At most; three without a better one end the training, too.")
    ] = 10,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, whatever checkpoint the folder holds.")
    ] = False,
    arch: options.Arch = None,
    trust: options.Trust = False,
) -> None:
    """Train the recommended candidate on all training images, and write what it became.

    Writes the adapter (adapter.safetensors, recipe.json), the merged model where the method allows it,
    and huggingface/ where PEFT computes the same. A checkpoint is kept after each epoch: the same
    command goes on from it.

    Exit codes: 0 done, 2 the input or the command line is wrong or a file can't be written, 130 interrupted.

    Examples:
        peft-advisor apply model.pt advice.json --output tuned/
        peft-advisor apply model.pt advice.json --output tuned/ --candidate lora-rank=4 --epochs 20
    """
    options.check_model(model)
    for images in (data, unlabelled):
        options.check_data(images)
    options.check_report(report)

    from advisor.report import read_json

    recommendation = read_json(report)
    if (output / RECIPE).exists():
        talk.notice(
            f"{output} holds what an earlier run wrote; what comes out otherwise now is kept beside the new "
            "as NAME~"
        )

    from advisor.apply import CHECKPOINT, Application, apply_advice, verdict
    from advisor.cli.progress import ProgressBars

    application = Application(
        output=output,
        data=data,
        unlabelled=unlabelled,
        candidate=candidate,
        learning_rate=learning_rate,
        epochs=epochs,
        restart=restart,
        arch=arch,
        trust=trust,
    )
    try:
        with results_apart(), ProgressBars() as progress:

            def on_epoch(epoch: int, of: int, accuracy: float) -> None:
                progress.say(f"Epoch {epoch} of {of}: {100 * accuracy:.1f} % right of held-out images")

            applied = apply_advice(model, recommendation, application, progress, on_epoch)
    except KeyboardInterrupt:
        go_on = "no epoch was whole yet"
        if (output / CHECKPOINT).exists():
            same = "the same command without --restart" if restart else "the same command"
            go_on = f"{same} goes on from the last whole epoch"
        typer.echo(f"peft-advisor: interrupted; {go_on}", err=True)
        raise typer.Exit(130) from None
    rate = applied.recipe.learning_rate
    typer.echo(f"Trained: {applied.recipe.candidate.id}{f', learning rate {rate:g}' if rate else ''}")
    if applied.files:
        typer.echo("Wrote:   " + "\n         ".join(str(path) for path in applied.files))
    for warning in applied.warnings:
        typer.echo(f"Warning: {warning}")
    for note in applied.notes:
        typer.echo(f"Note:    {note}")
    typer.echo(verdict(applied))
    for failure in applied.unwritten:
        typer.echo(f"peft-advisor: error: {failure}", err=True)
    if applied.unwritten:
        talk.notice("training is done: the same command writes the rest, once it can")
        raise typer.Exit(EXIT_WRONG_INPUT)
