"""The report in a real browser: it chooses as the solver does, sorts, prints, and lets nothing in or out."""

from __future__ import annotations

import io
import json
import os
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pypdf import PdfReader

from advisor.records import Budget, DataSummary, Finding, Recommendation
from advisor.report import view
from advisor.report.whatif import MOST_TOLERANCE, PREFERENCES
from advisor.solver import LIMIT, figures_of, solve
from advisor.units import parse_bytes

HOSTILE = "<img src=x onerror=alert(1)>\"'</script><script>alert(2)</script>"
Opened = Callable[..., Any]


def random_budgets(recommendation: Recommendation, count: int, shown: list[str]) -> list[Budget]:
    """Limits among the values that candidates have, so that each may decide."""
    rng = random.Random(0)
    figures = [figures_of(evaluation, recommendation.budget) for evaluation in recommendation.evaluations]
    budgets = []
    for _ in range(count):
        limits = {
            limit.field: rng.choice(known)
            for name, limit in LIMIT.items()
            if name in shown and rng.random() < 0.4
            if (known := [each[name] for each in figures if each[name] is not None])
        }
        tolerance = rng.choice((0.0, 0.01, rng.uniform(0, MOST_TOLERANCE)))
        unset: dict[str, Any] = {limit.field: None for limit in LIMIT.values()}
        prefer = rng.choice(PREFERENCES)
        budgets.append(replace(recommendation.budget, **(unset | limits), tolerance=tolerance, prefer=prefer))
    return budgets


def test_the_page_chooses_as_the_solver_does_on_1000_random_budgets(
    opened: Opened, saved: Recommendation
) -> None:
    page = opened(saved)
    keys = page.evaluate("JSON.parse(document.getElementById('facts').textContent).limits.map((l) => l.name)")
    budgets = random_budgets(saved, 1000, keys)
    asked = [
        {
            "limits": [getattr(budget, LIMIT[key].field) for key in keys],
            "tolerance": budget.tolerance,
            "prefer": budget.prefer,
        }
        for budget in budgets
    ]
    told = page.evaluate(
        """(budgets) => {
          const data = JSON.parse(document.getElementById("facts").textContent);
          return budgets.map((budget) => {
            const {outcome, choices} = solve(data, budget);
            return [outcome, choices.map((n) => document.querySelector(`#c${n + 1} .name`).textContent)];
          });
        }""",
        asked,
    )
    outcomes = set()
    for budget, (outcome, names) in zip(budgets, told, strict=True):
        verdict = solve(saved.evaluations, budget, saved.data)
        assert (outcome, names) == (verdict.outcome, [e.candidate.short for e in verdict.choices]), budget
        outcomes.add((outcome, names[0] if names else ""))
    assert len(outcomes) > 3  # the budgets do decide


def test_the_page_begins_with_the_recommended_candidate(opened: Opened, saved: Recommendation) -> None:
    verdict = solve(saved.evaluations, saved.budget, saved.data)
    assert verdict.choices[0].candidate.id == saved.recommended
    page = opened(saved)
    assert saved.evaluation(saved.recommended or "").candidate.short in page.inner_text("h1")
    assert "(the recommended one)" in page.inner_text(".whatif .result")


def test_sliders_by_keyboard(opened: Opened, saved: Recommendation) -> None:
    page = opened(saved)
    slider = page.get_by_label("peak memory", exact=True)
    slider.focus()
    page.keyboard.press("Home")  # the tightest
    told = page.inner_text(".whatif .result")
    typed = re.search(r"--ram (\S+)", told)
    assert typed
    admitted = [e for e in saved.evaluations if e.cost.peak_memory_bytes <= parse_bytes(typed[1])]
    assert f"{len(admitted)} of {len(saved.evaluations)} fit" in told
    assert page.locator(".point.out").count() > 0
    page.get_by_role("button", name="As asked").click()
    page.wait_for_function("document.querySelectorAll('.point.out').length === 0")


