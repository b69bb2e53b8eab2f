"""Geometry of the scatter charts, read back from the SVG."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.report import charts
from advisor.report.charts import Axis, Point, scatter

MEMORY = Axis("memory, MB", 1e6)
ACCURACY = Axis("accuracy, %", 0.01, bounds=(0.4, 0.9))


def point(number: int, x: float, y: float | None, **more: object) -> Point:
    return Point(x=x, y=y, label=f"name {number}", number=number, text="", kind="fits", **more)  # type: ignore[arg-type]


def draw(points: list[Point], x: Axis = MEMORY, y: Axis = ACCURACY) -> str:
    return str(scatter(points, x, y, title="title", description="description"))


def circles(svg: str) -> list[tuple[float, float]]:
    """Where points stand that are drawn as circles: each is put with `<use>` at the height of its mark."""
    heights = dict(
        re.findall(r'<g id="(p\d+)"[^>]*><title[^>]*></title>(?:<line[^>]*>)?<circle cy="([\d.-]+)"', svg)
    )
    found = re.findall(r'<use href="#(p\d+)" x="([\d.-]+)"', svg)
    return [(float(x), float(heights[mark])) for mark, x in found if mark in heights]


def test_places_are_to_scale() -> None:
    svg = draw([point(1, 0, 0.4), point(2, 50e6, 0.65), point(3, 100e6, 0.9)])
    left, middle, right = circles(svg)
    assert left == (charts.LEFT, charts.HEIGHT - charts.BOTTOM)
    assert right[1] == charts.TOP
    assert middle[0] - left[0] == pytest.approx(right[0] - middle[0], abs=0.11)
    assert middle[1] == pytest.approx((left[1] + right[1]) / 2, abs=0.11)


def test_limit_line_stands_at_its_value() -> None:
    axis = Axis("memory, MB", 1e6, limit=50e6, limit_text="limit 50 MB")
    svg = draw([point(1, 50e6, 0.5), point(2, 100e6, 0.6)], x=axis)
    line = re.search(r'<line class="limit" x1="([\d.]+)"', svg)
    assert line
    assert float(line[1]) == pytest.approx(circles(svg)[0][0], abs=0.11)
    assert "limit 50 MB" in svg


def test_limit_far_out_is_said_but_not_drawn() -> None:
    axis = Axis("memory, MB", 1e6, limit=512e6, limit_text="limit 512 MB")
    svg = draw([point(1, 50e6, 0.5)], x=axis)
    assert "limit 512 MB \u2192" in svg
    assert 'line class="limit"' not in svg


def test_wide_ranges_get_a_logarithmic_axis() -> None:
    svg = draw([point(1, 1e6, 0.5), point(2, 10e6, 0.6), point(3, 100e6, 0.7)])
    xs = [x for x, _ in circles(svg)]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)


def test_no_point_that_was_tried_and_fits_lies_above_the_front() -> None:
    points = [
        point(1, 5e6, 0.6, known="short"),
        point(2, 20e6, 0.45),
        point(3, 30e6, 0.7),
        point(4, 10e6, 0.8, known="predicted"),
    ]
    svg = draw(points)
    path = re.search(r'<path class="front" d="([^"]+)"', svg)
    assert path
    _, (x1, y1), _, (x3, y3) = circles(svg)  # what is predicted is drawn first, beneath the others
    assert path[1] == f"M{x1:.1f} {y1:.1f}H{x3:.1f}V{y3:.1f}"


def test_what_lies_outside_the_axes_is_an_arrow_at_the_edge() -> None:
    svg = draw([point(1, 10e6, 0.5), point(2, 20e6, 0.6), point(3, 15e6, 0.1)])
    assert len(circles(svg)) == 2
    (arrow,) = re.findall(r'<path class="arrow" d="M-4 ([\d.]+)l4 7l4 -7z"', svg)
    assert float(arrow) + 7 == charts.HEIGHT - charts.BOTTOM


def test_what_lies_beyond_the_last_tick_is_at_the_edge_with_an_arrow_that_points_on() -> None:
    points = [point(1, 10e6, 0.5), point(2, 20e6, 0.6), point(3, 90e6, 0.7, known="predicted")]
    svg = draw(points)
    (arrow,) = re.findall(r'<path class="further" d="M([\d.]+)', svg)
    edge = max(x for x, _ in circles(svg))
    assert edge == charts.WIDTH - charts.RIGHT < float(arrow)


def test_charts_of_one_page_share_their_marks() -> None:
    points = [point(1, 10e6, 0.5), point(2, 20e6, 0.6, known="predicted"), point(3, 30e6, None)]
    other = scatter(points, MEMORY, ACCURACY, title="title", description="description", defines=False)
    assert "<title" not in other
    put = r'<use href="#(p\d+)"'
    assert sorted(re.findall(put, other)) == sorted(re.findall(put, draw(points))) == ["p1", "p2", "p3"]


def test_unknown_accuracy_stands_below_the_plot() -> None:
    svg = draw([point(1, 10e6, 0.5), point(2, 20e6, None)])
    assert len(circles(svg)) == 1
    assert "probed" in svg
    assert f'viewBox="0 0 {charts.WIDTH} {charts.HEIGHT + charts.RUG}"' in svg
    assert 'href="#p2"' in svg


places = st.tuples(st.floats(0, 1e12), st.floats(0.4, 0.9))


@settings(max_examples=60, deadline=None)
@given(st.lists(places, min_size=1, max_size=40))
def test_labels_never_overlap(given_places: list[tuple[float, float]]) -> None:
    points = [point(n, x, y) for n, (x, y) in enumerate(given_places, 1)]
    svg = draw(points)
    boxes = []
    found = r'<text class="label( quiet)?( far)?( end)?" x="([\d.-]+)" y="([\d.-]+)">([^<]+)</text>'
    for _, _, ends, x, y, text in re.findall(found, svg):
        width = len(text) * charts.CHARACTER
        left, bottom = float(x) - (width if ends else 0), float(y) + 3
        boxes.append((left, bottom - charts.LINE, left + width, bottom))
    for n, a in enumerate(boxes):
        assert a[0] >= charts.LEFT - 0.1
        assert a[2] <= charts.WIDTH
        for b in boxes[:n]:
            # Positions are written to a tenth of a unit.
            assert a[0] >= b[2] - 0.2 or b[0] >= a[2] - 0.2 or a[1] >= b[3] - 0.2 or b[1] >= a[3] - 0.2


@pytest.mark.parametrize("x", [0.0, 1.0, 1e-9, 1e18])
def test_any_single_value_is_drawn_inside(x: float) -> None:
    ((at_x, at_y),) = circles(draw([point(1, x, 0.5)], x=Axis("x")))
    assert charts.LEFT <= at_x <= charts.WIDTH - charts.RIGHT
    assert charts.TOP <= at_y <= charts.HEIGHT - charts.BOTTOM


def test_the_name_of_a_reference_line_keeps_off_the_points() -> None:
    crowd = [point(n, 100e6 - n * 1e6, 0.6 + n / 1000) for n in range(10)]
    for points, kind in ((crowd, "reference"), ([point(1, 0, 0.6)], "reference end")):
        named = (0.6, "as it is 60 %")
        svg = str(
            scatter(points, MEMORY, ACCURACY, title="title", description="description", reference=named)
        )
        assert re.search(rf'<text class="{kind}"[^>]*>as it is 60 %', svg)


def labels(svg: str) -> list[str]:
    return re.findall(r'<text class="label[^>]*>([^<]*)<', svg)


def test_where_too_many_were_tried_only_what_is_looked_for_is_labelled() -> None:
    crowd = [point(n, 1e6 * n, 0.8 - 0.001 * n) for n in range(1, charts.NUMBERED + 20)]
    known = point(99, 90e6, 0.5, is_known=True)
    assert labels(draw([*crowd, known])) == ["name 1", "name 99"]


def test_a_name_that_stands_off_has_a_line_to_its_point() -> None:
    # Below the best one, at the upper edge, lie so many others that no name beside it is free.
    crowd = [point(10 * n + m, 4e6 * n, 0.89 - 0.01 * m) for n in range(6, 20) for m in range(4)]
    svg = draw([point(1, 50e6, 0.899), *crowd, point(300, 100e6, 0.5)])
    lines = re.findall(r'<line class="leader" x1="([\d.]+)" y1="([\d.]+)"', svg)
    far = re.findall(r'<text class="label[^"]* far"', svg)
    assert len(lines) == len(far) > 0
    for x, y in lines:
        assert min(math.hypot(float(x) - at[0], float(y) - at[1]) for at in circles(svg)) < 8
