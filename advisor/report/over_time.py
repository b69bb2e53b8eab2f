"""How the bytes held go up and down over one update: stacked areas as inline SVG, and what the peak holds.

From left to right go the layers' forward and backward passes and the optimizer's steps, each as wide as any
other: no seconds are known of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from advisor.records import Evaluation, Held, Moment, Recommendation, Timeline
from advisor.report import view
from advisor.report.drawing import CHARACTER, line, linear_ticks, number, text_at
from advisor.report.ledger import memory_colour
from advisor.solver import allowed_memory
from advisor.units import format_bytes

_WIDTH, _HEIGHT = 620, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 22, 26
_Up = Callable[[float], float]
_ONE_SCALE = 3.0  # up to so many times as high, two charts have the same axis
_PHASES = {
    "before": "statistics re-estimated",
    "forward": "forward",
    "backward": "backward",
    "optimizer": "optimizer",
    "after": "head solved",
}


@dataclass(frozen=True, slots=True)
class Share:
    """A row of what is held at the peak."""

    what: str  # activations, weights ...
    layer: str
    bytes: int
    share: float  # of the peak
    colour: str


@dataclass(frozen=True, slots=True)
class OverTime:
    """One candidate's update."""

    name: str
    is_chosen: bool
    peak: int
    where: str  # when the peak is
    svg: Markup
    shares: tuple[Share, ...]
    rest: int  # of the peak, what is not among those


def over_time(recommendation: Recommendation) -> list[OverTime]:
    """Of the recommended candidate and of full fine-tuning, as far as they were looked at closely."""
    seen = {
        each.candidate.id: each
        for each in (view.chosen(recommendation), recommendation.full)
        if each is not None and each.cost.timeline is not None and each.cost.timeline.moments
    }
    limit = allowed_memory(recommendation.budget)
    peaks = [each.cost.peak_memory_bytes for each in seen.values()]
    unit = view.byte_unit(peaks, least=1)
    one_scale = bool(peaks) and max(peaks) <= _ONE_SCALE * min(peaks)
    found = []
    for each in seen.values():
        timeline, peak = each.cost.timeline, each.cost.peak_memory_bytes
        assert timeline is not None  # noqa: S101 - of those alone
        others = [(other.candidate.short, other.cost.peak_memory_bytes) for other in seen.values()]
        high = max(peaks) if one_scale else peak
        own = unit if one_scale else view.byte_unit([peak], least=1)
        lines = [(f"{name} {format_bytes(size)}", size, "reference") for name, size in others if size < peak]
        if limit:
            lines.append((f"limit {format_bytes(limit)}", limit, "limit"))
        title = f"Bytes held over one update of {each.candidate.short}"
        svg = _areas(timeline.moments, high, own, lines, title)
        found.append(
            _described(each, timeline, svg, is_chosen=each.candidate.id == recommendation.recommended)
        )
    return found


def has_one_scale(shown: Sequence[OverTime]) -> bool:
    """Whether the charts can be compared at a glance."""
    peaks = [each.peak for each in shown]
    return not peaks or max(peaks) <= _ONE_SCALE * min(peaks)


def purposes(shown: Sequence[OverTime], recommendation: Recommendation) -> list[tuple[str, str]]:
    """What the areas mean, as (colour, words), of those that are there."""
    names = {each.name for each in shown}
    held = [
        moment.memory
        for each in recommendation.evaluations
        if each.candidate.short in names and each.cost.timeline
        for moment in each.cost.timeline.moments
    ]
    return [
        (memory_colour(part), part.replace("_", " "))
        for part in view.MEMORY_PARTS
        if any(getattr(memory, part) for memory in held)
    ]


def _described(each: Evaluation, timeline: Timeline, svg: Markup, *, is_chosen: bool) -> OverTime:
    peak = each.cost.peak_memory_bytes
    highest = max(timeline.moments, key=lambda moment: moment.memory.total)
    told = sum(held.bytes for held in timeline.largest)
    return OverTime(
        each.candidate.short,
        is_chosen,
        peak,
        _when(highest),
        svg,
        tuple(_share(held, peak) for held in timeline.largest),
        max(peak - told, 0),
    )


def _share(held: Held, peak: int) -> Share:
    return Share(
        held.purpose.replace("_", " "), held.layer, held.bytes, held.bytes / peak, memory_colour(held.purpose)
    )


