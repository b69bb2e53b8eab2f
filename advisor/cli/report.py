"""`peft-advisor report`: render a saved recommendation again."""

from __future__ import annotations

from typing import Annotated

import typer

from advisor.cli.recommend import check_writable


def command(
    path: Annotated[str, typer.Argument(metavar="OUT.json", help="What --json wrote.", show_default=False)],
    report: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the report, one HTML page.")
    ] = None,
) -> None:
    """Show a saved recommendation, or render its report again."""
    check_writable(report)

    from advisor.report import print_recommendation, read_json, write_html

    recommendation = read_json(path)
    if report:  # first: whoever reads the rest may stop reading
        write_html(recommendation, report)
        typer.echo(f"Report: {report}", err=True)
    print_recommendation(recommendation)
