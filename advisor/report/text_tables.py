"""A recommendation as Markdown, to be pasted, and its candidates as CSV or a frame, to be worked with."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from advisor.errors import InputError
from advisor.records import Evaluation, Recommendation
from advisor.report import view
from advisor.report.candidate_lines import legend
from advisor.report.first_screen import evidence, headline, ranked_findings
from advisor.solver import figures_of
from advisor.units import format_bytes, format_flops

if TYPE_CHECKING:
    import pandas

_SPECIAL = "\\`*_{}[]<>()#+!|~&$"  # what Markdown, or HTML in it, would take for markup
_COLUMNS = (
    "id",
    "method",
    "fits",
    "recommended",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "is_finalist",
    "predicted_accuracy",
    "retained_accuracy",
    "peak_memory_bytes",
    "update_flops",
    "delta_bytes",
    "trainable_parameters",
    "update_seconds",
    "tune_seconds",
    "update_joules",
    "tune_joules",
    "reasons",
)


def render_markdown(recommendation: Recommendation) -> str:
    """The headline, the candidates to be shown first, what it rests on, and warnings."""
    told = headline(recommendation)
    choice = view.chosen(recommendation)
    lines = [f"# {plain(told.title)}", "", *(f"{plain(text)}  " for text in told.below), ""]
    lines += _table(recommendation, view.main_ones(recommendation), choice)
    lines += ["", *(f"- {name}: {plain(text)}" for name, text in evidence(recommendation))]
    lines += [f"- **Warning.** {plain(text)}" for text in recommendation.warnings]
    lines += [f"- **{finding.weight}** {plain(finding.text)}" for finding in ranked_findings(recommendation)]
    return "\n".join(lines) + "\n"


def render_csv(recommendation: Recommendation) -> str:
    """A line for each candidate, the choice first; bytes, FLOPs, seconds and shares in full."""
    written = io.StringIO()
    rows = csv.writer(written, lineterminator="\n")
    rows.writerow(_COLUMNS)
    for item in view.ordered(recommendation):
        rows.writerow(["" if cell is None else no_formula(cell) for cell in _cells(item, recommendation)])
    return written.getvalue()


def to_pandas(recommendation: Recommendation) -> pandas.DataFrame:
    """A row for each candidate, with the columns of `render_csv`; what is unknown is missing.

    Raises InputError where pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise InputError("a frame of the candidates needs pandas: pip install pandas") from error
    rows = [_cells(item, recommendation) for item in view.ordered(recommendation)]
    return pandas.DataFrame(rows, columns=list(_COLUMNS)).convert_dtypes()


def _table(
    recommendation: Recommendation, items: Sequence[Evaluation], choice: Evaluation | None
) -> list[str]:
    """Without the columns of what is known of none; what the marks mean is told below."""
    if not items:
        return []
    retained = [item.accuracy.retained if item.accuracy else None for item in items]
    named = [
        (recommendation.budget.metric_kind, [view.known_mean_text(item) for item in items]),
        ("old data", [view.percent(old.mean if old else None) for old in retained]),
        ("memory", [format_bytes(item.cost.peak_memory_bytes) for item in items]),
        ("FLOPs", [format_flops(item.cost.flops.total) for item in items]),
        ("to ship", [format_bytes(item.cost.delta_bytes) for item in items]),
    ]
    figures = [(name, cells) for name, cells in named if set(cells) != {"-"}]
    header = ["candidate", *(name for name, _ in figures), "verdict"]
    lines = [f"| {' | '.join(header)} |", f"|---|{'--:|' * len(figures)}---|"]
    for number, item in enumerate(items):
        name, verdict = plain(item.candidate.short), plain(view.verdict_text(item, choice))
        name = f"**{name}**" if item is choice else name
        lines.append(f"| {' | '.join([name, *(plain(cells[number]) for _, cells in figures), verdict])} |")
    marks = [meaning for meaning in legend(items) if not meaning.startswith("x")]
    return lines + (["", plain("; ".join(marks))] if marks else [])


def _cells(item: Evaluation, recommendation: Recommendation) -> Sequence[object]:
    accuracy, cost = item.accuracy, item.cost
    retained = accuracy.retained if accuracy else None
    return (
        item.candidate.id,
        item.candidate.method,
        item.fits,
        item.candidate.id == recommendation.recommended,
        accuracy.mean if accuracy else None,
        accuracy.low if accuracy else None,
        accuracy.high if accuracy else None,
        accuracy.finalist if accuracy else None,
        item.predicted.mean if item.predicted else None,
        retained.mean if retained else None,
        cost.peak_memory_bytes,
        cost.flops.total,
        cost.delta_bytes,
        cost.trainable_parameters,
        figures_of(item, recommendation.budget)["step_time"],
        figures_of(item, recommendation.budget)["total_time"],
        item.forecast.update_joules if item.forecast else None,
        figures_of(item, recommendation.budget)["energy"],
        "; ".join(view.reason(violation) for violation in item.violations),
    )


def plain(text: str) -> str:
    """Text that no Markdown renderer takes for markup."""
    return "".join(
        f"\\{character}" if character in _SPECIAL else character for character in view.printable(text)
    )


def no_formula(cell: object) -> object:
    """A spreadsheet takes what begins like this for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
