"""Small line charts as inline SVG: several series, one of them marked, each with its name at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from advisor.report import view
from advisor.report.drawing import CHARACTER, LINE, line, linear_ticks, number, text_at

_WIDTH, _HEIGHT = 420, 220
_LEFT, _TOP, _BOTTOM = 40, 20, 36
_NAMES = (70, 190)  # room for them, on the right, at least and at most


@dataclass(frozen=True, slots=True)
class Series:
    """One line, from left to right."""

    name: str
    points: tuple[tuple[float, float, bool], ...]  # x, y, and whether it was found and not predicted
    is_marked: bool = False


def lines(
    series: Sequence[Series],
    ticks: Sequence[tuple[float, str]],
    *,
    title: str,
    x_title: str,
    y_title: str,
    bounds: tuple[float, float],
) -> Markup:
    """One chart.

    Args:
        ticks: places on the x axis, with what stands there; the first and the last are its ends.
        bounds: of the y axis.
    """
    longest = max(len(each.name) for each in series) * CHARACTER + 10
    right, bottom = _WIDTH - min(max(longest, _NAMES[0]), _NAMES[1]), _HEIGHT - _BOTTOM
    first, last = ticks[0][0], ticks[-1][0]

    def across(x: float) -> float:
        return _LEFT + 8 + (right - _LEFT - 16) * ((x - first) / (last - first) if last > first else 0.5)

    def up(y: float) -> float:
        return bottom - (bottom - _TOP) * (y - bounds[0]) / (bounds[1] - bounds[0])

    parts = [text_at("title", 2, 10, y_title), text_at("title end", right, _HEIGHT - 4, x_title)]
    for tick in linear_ticks(*bounds):
        parts += [
            line("grid", _LEFT, up(tick), right, up(tick)),
            text_at("tick end", _LEFT - 6, up(tick) + 4, number(tick)),
        ]
    end = -1.0
    for place, words in ticks:  # as many names as there is room for
        half = len(words) * CHARACTER / 2
        parts.append(line("grid", across(place), bottom, across(place), bottom + 4))
        if across(place) - half > end:
            parts.append(text_at("tick middle", across(place), bottom + 16, words))
            end = across(place) + half + 4
    parts.append(line("axis", _LEFT, bottom, right, bottom))
    taken: list[float] = []
    # Drawn last, the marked one lies on the others; named first, it has its name where it ends.
    for each in sorted(series, key=lambda each: each.is_marked):
        parts.append(_drawn(each, [(across(x), up(y), found) for x, y, found in each.points]))
    for each in sorted(series, key=lambda each: (not each.is_marked, -each.points[-1][1])):
        x, y, _ = each.points[-1]
        spot = _free(up(y), taken)
        if spot is not None:
            taken.append(spot)
            kind = "strong" if each.is_marked else "name"
            parts.append(text_at(kind, min(across(x), right) + 8, spot + 4, view.printable(each.name)))
    return Markup('<svg class="chart lines" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, _HEIGHT, view.printable(title), Markup("\n").join(parts)
    )


def _drawn(each: Series, places: Sequence[tuple[float, float, bool]]) -> Markup:
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in places)
    dots = [
        Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(
            "found" if found else "told", x, y, 3 if found else 2
        )
        for x, y, found in places
    ]
    return Markup('<g class="series{}"><title>{}</title><path d="M{}"/>{}</g>').format(
        " marked" if each.is_marked else "", view.printable(each.name), path, Markup("").join(dots)
    )


def _free(wanted: float, taken: Sequence[float]) -> float | None:
    """The nearest place for a name, not far from where its line ends."""
    for shift in (0, 4, -4, 8, -8, 12, -12):
        spot = wanted + shift
        if _TOP - 6 <= spot <= _HEIGHT - _BOTTOM + 4 and all(abs(spot - other) >= LINE for other in taken):
            return spot
    return None
