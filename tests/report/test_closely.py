"""The parts that show one update closely: real figures that add up, escaped, left out where unknown."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from torch import nn

from advisor import Budget, Recommendation, Request, recommend
from advisor.records import CurvePoint, Evaluation, Finding, Picture
from advisor.report import dumps, loads, redacted, render_html
from advisor.report.layers import layers_of
from advisor.report.over_time import has_one_scale, over_time
from advisor.report.sweeps import curves, sweeps
from tests.report.conftest import DATA, accuracy

JPEG = b"\xff\xd8\xff"


@pytest.fixture(scope="module")
def found() -> Recommendation:
    """Of a small network, without data: the choice has the least memory."""

    def stage(channels: int, made: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(channels, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU())

    stages = [stage(3, 8), stage(8, 8), stage(8, 16), stage(16, 16)]
    network = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    request = Request(
        input_size=(3, 16, 16), methods=("full", "norm", "lora"), probe_seconds=None, verify=False
    )
    return recommend(network, Budget(ram_bytes=600_000), request)


def test_the_choice_and_full_are_seen_closely_and_no_other(found: Recommendation) -> None:
    assert found.full is not None
    assert found.recommended != "full"
    seen = {each.candidate.id for each in found.evaluations if each.cost.timeline and each.cost.by_layer}
    assert seen == {found.recommended, "full"}
    assert loads(dumps(found)) == found


def test_the_timeline_says_where_the_peak_is_and_what_it_holds(found: Recommendation) -> None:
    shown = over_time(found)
    assert [each.is_chosen for each in shown] == [True, False]
    for each in shown:
        cost = found.evaluation(each.name).cost
        assert each.peak == cost.peak_memory_bytes
        assert sum(share.bytes for share in each.shares) + each.rest == each.peak
        assert cost.timeline is not None
        assert each.svg.count('class="moment"') == len(cost.timeline.moments)
        assert re.search(r"in the (forward|backward) pass of layer \d", each.where)
    assert "limit 600 kB" in shown[0].svg
    assert f"{shown[0].name} " in shown[1].svg  # full's chart has the choice's peak as a line
    assert has_one_scale(shown) == (shown[1].peak <= 3 * shown[0].peak)


def test_the_tables_by_layer_and_by_type_add_up(found: Recommendation) -> None:
    layers = layers_of(found)
    assert layers is not None
    cost = found.evaluation(found.recommended or "").cost
    for lines in (layers.by_layer, layers.by_type):
        assert sum(line.flops.total for line in lines) == cost.flops.total == layers.total.flops.total
        assert sum(line.trained for line in lines) == cost.trainable_parameters
        assert sum(line.parameters for line in lines) == found.model.parameters
    cells = [cell for group in layers.map for cell in group.cells]
    assert [group.name for group in layers.map] == ["0", "1", "2", "3", "6"]
    assert len(cells) == sum(count for *_, count in layers.legend) == 9  # convolutions, norms, the head


def test_without_a_close_look_the_page_has_no_such_part(samples: dict[str, Recommendation]) -> None:
    page = render_html(samples["with_data"])
    assert 'id="over-time"' not in page
    assert 'id="layers"' not in page


def test_layers_names_are_escaped(found: Recommendation) -> None:
    hostile = "<b>\u202e"

    def renamed(each: Evaluation) -> Evaluation:
        cost = each.cost
        if cost.timeline is None:
            return each
        largest = tuple(replace(held, layer=hostile) for held in cost.timeline.largest)
        moments = tuple(replace(moment, layer=hostile) for moment in cost.timeline.moments)
        by_layer = tuple(replace(layer, name=hostile) for layer in cost.by_layer)
        timeline = replace(cost.timeline, moments=moments, largest=largest)
        return replace(each, cost=replace(cost, by_layer=by_layer, timeline=timeline))

    page = render_html(replace(found, evaluations=tuple(map(renamed, found.evaluations))))
    assert "<b>\ufffd" not in page
    assert "\u202e" not in page
    assert "&lt;b&gt;" in page


def test_sweeps_are_of_one_setting_at_a_time(found: Recommendation) -> None:
    by_setting = {sweep.setting: sweep.charts for sweep in sweeps(found)}
    assert set(by_setting) == {"rank", "scope"}
    [memory] = by_setting["rank"]  # accuracy is unknown
    assert "lora" in memory
    assert ">8</text>" in memory
    assert ">all</text>" in by_setting["scope"][0]
    assert curves(found) is None


def test_learning_curves_are_of_what_was_trained_for_several_lengths(found: Recommendation) -> None:
    points = (CurvePoint(20, 0.5), CurvePoint(40, 0.6), CurvePoint(80, 0.65))
    lengths = {"full": 3, "norm": 2, "lora-rank=2": 1}
    evaluations = tuple(
        replace(each, accuracy=accuracy(0.6, curve=points[:length]))
        if (length := lengths.get(each.candidate.id))
        else each
        for each in found.evaluations
    )
    drawn = curves(replace(found, evaluations=evaluations, data=DATA))
    assert drawn is not None
    assert drawn.count('class="series') == 2
    assert "lora" not in drawn
    assert all(f">{updates}</text>" in drawn for updates in (20, 40, 80))


def test_every_method_has_a_card(found: Recommendation) -> None:
    assert set(found.methods) == {each.candidate.method for each in found.evaluations}
    page = render_html(found)
    for name, card in found.methods.items():
        assert f"<summary>{name}</summary>" in page
        assert card.source in page


def test_pictures_are_in_the_page_alone(samples: dict[str, Recommendation]) -> None:
    finding = Finding("copies", "note", "2 images are copies", ("a.png",), (Picture("<a>.png", JPEG),))
    base = samples["with_data"]
    assert base.data is not None
    shown = replace(base, data=replace(base.data, findings=(finding,)))
    page = render_html(shown)
    assert 'src="data:image/jpeg;base64,/9j/"' in page
    assert "img-src data:;" in page
    assert 'alt="&lt;a&gt;.png"' in page
    for without in (redacted(shown), loads(dumps(shown)), base):
        page = render_html(without)
        assert "data:image" not in page
        assert "img-src" not in page
