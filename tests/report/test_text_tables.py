"""Markdown and CSV of a recommendation."""

from __future__ import annotations

import csv
import io
import re
import sys
from dataclasses import replace
from html import escape

import pytest

from advisor.errors import InputError
from advisor.records import Candidate, Recommendation
from advisor.report import render_csv, render_markdown, to_pandas
from advisor.report.view import main_ones


def test_csv_has_each_candidate_in_full(sample: Recommendation) -> None:
    rows = list(csv.DictReader(io.StringIO(render_csv(sample))))
    assert len(rows) == len(sample.evaluations)
    for row in rows:
        if row["id"].startswith("'"):
            continue
        item = sample.evaluation(row["id"])
        assert int(row["peak_memory_bytes"]) == item.cost.peak_memory_bytes
        assert int(row["update_flops"]) == item.cost.flops.total
        assert row["accuracy"] == ("" if item.accuracy is None else repr(item.accuracy.mean))
        assert (row["recommended"] == "True") == (row["id"] == sample.recommended)
        assert bool(row["reasons"]) != item.fits


def test_no_cell_is_a_formula(samples: dict[str, Recommendation]) -> None:
    base = samples["without_data"]
    item = replace(base.evaluations[0], candidate=Candidate("=HYPERLINK(1)"))
    text = render_csv(replace(base, evaluations=(item,), recommended=None, front=()))
    assert "\n'=HYPERLINK" in text


def test_markdown_has_the_answer_and_its_table(sample: Recommendation) -> None:
    text = render_markdown(sample)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == (2 + len(main_ones(sample)) if sample.evaluations else 0)
    assert text.startswith("# ")
    if not table:
        return
    (bars,) = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
    judged = any(item.accuracy or item.predicted for item in main_ones(sample))
    assert bars >= 6 + judged  # and no column of which nothing is known
    assert not re.search(r"\| accuracy \|", text) or judged


def test_markup_is_escaped_in_markdown(samples: dict[str, Recommendation]) -> None:
    text = render_markdown(samples["hostile"])
    assert not re.search(r"(?<!\\)<", text)
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("metric", "title", "column"),
    [
        ("accuracy", "71.3 % right on new images", "accuracy"),
        ("balanced", "71.3 % balanced accuracy on new images", "balanced"),
        ("recall:crack", "71.3 % of new 'crack' images found", "recall"),
    ],
)
def test_what_was_meant_by_accuracy_is_said(
    samples: dict[str, Recommendation], metric: str, title: str, column: str
) -> None:
    base = samples["with_data"]
    first, *rest = render_markdown(replace(base, budget=replace(base.budget, metric=metric))).splitlines()
    assert first.endswith(title)
    assert any(line.startswith(f"| candidate | {column} |") for line in rest)


def test_a_frame_has_the_columns_and_the_candidates_of_the_csv(sample: Recommendation) -> None:
    pytest.importorskip("pandas")
    frame = to_pandas(sample)
    rows = csv.DictReader(io.StringIO(render_csv(sample)))
    assert list(frame.columns) == rows.fieldnames
    assert [row["id"].removeprefix("'") for row in rows] == frame["id"].tolist()
    for identity, memory in zip(frame["id"], frame["peak_memory_bytes"], strict=True):
        assert sample.evaluation(identity).cost.peak_memory_bytes == memory


def test_a_frame_without_pandas_names_the_mend(
    samples: dict[str, Recommendation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)  # as where it is not installed
    with pytest.raises(InputError, match="pip install pandas"):
        to_pandas(samples["without_data"])


def test_a_notebook_shows_the_answer_and_the_choice_and_nothing_injects_markup(
    sample: Recommendation,
) -> None:
    shown = sample._repr_html_()
    assert escape(sample.answer) in shown
    front = {sample.recommended, *sample.front} - {None}
    assert shown.count("<tr>") == 1 + len(front)
    if sample.recommended is not None:
        short = sample.evaluation(sample.recommended).candidate.short
        assert f"<tbody><tr><th>{escape(short)}</th>" in shown
    tags = set(re.findall(r"<\s*/?\s*(\w+)", shown))
    assert tags <= {"div", "p", "b", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
