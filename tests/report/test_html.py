"""The page's structure: self-contained, escaped, complete, and adding up."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from advisor.records import Candidate, Estimate, Levers, LimitName, MethodCard, Recommendation
from advisor.report import dumps, loads, render_html, write_html
from advisor.report.view import main_ones, percent, printable
from advisor.solver import violations

VOID = {"meta", "br", "wbr", "line", "circle", "path", "rect", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Tags in order, visible text, and the figures of each table's rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = self.script = ""
        self.tables: list[list[list[tuple[str, int]]]] = []  # table -> row -> (cell's class, value)
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append((tag, given))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag == "td" and given.get("data-value", "").isdecimal():
            self.tables[-1][-1].append((given.get("class", "part"), int(given["data-value"])))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.script = data  # the last one: those before are data
        elif self.open and self.open[-1] != "style":
            self.text += data


def test_nothing_comes_from_outside(sample: Recommendation) -> None:
    text = render_html(sample)
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("img", "iframe", "object", "embed", "link", "base")
        assert not [name for name in attributes if name.startswith("on")]
        assert not {"src", "srcset", "action", "xlink:href"} & set(attributes)
        assert attributes.get("href", "#").startswith("#")
    style = re.findall(r"<style>(.*?)</style>", text, flags=re.S)
    assert len(style) == 1
    assert not re.search(r"url\(|@import|https?:", style[0])
    assert not re.search(r"https?:|fetch\(|innerHTML|eval\(", page.script)
    policies = [
        attributes["content"]
        for tag, attributes in page.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    (policy,) = policies
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
    if page.script:  # the only one that may run
        digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}';" in policy


def test_each_further_candidate_makes_the_page_little_longer(samples: dict[str, Recommendation]) -> None:
    base = samples["with_data"]
    first = next(each for each in base.evaluations if each.fits and each.accuracy)
    found = []
    for count in (100, 500):
        more = tuple(
            replace(
                first,
                candidate=Candidate.of(
                    "adapter", {"kind": "parallel"}, Levers(micro_batch=n + 1, head="ridge-all")
                ),
                measured=None,
                accuracy=None,
                predicted=Estimate(0.61, 0.55, 0.67),
            )
            for n in range(count)
        )
        page = render_html(replace(base, evaluations=(*base.evaluations, *more)))
        found.append(len(page.encode()))
    assert (found[1] - found[0]) / 400 < 900  # bytes, so that a page of 500 stays well below a megabyte


def test_tags_are_balanced(sample: Recommendation) -> None:
    page = Page(render_html(sample))
    assert page.open == []
    identities = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(identities)) == len(identities)
    links = {attributes["href"][1:] for _, attributes in page.tags if "href" in attributes}
    assert links <= set(identities)


def test_outside_text_is_escaped(samples: dict[str, Recommendation]) -> None:
    given = samples["hostile"]
    text = render_html(given)
    page = Page(text)
    assert text.count("<script") == text.count("</script>") == 2
    assert "\x1b" not in text
    assert "\u202e" not in text
    for told in (
        given.model.source,
        given.answer,
        given.warnings[0],
        given.relaxations[0].sentence,
    ):
        assert printable(told) in page.text
    assert given.evaluations[1].violations[0].reason.replace("\x1b", "\ufffd") in page.text


def test_every_candidate_with_its_reason(sample: Recommendation) -> None:
    text = render_html(sample)
    page = Page(text)
    named = re.findall(
        r'<tr id="c\d+"[^>]*><td>\d+</td><th scope="row"><span class="name">(.*?)</span>', text
    )
    rows = [unescape(name.replace("<wbr>", "")) for name in named]
    assert sorted(rows) == sorted(printable(item.candidate.short) for item in sample.evaluations)
    if sample.recommended:
        assert rows[0] == printable(sample.evaluation(sample.recommended).candidate.short)
    for item in sample.evaluations:
        for violation in item.violations:
            assert printable(violation.reason) in page.text
        if item.accuracy:
            assert percent(item.accuracy.mean) in page.text


def test_parts_add_up_to_totals(sample: Recommendation) -> None:
    shown = main_ones(sample)
    page = Page(render_html(sample))
    ledgers = [[row for row in table if any(kind == "total" for kind, _ in row)] for table in page.tables]
    ledgers = [table for table in ledgers if table]
    assert len(ledgers) == (5 if sample.evaluations else 0)
    for table in ledgers:
        assert len(table) == len(shown)
        for row in table:
            total = sum(value for kind, value in row if kind == "total")
            assert total == sum(value for kind, value in row if kind == "part")
    if ledgers:
        totals = [
            sorted(value for row in table for kind, value in row if kind == "total") for table in ledgers
        ]
        memory = sorted(item.cost.peak_memory_bytes for item in shown)
        flops = sorted(item.cost.flops.total for item in shown)
        trained = sorted(item.cost.trainable_parameters for item in shown)
        held = sorted(item.cost.memory.activations + item.cost.memory.temporaries for item in shown)
        assert totals == [memory, held, flops, flops, trained]


def test_what_no_layer_type_has_is_shown(samples: dict[str, Recommendation]) -> None:
    from dataclasses import replace

    base = samples["without_data"]
    first = base.evaluations[0]
    fewer = {kind: cost for kind, cost in first.cost.by_layer_type.items() if kind != "depthwise"}
    changed = replace(first, cost=replace(first.cost, by_layer_type=fewer))
    text = render_html(replace(base, evaluations=(changed, *base.evaluations[1:])))
    assert "no layer" in text
    assert f'value="{first.cost.by_layer_type["depthwise"].flops.total}"' in text
    assert "no layer" not in render_html(base)


def test_charts_have_words_and_links(samples: dict[str, Recommendation]) -> None:
    text = render_html(samples["with_data"])
    assert text.count('<svg class="chart" viewBox="0 0 620') == 3
    assert text.count("<desc>") == 3
    assert "limit 640 MB" in text
    assert "at least 50.0 %" in text
    # Every candidate is in each chart, with its figures to hover over, which are written once.
    for item in samples["with_data"].evaluations:
        (mark,) = re.findall(rf'<g id="(p\d+)"[^>]*><title[^>]*>{re.escape(item.candidate.short)}: ', text)
        assert text.count(f'<use href="#{mark}"') == 3
    assert render_html(samples["without_data"]).count("<desc>") == 1
    assert "<desc>" not in render_html(samples["empty"])


def test_saved_json_renders_the_same_page(sample: Recommendation) -> None:
    assert render_html(loads(dumps(sample))) == render_html(sample)


@pytest.mark.parametrize(
    ("name", "phrases"),
    [
        (
            "with_data",
            [
                "Use norm: 23.5 \u2192 71.3 % right on new images",
                "allocator's",
                "within the limit",
                "With 17 MB more memory",
                "--ram 640MB",
            ],
        ),
        ("without_data", ["Which one adapts best is unknown", "No data was given"]),
        (
            "nothing_fits",
            ["nothing fits", "164 MB less 100 MB for the runtime", "27 MB over the 64 MB"],
        ),
        (
            "next_chosen",
            ["did not survive", "norm was first choice", "the allocator asked for 12 MB more"],
        ),
        ("many", ["which were not tried", "over the 512 MB allowed"]),
        ("profile", ["What each way of fine-tuning this model costs", "1.67 GFLOP"]),
    ],
)
def test_content(samples: dict[str, Recommendation], name: str, phrases: list[str]) -> None:
    page = Page(render_html(samples[name]))
    text = re.sub(r"\s+", " ", page.text)
    for phrase in (*phrases, "1 multiply-add = 2 FLOPs", "10^6 bytes"):
        assert phrase in text


def test_written_file_is_the_page(samples: dict[str, Recommendation], tmp_path: Path) -> None:
    write_html(samples["hostile"], tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render_html(samples["hostile"])


def test_needs_no_torch() -> None:
    code = "import sys, advisor.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_first_screen_tells_what_the_method_does_and_what_is_unknown(
    samples: dict[str, Recommendation],
) -> None:
    base = samples["without_data"]
    card = MethodCard("the last classifier is trained", "W", "no paper")
    choice = base.evaluation(base.recommended or "")
    text = Page(render_html(replace(base, methods={choice.candidate.method: card}))).text
    first = text.partition("What if?")[0]
    assert card.summary in first
    assert re.search(r"accuracy on new images\s*unknown", first)
    assert "accuracy unknown" not in first  # once is enough where it is so of all


def test_how_much_was_tried_stands_above_everything_else(samples: dict[str, Recommendation]) -> None:
    base = samples["with_data"]
    first = Page(render_html(base)).text.partition("Accuracy against cost")[0]
    assert re.search(r"(\d) of \1 candidates that fit were tried, some of every method", first)
    left = next(item for item in base.evaluations if item.fits and item.candidate.id != base.recommended)
    others = tuple(replace(item, accuracy=None) if item is left else item for item in base.evaluations)
    first = Page(render_html(replace(base, evaluations=others))).text.partition("Accuracy against cost")[0]
    assert f"candidates were tried, none of {left.candidate.method}: " in first


def test_as_many_are_held_out_as_judged_what_was_tried(samples: dict[str, Recommendation]) -> None:
    base = samples["with_data"]
    assert base.data
    data = replace(base.data, folds=4, validation_samples=900)
    judged = tuple(
        replace(item, accuracy=replace(item.accuracy, samples_by_class=(100, 124))) if item.accuracy else item
        for item in base.evaluations
    )
    assert "224 held out" in Page(render_html(replace(base, data=data, evaluations=judged))).text
    assert "each of 900 held out once" in Page(render_html(replace(base, data=data))).text


@pytest.mark.parametrize(
    ("megabytes", "warned", "badge"),
    [
        (900, (), "fits, and was run"),
        (640, (), "the update fits, and was run"),  # and not the runtime beside it, which --ram leaves out
        (600, ("ram",), "a limit is broken"),
    ],
)
def test_the_badge_says_of_what_it_is_true_that_it_fits(
    samples: dict[str, Recommendation], megabytes: int, warned: tuple[LimitName, ...], badge: str
) -> None:
    base = samples["with_data"]
    budget = replace(base.budget, ram_bytes=megabytes * 10**6, warn=warned)
    evaluations = tuple(
        replace(item, violations=violations(budget, item.cost, item.accuracy)) for item in base.evaluations
    )
    page = render_html(replace(base, budget=budget, evaluations=evaluations))
    assert re.search(r'class="badge \w+">([^<]*)<', page)[1] == badge
