"""`peft-advisor apply`: run the recommended fine-tune."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from advisor.cli import options, talk
from advisor.cli.done import Done, figures_of, listed, say
from advisor.cli.outputs import Outputs
from advisor.cli.streams import results_apart
from advisor.errors import EXIT_WRONG_INPUT, InputError

RECIPE = "recipe.json"  # what a finished run leaves


def command(
    model: options.Model,
    report: Annotated[
        str,
        typer.Argument(
            metavar="REPORT.json",
            help="What recommend --json wrote; with --add, the folder that apply wrote.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Where to write; made if need be.", show_default=False)
    ],
    add: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="Images to add to a head that was solved, of its classes or of new ones."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="The images to train on; default: those of the report."),
    ] = None,
    unlabelled: Annotated[
        str | None,
        typer.Option(metavar="IMAGES", help="Images without labels; default: those of the report."),
    ] = None,
    candidate: options.Candidate = None,
    learning_rate: options.LearningRate = None,
    epochs: Annotated[int, typer.Option(help="Of the fine-tune.")] = 10,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, whatever checkpoint the folder holds.")
    ] = False,
    as_advised: Annotated[
        bool,
        typer.Option("--as-advised", help="Pull every lever, in the memory promised: slower, as on a board."),
    ] = False,
    arch: options.Arch = None,
    trust: options.Trust = False,
    form: options.TextForm = "terminal",
) -> None:
    """Train the recommended candidate on all training images, and write what it became.

    Writes the adapter (adapter.safetensors, recipe.json), the merged model where the method allows it,
    and huggingface/ where PEFT computes the same. A checkpoint is kept after each epoch: the same
    command goes on from it.

    A head that was solved in closed form can grow: with --add, more images or new classes are added to the
    sums it was solved of (sums.safetensors), and it is solved anew. Neither the old images nor a report is
    needed, and nothing is forgotten: all images together give the same head.

    Exit codes: 0 done, 2 the input or the command line is wrong or a file can't be written, 130 interrupted.

    Examples:
        peft-advisor apply model.pt advice.json --output tuned/
        peft-advisor apply model.pt advice.json --output tuned/ --candidate lora-4 --epochs 20
        peft-advisor apply model.pt tuned/ --add new-images/ --output grown/
        peft-advisor apply model.pt advice.json --output tuned/ --format json > done.json
    """
    options.check_model(model)
    for images in (data, unlabelled, add):
        options.check_data(images)
    if add is not None:
        given = {"--data": data, "--unlabelled": unlabelled, "--candidate": candidate}
        wrong = [name for name, value in given.items() if value is not None]
        wrong += ["--learning-rate"] if learning_rate is not None else []
        wrong += ["--restart"] if restart else []
        wrong += ["--as-advised"] if as_advised else []
        if wrong:
            raise InputError(f"--add trains nothing, so {wrong[0]} means nothing beside it; leave it out")
        _grow(model, Path(report), add, output, arch, trust, Outputs({}, form))
        return
    options.check_report(report)
    outputs = Outputs({}, form)

    from advisor.records import Recommendation

    recommendation = Recommendation.load(report)
    _say_what_is_kept(output)

    from advisor.cli.progress import ProgressBars
    from advisor.delivery.apply import Application, apply_advice, verdict
    from advisor.delivery.folder import CHECKPOINT
    from advisor.units import format_bytes

    application = Application(
        output=output,
        data=data,
        unlabelled=unlabelled,
        candidate=candidate,
        learning_rate=learning_rate,
        epochs=epochs,
        restart=restart,
        as_advised=as_advised,
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
    recipe = applied.recipe
    rate = recipe.learning_rate
    sums = _size_of_sums(applied.files)
    kept = f"{format_bytes(sums)} to add images to later, with --add; what is shipped doesn't need them"
    lines = (
        ("Trained", f"{recipe.candidate.short}{f', learning rate {rate:g}' if rate else ''}"),
        *listed(applied.files, applied.warnings, applied.notes),
        *([("Sums", kept)] if sums else []),
        ("", verdict(applied)),
    )
    figures = {
        "answer": verdict(applied),
        "candidate": recipe.candidate.id,
        "learning_rate": rate,
        "epochs_run": applied.epochs_run,
        "metric": applied.metric,
        "accuracy": figures_of(applied.accuracy),
        "base_accuracy": figures_of(applied.base),
        "predicted_accuracy": figures_of(applied.predicted),
        "sums_bytes": sums,
        **_written(applied.files, applied.warnings, applied.notes, applied.unwritten),
    }
    say(Done("apply", lines, figures), outputs)
    _fail_on(applied.unwritten, "training is done: the same command writes the rest, once it can", outputs)


def _grow(
    model: str, folder: Path, add: str, output: Path, arch: str | None, trust: bool, outputs: Outputs
) -> None:
    _say_what_is_kept(output)

    from advisor.cli.progress import ProgressBars
    from advisor.delivery.grow import Growth, grow, verdict
    from advisor.units import format_bytes, format_flops

    with results_apart(), ProgressBars() as progress:
        grown = grow(model, Growth(folder, add, output, arch, trust), progress)
    counts = ", ".join(
        f"{count:,} of {name}{' (new)' if name in grown.new_classes else ''}"
        for name, count in grown.images.items()
    )
    forward, solving = map(format_flops, (grown.cost.forward_flops, grown.cost.solving_flops))
    held, sums = format_bytes(grown.cost.solving_bytes), _size_of_sums(grown.files)
    images, classes = grown.recipe.images or 0, grown.recipe.classes
    solved_of = f"of {grown.features:,} features, {images:,} images, {classes:,} classes"
    lines = (
        ("Added", f"{sum(grown.images.values()):,} images to {grown.before:,}: {counts}"),
        *listed(grown.files, grown.warnings, grown.notes),
        ("Sums", f"{format_bytes(sums) if sums else 'none written'} {solved_of}"),
        ("Cost", f"{forward} of forward passes, {solving} to solve, in {held}"),
        ("", verdict(grown)),
    )
    figures = {
        "answer": verdict(grown),
        "candidate": grown.recipe.candidate.id,
        "images": dict(grown.images),
        "new_classes": list(grown.new_classes),
        "images_before": grown.before,
        "images_in_all": images,
        "features": grown.features,
        "classes": classes,
        "forward_flops": grown.cost.forward_flops,
        "solving_flops": grown.cost.solving_flops,
        "solving_bytes": grown.cost.solving_bytes,
        "accuracy": figures_of(grown.accuracy),
        "accuracy_of_known": figures_of(grown.of_known),
        "accuracy_of_new": figures_of(grown.of_new),
        "accuracy_of_known_before": figures_of(grown.of_known_before),
        "sums_bytes": sums,
        **_written(grown.files, grown.warnings, grown.notes, grown.unwritten),
    }
    say(Done("apply --add", lines, figures), outputs)
    _fail_on(grown.unwritten, "the same command writes the rest, once it can", outputs)


def _say_what_is_kept(output: Path) -> None:
    if (output / RECIPE).exists():
        talk.notice(
            f"{output} holds what an earlier run wrote; what comes out otherwise now is kept beside the new "
            "as NAME~"
        )


def _written(
    files: Sequence[Path], warnings: Sequence[str], notes: Sequence[str], unwritten: Sequence[str]
) -> dict[str, list[str]]:
    return {
        "files": [str(path) for path in files],
        "warnings": list(warnings),
        "notes": list(notes),
        "unwritten": list(unwritten),
    }


def _size_of_sums(files: Sequence[Path]) -> int:
    """In bytes; 0 where there are none."""
    from advisor.delivery.kept_sums import SUMS

    return next((path.stat().st_size for path in files if path.name == SUMS), 0)


def _fail_on(unwritten: Sequence[str], hint: str, outputs: Outputs) -> None:
    for failure in unwritten:
        typer.echo(f"peft-advisor: error: {failure}", err=True)
    if unwritten:
        talk.notice(hint)
    outputs.end(EXIT_WRONG_INPUT if unwritten else 0)
