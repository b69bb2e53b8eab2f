"""One self-contained page: no script, no network, readable on a phone and on paper."""

from __future__ import annotations

import os
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from advisor.files import write_whole
from advisor.records import Recommendation
from advisor.report import explain, ledger, view
from advisor.report.charts import Axis, Point, scatter
from advisor.report.rows import Row, numbered_rows
from advisor.solver import allowed_memory
from advisor.units import format_bytes, format_count, format_flops, format_seconds


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
    }
    every = numbered_rows(recommendation)
    rows = [row for row in every if row.is_main]
    page = environment.get_template("report.html").render(
        recommendation=recommendation,
        rows=rows,
        more_rows=[row for row in every if not row.is_main],
        runs=[row for row in every if row.evaluation.measured],
        chosen=next((row for row in rows if row.kind == "chosen"), None),
        budget_lines=_budget_lines(recommendation),
        asked=explain.asked(recommendation),
        charts=_charts(recommendation, every),
        memory_ledgers=ledger.memory_ledgers(rows, allowed_memory(recommendation.budget)),
        flop_ledgers=ledger.flop_ledgers(rows, recommendation.budget.flops),
        trained_ledger=ledger.trained_ledger(rows),
        full=view.reference_full(recommendation),
        allowed=allowed_memory(recommendation.budget),
        census=_census(recommendation),
        sources=explain.sources(recommendation),
        definitions=explain.DEFINITIONS,
        notes=view.grouped_notes([row.evaluation for row in rows]),
        uncounted=view.uncounted(recommendation.evaluations),
        multiply_adds=_multiply_adds(recommendation),
        share_of=view.share_of,
        by_class_text=lambda accuracy: view.by_class_text(accuracy, recommendation),
        setting_text=view.setting_text,
    )
    return page.lstrip()  # the template's macros come before its first line


def write_html(recommendation: Recommendation, path: str | os.PathLike[str]) -> None:
    """Write the page, whole or not at all. Raises InputError where that can't be done."""
    write_whole(path, render_html(recommendation))


def _finalize(value: object) -> object:
    if isinstance(value, str) and not isinstance(value, Markup):
        return view.printable(value)
    return value


def _budget_lines(recommendation: Recommendation) -> list[view.BudgetLine]:
    lines = view.budget_lines(recommendation)
    chosen = view.chosen(recommendation)
    run = chosen.measured if chosen else None
    if run is None:
        return lines
    allowed = allowed_memory(recommendation.budget)
    allocator = view.BudgetLine(
        "allocator's peak, when run",
        run.peak_memory_bytes,
        allowed,
        format_bytes(run.peak_memory_bytes),
        "no limit" if allowed is None else format_bytes(allowed),
        remark="workspace inside operators included",
    )
    runtime = (
        f"the runtime (Python, PyTorch) takes {format_bytes(run.runtime_bytes)} of it, which no limit counts"
    )
    resident = view.BudgetLine(
        "whole process, when run",
        run.peak_resident_bytes,
        None,
        format_bytes(run.peak_resident_bytes),
        "no limit",
        remark=runtime,
    )
    seconds = format_seconds(run.update_seconds)
    timed = f"median of {run.updates}"
    time = view.BudgetLine("time per update", run.update_seconds, None, seconds, "no limit", remark=timed)
    return [lines[0], allocator, *lines[1:], resident, time]


def _charts(recommendation: Recommendation, rows: Sequence[Row]) -> list[tuple[str, Markup]]:
    """(heading, SVG): accuracy against memory and FLOPs; the two costs where it is unknown."""
    if not rows:
        return []
    budget = recommendation.budget
    ram = allowed_memory(budget)
    memory_unit = view.byte_unit(row.evaluation.cost.peak_memory_bytes for row in rows)
    flops_unit = view.flop_unit((row.evaluation.cost.flops.total for row in rows), least=1)
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
        heading = "FLOPs against memory"
        text = "Each candidate's peak memory and FLOPs per update; lower left is cheaper."
        return [(heading, scatter(points, memory, flops, title=heading, description=text))]
    accuracy = _accuracy_axis(recommendation)
    base = recommendation.data.base_accuracy if recommendation.data else None
    low, high = accuracy.bounds or (0.0, 1.0)
    reference = (
        (base.mean, f"as it is {view.percent(base.mean)}") if base and low < base.mean < high else None
    )
    charts = []
    for name, axis, value in (("memory", memory, _memory_of), ("FLOPs", flops, _flops_of)):
        points = [_point(row, value(row), None) for row in rows]
        heading = f"Accuracy against {name}"
        text = f"{heading} of each candidate, with 95 % intervals; upper left is better."
        charts.append(
            (
                heading,
                scatter(points, axis, accuracy, title=heading, description=text, reference=reference),
            )
        )
    return charts


def _memory_of(row: Row) -> float:
    return row.evaluation.cost.peak_memory_bytes


def _flops_of(row: Row) -> float:
    return row.evaluation.cost.flops.total


def _accuracy_axis(recommendation: Recommendation) -> Axis:
    found = [item.accuracy for item in recommendation.evaluations if item.accuracy]
    low, high = min(item.low for item in found), max(item.high for item in found)
    least = recommendation.budget.min_accuracy
    reach = max(0.5 * (high - low), 0.02)
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
        f"{evaluation.candidate.short}: "
        f"accuracy {view.accuracy_text(evaluation.accuracy)}, "
        f"{format_bytes(evaluation.cost.peak_memory_bytes)}, "
        f"{format_flops(evaluation.cost.flops.total)}"
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


def _census(recommendation: Recommendation) -> list[tuple[str, str, int, int, int]]:
    """(layer type, colour, layers, parameters, forward FLOPs), and what belongs to no layer."""
    model = recommendation.model
    lines = [
        (
            kind,
            ledger.type_colour(kind),
            summary.count,
            summary.parameters,
            summary.forward_flops,
        )
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
