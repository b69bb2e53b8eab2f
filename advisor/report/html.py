"""One self-contained page: no script, no network, readable on a phone and on paper."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from advisor.records import LAYER_TYPES, Cost, Evaluation, Recommendation
from advisor.report import explain, view
from advisor.report.charts import Axis, Point, scatter
from advisor.report.files import write_whole
from advisor.solver import allowed_memory
from advisor.units import format_bytes, format_count, format_flops, format_seconds

# Class names of the style sheet's colours.
_MEMORY_COLOURS = dict(zip(view.MEMORY_PARTS, ("k0", "k1", "k2", "k3", "k4", "k5", "k6"), strict=True))
_PHASE_COLOURS = dict(zip(view.FLOP_PHASES, ("k0", "k4", "k2", "k3"), strict=True))
_TYPE_COLOURS = dict(zip(LAYER_TYPES, ("k0", "k4", "k2", "k3", "k7", "k1", "k5", "k6"), strict=True))

Kind = Literal["chosen", "fits", "rejected"]


@dataclass(frozen=True, slots=True)
class Row:
    """One candidate, in the order and with the number that the whole page uses."""

    number: int
    name: str
    evaluation: Evaluation
    kind: Kind
    comparison: str  # with the chosen one, where it fits
    reasons: tuple[str, ...]  # why it is rejected
    on_front: bool


@dataclass(frozen=True, slots=True)
class Column:
    """One part of a stacked bar."""

    label: str
    colour: str


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One candidate's parts, which add up to the total."""

    row: Row
    parts: tuple[int, ...]

    @property
    def total(self) -> int:
        """The bar's length."""
        return sum(self.parts)


@dataclass(frozen=True, slots=True)
class Ledger:
    """Stacked bars with their figures beside them."""

    caption: str
    unit: view.Unit
    columns: tuple[Column, ...]
    rows: tuple[LedgerRow, ...]
    limit: int | None = None

    def share(self, value: float) -> float:
        """Percent of the longest bar, or of the limit where that lies a little further out."""
        longest = max((row.total for row in self.rows), default=0)
        if self.limit and self.limit <= 1.6 * longest:
            longest = max(longest, self.limit)
        return 100 * value / longest if longest else 0.0

    @property
    def limit_share(self) -> float | None:
        """Where the limit's line stands; None where it is not on the chart."""
        if not self.limit:
            return None
        share = self.share(self.limit)
        return share if 0 < share <= 100 else None


