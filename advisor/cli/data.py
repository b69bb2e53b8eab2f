"""`peft-advisor data`: what a folder of images holds, and what is wrong with it; nothing is trained."""

from __future__ import annotations

from typing import Annotated

import typer

from advisor.cli import options
from advisor.cli.commands import typed_command
from advisor.cli.outputs import Outputs
from advisor.cli.streams import nothing_more, results_apart

EXIT_FOUND = 1


def command(
    data: Annotated[str, typer.Argument(metavar="DATA", help="As for recommend --data.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Also tell whether the images are read as the model was trained with them."
        ),
    ] = None,
    labels: options.Labels = None,
    groups: options.Groups = None,
    resize: options.Resize = None,
    channels: options.Channels = "rgb",
    orientation: options.Orientation = "exif",
    classes: options.ClassNames = None,
    mean: options.Mean = None,
    std: options.Std = None,
    input_size: options.InputSize = None,
    arch: options.Arch = None,
    trust: options.Trust = False,
    store: options.StorePath = None,
    strict: options.Strict = False,
    json: options.JsonPath = None,
    form: options.TableForm = "terminal",
) -> None:
    """Look the images over before anything is trained on them: how they are read, and what is odd.

    Exit codes: 0 whatever is found, 1 with --strict something that is more than a note, 2 they can't be used.

    Examples:
        peft-advisor data new-images/
        peft-advisor data new-images/ --model model.pt
        peft-advisor data new-images/ --format csv > classes.csv
    """
    if model is not None:
        options.check_model(model)
    options.check_data(data)
    outputs = Outputs({"--json": json}, form)
    size, names = options.parse_input_size(input_size), options.parse_class_names(classes)
    normalisation = options.parse_normalisation(mean, std)
    mode, order = options.parse_resize(resize), options.parse_channels(channels)
    turning = options.parse_orientation(orientation)

    from advisor.cli.progress import ProgressBars
    from advisor.costs import keep_freed_memory
    from advisor.store import Store
    from advisor.story.lookover import look_over
    from advisor.story.situation import Request

    request = Request(
        input_size=size,
        arch=arch,
        trust=trust,
        data=data,
        labels=labels,
        groups=groups,
        resize=mode,
        channel_order=order,
        orientation=turning,
        class_names=names,
        normalisation=normalisation,
        command=typed_command(),
    )
    keep_freed_memory()
    with results_apart(), ProgressBars() as progress, Store(options.usable_store(store)) as kept:
        seen = look_over(model, request, progress, kept)

    from advisor.report.looked_over import (
        csv_of_looked_over,
        dumps_looked_over,
        markdown_of_looked_over,
        print_looked_over,
    )

    outputs.write("--json", lambda: dumps_looked_over(seen))
    outputs.write_form(
        {
            "json": lambda: dumps_looked_over(seen),
            "markdown": lambda: markdown_of_looked_over(seen),
            "csv": lambda: csv_of_looked_over(seen),
        }
    )
    if outputs.to_stdout:
        nothing_more()
    else:
        print_looked_over(seen)
    outputs.end(EXIT_FOUND if strict and any(f.weight != "note" for f in seen.findings) else 0)
