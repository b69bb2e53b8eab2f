"""`peft-advisor init`: the first configuration and baseline of `check`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from advisor.cli import options, talk
from advisor.cli.check import BatchSize, CandidateId, Config, Optimizer, Ranks, keys_given
from advisor.errors import ModelError


def command(
    model: options.Model,
    name: Annotated[
        str | None, typer.Option(help="What the configuration calls it; default: from the model's own name.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="The device that the limits are of; default: none is named.")
    ] = None,
    config: Config = None,
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
) -> None:
    """Measure a model, and write the configuration and the baseline of `check`.

    Into the nearest pyproject.toml that configures peft-advisor, else that of the current folder, or a new
    one. Nothing that is there changes. Exit codes: 0 written, 1 written, but nothing fits the limits,
    2 nothing is written: the model or the input can't be used.

    Examples:
        peft-advisor init package.module:factory --input-size 3x96x96 --ram 64MB
        peft-advisor init model.pt --name classifier --target phone --ram 48MB --storage 1MB
    """
    from advisor.check import baseline as baselines
    from advisor.check.configuration import FILE, find_file, parse_configuration, short_name
    from advisor.check.configure import read_text, with_model
    from advisor.check.run import check, price_all, to_keep
    from advisor.report import check as render
    from advisor.system.files import check_writable, write_whole

    options.check_model(model)
    file = Path(config).resolve() if config else find_file(Path.cwd()) or Path.cwd() / FILE
    check_writable(file)
    name = name or short_name(model)
    given = keys_given(
        model=_as_seen_from(model, file.parent),
        arch=arch,
        trust=trust or None,
        input_size=input_size,
        batch_size=batch_size,
        methods=options.parse_names(methods),
        ranks=options.parse_ranks(ranks) if ranks is not None else None,
        optimizer=optimizer,
        ram=ram,
        flops_budget=flops_budget == options.FEWEST or flops_budget,
        storage=storage,
        candidate=candidate,
    )
    text = with_model(read_text(file), name, target, given)
    configuration = parse_configuration(text, file).only(name)
    before = baselines.read(configuration.baseline_path)
    check_writable(configuration.baseline_path)
    talk.notice(f"measuring {name} ...")
    priced = price_all(configuration, {}, to_keep=True)
    for each in priced:
        if each.checked is None:
            raise ModelError(each.failure)
    baseline = to_keep(priced, before, whole=False)
    write_whole(file, text)
    write_whole(configuration.baseline_path, baselines.dumps(baseline))
    found = check(configuration, priced, baseline)
    render.print_text(found)
    written = " and ".join(os.path.relpath(path) for path in (file, configuration.baseline_path))
    talk.notice(f"{written} are written; commit both, and let CI run `peft-advisor check`")
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _as_seen_from(model: str, folder: Path) -> str:
    """A file's path relative to the configuration's folder; a name is left as it is."""
    if not os.path.lexists(model):
        return model
    return os.path.relpath(model, folder)