def render_html(recommendation: Recommendation) -> str:
    """The page's text. Everything that comes from outside is escaped."""
    environment = Environment(
        loader=PackageLoader("advisor.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters |= {
        "bytes": format_bytes,
        "flops": format_flops,
        "count": format_count,
        "seconds": format_seconds,
        "percent": view.percent,
        "accuracy": view.accuracy_text,
    }
    rows = _rows(recommendation)
    return environment.get_template("report.html").render(
        recommendation=recommendation,
        rows=rows,
        chosen=next((row for row in rows if row.kind == "chosen"), None),
        budget_lines=_budget_lines(recommendation),
        asked=explain.asked(recommendation),
        charts=_charts(recommendation, rows),
        memory_ledgers=_memory_ledgers(rows, recommendation),
        flop_ledgers=_flop_ledgers(rows, recommendation),
        trained_ledger=_by_type(
            "Trained parameters, by layer type", rows, lambda cost, kind: _trained(cost, kind), view.count_unit
        ),
        full=view.reference_full(recommendation),
        census=_census(recommendation),
        sources=explain.sources(recommendation),
        definitions=explain.DEFINITIONS,
        notes=view.grouped_notes([row.evaluation for row in rows]),
        uncounted=view.uncounted(recommendation.evaluations),
        multiply_adds=_multiply_adds(recommendation),
        share_of=view.share_of,
    )


def write_html(recommendation: Recommendation, path: str | os.PathLike[str]) -> None:
    """Write the page, whole or not at all. Raises InputError where that can't be done."""
    write_whole(path, render_html(recommendation))


def _finalize(value: object) -> object:
    if isinstance(value, str) and not isinstance(value, Markup):
        return view.printable(value)
    return value


def _rows(recommendation: Recommendation) -> list[Row]:
    evaluations = view.ordered(recommendation)
    names, choice = view.short_names(evaluations), view.chosen(recommendation)
    rows = []
    for number, evaluation in enumerate(evaluations, 1):
        identity = evaluation.candidate.id
        kind: Kind = "fits" if evaluation.fits else "rejected"
        if identity == recommendation.recommended:
            kind = "chosen"
        rows.append(
            Row(
                number=number,
                name=names[identity],
                evaluation=evaluation,
                kind=kind,
                comparison=view.against_choice(evaluation, choice) if evaluation.fits else "",
                reasons=tuple(view.reason(violation) for violation in evaluation.violations),
                on_front=identity in recommendation.front,
            )
        )
    return rows


def _budget_lines(recommendation: Recommendation) -> list[view.BudgetLine]:
    lines = view.budget_lines(recommendation)
    chosen = view.chosen(recommendation)
    run = chosen.measured if chosen else None
    if run is None:
        return lines
    resident = view.BudgetLine(
        "whole process, when run",
        run.peak_resident_bytes,
        run.cap_bytes,
        format_bytes(run.peak_resident_bytes),
        "no cap" if run.cap_bytes is None else f"{format_bytes(run.cap_bytes)} (hard cap)",
        remark=f"of it the runtime itself: {format_bytes(run.runtime_bytes)}",
    )
    seconds = "unknown" if run.update_seconds is None else format_seconds(run.update_seconds)
    timed = f"median of {run.updates}" if run.updates else ""
    time = view.BudgetLine("time per update", run.update_seconds, None, seconds, "no limit", remark=timed)
    return [*lines, resident, time]


def _charts(recommendation: Recommendation, rows: Sequence[Row]) -> list[tuple[str, Markup]]:
    """(heading, SVG): accuracy against memory and FLOPs, or memory against FLOPs without accuracy."""
    if not rows:
        return []
    budget = recommendation.budget
    ram = allowed_memory(budget)
    memory_unit = view.byte_unit(row.evaluation.cost.peak_memory_bytes for row in rows)
    flops_unit = _coarse(view.flop_unit(row.evaluation.cost.flops.total for row in rows))
    memory = Axis(
        f"peak memory of one update, {memory_unit.name}",
        memory_unit.scale,
        ram,
        f"limit {format_bytes(ram)}" if ram else "",
    )
    flops = Axis(
        f"FLOPs per update, {flops_unit.name}",
        flops_unit.scale,
        budget.flops,
        f"limit {format_flops(budget.flops)}" if budget.flops else "",
    )
    if not any(row.evaluation.accuracy for row in rows):
        points = [_point(row, _memory_of(row), float(row.evaluation.cost.flops.total)) for row in rows]
        text = "Each candidate's peak memory and FLOPs per update; lower left is cheaper."
        return [("FLOPs against memory", scatter(points, memory, flops, "FLOPs against memory", text))]
    accuracy = _accuracy_axis(recommendation)
    base = recommendation.data.base_accuracy if recommendation.data else None
    low, high = accuracy.bounds or (0.0, 1.0)
    reference = (base.mean, f"as it is {view.percent(base.mean)}") if base and low < base.mean < high else None
    charts = []
    for name, axis, value in (("memory", memory, _memory_of), ("FLOPs", flops, _flops_of)):
        points = [_point(row, value(row), None) for row in rows]
        heading = f"Accuracy against {name}"
        text = f"{heading} of each candidate, with 95 % intervals; upper left is better."
        charts.append((heading, scatter(points, axis, accuracy, heading, text, reference)))
    return charts


def _memory_of(row: Row) -> float:
    return row.evaluation.cost.peak_memory_bytes


def _flops_of(row: Row) -> float:
    return row.evaluation.cost.flops.total


def _coarse(unit: view.Unit) -> view.Unit:
    """The next larger unit, for an axis: `10 GFLOP` rather than `10,000 MFLOP`."""
    names = ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP")
    larger = min(names.index(unit.name) + (unit.scale > 1 or unit.digits == 0), len(names) - 1)
    return view.Unit(names[larger], 1000.0**larger, 1) if unit.name != "FLOP" else unit


def _accuracy_axis(recommendation: Recommendation) -> Axis:
    found = [item.accuracy for item in recommendation.evaluations if item.accuracy]
    low, high = min(item.low for item in found), max(item.high for item in found)
    least = recommendation.budget.min_accuracy
    reach = max(high - low, 0.02)
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
        bounds=(low - pad, high + pad),
        at_least=True,
    )


def _point(row: Row, x: float, y: float | None) -> Point:
    evaluation = row.evaluation
    accuracy = evaluation.accuracy if y is None else None
    text = (
        f"{view.full_name(evaluation.candidate)}: accuracy {view.accuracy_text(evaluation.accuracy)}, "
        f"{format_bytes(evaluation.cost.peak_memory_bytes)}, {format_flops(evaluation.cost.flops.total)}"
    )
    return Point(
        x=x,
        y=accuracy.mean if accuracy else y,
        label=view.printable(row.name),
        number=row.number,
        text=view.printable(text),
        kind=row.kind,
        front=row.on_front,
        low=accuracy.low if accuracy else None,
        high=accuracy.high if accuracy else None,
    )


