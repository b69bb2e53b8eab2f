"""`peft-advisor recommend`: the whole story."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from advisor.cli import options, talk
from advisor.cli.commands import typed_command
from advisor.cli.outputs import Outputs
from advisor.cli.streams import nothing_more, results_apart
from advisor.errors import EXIT_NOTHING_FITS, InputError
from advisor.names import SCENARIOS, check_at_least_one, check_device, check_executor, one_of
from advisor.system.interrupts import answer_is_possible, answering

if TYPE_CHECKING:
    from advisor.story.situation import Progress


def command(
    model: options.Model,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Class folders, .npz, torchvision:CIFAR10:/path, hf:PATH (Hugging Face's), digits, or a "
            "dataset or what a function returns: FILE.py:NAME, package.module:name.",
        ),
    ] = None,
    ram: options.Ram = None,
    ram_includes_runtime: options.RamIncludesRuntime = None,
    flops_budget: options.FlopsBudget = None,
    storage: options.Storage = None,
    step_time: options.StepTime = None,
    total_time: options.TotalTime = None,
    energy: options.Energy = None,
    max_trainable: options.MaxTrainable = None,
    max_overhead: options.MaxOverhead = None,
    metric: Annotated[
        str,
        typer.Option(
            metavar="accuracy|balanced|recall:CLASS",
            help="What is to be high: the share of images that is right, its mean over classes, or the share "
            "of one class's images that is found.",
        ),
    ] = "accuracy",
    min_accuracy: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Least accuracy, in that metric, such as 0.8 or 80%."),
    ] = None,
    retain: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="Old data: of each candidate, tell the accuracy on it (forgetting)."
        ),
    ] = None,
    min_retained: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Least accuracy on --retain's data, such as 0.9."),
    ] = None,
    unlabelled: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGES",
            help="Folder or .npz of more new images, not labelled: for methods that look at no labels.",
        ),
    ] = None,
    tolerance: options.Tolerance = 0.5,
    prefer: options.Prefer = None,
    warn: options.Warn = None,
    runtime_overhead: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="The runtime's own footprint, taken off --ram."),
    ] = None,
    target: options.Target = None,
    input_size: options.InputSize = None,
    batch_size: options.BatchSize = 8,
    arch: options.Arch = None,
    trust: options.Trust = False,
    methods: options.Methods = None,
    ranks: options.Ranks = "2,4,8",
    optimizer: options.Optimizer = "adam",
    rehearse: Annotated[
        str | None,
        typer.Option(
            metavar="KIND[:SEVERITY]",
            help="Corrupt the images first, to rehearse a shift: gaussian-noise:3, fog, jpeg:5, "
            "... (1 to 5).",
        ),
    ] = None,
    labels: options.Labels = None,
    groups: options.Groups = None,
    resize: options.Resize = None,
    channels: options.Channels = "rgb",
    orientation: options.Orientation = "exif",
    scenario: Annotated[
        str,
        typer.Option(metavar="auto|shift|new-classes", help="What changed; auto tells from the classes."),
    ] = "auto",
    classes: options.ClassNames = None,
    mean: options.Mean = None,
    std: options.Std = None,
    strict: options.Strict = False,
    probe_time: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="Wall clock for the probes, such as 90s or 5m; auto: that of one full fine-tune of the "
            "data, 1 to 20 minutes.",
        ),
    ] = "auto",
    epochs: Annotated[
        int,
        typer.Option(help="Of a whole fine-tune: the best candidates train for as long, if there is time."),
    ] = 10,
    augment: options.Augment = "none",
    no_probe: Annotated[bool, typer.Option("--no-probe", help="Don't train: rank on cost alone.")] = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Don't run the choice under --ram.")] = False,
    store: options.StorePath = None,
    no_store: options.NoStore = False,
    executor: Annotated[
        str,
        typer.Option(
            metavar="WHERE",
            help="What runs the probes: here (this process), local or local:N (worker processes), "
            "dask://HOST:PORT, ray or ray://HOST:PORT.",
        ),
    ] = "here",
    device: Annotated[
        str,
        typer.Option(
            metavar="auto|cpu|cuda[:N]|mps",
            help="What probes train on; auto: a GPU where there is one. Costs stay those of the device that "
            "the advice is for.",
        ),
    ] = "cpu",
    seed: options.Seed = 0,
    report: options.ReportPath = None,
    json: options.JsonPath = None,
    form: options.Form = "terminal",
    everything: options.Everything = False,
) -> None:
    """Recommend a fine-tuning method for a model under a budget.

    Sizes: MB = 10^6, MiB = 2^20 bytes. FLOPs: 1 multiply-add = 2 FLOPs.

    Exit codes: 0 advice given, leaving the model alone included, 1 nothing can be recommended, 2 the input or
    the command line is wrong, 130 interrupted before there was an answer.

    Examples:
        peft-advisor recommend model.pt --data new-images/ --ram 64MB --json advice.json
        peft-advisor recommend torchvision:mobilenet_v2 --flops-budget 2GFLOPs
        peft-advisor recommend model.pt --data old-images/ --rehearse fog:3 --report r.html
    """
    options.check_model(model)
    for images in (data, retain, unlabelled):
        options.check_data(images)

    from advisor.solver import parse_budget

    budget = parse_budget(
        ram=ram,
        flops=flops_budget,
        storage=storage,
        step_time=step_time,
        total_time=total_time,
        energy=energy,
        max_trainable=max_trainable,
        max_overhead=max_overhead,
        metric=metric,
        min_accuracy=min_accuracy,
        min_retained=min_retained,
        tolerance_points=tolerance,
        prefer=prefer,
        warn=options.parse_names(warn) or (),
        runtime_overhead=runtime_overhead,
        ram_includes_runtime=ram_includes_runtime,
    )
    scenario = one_of("--scenario", scenario, SCENARIOS)
    check_at_least_one("--batch-size", batch_size)
    check_at_least_one("--epochs", epochs)
    if min_retained is not None and retain is None:
        raise InputError("--min-retained is the least accuracy on the old data; give it with --retain")
    if no_probe and (retain is not None or unlabelled is not None):
        raise InputError("--retain and --unlabelled are for probes; leave out --no-probe, or them")
    probe_seconds = None if no_probe else options.parse_probe_time(probe_time)
    class_names = options.parse_class_names(classes)
    size, known_ranks = options.parse_input_size(input_size), options.parse_ranks(ranks)
    check_executor(executor)
    check_device(device)
    optimizer, known_methods = options.parse_optimizer(optimizer), options.parse_methods(methods)
    normalisation = options.parse_normalisation(mean, std)
    mode, order = options.parse_resize(resize), options.parse_channels(channels)
    turning, augmentation = options.parse_orientation(orientation), options.parse_augment(augment)
    outputs = Outputs({"--json": json, "--report": report}, form)
    store_path = options.usable_store(store, no_store=no_store)

    from advisor.advise import recommend as advise
    from advisor.cli.progress import ProgressBars
    from advisor.costs import keep_freed_memory
    from advisor.story.situation import Request

    request = Request(
        batch_size=batch_size,
        input_size=size,
        target=Path(target) if target is not None else None,
        arch=arch,
        trust=trust,
        methods=known_methods,
        ranks=known_ranks,
        optimizer=optimizer,
        data=data,
        class_names=class_names,
        normalisation=normalisation,
        labels=labels,
        groups=groups,
        resize=mode,
        channel_order=order,
        orientation=turning,
        strict=strict,
        augment=augmentation,
        rehearse=rehearse,
        retain=retain,
        unlabelled=unlabelled,
        scenario=cast(Literal["auto", "shift", "new-classes"], scenario),
        probe_seconds=probe_seconds,
        epochs=epochs,
        store=store_path,
        executor=executor,
        device=device,
        verify=not no_verify,
        seed=seed,
        command=typed_command(),
    )
    keep_freed_memory()
    with answering():
        with results_apart(), ProgressBars() as progress:
            recommendation = advise(model, budget, request, _answerable(progress))

        from advisor.report import dumps, print_recommendation, render_html

        # Files first: whoever reads the rest may stop reading.
        written = outputs.write("--json", lambda: dumps(recommendation))
        if outputs.write("--report", lambda: render_html(recommendation)):
            talk.hint(f"Report: {report}")
        outputs.write_recommendation_form(recommendation)
        if not outputs.to_stdout:
            saved = json if written else None
            print_recommendation(recommendation, saved=saved, everything=everything)
    if outputs.to_stdout:
        nothing_more()
        if recommendation.outcome == "none":
            talk.notice(recommendation.answer)
    outputs.end(EXIT_NOTHING_FITS if recommendation.outcome == "none" else 0)


def _answerable(progress: Progress) -> Progress:
    """The progress that also says when Ctrl-C can be answered: once candidates are priced."""

    def on_progress(stage: str, fraction: float, running: str) -> None:
        if stage in ("probe", "verify") or (stage == "cost" and fraction == 1.0):
            answer_is_possible()
        progress(stage, fraction, running)

    return on_progress
