"""`peft-advisor report`: render a saved recommendation again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from advisor.cli import options, talk
from advisor.cli.outputs import Outputs
from advisor.errors import InputError
from advisor.names import told_apart
from advisor.records import Compared

if TYPE_CHECKING:
    from advisor.records import Recommendation


def command(
    paths: Annotated[
        list[str], typer.Argument(metavar="OUT.json...", help="What --json wrote.", show_default=False)
    ],
    report: options.ReportPath = None,
    redact: Annotated[
        bool,
        typer.Option("--redact", help="Leave out names of model, data, classes and files, and the command."),
    ] = False,
    form: options.Form = "terminal",
    everything: options.Everything = False,
) -> None:
    """Show a saved recommendation, or render its report again; several are compared in one table or page.

    Examples:
        peft-advisor report advice.json
        peft-advisor report advice.json --all
        peft-advisor report advice.json --report report.html
        peft-advisor report advice.json --format csv > candidates.csv
        peft-advisor report phone.json camera.json
        peft-advisor report phone.json camera.json --report both.html
    """
    for path in paths:
        options.check_report(path)
    if len(set(paths)) < len(paths):
        raise InputError("one answer is given twice; give each once")
    outputs = Outputs({"--report": report}, form)

    from advisor.records import Recommendation
    from advisor.report import (
        print_comparison,
        print_recommendation,
        redacted,
        render_comparison,
        render_html,
    )

    read = {path: Recommendation.load(path) for path in paths}
    if redact:
        read = {
            path if len(read) == 1 else f"answer {n}": redacted(one)
            for n, (path, one) in enumerate(read.items(), 1)
        }
    first = next(iter(read.values()))

    compared = _side_by_side(read) if len(read) > 1 else []

    def page() -> str:
        return render_comparison(compared) if compared else render_html(first)

    # First: whoever reads the rest may stop reading.
    if outputs.write("--report", page):
        talk.hint(f"Report: {report}")
    if compared:
        outputs.write_compared_form(compared)
    else:
        outputs.write_recommendation_form(first)
    if not outputs.to_stdout and compared and not report:
        print_comparison(compared)
    elif not outputs.to_stdout and not compared:
        print_recommendation(first, saved=None if redact else paths[0], everything=everything)
    outputs.end()


def _side_by_side(read: dict[str, Recommendation]) -> list[Compared]:
    """By the files' names, or where two are alike by their paths."""
    named = zip(told_apart(list(read)), read.values(), strict=True)
    return [Compared(name, one.target.name if one.target else "", one) for name, one in named]
