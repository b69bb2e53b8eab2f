"""`peft-advisor profile`: every method's cost on a model; no data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from advisor.cli import options
from advisor.cli.commands import typed_command
from advisor.cli.outputs import Outputs
from advisor.cli.streams import nothing_more, results_apart
from advisor.errors import InputError


def command(
    model: options.Model,
    target: options.Target = None,
    input_size: options.InputSize = None,
    batch_size: options.BatchSize = 8,
    arch: options.Arch = None,
    trust: options.Trust = False,
    methods: options.Methods = None,
    ranks: options.Ranks = "2,4,8",
    optimizer: options.Optimizer = "adam",
    by: Annotated[
        Literal["method", "layer-type"],
        typer.Option(help="Compare methods, or split one (--methods; default: full) by layer type."),
    ] = "method",
    store: options.StorePath = None,
    no_store: options.NoStore = False,
    json: options.JsonPath = None,
    form: options.Form = "terminal",
) -> None:
    """Show what every method costs on a model: memory, FLOPs, parameters, by layer type.

    Examples:
        peft-advisor profile torchvision:mobilenet_v2
        peft-advisor profile model.pt --input-size 1x8x8 --methods lora,norm --by layer-type
    """
    options.check_model(model)
    if by == "layer-type" and form in ("markdown", "csv"):
        raise InputError(f"--format {form} has no layer types; give --format json, html or terminal")
    size, known_ranks = options.parse_input_size(input_size), options.parse_ranks(ranks)
    optimizer, known_methods = options.parse_optimizer(optimizer), options.parse_methods(methods)
    outputs = Outputs({"--json": json}, form)
    store_path = options.usable_store(store, no_store=no_store)

    from advisor.advise import profile as advise
    from advisor.cli.progress import ProgressBars
    from advisor.records import BASELINE
    from advisor.story.situation import Request

    request = Request(
        batch_size=batch_size,
        input_size=size,
        target=Path(target) if target is not None else None,
        arch=arch,
        trust=trust,
        methods=known_methods or ((BASELINE,) if by == "layer-type" else None),
        ranks=known_ranks,
        optimizer=optimizer,
        store=store_path,
        command=typed_command(),
    )
    with results_apart(), ProgressBars() as progress:
        recommendation = advise(model, request, progress)

    from advisor.report import dumps, print_layer_types, print_profile

    outputs.write("--json", lambda: dumps(recommendation))  # first: whoever reads the rest may stop reading
    outputs.write_recommendation_form(recommendation)
    if outputs.to_stdout:
        nothing_more()
    else:
        (print_profile if by == "method" else print_layer_types)(recommendation)
    outputs.end()
