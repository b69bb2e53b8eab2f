"""`peft-advisor check`: limits and a committed baseline, for CI."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advisor.cli import options, talk
from advisor.cli.outputs import Outputs
from advisor.cli.streams import nothing_more
from advisor.errors import InputError, ModelError
from advisor.names import did_you_mean

if TYPE_CHECKING:
    from advisor.check.configuration import Configuration

Config = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="The pyproject.toml to read; default: the nearest one with [tool.peft-advisor]."
    ),
]
BatchSize = Annotated[int | None, typer.Option(help="Images in one update; default: 8.")]
Ranks = Annotated[
    str | None, typer.Option(metavar="R,R,...", help="Ranks of the low-rank methods; default: 2,4,8.")
]
Optimizer = Annotated[
    str | None,
    typer.Option(metavar="adam|adamw|momentum|sgd", help="The optimizer of every candidate; default: adam."),
]
CandidateId = Annotated[
    str | None,
    typer.Option(metavar="ID", help="Check this one, such as lora-rank=4, not the one recommended."),
]


def command(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="One of those configured, by its name, or any other, as for recommend; default: all "
            "that are configured.",
            show_default=False,
        ),
    ] = None,
    config: Config = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The committed baseline; default: peft-advisor-baseline.json."),
    ] = None,
    update: Annotated[bool, typer.Option("--update", help="Write the baseline.")] = False,
    fail_on_increase: Annotated[
        str | None, typer.Option(metavar="PERCENT", help="By how much a cost may grow; default: 5%.")
    ] = None,
    time_limit: Annotated[
        str | None, typer.Option(metavar="TIME", help="For each model; default: 5min.")
    ] = None,
    ram: options.Ram = None,
    flops_budget: options.FlopsBudget = None,
    storage: options.Storage = None,
    input_size: options.InputSize = None,
    batch_size: BatchSize = None,
    methods: options.Methods = None,
    ranks: Ranks = None,
    optimizer: Optimizer = None,
    candidate: CandidateId = None,
    arch: options.Arch = None,
    trust: options.Trust = False,
    json: options.JsonPath = None,
    sarif: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write SARIF 2.1.0; - prints it alone.")
    ] = None,
    junit: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write JUnit XML; - prints it alone.")
    ] = None,
    markdown: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write Markdown for a pull request; - prints it alone.")
    ] = None,
    github: Annotated[bool, typer.Option("--github", help="Print annotations for GitHub, too.")] = False,
    form: options.TableForm = "terminal",
) -> None:
    """Check what fine-tuning costs against limits and a committed baseline.

    Costs alone: no data, no training, nothing timed, so two runs never differ. Exit codes: 0 passed, 1 a
    limit is broken, the recommendation flipped or a cost grew, 2 a model or the input can't be used.

    Examples:
        peft-advisor check
        peft-advisor check --update
        peft-advisor check --github --sarif costs.sarif --markdown costs.md
        peft-advisor check torchvision:mobilenet_v2 --ram 64MB --candidate lora-rank=4@last-3@micro-2
    """
    given = keys_given(
        baseline=str(Path(baseline).resolve()) if baseline else None,
        fail_on_increase=fail_on_increase,
        time_limit=time_limit,
        ram=ram,
        flops_budget=flops_budget,
        storage=storage,
        input_size=input_size,
        batch_size=batch_size,
        methods=methods,
        ranks=ranks,
        optimizer=optimizer,
        candidate=candidate,
        arch=arch,
        trust=trust or None,
    )
    configuration = configured(model, config, given)
    outputs = Outputs({"--json": json, "--sarif": sarif, "--junit": junit, "--markdown": markdown}, form)

    from advisor.check import baseline as baselines
    from advisor.check.run import check, price_all, to_keep
    from advisor.report import check as render
    from advisor.system.files import check_writable, write_whole

    path = configuration.baseline_path
    before = baselines.read(path) if configuration.file or baseline else None
    if before is None and configuration.baseline and not update:
        raise InputError(f"{path}: there is no such baseline; `peft-advisor check --update` writes it")
    if update:
        check_writable(path)
    priced = price_all(
        configuration, before or {}, to_keep=update, began=lambda name: talk.notice(f"checking {name} ...")
    )
    if update and all(each.checked is not None for each in priced):
        before = to_keep(priced, before, whole=configuration.is_whole)
        write_whole(path, baselines.dumps(before))
        talk.notice(f"{path} is written; commit it")
    found = check(configuration, priced, before)
    for each in priced:
        if each.printed and (each.checked is None or talk.is_verbose()):
            typer.echo(each.printed.rstrip(), err=True)

    outputs.write("--json", lambda: render.dumps(found))
    outputs.write("--sarif", lambda: render.to_sarif(found))
    outputs.write("--junit", lambda: render.to_junit(found))
    outputs.write("--markdown", lambda: render.to_markdown(found))
    outputs.write_form(
        {
            "json": lambda: render.dumps(found),
            "markdown": lambda: render.to_markdown(found),
            "csv": lambda: render.to_csv(found),
        }
    )
    if github:
        typer.echo(render.to_github(found), nl=False, err=outputs.to_stdout)
    if outputs.to_stdout:
        nothing_more()
    else:
        render.print_text(found)
    if before is None and not update and configuration.file:
        talk.notice(
            "warning: there is no baseline, so limits alone were checked; `peft-advisor check --update` "
            "writes one"
        )
    outputs.end(found.exit_code)


def keys_given(**parameters: Any) -> dict[str, Any]:
    """What was given, by the configuration's keys, which are the options' names."""
    return {name.replace("_", "-"): value for name, value in parameters.items() if value is not None}


def configured(model: str | None, config: str | None, given: Mapping[str, Any]) -> Configuration:
    """What to check: all that is configured, one model of it, or a model that no file names.

    Raises InputError.
    """
    from advisor.check.configuration import find_file, one_model, read_configuration

    file = Path(config).resolve() if config else find_file(Path.cwd())
    if file is not None:
        whole = read_configuration(file, given)
        known = dict.fromkeys(target.model for target in whole.targets)
        if model is None or model in known:
            return whole.only(model)
        try:
            options.check_model(model)
        except ModelError as error:
            meant = did_you_mean(model, known) or f"; {file} has {', '.join(known)}"
            raise InputError(f"{model}: no such file, and no model that is configured{meant}") from error
    elif model is None:
        raise InputError(
            "no model is given, and no pyproject.toml here or above has [tool.peft-advisor]; "
            "`peft-advisor init MODEL` writes it"
        )
    assert model is not None  # noqa: S101 - one of the two was returned or raised
    options.check_model(model)
    return one_model(model, given, Path.cwd())
