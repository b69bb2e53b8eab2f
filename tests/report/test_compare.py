"""Several answers in one page, and answers without names."""

from __future__ import annotations

import re
from dataclasses import replace

from advisor.records import Finding, Recommendation, Violation
from advisor.report import dumps, redacted, render_comparison, render_html
from tests.report.test_html import Page


def test_each_answer_has_its_row(samples: dict[str, Recommendation]) -> None:
    text = render_comparison(samples)
    page = Page(text)
    assert page.open == []
    assert "<script" not in text
    assert len(re.findall(r'<tr id="c\d+">', text)) == len(samples)
    for name, recommendation in samples.items():
        assert name in page.text
        if recommendation.recommended:
            choice = recommendation.evaluation(recommendation.recommended)
            assert choice.candidate.short in page.text


def test_choices_are_held_against_each_other_where_accuracy_is_known(
    samples: dict[str, Recommendation],
) -> None:
    judged = {name: samples[name] for name in ("with_data", "remembered")}
    assert "Accuracy against memory of each answer" in render_comparison(judged)
    assert "FLOPs against memory of each answer" in render_comparison(
        judged | {"more": samples["without_data"]}
    )
    assert "<desc>" not in render_comparison({"none": samples["nothing_fits"]})


def test_another_metric_is_named_and_not_drawn_on_the_same_axis(samples: dict[str, Recommendation]) -> None:
    base = samples["with_data"]
    recall = replace(base, budget=replace(base.budget, metric="recall:crack"))
    text = render_comparison({"all": base, "one": recall})
    assert "FLOPs against memory of each answer" in text
    assert text.count("<br>recall:crack</small>") == 1
    assert "Accuracy against memory of each answer" in render_comparison({"one": recall, "again": recall})


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
    reason = "recall:cracked blade accuracy 40.0%, below the 50.0% asked for"
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
