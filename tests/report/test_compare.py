"""Several answers in one page, and answers without names."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from advisor.records import Compared, Finding, Forecast, Recommendation, Target, Violation
from advisor.report import (
    csv_of_compared,
    dumps,
    from_json,
    json_of_compared,
    loads,
    markdown_of_compared,
    print_comparison,
    redacted,
    render_comparison,
    render_html,
)
from tests.report.test_html import Page


def named(samples: dict[str, Recommendation]) -> list[Compared]:
    return [Compared(name, "", recommendation) for name, recommendation in samples.items()]


def test_each_answer_has_its_row(samples: dict[str, Recommendation]) -> None:
    text = render_comparison(named(samples))
    page = Page(text)
    assert page.open == []
    assert "<script" not in text
    assert len(re.findall(r'<tr id="c\d+"', text)) == len(samples)
    for name, recommendation in samples.items():
        assert name in page.text
        if recommendation.recommended:
            choice = recommendation.evaluation(recommendation.recommended)
            assert choice.candidate.short in page.text


def test_choices_are_held_against_each_other_where_accuracy_is_known(
    samples: dict[str, Recommendation],
) -> None:
    judged = {name: samples[name] for name in ("with_data", "remembered")}
    assert "Accuracy against memory of each answer" in render_comparison(named(judged))
    assert "FLOPs against memory of each answer" in render_comparison(
        named(judged | {"more": samples["without_data"]})
    )
    assert "<desc>" not in render_comparison(named({"none": samples["nothing_fits"]}))


def test_another_metric_is_named_and_not_drawn_on_the_same_axis(samples: dict[str, Recommendation]) -> None:
    base = samples["with_data"]
    recall = replace(base, budget=replace(base.budget, metric="recall:crack"))
    text = render_comparison(named({"all": base, "one": recall}))
    assert "FLOPs against memory of each answer" in text
    assert text.count("<br>recall:crack</small>") == 1
    assert "Accuracy against memory of each answer" in render_comparison(
        named({"one": recall, "again": recall})
    )


def _boards(samples: dict[str, Recommendation]) -> list[Compared]:
    """Two networks on two boards; one has nothing that fits, one has no answer at all."""
    made = []
    for board, factor in (("pi4", 2.0), ("jetson", 0.5)):
        base = samples["without_data"]
        items = tuple(
            replace(item, measured=None, forecast=Forecast(factor, None, 3 * factor))
            for item in base.evaluations
        )
        target = Target(board, "Linux aarch64", 4, "2.10.0")
        made.append(Compared("net-a", board, replace(base, evaluations=items, target=target)))
        if board == "pi4":
            made.append(Compared("net-b", board, replace(samples["nothing_fits"], target=target)))
        else:
            made.append(Compared("net-b", board, None, "the runtime alone takes 600 MB"))
    return made


def test_markdown_and_csv_have_each_answer(samples: dict[str, Recommendation]) -> None:
    compared = _boards(samples)
    text = markdown_of_compared(compared)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert text.startswith("# 2 networks on 2 boards\n")
    assert len(tables) == 2 * 2 + len(compared)
    assert "the runtime alone takes 600 MB" in text
    rows = list(csv.DictReader(io.StringIO(csv_of_compared(compared))))
    assert [(row["network"], row["board"]) for row in rows] == [(pair.name, pair.board) for pair in compared]
    for row, pair in zip(rows, compared, strict=True):
        answer = pair.recommendation
        choice = answer.evaluation(answer.recommended) if answer and answer.recommended else None
        assert row["peak_memory_bytes"] == (str(choice.cost.peak_memory_bytes) if choice else "")


def test_json_has_each_answer_whole(samples: dict[str, Recommendation]) -> None:
    compared = named(samples)
    document = json.loads(json_of_compared(compared))
    assert [one["name"] for one in document["compared"]] == [pair.name for pair in compared]
    for one, pair in zip(document["compared"], compared, strict=True):
        assert from_json(one["recommendation"]) == loads(dumps(pair.recommendation))


def test_names_are_no_markup_in_markdown(samples: dict[str, Recommendation]) -> None:
    text = markdown_of_compared([Compared("<b>|net", "", samples["hostile"])])
    assert not re.search(r"(?<!\\)<", text)
    assert (
        len({len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")}) == 1
    )


def test_boards_stand_one_after_the_other(samples: dict[str, Recommendation]) -> None:
    text = Page(render_comparison(_boards(samples))).text
    assert "2 networks on 2 boards" in text
    assert text.index("pi4: Linux aarch64, 4 threads") < text.index("jetson: Linux aarch64")
    for told in ("2.00 s", "500 ms", "6.00 J", "1.50 J", "nothing fits", "the runtime alone takes 600 MB"):
        assert told in text
    assert "Time against memory of each answer" in render_comparison(_boards(samples)[::2])


def test_answers_that_alternate_between_boards_stand_by_board(samples: dict[str, Recommendation]) -> None:
    first, second, third, fourth = _boards(samples)
    page = render_comparison([first, third, second, fourth])
    assert page.count('<table class="answers') == 2


@pytest.mark.parametrize("width", [60, 80, 140])
def test_in_a_terminal_no_line_is_too_wide_and_no_figure_is_cut(
    samples: dict[str, Recommendation], width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    print_comparison(_boards(samples), Console(width=width, highlight=False))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    boards = [n for n, line in enumerate(lines) if line.startswith(("pi4", "jetson"))]
    assert len(boards) == 2
    rows = [line for line in lines if line.strip("x> ").startswith("net-")]
    assert len(rows) == 4
    if width >= 80:
        assert all(told in row for told, row in zip(("2.00 s", "500 ms"), rows[::2], strict=True))
    assert "nothing fits" in rows[1]
    assert "the runtime alone" in rows[3]


@pytest.mark.parametrize("width", [80, 140])
def test_names_are_whole_in_a_terminal(
    samples: dict[str, Recommendation], width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    base = samples["with_data"]
    names = ["a-network-of-forty-characters-and-no-less", "short"]
    print_comparison([Compared(name, "", base) for name in names], Console(width=width, highlight=False))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    use = base.evaluation(base.recommended or "").candidate.short
    assert sum(use in line for line in lines) == 2
    if width == 140:
        assert all(name in "".join(lines) for name in names)


def test_what_was_not_raced_is_told_by_its_solved_head(
    samples: dict[str, Recommendation], capsys: pytest.CaptureFixture[str]
) -> None:
    judged, other = samples["with_data"], samples["without_data"]
    accuracy = judged.evaluation(judged.recommended or "").accuracy
    pairs = [
        Compared("raced", "", judged, is_best=True),
        Compared("not-raced", "", other, solved=accuracy),
    ]
    page = Page(render_comparison(pairs))
    assert "best here" in page.text
    assert "not raced" in page.text
    print_comparison(pairs, Console(width=100, highlight=False))
    out = capsys.readouterr().out
    assert re.search(r"^> raced .* \d\d\.\d %", out, re.MULTILINE)
    assert re.search(r"^  not-raced .* ~\d\d\.\d %", out, re.MULTILINE)


def test_no_name_is_left(samples: dict[str, Recommendation]) -> None:
    base = samples["with_data"]
    assert base.data
    secrets = ("secret-net", "Turbine", "plant-7", "cracked blade", "IMG_0042", "/srv/jobs")
    source = "models/secret-net.pt"
    finding = Finding(
        "twins", "warning", "plant-7/IMG_0042.png is cracked blade and whole", ("plant-7/IMG_0042.png",)
    )
    given = replace(
        base,
        model=replace(base.model, source=source, name="Turbine", arch="Turbine"),
        data=replace(
            base.data, source="plant-7", data_classes=("cracked blade", "whole"), findings=(finding,)
        ),
        answer="Use norm for secret-net.pt",
        warnings=("class cracked blade has few images", "see /srv/jobs/log.txt"),
        provenance={"command": f"peft-advisor recommend {source}", "seed": 0},
    )
    page, text = render_html(redacted(given)), dumps(redacted(given))
    for secret in secrets:
        assert secret in dumps(given)
        assert secret not in page + text
    assert [e.cost.flops for e in redacted(given).evaluations] == [e.cost.flops for e in given.evaluations]
    assert "class class 1 has few images" in text


def test_the_class_of_a_recall_is_no_name_that_is_left(samples: dict[str, Recommendation]) -> None:
    base = samples["with_data"]
    assert base.data
    reason = "recall:cracked blade accuracy 40.0 %, below the 50.0 % asked for"
    too_few = Violation("min_accuracy", 0.4, 0.5, reason)
    given = replace(
        base,
        budget=replace(base.budget, metric="recall:cracked blade"),
        data=replace(base.data, data_classes=("cracked blade", "whole")),
        evaluations=tuple(
            replace(item, violations=(too_few,)) if item.violations else item for item in base.evaluations
        ),
    )
    assert "cracked blade" in render_html(given)
    told = redacted(given)
    assert told.budget.metric == "recall:class 1"
    assert "cracked" not in render_html(told) + dumps(told)