def _when(moment: Moment) -> str:
    """`in the backward pass of layer features.18.1`."""
    match moment.phase:
        case "before":
            return "while statistics are re-estimated, before the first update"
        case "after":
            return "while the head is solved, after the last update"
        case "optimizer":
            return f"in the optimizer's step{f' of layer {moment.layer}' if moment.layer else ''}"
        case phase:
            return f"in the {phase} pass{f' of layer {moment.layer}' if moment.layer else ', between layers'}"


def _areas(
    moments: Sequence[Moment],
    high: float,
    unit: view.Unit,
    lines: Sequence[tuple[str, int, str]],
    title: str,
) -> Markup:
    """The parts stacked upon each other, with lines across at some sizes."""
    near = [size for _, size, _ in lines if size <= 1.6 * high]
    top = 1.08 * max([high, *near])
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    step = (right - _LEFT) / len(moments)

    def up(size: float) -> float:
        return bottom - (bottom - _TOP) * size / top

    parts = [text_at("title", 2, 10, f"held, {unit.name}")]
    for tick in linear_ticks(0, top / unit.scale):
        parts.append(line("grid", _LEFT, up(tick * unit.scale), right, up(tick * unit.scale)))
        parts.append(text_at("tick end", _LEFT - 6, up(tick * unit.scale) + 4, number(tick)))
    # The whole first, then what is beneath each part: what is drawn later lies on it.
    below = [moment.memory.total for moment in moments]
    for part in reversed(view.MEMORY_PARTS):
        if any(getattr(moment.memory, part) for moment in moments):
            parts.append(_area(memory_colour(part), [up(size) for size in below], step, bottom))
        below = [size - getattr(moment.memory, part) for size, moment in zip(below, moments, strict=True)]
    parts += _phases(moments, step)
    parts += [
        Markup(
            '<rect class="moment" x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>{}</title></rect>'
        ).format(_LEFT + place * step, _TOP, step, bottom - _TOP, view.printable(_told(moment)))
        for place, moment in enumerate(moments)
    ]
    for words, size, kind in lines:
        parts += _across(words, size, kind, up, top)
    parts += _peak(moments, step, up)
    parts.append(line("axis", _LEFT, bottom, right, bottom))
    return Markup('<svg class="chart areas" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, _HEIGHT, view.printable(title), Markup("\n").join(parts)
    )


def _area(colour: str, heights: Sequence[float], step: float, bottom: float) -> Markup:
    path, last = f"M{_LEFT} {bottom}", None
    for place, height in enumerate(heights):
        if last is None or abs(height - last) >= 0.05:
            path += f"{'' if last is None else f'H{_LEFT + place * step:.1f}'}V{height:.1f}"
            last = height
    path += f"H{_LEFT + len(heights) * step:.1f}V{bottom}Z"
    return Markup('<path class="area {}" d="{}"/>').format(colour, path)


def _phases(moments: Sequence[Moment], step: float) -> list[Markup]:
    """Where each begins, and its name below where there is room."""
    parts, place = [], 0
    for phase, stretch in groupby(moments, lambda moment: moment.phase):
        count = len(list(stretch))
        start, end = _LEFT + place * step, _LEFT + (place + count) * step
        place += count
        words = _PHASES[phase]
        if end - start >= len(words) * CHARACTER + 4:
            parts.append(text_at("tick middle", (start + end) / 2, _HEIGHT - _BOTTOM + 16, words))
            parts.append(line("phase", start, _TOP, start, _HEIGHT - _BOTTOM + 6))
    return parts


def _across(words: str, size: int, kind: str, up: _Up, top: float) -> list[Markup]:
    right = _WIDTH - _RIGHT
    if size >= top:  # off the chart
        return [text_at(f"{kind} end", right, 10, f"{words} \u2191")]
    at = up(size)
    above = at - 4 if at - _TOP > 12 else at + 12
    return [line(kind, _LEFT, at, right, at), text_at(f"{kind} end", right - 2, above, words)]


def _peak(moments: Sequence[Moment], step: float, up: _Up) -> list[Markup]:
    totals = [moment.memory.total for moment in moments]
    place = totals.index(max(totals))
    x, y = _LEFT + (place + 0.5) * step, up(max(totals))
    words = f"peak {format_bytes(max(totals))}"
    before = x > (_WIDTH + _LEFT) / 2
    return [
        Markup('<circle class="peak" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(x, y),
        text_at("strong end" if before else "strong", x - 6 if before else x + 6, max(y - 5, 10), words),
    ]


def _told(moment: Moment) -> str:
    where = " ".join(filter(None, (_PHASES[moment.phase], moment.layer)))
    return f"{where}: {format_bytes(moment.memory.total)}"
