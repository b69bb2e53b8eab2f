"""Scatter charts as inline SVG: no script, no fonts, colours from the page's style sheet.

Geometry is in a box 620 units wide that scales with the page. The axes are fitted to what was tried;
what lies outside is drawn at the edge, as an arrow. Labels are placed greedily, the chosen
candidate's first, each at the first spot beside its point that is free; a name may stand further off, at
the end of a line. One that finds no spot gives way to the candidate's number in the table; where many
were tried, what was not trained to the end has no label. Every point that was tried is a link to its
row there.

A point's mark and what is told of it are written once, `<g id="p7">`, and put where it stands with `<use>`:
charts of the same points on one page differ in their x axes alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from advisor.report.drawing import CHARACTER, LINE, line, linear_ticks, number, text_at

WIDTH, HEIGHT = 620, 350
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 36
RUG = 26  # height of the strip for candidates whose y is unknown
NAMED, NUMBERED = 12, 30  # up to so many points, each is labelled with its name; with its number
_GAP = 4  # between two labels
WIDE = 8  # from so many times on between the least and the most, an axis is logarithmic


@dataclass(frozen=True, slots=True)
class Point:
    """One candidate."""

    x: float
    y: float | None  # None: unknown; it is shown below the plot
    label: str
    number: int  # its row in the candidates' table
    text: str  # everything about it, for `<title>`
    kind: Literal["chosen", "fits", "rejected"]
    known: Literal["whole", "short", "predicted"] = "whole"  # y: trained to the end, for less, not at all
    low: float | None = None
    high: float | None = None
    is_known: bool = False  # what everybody looks for: named as the front is


@dataclass(frozen=True, slots=True)
class Axis:
    """What is shown, in which unit, and the limit on it."""

    title: str
    scale: float = 1.0  # values are divided by it
    limit: float | None = None
    limit_text: str = ""
    bounds: tuple[float, float] | None = None  # None: from 0 to the largest value
    at_least: bool = False  # the limit is a floor


@dataclass(frozen=True, slots=True)
class _Range:
    """Values -> units along an axis, with its ticks."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


Box = tuple[float, float, float, float]  # left, top, right, bottom


def scatter(
    points: Sequence[Point],
    x: Axis,
    y: Axis,
    *,
    title: str,
    description: str,
    reference: tuple[float, str] | None = None,
    defines: bool = True,
) -> Markup:
    """One chart. `reference` is a further value on the y axis, with its name.

    `defines`: it holds the points' marks; another chart of the same points and y axis on the page does
    without.

    A line joins the best y that each x allows, of the points that fit and were tried; larger y is
    better unless `y` starts at 0 (no `bounds`), where smaller is.
    """
    tried = [point for point in points if point.known != "predicted"] or list(points)
    xs = _range([point.x for point in tried], x, LEFT, WIDTH - RIGHT)
    known = [point.y for point in tried if point.y is not None]
    ys = _range(known, y, HEIGHT - BOTTOM, TOP)
    unknown = [point for point in points if point.y is None]
    height = HEIGHT + (RUG if unknown else 0)
    parts = [
        Markup("<desc>{}</desc>").format(description),
        *_grid(xs, ys),
        text_at("title end", WIDTH - RIGHT, height - 6, x.title),
        text_at("title", 2, TOP - 3, y.title),
    ]
    taken: list[Box] = []
    parts += _limits(xs, ys, x, y, taken)
    places = {point.number: _place(point, xs, ys, x, y) for point in points if point.y is not None}
    for at_x, at_y in places.values():
        taken.append((at_x - 5, at_y - 5, at_x + 5, at_y + 5))
    if reference:
        parts += _reference(ys, y, *reference, taken)
    front = _front(points, y)
    parts += _steps(front, places)
    drawn = sorted(
        (point for point in points if point.y is not None),
        key=lambda point: (
            point.known != "predicted",
            ("rejected", "fits", "chosen").index(point.kind),
        ),
    )
    if defines:
        marks = [_mark(point, places[point.number][1], ys, y) for point in drawn]
        marks += [_stroke(point) for point in unknown]
        parts.append(Markup("<defs>{}</defs>").format(Markup("\n").join(marks)))
    parts += [_put(point, places[point.number], xs, x) for point in drawn]
    parts += _labels(tried, front, places, taken)
    if unknown:
        parts += _rug(unknown, xs, x)
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="group" aria-label="{}">{}</svg>').format(
        WIDTH, height, title, Markup("\n").join(parts)
    )


