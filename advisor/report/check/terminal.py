"""A check in the terminal: a line for each target, then what is to be said of it."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from advisor.check.records import CheckReport, LayerChange, TargetReport
from advisor.report.check import changes
from advisor.report.terminal import Output

_STYLES = {"error": "red", "warning": "yellow", "note": "cyan"}
_STATES = {"FAIL": "bold red", "pass": "bold green", "changed": "bold", "same": "dim"}
_INDENT = 6
_LAYERS_SHOWN = 6


def print_text(report: CheckReport, console: Console | None = None) -> None:
    """To stdout unless a console is given."""
    console = console or Output(highlight=False)
    for target in report.targets:
        _print_target(report, target, console)
    style = "bold red" if report.exit_code else "bold green"
    console.print(Text(changes.verdict(report), style=style))


def _print_target(report: CheckReport, target: TargetReport, console: Console) -> None:
    state = changes.state(report, target)
    console.print(
        Text(f"{state:<{_INDENT}}" if len(state) < _INDENT else f"{state} ", _STATES[state])
        + Text(changes.title(target), "bold")
    )
    choice = changes.choice_words(target)
    if choice:
        _print_below(choice, console)
    for finding in target.findings:
        words = Text(f"{finding.level}: ", _STYLES[finding.level]) + Text(changes.plain(finding.message))
        console.print(Padding(words, (0, 0, 0, _INDENT), expand=False))
    layers = changes.changed_layers(target)
    if layers:
        _print_layers(layers, console)
    rows = [row for row in changes.figure_rows(target) if row.before]
    if rows and any(row.change for row in rows):
        table = _table(("", "before", "now", ""))
        for row in rows:
            table.add_row(row.words, row.before, row.after or "not known", row.change)
        console.print(Padding(table, (0, 0, 0, _INDENT), expand=False))
    for warning in target.now.warnings if target.now is not None else ():
        _print_below(f"warning: {changes.plain(warning)}", console)


def _print_layers(layers: tuple[LayerChange, ...], console: Console) -> None:
    shown = [changes.layer_words(layer) for layer in layers[:_LAYERS_SHOWN]]
    columns = ("layer", "weight", "peak memory", "FLOPs")
    table = _table(columns)
    for words in shown:
        table.add_row(*(words[column] for column in columns))
    console.print(Padding(table, (0, 0, 0, _INDENT), expand=False))
    if len(layers) > len(shown):
        _print_below(f"and {len(layers) - len(shown)} more layers", console)


def _print_below(line: str, console: Console) -> None:
    console.print(Padding(Text(line, "dim"), (0, 0, 0, _INDENT), expand=False))


def _table(columns: Iterable[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
