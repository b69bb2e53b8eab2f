"""`peft-advisor report`: render a saved recommendation again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advisor.cli import options, talk
from advisor.cli.outputs import Outputs
from advisor.errors import InputError

if TYPE_CHECKING:
    from advisor.records import Recommendation


def command(
    paths: Annotated[
        list[str], typer.Argument(metavar="OUT.json...", help="What --json wrote.", show_default=False)
    ],
    report: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the report, one HTML page.")
    ] = None,
    redact: Annotated[
        bool,
        typer.Option("--redact", help="Leave out names of model, data, classes and files, and the command."),
    ] = False,
    form: options.Form = "terminal",
    everything: options.Everything = False,
) -> None:
    """Show a saved recommendation, or render its report again; several are compared in one page.

    Examples:
        peft-advisor report advice.json
        peft-advisor report advice.json --all
        peft-advisor report advice.json --report report.html
        peft-advisor report advice.json --format csv > candidates.csv
        peft-advisor report phone.json camera.json --report both.html
    """
    for path in paths:
        options.check_report(path)
    if len(paths) > 1 and not report:
        raise InputError("several answers are compared in a page; give --report FILE")
    if len(paths) > 1 and form != "terminal":
        raise InputError(f"--format {form} is of one answer; leave it out, or name one file")
    if len(set(paths)) < len(paths):
        raise InputError("one answer is given twice; give each once")
    outputs = Outputs({"--report": report}, form)

    from advisor.report import (
        print_recommendation,
        read_json,
        redacted,
        render_comparison,
        render_html,
    )

    read = {path: read_json(path) for path in paths}
    if redact:
        read = {
            path if len(read) == 1 else f"answer {n}": redacted(one)
            for n, (path, one) in enumerate(read.items(), 1)
        }
    first = next(iter(read.values()))

    def page() -> str:
        return render_comparison(_told_apart(read)) if len(read) > 1 else render_html(first)

    # First: whoever reads the rest may stop reading.
    if outputs.write("--report", page):
        talk.hint(f"Report: {report}")
    outputs.write_form(first)
    if not outputs.to_stdout and len(read) == 1:
        print_recommendation(first, saved=None if redact else paths[0], everything=everything)
    outputs.end()


def _told_apart(read: dict[str, Recommendation]) -> dict[str, Recommendation]:
    """By the files' names, or where two are alike by their paths."""
    stems = [Path(path).stem for path in read]
    return dict(zip(stems, read.values(), strict=True)) if len(set(stems)) == len(stems) else read
