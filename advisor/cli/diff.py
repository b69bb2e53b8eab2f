"""`peft-advisor diff`: what changed between two models, baselines or saved answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advisor.cli import options, talk
from advisor.cli.check import BatchSize, CandidateId, Optimizer, Ranks, keys_given
from advisor.cli.outputs import Outputs
from advisor.cli.streams import nothing_more
from advisor.errors import ModelError

if TYPE_CHECKING:
    from advisor.check.difference import Targets
    from advisor.check.records import CheckReport, Snapshot
    from advisor.records import Recommendation

_HELP = "A model, as for recommend, a baseline of check, or what --json of recommend or profile wrote."


def command(
    before: Annotated[str, typer.Argument(metavar="BEFORE", help=_HELP, show_default=False)],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="Likewise.", show_default=False)],
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
    markdown: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write Markdown for a pull request; - prints it alone.")
    ] = None,
    form: options.TableForm = "terminal",
) -> None:
    """Show what changed between two models, two baselines or two saved answers.

    Limits and options are those of the models that are given; a baseline and an answer have their own.
    Exit code 0 whatever changed: `check` is what fails.

    Examples:
        peft-advisor diff torchvision:mobilenet_v2 torchvision:mobilenet_v3_small
        peft-advisor diff old-advice.json advice.json
        peft-advisor diff old-advice.json advice.json --format csv
    """
    outputs = Outputs({"--json": json, "--markdown": markdown}, form)
    given = keys_given(
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
    found = _compared(before, after, given)

    from advisor.report import check as render

    outputs.write("--json", lambda: render.dumps(found))
    outputs.write("--markdown", lambda: render.to_markdown(found))
    outputs.write_form(
        {
            "json": lambda: render.dumps(found),
            "markdown": lambda: render.to_markdown(found),
            "csv": lambda: render.to_csv(found),
        }
    )
    if outputs.to_stdout:
        nothing_more()
    else:
        render.print_text(found)
    outputs.end()


def _compared(before: str, after: str, given: Mapping[str, Any]) -> CheckReport:
    from advisor.check.difference import accuracy_change, difference, with_candidate_of

    old, old_answer = _read(before, given, None)
    alone = next(iter(old.values())).snapshot if len(old) == 1 else None
    new, new_answer = _read(after, given, alone)
    more = {}
    if new_answer is not None:
        ((key, now),) = new.items()
        if alone is not None:
            new = {key: with_candidate_of(now, alone, new_answer)}
        change = accuracy_change(old_answer, new_answer) if old_answer is not None else None
        more = {key: change} if change is not None else {}
    return difference(old, new, more)


def _read(
    text: str, given: Mapping[str, Any], before: Snapshot | None
) -> tuple[Targets, Recommendation | None]:
    """One of the two: what it holds, and the answer where it is one. Raises InputError."""
    from advisor.check.baseline import is_baseline
    from advisor.check.configuration import DEFAULT_TARGET, one_model
    from advisor.check.difference import of_answer, of_baseline
    from advisor.check.run import price_all

    if is_baseline(text):
        return of_baseline(Path(text)), None
    if Path(text).suffix.lower() == ".json":
        from advisor.records import Recommendation

        saved = Recommendation.load(text)
        return of_answer(saved), saved
    options.check_model(text)
    talk.notice(f"pricing {text} ...")
    known = {text: {DEFAULT_TARGET: before}} if before is not None else {}
    (priced,) = price_all(one_model(text, given, Path.cwd()), known)
    if priced.checked is None:
        raise ModelError(priced.failure)
    return {(text, DEFAULT_TARGET): priced.checked}, None