def test_the_table_sorts_searches_and_shows_all(opened: Opened, saved: Recommendation) -> None:
    page = opened(saved)
    rows = page.locator(".candidates tbody tr")
    assert rows.count() == len(saved.evaluations)
    visible = page.locator(".candidates tbody tr:visible")
    before = visible.count()
    page.get_by_label("more, which were not tried").check()
    assert visible.count() == len(saved.evaluations) > before
    button = page.locator(".candidates").get_by_role("button", name="memory")
    for order in (-1, 1):
        button.focus()
        page.keyboard.press("Enter")
        shown = page.evaluate(
            """() => {
              const table = document.querySelector("table.candidates");
              const column = [...table.tHead.rows[0].cells].findIndex((c) => c.textContent === "memory");
              return [...table.tBodies[0].rows].map((row) => +row.cells[column].dataset.value);
            }"""
        )
        assert shown == sorted(shown, key=lambda value: order * value)
    page.get_by_label("Search").fill(saved.evaluations[0].candidate.method)
    assert 0 < visible.count() < len(saved.evaluations)


def test_charts_switch_and_show_figures_on_focus(opened: Opened, saved: Recommendation) -> None:
    page = opened(saved)
    assert page.locator("#trade figure:visible").count() == 1
    page.get_by_label("memory", exact=True).focus()
    page.keyboard.press("ArrowRight")
    assert "Accuracy against FLOPs" in page.locator("#trade figure:visible svg").get_attribute("aria-label")
    link = page.locator("#trade figure:visible a").first
    link.focus()
    told = page.locator(f"#{link.get_attribute('aria-labelledby')}").text_content()
    assert page.inner_text("#tip") == told
    assert page.get_by_role("link", name=told, exact=True).count() == 1
    page.keyboard.press("Escape")
    assert page.locator("#tip:visible").count() == 0


def test_arrow_keys_reach_each_point_and_tell_why_it_does_not_fit(
    opened: Opened, saved: Recommendation
) -> None:
    page = opened(saved)
    figure = page.locator("#trade figure:visible")
    figure.locator("a").first.focus()
    count = figure.locator("use").count()
    page.evaluate(
        """() => {
          window.told = new Set();
          document.addEventListener("focusin", () => told.add(document.getElementById("tip").textContent));
        }"""
    )
    for key, presses in (("ArrowLeft", count), ("ArrowRight", count - 1)):
        for _ in range(presses):
            page.keyboard.press(key)
    told = page.evaluate("[...told]")
    assert len(told) == count == len(saved.evaluations)
    for item in saved.evaluations:
        if not item.fits:
            (about,) = (text for text in told if text.startswith(f"{item.candidate.short}:"))
            assert view.reason(item.violations[0]) in about


