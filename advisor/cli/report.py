"""`peft-advisor report`: render a saved recommendation again."""

from __future__ import annotations

from typing import Annotated

import typer

from advisor.cli import options, talk
from advisor.cli.outputs import Outputs


def command(
    path: Annotated[str, typer.Argument(metavar="OUT.json", help="What --json wrote.", show_default=False)],
    report: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the report, one HTML page.")
    ] = None,
    everything: options.Everything = False,
) -> None:
    """Show a saved recommendation, or render its report again.

    Examples:
        peft-advisor report advice.json
        peft-advisor report advice.json --all
        peft-advisor report advice.json --report report.html
    """
    options.check_report(path)
    outputs = Outputs({"--report": report})

    from advisor.report import print_recommendation, read_json, render_html

    recommendation = read_json(path)
    # First: whoever reads the rest may stop reading.
    if outputs.write("--report", lambda: render_html(recommendation)):
        talk.hint(f"Report: {report}")
    if not outputs.to_stdout:
        print_recommendation(recommendation, saved=path, everything=everything)
    outputs.end()