def _range(values: Sequence[float], axis: Axis, start: float, end: float) -> _Range:
    scaled = [value / axis.scale for value in values]
    if axis.bounds is not None:
        low, high = (bound / axis.scale for bound in axis.bounds)
        return _Range(low, high, start, end, False, linear_ticks(low, high))
    high = max(scaled, default=0.0)
    low = min(scaled, default=0.0)
    if axis.limit is not None and axis.limit / axis.scale <= 1.6 * high:
        high = max(high, axis.limit / axis.scale)
        low = min(low, axis.limit / axis.scale)
    if low > 0 and high / low > WIDE:
        low, high = low / 1.15, high * 1.15
        return _Range(low, high, start, end, True, _logarithmic_ticks(low, high))
    high = high * 1.06 or 1.0
    return _Range(0.0, high, start, end, False, linear_ticks(0.0, high))


def _logarithmic_ticks(low: float, high: float) -> tuple[float, ...]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 2000 else (1,)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    return tuple(tick for tick in ticks if low <= tick <= high)


def _grid(xs: _Range, ys: _Range) -> list[Markup]:
    parts = []
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for tick in ys.ticks:
        at = ys.place(tick)
        parts.append(line("grid", LEFT, at, right, at))
        parts.append(text_at("tick end", LEFT - 6, at + 4, number(tick)))
    for tick in xs.ticks:
        at = xs.place(tick)
        parts.append(line("grid", at, bottom, at, bottom + 4))
        parts.append(text_at("tick middle", at, bottom + 16, number(tick)))
    parts.append(line("axis", LEFT, bottom, right, bottom))
    return parts


def _limits(xs: _Range, ys: _Range, x: Axis, y: Axis, taken: list[Box]) -> list[Markup]:
    """Limit lines, the ground beyond them shaded; a limit off the chart is only said."""
    parts = []
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    if x.limit is not None:
        value = x.limit / x.scale
        if value < xs.high:
            at = xs.place(max(value, xs.low))
            parts.append(_shade(at, TOP, right - at, bottom - TOP))
            parts.append(line("limit", at, TOP, at, bottom))
            # Words on the side that has the room.
            width = len(x.limit_text) * CHARACTER
            inside = at - LEFT > width + 8
            anchor, left = ("end", at - 5 - width) if inside else ("", at + 5)
            parts.append(
                text_at(f"limit {anchor}".strip(), at - 5 if inside else at + 5, TOP + 10, x.limit_text)
            )
            taken.append((left, TOP, left + width, TOP + LINE))
            taken.append((at - 1, TOP, at + 1, bottom))
        else:
            words = f"{x.limit_text} \u2192"
            parts.append(text_at("limit end", right, TOP + 10, words))
            taken.append((right - len(words) * CHARACTER, TOP, right, TOP + LINE))
    if y.limit is not None and ys.low <= y.limit / y.scale < ys.high:
        at = ys.place(y.limit / y.scale)
        shaded = (at, bottom - at) if y.at_least else (TOP, at - TOP)
        parts.append(_shade(LEFT, shaded[0], right - LEFT, shaded[1]))
        parts.append(line("limit", LEFT, at, right, at))
        below = at + 12 if y.at_least else at - 4
        parts.append(text_at("limit", LEFT + 4, below, y.limit_text))
        taken.append((LEFT + 4, below - LINE, LEFT + 4 + len(y.limit_text) * CHARACTER, below))
    return parts


def _reference(ys: _Range, y: Axis, value: float, name: str, taken: list[Box]) -> list[Markup]:
    """The line, and its name at that of its four ends that is free."""
    at, left, right = ys.place(value / y.scale), LEFT + 4, WIDTH - RIGHT
    width = len(name) * CHARACTER
    spots = [
        (kind, x, (start, foot - LINE, start + width, foot))
        for kind, x, start in (("reference end", right, right - width), ("reference", left, left))
        for foot in ((at - 4, at + 12) if at - TOP > 2 * LINE else (at + 12,))
    ]
    free = (spot for spot in spots if not any(_overlap(spot[2], other) for other in taken))
    kind, x, box = next(free, spots[0])
    taken.append(box)
    return [line("reference", LEFT, at, right, at), text_at(kind, x, box[3], name)]


