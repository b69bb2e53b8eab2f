"""Scatter charts as inline SVG: no script, no fonts, colours from the page's style sheet.

Geometry is in a box 460 units wide that scales with the page. Labels are placed greedily, the
chosen candidate's first, each at the first spot around its point that is free. A name that finds
none gives way to the candidate's number in the table; every point is a link to its row there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

WIDTH, HEIGHT = 460, 314
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 36
RUG = 26  # height of the strip for candidates whose y is unknown
CHARACTER = 6.3  # a label's width for each of its characters, at 11 units
LINE = 12.0
NAMED = 12  # up to so many points, each is labelled with its name


@dataclass(frozen=True, slots=True)
class Point:
    """One candidate."""

    x: float
    y: float | None  # None: unknown; it is shown below the plot
    label: str
    number: int  # its row in the candidates' table
    text: str  # everything about it, for `<title>`
    kind: Literal["chosen", "fits", "rejected"]
    front: bool = False
    low: float | None = None
    high: float | None = None


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
) -> Markup:
    """One chart. `reference` is a further value on the y axis, with its name.

    The points of the Pareto front are joined by the best y that each x allows; larger y is better
    unless `y` starts at 0 (no `bounds`), where smaller is.
    """
    xs = _range([point.x for point in points], x, LEFT, WIDTH - RIGHT)
    known = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    if reference:
        known.append(reference[0])
    ys = _range(known, y, HEIGHT - BOTTOM, TOP)
    unknown = [point for point in points if point.y is None]
    height = HEIGHT + (RUG if unknown else 0)
    parts = [
        Markup("<title>{}</title><desc>{}</desc>").format(title, description),
        *_grid(xs, ys),
        _words("title end", WIDTH - RIGHT, height - 6, x.title),
        _words("title", 2, TOP - 3, y.title),
    ]
    taken: list[Box] = []
    parts += _limits(xs, ys, x, y, taken)
    places = {point.number: _place(point, xs, ys, x, y) for point in points if point.y is not None}
    for at_x, at_y in places.values():
        taken.append((at_x - 5, at_y - 5, at_x + 5, at_y + 5))
    if reference:
        parts += _reference(ys, y, *reference, taken)
    parts += _front(points, xs, ys, x, y)
    drawn = sorted(points, key=lambda point: ("rejected", "fits", "chosen").index(point.kind))
    parts += [_mark(point, places[point.number], ys, y) for point in drawn if point.y is not None]
    parts += _labels(points, places, taken)
    if unknown:
        parts += _rug(unknown, xs, x)
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img">{}</svg>').format(
        WIDTH, height, Markup("\n").join(parts)
    )


def _range(values: Sequence[float], axis: Axis, start: float, end: float) -> _Range:
    scaled = [value / axis.scale for value in values]
    if axis.bounds is not None:
        low, high = (bound / axis.scale for bound in axis.bounds)
        return _Range(low, high, start, end, False, _linear_ticks(low, high))
    high = max(scaled, default=0.0)
    low = min(scaled, default=0.0)
    if axis.limit is not None and axis.limit / axis.scale <= 1.6 * high:
        high = max(high, axis.limit / axis.scale)
        low = min(low, axis.limit / axis.scale)
    if low > 0 and high / low > 50:
        low, high = low / 1.3, high * 1.3
        return _Range(low, high, start, end, True, _logarithmic_ticks(low, high))
    high = high * 1.06 or 1.0
    return _Range(0.0, high, start, end, False, _linear_ticks(0.0, high))


def _linear_ticks(low: float, high: float) -> tuple[float, ...]:
    step = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(step))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * 0.999)
    first = math.ceil(low / step - 1e-9)
    return tuple(n * step for n in range(first, math.floor(high / step + 1e-9) + 1))


def _logarithmic_ticks(low: float, high: float) -> tuple[float, ...]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(decades) <= 4 else (1,)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    return tuple(tick for tick in ticks if low <= tick <= high)


def _grid(xs: _Range, ys: _Range) -> list[Markup]:
    parts = []
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for tick in ys.ticks:
        at = ys.place(tick)
        parts.append(_line("grid", LEFT, at, right, at))
        parts.append(_words("tick end", LEFT - 6, at + 4, _number(tick)))
    for tick in xs.ticks:
        at = xs.place(tick)
        parts.append(_line("grid", at, bottom, at, bottom + 4))
        parts.append(_words("tick middle", at, bottom + 16, _number(tick)))
    parts.append(_line("axis", LEFT, bottom, right, bottom))
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
            parts.append(_line("limit", at, TOP, at, bottom))
            # Words on the side that has the room.
            width = len(x.limit_text) * CHARACTER
            inside = at - LEFT > width + 8
            anchor, left = ("end", at - 5 - width) if inside else ("", at + 5)
            parts.append(
                _words(f"limit {anchor}".strip(), at - 5 if inside else at + 5, TOP + 10, x.limit_text)
            )
            taken.append((left, TOP, left + width, TOP + LINE))
            taken.append((at - 1, TOP, at + 1, bottom))
        else:
            words = f"{x.limit_text} \u2192"
            parts.append(_words("limit end", right, TOP + 10, words))
            taken.append((right - len(words) * CHARACTER, TOP, right, TOP + LINE))
    if y.limit is not None and ys.low <= y.limit / y.scale < ys.high:
        at = ys.place(y.limit / y.scale)
        shaded = (at, bottom - at) if y.at_least else (TOP, at - TOP)
        parts.append(_shade(LEFT, shaded[0], right - LEFT, shaded[1]))
        parts.append(_line("limit", LEFT, at, right, at))
        below = at + 12 if y.at_least else at - 4
        parts.append(_words("limit", LEFT + 4, below, y.limit_text))
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
    return [_line("reference", LEFT, at, right, at), _words(kind, x, box[3], name)]


def _front(points: Sequence[Point], xs: _Range, ys: _Range, x: Axis, y: Axis) -> list[Markup]:
    """Steps through those front members that no other one beats in this chart's two measures."""
    better = 1 if y.bounds is not None else -1
    members = sorted(
        ((point.x, point.y) for point in points if point.front and point.y is not None),
        key=lambda place: (place[0], -better * place[1]),
    )
    steps: list[tuple[float, float]] = []
    for at_x, at_y in members:
        if not steps or better * at_y > better * steps[-1][1]:
            steps.append((at_x, at_y))
    if len(steps) < 2:
        return []
    path = ""
    for n, (at_x, at_y) in enumerate(steps):
        px, py = xs.place(at_x / x.scale), ys.place(at_y / y.scale)
        path += f"M{px:.1f} {py:.1f}" if n == 0 else f"H{px:.1f}V{py:.1f}"
    return [Markup('<path class="front" d="{}"/>').format(path)]


