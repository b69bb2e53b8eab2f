"""Several answers as Markdown, to be pasted, as CSV, to be worked with, and as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from advisor.plain import encode
from advisor.records import Compared
from advisor.report.compare import Row, board_text, by_board, known_accuracy_text, rows_of, title_of, told_of
from advisor.report.formats import SCHEMA_VERSION, to_json
from advisor.report.text_tables import no_formula, plain
from advisor.units import format_bytes, format_flops

_COLUMNS = (
    "network",
    "board",
    "best",
    "outcome",
    "id",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "solved_accuracy",
    "peak_memory_bytes",
    "runtime_bytes",
    "update_flops",
    "delta_bytes",
    "update_seconds",
    "tune_seconds",
    "update_joules",
    "more",
)


def markdown_of_compared(compared: Sequence[Compared]) -> str:
    """A table for each board, the best of it in bold, and what holds for all."""
    rows = rows_of(compared)
    lines = [f"# {plain(title_of(compared))}"]
    for group in by_board(rows):
        text = board_text(group)
        lines += ["", *([f"## {plain(text)}", ""] if text else []), *_table(group)]
    lines += ["", *(f"- {plain(text)}" for text in told_of(rows))]
    return "\n".join(lines) + "\n"


def csv_of_compared(compared: Sequence[Compared]) -> str:
    """A line for each answer; bytes, FLOPs, seconds and shares in full."""
    written = io.StringIO()
    rows = csv.writer(written, lineterminator="\n")
    rows.writerow(_COLUMNS)
    for row in rows_of(compared):
        rows.writerow(["" if cell is None else no_formula(cell) for cell in _cells(row)])
    return written.getvalue()


def json_of_compared(compared: Sequence[Compared]) -> str:
    """Each answer whole, as `--json` writes one, with its network and its board."""
    answers = [
        {
            "name": pair.name,
            "board": pair.board,
            "is_best": pair.is_best,
            "trouble": pair.trouble,
            "solved": encode(pair.solved) if pair.solved else None,
            "recommendation": to_json(pair.recommendation) if pair.recommendation else None,
        }
        for pair in compared
    ]
    document = {"schema_version": SCHEMA_VERSION, "compared": answers}
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _table(rows: Sequence[Row]) -> list[str]:
    """As wide as what is known of any of them."""
    named = [
        ("accuracy", [known_accuracy_text(row) for row in rows]),
        ("memory", [format_bytes(row.choice.cost.peak_memory_bytes) if row.choice else "" for row in rows]),
        ("with the runtime", [row.whole for row in rows]),
        ("FLOPs", [format_flops(row.choice.cost.flops.total) if row.choice else "" for row in rows]),
        ("time per update", [row.time for row in rows]),
        ("time in all", [row.tune for row in rows]),
        ("energy per update", [row.joules for row in rows]),
        ("to ship", [format_bytes(row.choice.cost.delta_bytes) if row.choice else "" for row in rows]),
    ]
    figures = [(name, cells) for name, cells in named if any(cells)]
    lines = [
        f"| network | use | {' | '.join([*(name for name, _ in figures), 'more'])} |",
        f"|---|---|{'--:|' * len(figures)}---|",
    ]
    for number, row in enumerate(rows):
        names = [plain(row.pair.name), plain(row.use)]
        names = [f"**{name}**" for name in names] if row.pair.is_best else names
        cells = [*names, *(plain(known[number] or "-") for _, known in figures), plain(row.more)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cells(row: Row) -> Sequence[object]:
    choice, answer, accuracy = row.choice, row.pair.recommendation, row.accuracy
    forecast = choice.forecast if choice else None
    return (
        row.pair.name,
        row.pair.board,
        row.pair.is_best,
        answer.outcome if answer else None,
        choice.candidate.id if choice else None,
        accuracy.mean if accuracy else None,
        accuracy.low if accuracy else None,
        accuracy.high if accuracy else None,
        row.pair.solved.mean if row.pair.solved else None,
        choice.cost.peak_memory_bytes if choice else None,
        answer.runtime.bytes if answer and answer.runtime else None,
        choice.cost.flops.total if choice else None,
        choice.cost.delta_bytes if choice else None,
        choice.update_seconds if choice and row.time else None,
        forecast.tune_seconds if forecast else None,
        forecast.update_joules if forecast else None,
        row.more,
    )
