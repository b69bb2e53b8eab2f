"""`peft-advisor export`: what runs the recommended fine-tune on a board."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from advisor.cli import options
from advisor.cli.done import Done, figures_of, say
from advisor.cli.outputs import Outputs
from advisor.cli.streams import results_apart
from advisor.errors import InputError

_EPOCHS = 10


def command(
    model: options.Model,
    report: Annotated[
        str,
        typer.Argument(
            metavar="REPORT.json",
            help="What recommend --json wrote; with --as, the folder that apply or finetune.py wrote.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="The folder to write, made if need be; with --as, the file.",
            show_default=False,
        ),
    ],
    runtime: Annotated[
        Literal["pt2", "onnx", "onnx-int8"] | None,
        typer.Option(
            "--as",
            help="Write the trained network itself, as one file; onnx-int8 quantises it with --data.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="The images that the split is told of; default: the report's. For onnx-int8: labelled ones, "
            "to calibrate with and to judge by.",
        ),
    ] = None,
    candidate: options.Candidate = None,
    learning_rate: options.LearningRate = None,
    epochs: Annotated[
        int | None, typer.Option(help=f"Of the fine-tune on the board; default: {_EPOCHS}.")
    ] = None,
    arch: options.Arch = None,
    trust: options.Trust = False,
    form: options.TextForm = "terminal",
) -> None:
    """Write a folder that runs the recommended fine-tune on a board, with PyTorch and Pillow alone.

    It holds the base weights, the recipe, the network written from what its modules do, the modules of
    peft-advisor that the method needs, and finetune.py, which reads a folder of photos, trains within the
    memory that was promised, goes on after a power cut, judges on photos held out, keeps the old weights if
    the new ones are worse, and writes an adapter that load_adapter reads.

    With --as it writes the network after the fine-tune, with what was trained folded into its layers, as
    a program of torch.export (pt2) or for other runtimes (onnx), for batches of any size. In int8
    (onnx-int8) it is smaller, and what that costs and saves here is told: a part of --data calibrates
    it, the others judge it before and after.

    Exit codes: 0 done, 2 the input or the command line is wrong, or the network or method can't be exported.

    Examples:
        peft-advisor export model.pt advice.json --output bundle/
        peft-advisor export model.pt advice.json --output bundle/ --candidate lora-4 --epochs 20
        peft-advisor export model.pt tuned/ --as onnx --output tuned.onnx
        peft-advisor export model.pt tuned/ --as onnx-int8 --data photos/ --output tuned.onnx
    """
    options.check_model(model)
    options.check_data(data)
    if runtime is not None:
        given = {"--candidate": candidate, "--learning-rate": learning_rate, "--epochs": epochs}
        _refuse_unused(runtime, given if runtime == "onnx-int8" else {"--data": data, **given})
    if runtime == "onnx-int8":
        _write_quantised(model, Path(report), output, data, arch, trust, form)
        return
    if runtime is not None:
        _write_program(model, Path(report), output, runtime, arch, trust, form)
        return
    options.check_report(report)
    outputs = Outputs({}, form)

    from advisor.records import Recommendation

    recommendation = Recommendation.load(report)

    from advisor.board.export import SCRIPT, export
    from advisor.cli.progress import ProgressBars
    from advisor.delivery.apply import Application
    from advisor.units import format_bytes

    application = Application(
        output=output,
        data=data,
        candidate=candidate,
        learning_rate=learning_rate,
        epochs=_EPOCHS if epochs is None else epochs,
        arch=arch,
        trust=trust,
    )
    with results_apart(), ProgressBars() as progress:
        exported = export(model, recommendation, application, progress)
    known = f"; {exported.known:,} photos stay on their side of the split" if exported.known else ""
    size, promised = format_bytes(exported.bytes), format_bytes(exported.promised_bytes)
    run = shlex.join(["python", str(exported.folder / SCRIPT), "PHOTOS/", "--output", "tuned/"])
    lines = (
        ("Wrote", f"{exported.folder}, {size}: {exported.candidate.short}{known}"),
        ("Takes", f"at most {promised} besides what PyTorch itself takes there"),
        *(("Warning", warning) for warning in exported.warnings),
        ("Run it", run),
    )
    figures = {
        "candidate": exported.candidate.id,
        "files": [str(exported.folder)],
        "bytes": exported.bytes,
        "promised_bytes": exported.promised_bytes,
        "pass_size": exported.pass_size,
        "images_with_a_side": exported.known,
        "warnings": list(exported.warnings),
        "run": run,
    }
    say(Done("export", lines, figures), outputs)
    outputs.end()


def _refuse_unused(runtime: str, given: Mapping[str, object]) -> None:
    """Raises InputError where an option is given that this format has no use for."""
    unused = [option for option, value in given.items() if value is not None]
    if unused:
        raise InputError(
            f"--as {runtime} writes the network as it was trained, so {', '.join(unused)} "
            f"would change nothing; leave {'it' if len(unused) == 1 else 'them'} out"
        )


def _write_program(
    model: str,
    adapter: Path,
    output: Path,
    runtime: Literal["pt2", "onnx"],
    arch: str | None,
    trust: bool,
    form: str,
) -> None:
    outputs = Outputs({}, form)

    from advisor.board.program import write_program
    from advisor.units import format_bytes

    with results_apart():
        program = write_program(model, adapter, output, runtime, arch=arch, trust=trust)
    told = "no onnxruntime is here to run it"
    if program.difference is not None:
        told = f"its scores differ from the network's by {program.difference:.1g} at most"
    lines = (("Wrote", f"{program.path}, {format_bytes(program.bytes)}; {told}"),)
    figures = {"files": [str(program.path)], "bytes": program.bytes, "largest_difference": program.difference}
    say(Done(f"export --as {runtime}", lines, figures), outputs)
    outputs.end()


def _write_quantised(
    model: str,
    adapter: Path,
    output: Path,
    data: str | None,
    arch: str | None,
    trust: bool,
    form: str,
) -> None:
    if data is None:
        raise InputError(
            "--as onnx-int8 needs labelled images, to calibrate with and to judge by: give them with "
            "--data, or write --as onnx, which needs none"
        )
    outputs = Outputs({}, form)

    from advisor.board.quantised import told, write_quantised
    from advisor.cli.progress import ProgressBars

    with results_apart(), ProgressBars() as progress:
        quantised = write_quantised(model, adapter, output, data, arch=arch, trust=trust, progress=progress)
    figures = {
        "files": [str(quantised.path)],
        "layers": quantised.layers,
        "layers_in_int8": quantised.in_int8,
        "images_calibrating": quantised.calibrating,
        "answers_changed": quantised.changed,
        "warnings": list(quantised.warnings),
        **{
            name: {
                "bytes": each.bytes,
                "image_seconds": each.seconds,
                "accuracy": figures_of(each.accuracy),
            }
            for name, each in (("float32", quantised.float32), ("int8", quantised.int8))
        },
    }
    say(Done("export --as onnx-int8", told(quantised), figures), outputs)
    outputs.end()