def _front(points: Sequence[Point], y: Axis) -> list[Point]:
    """Of those that fit and were tried, the ones that no other beats in this chart's two measures."""
    better = 1 if y.bounds is not None else -1
    members = sorted(
        (p for p in points if p.y is not None and p.kind != "rejected" and p.known != "predicted"),
        key=lambda point: (point.x, -better * (point.y or 0.0)),
    )
    front: list[Point] = []
    for point in members:
        if not front or better * (point.y or 0.0) > better * (front[-1].y or 0.0):
            front.append(point)
    return front


def _steps(front: Sequence[Point], places: dict[int, tuple[float, float]]) -> list[Markup]:
    if len(front) < 2:
        return []
    path = ""
    for n, point in enumerate(front):
        at_x, at_y = places[point.number]
        path += f"M{at_x:.1f} {at_y:.1f}" if n == 0 else f"H{at_x:.1f}V{at_y:.1f}"
    return [Markup('<path class="front" d="{}"/>').format(path)]


def _place(point: Point, xs: _Range, ys: _Range, x: Axis, y: Axis) -> tuple[float, float]:
    """On the chart's edge where it lies outside."""
    across = min(max(point.x / x.scale, xs.low), xs.high)
    up = min(max((point.y or 0.0) / y.scale, ys.low), ys.high)
    return xs.place(across), ys.place(up)


def _mark(point: Point, at_y: float, ys: _Range, y: Axis) -> Markup:
    """What stands for it in every chart, at the height that it has in all of them."""
    parts = []
    if point.known == "whole" and point.low is not None and point.high is not None:
        low, high = (min(max(end / y.scale, ys.low), ys.high) for end in (point.low, point.high))
        parts.append(line("interval", 0, ys.place(low), 0, ys.place(high)))
    if point.kind == "chosen":
        parts.append(Markup('<circle class="ring" cy="{:.1f}" r="9"/>').format(at_y))
    up = (point.y or 0.0) / y.scale
    if ys.low <= up <= ys.high:
        radius = 5 if point.kind == "chosen" else 2.2 if point.known == "predicted" else 4
        parts.append(Markup('<circle cy="{:.1f}" r="{}"/>').format(at_y, radius))
    else:
        rise = 7 if up < ys.low else -7
        arrow = Markup('<path class="arrow" d="M-4 {:.1f}l4 {}l4 {}z"/>')
        parts.append(arrow.format(at_y - rise, rise, -rise))
    return _defined(point, point.known, Markup("").join(parts))


def _defined(point: Point, known: str, shape: Markup) -> Markup:
    # A link is named after the title: predicted points are none.
    named = "" if point.known == "predicted" else Markup(' id="t{}"').format(point.number)
    return Markup('<g id="p{}" class="point {} {}"><title{}>{}</title>{}</g>').format(
        point.number, point.kind, known, named, point.text, shape
    )


def _put(point: Point, place: tuple[float, float], xs: _Range, x: Axis) -> Markup:
    at_x, at_y = place
    put = Markup('<use href="#p{}" x="{:.1f}"/>').format(point.number, at_x)
    across = point.x / x.scale
    if not xs.low <= across <= xs.high:
        side = 1 if across > xs.high else -1
        put += Markup('<path class="further" d="M{:.1f} {:.1f}l{} 3.5l{} 3.5z"/>').format(
            at_x + 5 * side, at_y - 3.5, 5 * side, -5 * side
        )
    if point.known == "predicted":
        return put
    return Markup('<a href="#c{0}" aria-labelledby="t{0}">{1}</a>').format(point.number, put)