def _place(point: Point, xs: _Range, ys: _Range, x: Axis, y: Axis) -> tuple[float, float]:
    height = ys.place((point.y or 0.0) / y.scale)
    return xs.place(max(point.x / x.scale, xs.low)), height


def _mark(point: Point, place: tuple[float, float], ys: _Range, y: Axis) -> Markup:
    at_x, at_y = place
    parts = [Markup("<title>{}</title>").format(point.text)]
    if point.low is not None and point.high is not None:
        parts.append(
            _line(
                "interval",
                at_x,
                ys.place(point.low / y.scale),
                at_x,
                ys.place(point.high / y.scale),
            )
        )
    if point.kind == "chosen":
        parts.append(Markup('<circle class="ring" cx="{:.1f}" cy="{:.1f}" r="8"/>').format(at_x, at_y))
    radius = 5 if point.kind == "chosen" else 4
    parts.append(Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(at_x, at_y, radius))
    front = " onfront" if point.front else ""
    return Markup('<a href="#c{}"><g class="point {}{}">{}</g></a>').format(
        point.number, point.kind, front, Markup("").join(parts)
    )


def _labels(
    points: Sequence[Point], places: dict[int, tuple[float, float]], taken: list[Box]
) -> list[Markup]:
    order = sorted(
        (point for point in points if point.number in places),
        key=lambda point: (
            point.kind != "chosen",
            not point.front,
            point.kind == "rejected",
            point.number,
        ),
    )
    parts = []
    for point in order:
        important = point.kind == "chosen" or point.front
        names = [point.label] if important or len(points) <= NAMED else []
        for words in (*names, str(point.number)):
            width = len(words) * CHARACTER * (1.1 if point.kind == "chosen" else 1.0)  # bold is wider
            spot = _free_spot(width, places[point.number], taken)
            if spot:
                taken.append(spot)
                weight = "label strong" if point.kind == "chosen" else "label"
                quiet = "" if point.kind != "rejected" else " quiet"
                parts.append(_words(weight + quiet, spot[0], spot[3] - 3, words))
                break
    return parts


def _free_spot(width: float, place: tuple[float, float], taken: Sequence[Box]) -> Box | None:
    x, y = place
    right, left = x + 9, x - 9 - width
    spots = [
        *((right, y - 6 + shift) for shift in (0, -10, 10)),
        *((left, y - 6 + shift) for shift in (0, -10, 10)),
        *((x - width / 2, y + shift) for shift in (-22, 10)),
        *((side, y - 6 + shift) for side in (right, left) for shift in (-20, 20, -30, 30)),
    ]
    for at_x, at_y in spots:
        box = (at_x, at_y, at_x + width, at_y + LINE)
        inside = (
            at_x >= LEFT and box[2] <= WIDTH - RIGHT + 4 and at_y >= TOP - 2 and box[3] <= HEIGHT - BOTTOM
        )
        if inside and not any(_overlap(box, other) for other in taken):
            return box
    return None


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _rug(points: Sequence[Point], xs: _Range, x: Axis) -> list[Markup]:
    """Below the axis: where those stand whose y is unknown."""
    at_y = HEIGHT - BOTTOM + 30
    parts = [_words("tick", 2, at_y - 1, "not"), _words("tick", 2, at_y + 10, "probed")]
    for point in points:
        at = xs.place(max(point.x / x.scale, xs.low))
        parts.append(
            Markup(
                '<a href="#c{}"><g class="point unknown {}"><title>{}</title>'
                '<path d="M{:.1f} {:.1f}v9"/></g></a>'
            ).format(point.number, point.kind, point.text, at, at_y - 4)
        )
    return parts


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        kind, x1, y1, x2, y2
    )


def _words(kind: str, x: float, y: float, words: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(kind, x, y, words)


def _shade(x: float, y: float, width: float, height: float) -> Markup:
    return Markup('<rect class="beyond" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
        x, y, max(width, 0.0), max(height, 0.0)
    )


_number: Callable[[float], str] = "{:,.6g}".format
