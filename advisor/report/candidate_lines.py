"""Candidates in the terminal, one line each: what there is no room for is left out, not wrapped."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from advisor.records import Evaluation, Recommendation
from advisor.report import view
from advisor.report.fitted import elided
from advisor.units import format_bytes, format_count, format_flops, format_seconds

LEGEND = {"*": "* trained for less", "~": "~ not tried, predicted", "x": "x doesn't fit"}
_LEAST_NAME = 20
_GAP = 2
_MARK = 2


@dataclass(frozen=True, slots=True)
class _Column:
    header: str
    show: Callable[[Evaluation], str]

    def cells(self, evaluations: Sequence[Evaluation]) -> list[str]:
        """Header and cells, right-justified."""
        texts = [view.printable(text) for text in (self.header, *map(self.show, evaluations))]
        width = max(map(cell_len, texts))
        return [" " * (width - cell_len(text)) + text for text in texts]


def candidate_lines(
    evaluations: Sequence[Evaluation], recommendation: Recommendation, width: int, *, whole_names: bool
) -> list[Text]:
    """A line of headers, and one for each candidate; `>` is the choice, `x` doesn't fit.

    Args:
        whole_names: a name that is too long has a line of its own; else its middle is left out.
    """
    names = [view.printable(evaluation.candidate.short) for evaluation in evaluations]
    longest = max(map(cell_len, ("candidate", *names)))
    columns = [column.cells(evaluations) for column in _columns(evaluations, recommendation)]
    gap = _GAP
    if _MARK + longest + sum(gap + cell_len(cells[0]) for cells in columns) > width:
        gap = 1  # before a name is cut, or has a line of its own
    taken = _MARK + sum(gap + cell_len(cells[0]) for cells in columns)
    while len(columns) > 1 and taken + min(longest, _LEAST_NAME) > width:
        taken -= gap + cell_len(columns.pop()[0])
    for column in _more(evaluations, recommendation):
        cells = column.cells(evaluations)
        if taken + longest + gap + cell_len(cells[0]) <= width:
            columns.append(cells)
            taken += gap + cell_len(cells[0])
    room = min(longest, max(width - taken, 1))

    def line(mark: str, name: str, cells: Iterable[str]) -> str:
        return (" " * gap).join([mark + set_cell_size(name, room), *cells]).rstrip()

    lines = [Text(line("  ", "candidate", (cells[0] for cells in columns)))]
    for row, (evaluation, name) in enumerate(zip(evaluations, names, strict=True), 1):
        is_chosen = evaluation.candidate.id == recommendation.recommended
        mark = "> " if is_chosen else "  " if evaluation.fits else "x "
        style = "bold" if is_chosen else "" if evaluation.fits else "dim"
        cells = [column[row] for column in columns]
        if whole_names and cell_len(name) > room:
            pieces = textwrap.wrap(mark + name, width, subsequent_indent="  ", break_on_hyphens=False)
            lines += [Text(text, style) for text in (*pieces, line("  ", "", cells))]
        else:
            lines.append(Text(line(mark, elided(name, room), cells), style))
    return lines


def legend(evaluations: Iterable[Evaluation]) -> list[str]:
    """What the marks beside these candidates mean."""
    marks = "".join(view.known_mean_text(item) + ("" if item.fits else "x") for item in evaluations)
    return [meaning for mark, meaning in LEGEND.items() if mark in marks]


def _columns(evaluations: Sequence[Evaluation], recommendation: Recommendation) -> list[_Column]:
    columns = []
    if any(item.accuracy or item.predicted for item in evaluations):
        columns.append(_Column(f"{recommendation.budget.metric_kind} ", _accuracy))
    if any(item.accuracy and item.accuracy.retained for item in evaluations):
        columns.append(_Column("old data", _old))
    time = [_Column("time", _time)] if any(item.forecast for item in evaluations) else []
    return [
        *columns,
        _Column("memory", lambda item: format_bytes(item.cost.peak_memory_bytes)),
        _Column("FLOPs", lambda item: format_flops(item.cost.flops.total).removesuffix("FLOP").rstrip()),
        *time,
        _Column("to ship", lambda item: format_bytes(item.cost.delta_bytes)),
    ]


def _more(evaluations: Sequence[Evaluation], recommendation: Recommendation) -> list[_Column]:
    """What is added where there is room, in this order."""
    choice = view.chosen(recommendation)
    columns = []
    if any(item.accuracy or item.predicted for item in evaluations):
        columns.append(_Column("95 % interval", _interval))
    return [
        *columns,
        _Column("params", lambda item: format_count(item.cost.trainable_parameters)),
        _Column("verdict", lambda item: view.verdict_text(item, choice)),
    ]


def _accuracy(item: Evaluation) -> str:
    text = view.known_mean_text(item)
    return text if text.endswith("*") else f"{text} "


def _time(item: Evaluation) -> str:
    return format_seconds(item.forecast.update_seconds) if item.forecast else "-"


def _old(item: Evaluation) -> str:
    old = item.accuracy.retained if item.accuracy else None
    return view.percent(old.mean if old else None)


def _interval(item: Evaluation) -> str:
    known = item.accuracy or item.predicted
    return view.interval_text(known) if known else "-"
