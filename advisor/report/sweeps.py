"""What comes of more rank, more blocks, more updates: accuracy and memory against one setting at a time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from advisor.records import Candidate, Evaluation, Recommendation
from advisor.report import view
from advisor.report.lines import Series, lines

_MOST_CURVES = 14  # lines that can still be told apart
_LEAST = 3  # values of a setting from which on there is something to see
SCOPE = "scope"
_ALL = math.inf  # of the blocks


@dataclass(frozen=True, slots=True)
class Sweep:
    """Of several methods, what comes of one setting."""

    setting: str
    charts: tuple[Markup, ...]


def sweeps(recommendation: Recommendation) -> list[Sweep]:
    """One for each setting with numbers for values, and one for how many of the last blocks are trained.

    Of each method, in the plainest form of it that has several values.
    """
    names = {
        name: None
        for each in recommendation.evaluations
        for name, value in each.candidate.setting
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    found = []
    for name in (*names, SCOPE):
        by_method = _by_method(recommendation, name)
        if by_method:
            found.append(Sweep(name, tuple(_charts(recommendation, name, by_method))))
    return found


def curves(recommendation: Recommendation) -> Markup | None:
    """Accuracy against updates, of what was trained for several lengths; None where nothing was."""
    known = [each for each in view.ordered(recommendation) if each.accuracy and len(each.accuracy.curve) > 1]
    # Candidates that differ in their caches alone are one training.
    seen: dict[object, Evaluation] = {}
    for each in known:
        seen.setdefault(each.accuracy and (each.accuracy.curve, each.accuracy.correct), each)
    shown = list(seen.values())[:_MOST_CURVES]
    if not shown:
        return None
    series = [
        Series(
            each.candidate.short,
            tuple((math.log2(point.updates), 100 * point.mean, True) for point in each.accuracy.curve),
            each.candidate.id == recommendation.recommended,
        )
        for each in shown
        if each.accuracy
    ]
    lengths = sorted({point.updates for each in shown if each.accuracy for point in each.accuracy.curve})
    return lines(
        series,
        [(math.log2(updates), f"{updates:,}") for updates in lengths],
        title=f"{recommendation.budget.measure} after so many updates",
        x_title="updates",
        y_title=f"{recommendation.budget.measure}, %",
        bounds=_around([y for each in series for _, y, _ in each.points]),
    )


def _by_method(recommendation: Recommendation, name: str) -> dict[str, list[tuple[float, Evaluation]]]:
    """Each method's candidates that differ in this alone, by its value."""
    grouped: dict[tuple[str, Candidate], dict[float, Evaluation]] = defaultdict(dict)
    for each in recommendation.evaluations:
        value, rest = _without(each.candidate, name)
        if value is not None:
            grouped[each.candidate.method, rest][value] = each
    found: dict[str, list[tuple[float, Evaluation]]] = {}
    plainest = sorted(grouped.items(), key=lambda item: len(item[0][1].levers.described()))
    for (method, _), values in plainest:
        if len(values) >= _LEAST:
            found.setdefault(method, sorted(values.items(), key=lambda item: item[0]))
    return found


def _without(candidate: Candidate, name: str) -> tuple[float | None, Candidate]:
    """The value, and the candidate without it."""
    if name == SCOPE:
        scope = candidate.levers.scope
        plain = replace(candidate, levers=replace(candidate.levers, scope=None, cached_prefix="no"))
        is_plain = candidate.levers.cached_prefix == "no"
        return (_ALL if scope is None else float(scope)) if is_plain else None, plain
    values = dict(candidate.setting)
    value = values.pop(name, None)
    rest = replace(candidate, setting=tuple(sorted(values.items())))
    return float(value) if isinstance(value, int | float) else None, rest


def _charts(
    recommendation: Recommendation, name: str, by_method: dict[str, list[tuple[float, Evaluation]]]
) -> list[Markup]:
    values = sorted({value for each in by_method.values() for value, _ in each})
    places = {value: float(place) for place, value in enumerate(values)}
    ticks = [(places[value], "all" if value == _ALL else f"{value:g}") for value in values]
    sizes = [each.cost.peak_memory_bytes for known in by_method.values() for _, each in known]
    unit = view.byte_unit(sizes, least=1)

    def chart(what: str, title: str, of: Callable[[Evaluation], tuple[float, bool] | None]) -> list[Markup]:
        series = []
        for method, known in by_method.items():
            points = [(places[value], *found) for value, each in known if (found := of(each)) is not None]
            marked = any(each.candidate.id == recommendation.recommended for _, each in known)
            if len(points) > 1:
                series.append(Series(method, tuple(points), marked))
        if not series:
            return []
        ys = [y for each in series for _, y, _ in each.points]
        bounds = (0.0, 1.06 * max(ys)) if what == "memory" else _around(ys)
        told = f"{what} against {name}"
        x_title = "last blocks trained" if name == SCOPE else name
        return [lines(series, ticks, title=told, x_title=x_title, y_title=title, bounds=bounds)]

    measure = recommendation.budget.measure
    return [
        *chart(measure, f"{measure}, %", _accuracy),
        *chart(
            "memory", f"peak memory, {unit.name}", lambda e: (e.cost.peak_memory_bytes / unit.scale, True)
        ),
    ]


def _accuracy(evaluation: Evaluation) -> tuple[float, bool] | None:
    """In percent, and whether it was trained to the end."""
    if evaluation.accuracy and evaluation.accuracy.finalist:
        return 100 * evaluation.accuracy.mean, True
    known = evaluation.predicted or evaluation.accuracy
    return (100 * known.mean, False) if known else None


def _around(values: Sequence[float]) -> tuple[float, float]:
    pad = max(0.08 * (max(values) - min(values)), 1.0)
    return max(min(values) - pad, 0.0), min(max(values) + pad, 100.0)
