"""A check in the terminal: a line for each target, then what is to be said of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
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
    step = changes.next_step(report)
    if step:
        _print_below(Text(step), console, -_INDENT)
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
        _print_below(Text(choice, "dim"), console)
    for finding in target.findings:
        level = Text(f"{finding.level}: ", _STYLES[finding.level])
        _print_below(level + Text(changes.plain(finding.message)), console)
    layers = changes.changed_layers(target)
    if layers:
        _print_layers(layers, console)
    rows = [row for row in changes.figure_rows(target) if row.before]
    if any(row.change or row.chosen for row in rows):
        _print_figures(target, rows, console)
    for warning in target.now.warnings if target.now is not None else ():
        _print_below(Text(f"warning: {changes.plain(warning)}", "dim"), console)


def _print_figures(target: TargetReport, rows: Sequence[changes.Row], console: Console) -> None:
    """Before and after; where another candidate is recommended now, what that costs, too."""
    head, cells = (
        ["", "before", "now", ""],
        [[row.words, row.before, row.after or "-", row.change] for row in rows],
    )
    if any(row.chosen for row in rows):
        head.append("instead")
        cells = [[*each, row.chosen] for each, row in zip(cells, rows, strict=True)]
    _print_table(_table(head, cells), console)


def _print_layers(layers: Sequence[LayerChange], console: Console) -> None:
    """As a table where that is narrow enough, else two lines for each."""
    shown = layers[:_LAYERS_SHOWN]
    names = ("layer", "type", "weight", "peak memory", "FLOPs")
    cells = []
    for layer in shown:
        words = changes.layer_words(layer)
        words["type"] = ", ".join(filter(None, (words["type"], words["state"])))
        cells.append([words[name] for name in names])
    table = _table(names, cells)
    if console.measure(table).maximum <= console.width - _INDENT:
        _print_table(table, console)
    else:
        for layer in shown:
            what, costs = changes.layer_parts(layer)
            _print_below(Text(what), console)
            _print_below(Text(costs), console, deeper=2)
    more = changes.more_layers(layers, len(shown))
    if more:
        _print_below(Text(more, "dim"), console)


def _print_below(text: Text, console: Console, deeper: int = 0) -> None:
    """Under the target's name, without blanks at the ends of lines."""
    indent = _INDENT + deeper
    for line in text.wrap(console, max(console.width - indent, 1)):
        line.rstrip()
        console.print(Text(" " * indent) + line)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in head:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _print_table(table: Table, console: Console) -> None:
    options = console.options.update_width(max(console.width - _INDENT, 1))
    for segments in console.render_lines(table, options, pad=False):
        line = Text.assemble(*((segment.text, segment.style or "") for segment in segments))
        line.rstrip()
        console.print(Text(" " * _INDENT) + line)