def _labels(
    points: Sequence[Point], front: Sequence[Point], places: dict[int, tuple[float, float]], taken: list[Box]
) -> list[Markup]:
    leading = {point.number for point in (*front, *(point for point in points if point.is_known))}
    told = [point for point in points if point.known == "whole"]
    order = sorted(
        (point for point in points if point.number in places),
        key=lambda point: (
            point.kind != "chosen",
            point.number not in leading,
            point.kind == "rejected",
            point.number,
        ),
    )
    parts = []
    for point in order:
        important = point.kind == "chosen" or point.number in leading
        names = [point.label] if important or len(points) <= NAMED else []
        if names or (point in told and len(told) <= NUMBERED) or len(points) <= NUMBERED:
            names.append(str(point.number))
        for words in names:
            width = len(words) * CHARACTER * (1.1 if point.kind == "chosen" else 1.0)  # bold is wider
            place, far = places[point.number], ""
            spot = _free_spot(_beside(width, place, 13 if point.kind == "chosen" else 9), taken)
            if spot is None and words == point.label:
                spot, far = _free_spot(_further(width, place), taken), " far"
                parts += [_leader(place, spot, width)] if spot else []
            if spot:
                taken.append(spot)
                weight = "label strong" if point.kind == "chosen" else "label"
                quiet = "" if point.kind != "rejected" else " quiet"
                # It grows away from its point where a small screen has larger letters.
                before = spot[0] + width < place[0]
                kind = weight + quiet + far + (" end" if before else "")
                parts.append(text_at(kind, spot[0] + width if before else spot[0], spot[3] - 3, words))
                break
    return parts


def _beside(width: float, place: tuple[float, float], off: float) -> list[Box]:
    """Where a label is seen to belong to its point, whose mark ends that far off."""
    x, y = place
    right, left = x + off, x - off - width
    corners = [
        *((right, y - 6 + shift) for shift in (0, -10, 10)),
        *((left, y - 6 + shift) for shift in (0, -10, 10)),
        *((x - width / 2, y + shift) for shift in (-22, 10)),
    ]
    return [(at_x, at_y, at_x + width + _GAP, at_y + LINE) for at_x, at_y in corners]


def _further(width: float, place: tuple[float, float]) -> list[Box]:
    """Where it needs a line to its point."""
    x, y = place
    return [
        (at_x, y - 6 + shift, at_x + width + _GAP, y - 6 + shift + LINE)
        for shift in (-24, 24, -38, 38, -54, 54)
        for at_x in (x + 14, x - 14 - width, x + 34, x - 34 - width)
    ]


def _leader(place: tuple[float, float], spot: Box, width: float) -> Markup:
    """From the point to the label's nearer end, or a little short of both."""
    (x, y), middle = place, (spot[1] + spot[3]) / 2
    end = spot[0] - 2 if spot[0] > x else spot[0] + width + 2
    share = 7 / max(math.hypot(end - x, middle - y), 7)
    return line("leader", x + share * (end - x), y + share * (middle - y), end, middle)


def _free_spot(boxes: Sequence[Box], taken: Sequence[Box]) -> Box | None:
    for box in boxes:
        at_x, at_y = box[:2]
        inside = (
            at_x >= LEFT and box[2] <= WIDTH - RIGHT + 4 and at_y >= TOP - 2 and box[3] <= HEIGHT - BOTTOM
        )
        if inside and not any(_overlap(box, other) for other in taken):
            return box
    return None


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


_RUG_Y = HEIGHT - BOTTOM + 26


def _stroke(point: Point) -> Markup:
    """What stands for a point whose y is unknown."""
    return _defined(point, "unknown", Markup('<path d="M0 {}v9"/>').format(_RUG_Y))


def _rug(points: Sequence[Point], xs: _Range, x: Axis) -> list[Markup]:
    """Below the axis: where those stand whose y is unknown."""
    parts = [text_at("tick", 2, _RUG_Y + 3, "not"), text_at("tick", 2, _RUG_Y + 14, "probed")]
    for point in points:
        at = xs.place(min(max(point.x / x.scale, xs.low), xs.high))
        parts.append(Markup('<use href="#p{}" x="{:.1f}"/>').format(point.number, at))
    return parts


def _shade(x: float, y: float, width: float, height: float) -> Markup:
    return Markup('<rect class="beyond" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
        x, y, max(width, 0.0), max(height, 0.0)
    )