def _memory_ledgers(rows: Sequence[Row], recommendation: Recommendation) -> list[Ledger]:
    by_purpose = _ledger(
        "Bytes held at the moment of the peak, by what they are for",
        rows,
        [Column(part.replace("_", " "), _MEMORY_COLOURS[part]) for part in view.MEMORY_PARTS],
        lambda cost: tuple(getattr(cost.memory, part) for part in view.MEMORY_PARTS),
        view.byte_unit,
        allowed_memory(recommendation.budget),
    )
    by_type = _by_type(
        "Activations and temporaries at the peak, by the layer type that made them",
        rows,
        lambda cost, kind: cost.by_layer_type[kind].activation_bytes if kind in cost.by_layer_type else 0,
        view.byte_unit,
    )
    return [by_purpose, by_type]


def _flop_ledgers(rows: Sequence[Row], recommendation: Recommendation) -> list[Ledger]:
    limit = recommendation.budget.flops
    by_phase = _ledger(
        "FLOPs of one update, by phase",
        rows,
        [Column(phase.replace("_", " "), _PHASE_COLOURS[phase]) for phase in view.FLOP_PHASES],
        lambda cost: tuple(getattr(cost.flops, phase) for phase in view.FLOP_PHASES),
        view.flop_unit,
        limit,
    )
    by_type = _by_type(
        "FLOPs of one update, by layer type",
        rows,
        lambda cost, kind: cost.by_layer_type[kind].flops.total if kind in cost.by_layer_type else 0,
        view.flop_unit,
        limit,
        lambda cost: cost.flops.total,
    )
    return [by_phase, by_type]


def _by_type(
    caption: str,
    rows: Sequence[Row],
    part: Callable[[Cost, str], int],
    unit: Callable[[Iterable[float]], view.Unit],
    limit: int | None = None,
    total: Callable[[Cost], int] | None = None,
) -> Ledger:
    """A column for each layer type, and one for what `total` has that no layer type does."""
    kinds = view.layer_types_of(kind for row in rows for kind in row.evaluation.cost.by_layer_type)
    kinds = [kind for kind in kinds if any(part(row.evaluation.cost, kind) for row in rows)]
    columns = [Column(kind, _TYPE_COLOURS.get(kind, "k6")) for kind in kinds]

    def parts(cost: Cost) -> tuple[int, ...]:
        known = tuple(part(cost, kind) for kind in kinds)
        return (*known, total(cost) - sum(known)) if total else known

    if total:
        columns.append(Column("no layer", "k7"))
        if not any(parts(row.evaluation.cost)[-1] for row in rows):
            return _by_type(caption, rows, part, unit, limit)
    return _ledger(caption, rows, columns, parts, unit, limit)


def _ledger(
    caption: str,
    rows: Sequence[Row],
    columns: Sequence[Column],
    parts: Callable[[Cost], tuple[int, ...]],
    unit: Callable[[Iterable[float]], view.Unit],
    limit: int | None = None,
) -> Ledger:
    filled = tuple(LedgerRow(row, parts(row.evaluation.cost)) for row in rows)
    return Ledger(caption, unit(row.total for row in filled), tuple(columns), filled, limit)


def _trained(cost: Cost, kind: str) -> int:
    return cost.by_layer_type[kind].trainable_parameters if kind in cost.by_layer_type else 0


def _census(recommendation: Recommendation) -> list[tuple[str, str, int, int, int]]:
    """(layer type, colour, layers, parameters, forward FLOPs), and what belongs to no layer."""
    model = recommendation.model
    lines = [
        (kind, _TYPE_COLOURS.get(kind, "k6"), summary.count, summary.parameters, summary.forward_flops)
        for kind in view.layer_types_of(model.layer_types)
        for summary in [model.layer_types[kind]]
    ]
    parameters = model.parameters - sum(line[3] for line in lines)
    flops = model.forward_flops - sum(line[4] for line in lines)
    if parameters or flops:
        lines.append(("no layer", "k7", 0, parameters, flops))
    return lines


def _multiply_adds(recommendation: Recommendation) -> float | None:
    full = view.reference_full(recommendation)
    return view.multiply_add_flops_per_sample(full, recommendation.batch_size) if full else None
