"""`peft-advisor compare`: which network, with which method, on which board."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advisor.cli import options, talk
from advisor.cli.commands import typed_command
from advisor.cli.outputs import Outputs
from advisor.cli.streams import results_apart
from advisor.errors import EXIT_NOTHING_FITS, InputError
from advisor.names import check_at_least_one

if TYPE_CHECKING:
    from collections.abc import Sequence

    from advisor.records import Compared


def command(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Each as recommend takes it.", show_default=False),
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE.json|NAME",
            help="A board, as recommend takes it. Again for another one; default: this machine.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="As recommend takes it; without it, costs alone are compared."),
    ] = None,
    best: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Networks that are raced on the data: those on whose features a head in closed form gets "
            "most images right.",
        ),
    ] = 3,
    ram: options.Ram = None,
    ram_includes_runtime: options.RamIncludesRuntime = None,
    flops_budget: options.FlopsBudget = None,
    storage: options.Storage = None,
    step_time: options.StepTime = None,
    total_time: options.TotalTime = None,
    energy: options.Energy = None,
    tolerance: options.Tolerance = 0.5,
    prefer: options.Prefer = None,
    input_size: options.InputSize = None,
    batch_size: options.BatchSize = 8,
    trust: options.Trust = False,
    methods: options.Methods = None,
    ranks: options.Ranks = "2,4,8",
    optimizer: options.Optimizer = "adam",
    labels: options.Labels = None,
    probe_time: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="Wall clock for the probes of each network, such as 90s or 5m; auto: that of one full "
            "fine-tune of the data, 1 to 20 minutes.",
        ),
    ] = "auto",
    epochs: Annotated[int, typer.Option(help="Of a whole fine-tune.")] = 10,
    store: options.StorePath = None,
    no_store: options.NoStore = False,
    seed: options.Seed = 0,
    report: options.ReportPath = None,
    form: options.ComparedForm = "terminal",
    output: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Write each answer into it, as JSON for report, apply and export.",
        ),
    ] = None,
) -> None:
    """Compare networks on boards: which one, with which method, on which of them.

    Every network is asked about on every board, under the same limits. Without --data costs alone are told
    and nothing is run; with it the best few networks are raced. A network that can't be used is a line
    among the others.

    Exit codes: 0 something fits somewhere, 1 nothing fits anywhere, 2 no network can be used, or the command
    line is wrong.

    Examples:
        peft-advisor compare torchvision:mobilenet_v2 torchvision:resnet18 --ram 512MB
        peft-advisor compare a.pt b.pt c.pt --target pi4.json --target jetson.json --ram 1GB
        peft-advisor compare a.pt b.pt c.pt --ram 64MB --format markdown
        peft-advisor compare a.pt b.pt c.pt d.pt --data new-images/ --best 2 --report page.html
    """
    for model in models:
        options.check_model(model)
    options.check_data(data)
    for kind, given in (("model", models), ("--target", target or [])):
        twice = next((each for each in given if given.count(each) > 1), None)
        if twice is not None:
            raise InputError(f"{kind} {twice} is given twice; give each once")
    check_at_least_one("--best", best)
    check_at_least_one("--batch-size", batch_size)
    check_at_least_one("--epochs", epochs)

    from advisor.solver import parse_budget

    budget = parse_budget(
        ram=ram,
        flops=flops_budget,
        storage=storage,
        step_time=step_time,
        total_time=total_time,
        energy=energy,
        tolerance_points=tolerance,
        prefer=prefer,
        ram_includes_runtime=ram_includes_runtime,
    )
    size, known_ranks = options.parse_input_size(input_size), options.parse_ranks(ranks)
    optimizer, known_methods = options.parse_optimizer(optimizer), options.parse_methods(methods)
    probe_seconds = options.parse_probe_time(probe_time)
    outputs = Outputs({"--report": report}, form)
    if output is not None:
        _make_folder(output)
    store_path = options.usable_store(store, no_store=no_store)

    from advisor.cli.progress import ProgressBars
    from advisor.compare import compare
    from advisor.costs import keep_freed_memory
    from advisor.story.situation import Request

    request = Request(
        batch_size=batch_size,
        input_size=size,
        trust=trust,
        methods=known_methods,
        ranks=known_ranks,
        optimizer=optimizer,
        data=data,
        labels=labels,
        probe_seconds=probe_seconds if data is not None else None,
        epochs=epochs,
        store=store_path,
        seed=seed,
        command=typed_command(),
    )
    keep_freed_memory()
    with results_apart(), ProgressBars() as progress:
        found = compare(models, target or [], budget, request, best=best, progress=progress)

    from advisor.report import print_comparison, render_comparison

    # Files first: whoever reads the rest may stop reading.
    if output is not None:
        _write_answers(found, Path(output))
    if outputs.write("--report", lambda: render_comparison(found)):
        talk.hint(f"Report: {report}")
    outputs.write_compared_form(found)
    if not outputs.to_stdout:
        print_comparison(found)
    has_advice = any(pair.recommendation and pair.recommendation.outcome != "none" for pair in found)
    outputs.end(0 if has_advice else EXIT_NOTHING_FITS)


def _make_folder(path: str) -> None:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {path}: no folder can be there ({error.strerror})") from error


def _write_answers(found: Sequence[Compared], folder: Path) -> None:
    from advisor.report import write_json

    for pair in found:
        if pair.recommendation is not None:
            parts = [re.sub(r"[^\w.-]+", "-", part) for part in (pair.name, pair.board) if part]
            write_json(pair.recommendation, folder / f"{'-on-'.join(parts)}.json")