def test_layers_sort_by_keyboard_and_the_map_has_one_square_each(
    opened: Opened, saved: Recommendation
) -> None:
    page = opened(saved)
    by_layer = saved.evaluation(saved.recommended or "").cost.by_layer
    assert page.locator("#layers .map .cell").count() == sum(layer.parameters > 0 for layer in by_layer)
    page.locator("#layers summary").click()
    table = page.locator("#layers details table")
    table.get_by_role("button", name="all FLOPs").focus()
    page.keyboard.press("Enter")
    shown = table.locator("tbody td:nth-last-child(2)").evaluate_all(
        "(all) => all.map((cell) => +(cell.dataset.value ?? 0))"
    )
    told = [layer.flops.total for layer in by_layer if layer.name or layer.flops.total or layer.saved_bytes]
    assert shown == sorted(told, reverse=True)
    assert "all" in table.locator("tfoot").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_is_cut_off(opened: Opened, saved: Recommendation, width: int, scheme: str) -> None:
    page = opened(saved, viewport={"width": width, "height": 844}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper, ink = page.evaluate(
        "(({backgroundColor, color}) => [backgroundColor, color])(getComputedStyle(document.body))"
    )
    brightness = [sum(map(int, colour[4:-1].split(","))) for colour in (paper, ink)]
    assert (brightness[0] < brightness[1]) == (scheme == "dark")


def test_no_column_of_a_table_is_hidden_at_1400(opened: Opened, saved: Recommendation) -> None:
    page = opened(saved, viewport={"width": 1400, "height": 900})
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    clipped = page.evaluate(
        "[...document.querySelectorAll('.scroll')]"
        ".filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.ariaLabel)"
    )
    assert [name for name in clipped if name != "Costs of one update by layer"] == []


def test_on_a_phone_each_bar_and_total_is_seen_at_once(opened: Opened, saved: Recommendation) -> None:
    page = opened(saved, viewport={"width": 390, "height": 844})
    edges = page.evaluate(
        "[...document.querySelectorAll('.ledger td.total')].filter((e) => e.offsetParent)"
        ".map((e) => e.getBoundingClientRect().right)"
    )
    assert edges
    assert max(edges) <= 390


def test_prints_without_what_was_not_tried(opened: Opened, saved: Recommendation, tmp_path: Path) -> None:
    page = opened(saved)
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 690, "height": 1000})  # A4 less the margins, at 96 dpi
    assert page.locator(".whatif:visible").count() == 0
    assert page.locator(".candidates tr.more:visible").count() == 0
    cut = page.evaluate(
        "[...document.querySelectorAll('.scroll')]"
        ".filter((e) => e.offsetParent && e.scrollWidth > e.clientWidth + 1)"
        ".map((e) => e.ariaLabel + ' ' + e.scrollWidth)"
    )
    assert cut == []
    page.emulate_media()
    pages = [each.extract_text() for each in PdfReader(io.BytesIO(page.pdf(format="A4"))).pages]
    assert 1 <= len(pages) <= 13
    rows = page.locator(".candidates tbody tr:visible th .name").all_inner_texts()
    starts = [rf"^{number} {re.escape(name.split('@')[0])}" for number, name in enumerate(rows, 1)]
    table = [text for text in pages if sum(bool(re.search(start, text, re.M)) for start in starts) > 5]
    assert table
    assert all("verdict" in text for text in table)  # the head is on each


def test_reads_without_its_script(opened: Opened, saved: Recommendation) -> None:
    page = opened(saved, java_script_enabled=False)
    assert page.locator(".whatif:visible, .copy:visible, .search:visible").count() == 0
    page.locator("label[for=show-flops]").click()
    assert page.locator(".chart-2:visible").count() == 1
    assert page.locator(".candidates tbody tr:visible").count() > 5


def test_hostile_names_stay_text(opened: Opened, saved: Recommendation) -> None:
    data: DataSummary | None = saved.data
    assert data is not None
    given = replace(
        saved,
        model=replace(saved.model, name=HOSTILE, source=HOSTILE),
        data=replace(data, source=HOSTILE, findings=(Finding("twins", "warning", HOSTILE, (HOSTILE,)),)),
        warnings=(HOSTILE,),
        provenance={**saved.provenance, "command": HOSTILE},
        not_applicable={HOSTILE: HOSTILE},
    )
    page = opened(given)
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2
    assert page.locator(".warnings li").inner_text() == f"Warning. {HOSTILE}"


def test_controls_have_names_and_what_scrolls_can_be_reached(opened: Opened, saved: Recommendation) -> None:
    page = opened(saved)
    unnamed = page.evaluate(
        """() => {
          const all = 'input, button, a, [role=img], [role=group], [role=region]';
          const namer = (e) => document.getElementById(e.getAttribute("aria-labelledby"));
          const nameOf = (e) => e.ariaLabel || (namer(e) ?? e).textContent.trim() || e.labels?.length;
          return [...document.querySelectorAll(all)].filter((e) => !nameOf(e)).map((e) => e.outerHTML);
        }"""
    )
    assert unnamed == []
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every((e) => e.tabIndex === 0)")


@pytest.mark.skipif("AXE" not in os.environ, reason="AXE=FILE: axe-core's axe.min.js")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Any, opened: Opened, saved: Recommendation, scheme: str) -> None:
    page = opened(saved, bypass_csp=True, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    page.evaluate(Path(os.environ["AXE"]).read_text(encoding="utf-8"))
    found = page.evaluate(
        "axe.run().then((r) => r.violations.map((v) => [v.id, v.nodes.length, v.nodes[0].html]))"
    )
    assert found == [], json.dumps(found, indent=1)
