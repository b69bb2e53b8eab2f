"""A recommendation in the terminal, as one HTML page, as JSON: pure functions of records."""

from advisor.report.compare import print_comparison, render_comparison
from advisor.report.compared_text import csv_of_compared, json_of_compared, markdown_of_compared
from advisor.report.formats import (
    SCHEMA_VERSION,
    dumps,
    from_json,
    loads,
    to_json,
    write_json,
)
from advisor.report.html import render_html, write_html
from advisor.report.redact import redacted
from advisor.report.terminal import print_layer_types, print_profile, print_recommendation
from advisor.report.text_tables import render_csv, render_markdown, to_pandas

__all__ = [
    "SCHEMA_VERSION",
    "csv_of_compared",
    "dumps",
    "from_json",
    "json_of_compared",
    "loads",
    "markdown_of_compared",
    "print_comparison",
    "print_layer_types",
    "print_profile",
    "print_recommendation",
    "redacted",
    "render_comparison",
    "render_csv",
    "render_html",
    "render_markdown",
    "to_json",
    "to_pandas",
    "write_html",
    "write_json",
]
