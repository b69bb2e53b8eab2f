"""The charts: accuracy against each cost, or FLOPs against memory where accuracy is unknown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import quantiles

from markupsafe import Markup

from advisor.records import BASELINE, Evaluation, Recommendation
from advisor.report import view
from advisor.report.charts import Axis, Point, scatter
from advisor.report.rows import Row
from advisor.solver import allowed_memory
from advisor.units import format_bytes, format_flops

_FAR = 1.5  # interquartile ranges below the lower quartile from which on an accuracy would squeeze the rest


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart with its heading."""

    key: str
    tab: str
    heading: str
    svg: Markup


@dataclass(frozen=True, slots=True)
class _Measure:
    """A cost that accuracy is held against."""

    key: str
    tab: str
    value: Callable[[Evaluation], float]
    axis: Axis


def trade_charts(recommendation: Recommendation, rows: Sequence[Row]) -> list[Chart]:
    """Accuracy against memory, FLOPs and bytes to ship; the first two alone where it is unknown."""
    if not rows:
        return []
    memory, flops, storage = _measures(recommendation, rows)
    if not any(row.evaluation.accuracy for row in rows):
        points = [
            _point(
                row, memory.value(row.evaluation), flops.value(row.evaluation), "whole", told=view.costs_text
            )
            for row in rows
        ]
        heading = "FLOPs against memory"
        text = "Each candidate's peak memory and FLOPs per update; lower left is cheaper."
        svg = scatter(points, memory.axis, flops.axis, title=heading, description=text)
        return [Chart("costs", "FLOPs against memory", heading, svg)]
    accuracy = _accuracy_axis(recommendation)
    base = recommendation.data.base_accuracy if recommendation.data else None
    low, high = accuracy.bounds or (0.0, 1.0)
    reference = (
        (base.mean, f"as it is {view.percent(base.mean)}") if base and low < base.mean < high else None
    )
    charts = []
    for measure in (memory, flops, storage):
        heading = f"Accuracy against {measure.tab}"
        points = [_judged_point(row, measure.value(row.evaluation)) for row in rows]
        text = f"{heading} of each candidate, with 95 % intervals; upper left is better."
        svg = scatter(
            *(points, measure.axis, accuracy),
            title=heading,
            description=text,
            reference=reference,
            defines=measure is memory,
        )
        charts.append(Chart(measure.key, measure.tab, heading, svg))
    return charts


def _measures(recommendation: Recommendation, rows: Sequence[Row]) -> tuple[_Measure, _Measure, _Measure]:
    budget = recommendation.budget
    ram, flops, storage = allowed_memory(budget), budget.flops, budget.storage_bytes

    def of(
        key: str,
        tab: str,
        title: str,
        value: Callable[[Evaluation], float],
        limit: int | None,
        show: Callable[[float], str],
        unit_of: Callable[..., view.Unit],
    ) -> _Measure:
        unit = unit_of(value(row.evaluation) for row in rows)
        told = f"limit {show(limit)}" if limit else ""
        return _Measure(key, tab, value, Axis(f"{title}, {unit.name}", unit.scale, limit, told))

    return (
        of(
            "memory",
            "memory",
            "peak memory of one update",
            lambda e: e.cost.peak_memory_bytes,
            ram,
            format_bytes,
            lambda values: view.byte_unit(values, least=1),
        ),
        of(
            "flops",
            "FLOPs",
            "FLOPs per update",
            lambda e: e.cost.flops.total,
            flops,
            format_flops,
            lambda values: view.flop_unit(values, least=1),
        ),
        of(
            "storage",
            "bytes to ship",
            "to ship",
            lambda e: e.cost.delta_bytes,
            storage,
            format_bytes,
            lambda values: view.byte_unit(values, least=1),
        ),
    )


def _accuracy_axis(recommendation: Recommendation) -> Axis:
    """Fitted to what was tried: one that learnt nothing does not squeeze the rest, nor do intervals."""
    found = sorted(item.accuracy.mean for item in recommendation.evaluations if item.accuracy)
    low, high = found[0], found[-1]
    if len(found) > 3:
        lower, _, upper = quantiles(found, n=4)
        low = next(mean for mean in found if mean >= min(lower - _FAR * (upper - lower), lower))
    chosen = view.chosen(recommendation)
    if chosen and chosen.accuracy:
        low, high = min(low, chosen.accuracy.low), max(high, chosen.accuracy.high)
    reach = max(0.5 * (high - low), 0.02)
    least = recommendation.budget.min_accuracy
    others = [least] if least is not None else []
    if recommendation.data and recommendation.data.base_accuracy:
        others.append(recommendation.data.base_accuracy.mean)
    # A limit or the unadapted accuracy far below would flatten what the chart is for.
    for other in others:
        if low - reach <= other <= high + reach:
            low, high = min(low, other), max(high, other)
    pad = max(0.07 * (high - low), 0.01)
    return Axis(
        "accuracy, %",
        0.01,
        least,
        f"at least {view.percent(least)}" if least is not None else "",
        bounds=(low - pad, min(high + pad, 1.0 + pad / 2)),
        at_least=True,
    )


def _judged_point(row: Row, x: float) -> Point:
    accuracy, predicted = row.evaluation.accuracy, row.evaluation.predicted
    if accuracy:
        known = "whole" if accuracy.finalist else "short"
        return _point(row, x, accuracy.mean, known, (accuracy.low, accuracy.high))
    return _point(row, x, predicted.mean if predicted else None, "predicted")


def _point(
    row: Row,
    x: float,
    y: float | None,
    known: str,
    interval: tuple[float | None, float | None] = (None, None),
    told: Callable[[Evaluation], str] = view.figures_text,
) -> Point:
    against = f"; {row.comparison}" if row.comparison and row.evaluation.accuracy else ""
    why = f"; {row.reasons[0]}" if row.reasons else against
    text = f"{row.name}: {told(row.evaluation)}{why}"
    return Point(
        x=x,
        y=y,
        label=view.printable(row.name),
        number=row.number,
        text=view.printable(text),
        kind=row.kind,
        known=known,  # type: ignore[arg-type]
        low=interval[0],
        high=interval[1],
        is_known=row.evaluation.candidate.id == BASELINE,
    )
