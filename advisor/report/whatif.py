"""What a page needs to choose again under other limits as the solver does.

What a page can't work out by itself - standard errors on the held-out samples, binomial tails, the
orders of cost - is worked out here by the solver's own functions; `templates/solver.js` repeats the
comparisons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, get_args

from advisor.records import (
    Accuracy,
    Budget,
    DataSummary,
    Evaluation,
    LimitName,
    Preference,
    Recommendation,
)
from advisor.report import view
from advisor.solver import LIMIT, cheapest_first, expected_loss, figures_of, has_learnt

MOST_TOLERANCE = 0.05  # that can be asked for in a page
PREFERENCES: tuple[Preference, ...] = get_args(Preference)
_STEPS = 40  # of a slider, between the least and the most that make a difference
_VARIED = 3  # values from which on a limit that wasn't set is worth a slider


def facts(recommendation: Recommendation) -> dict[str, Any]:
    """All that `solver.js` takes, as plain values; the candidates are in the order of the page's tables.

    What isn't there of a candidate is unknown, or false: of most the accuracy is.
    """
    recommendation = replace(recommendation, evaluations=tuple(view.ordered(recommendation)))
    evaluations, data, budget = recommendation.evaluations, recommendation.data, recommendation.budget
    figures = [figures_of(evaluation, budget) for evaluation in evaluations]
    known = {name: {each[name] for each in figures} - {None} for name in LIMIT}
    names = [
        name
        for name, limit in LIMIT.items()
        if len(known[name]) >= _VARIED or getattr(budget, limit.field) is not None
    ]
    tries = sum(evaluation.accuracy is not None for evaluation in evaluations)
    base = data.base_accuracy if data and data.scenario == "shift" else None
    identities = [evaluation.candidate.id for evaluation in evaluations]
    choice = recommendation.recommended
    return {
        "limits": [_limit(name, [each[name] for each in figures], recommendation) for name in names],
        "recommended": identities.index(choice) if choice else None,
        "tolerance": budget.tolerance,
        "prefer": budget.prefer,
        "has_data": data is not None,
        "candidates": [
            {
                "values": [each[name] for name in names],
                **({"failed": True} if e.measured is not None and not e.measured.survived else {}),
                **(_judged(e.accuracy, budget, data, tries) if e.accuracy else {}),
            }
            for e, each in zip(evaluations, figures, strict=True)
        ],
        "orders": {prefer: _order(recommendation, prefer) for prefer in PREFERENCES},
        "losses": list(_losses(evaluations, budget)),
        "base": _base(base, data, recommendation) if base and data else None,
    }


def _judged(accuracy: Accuracy, budget: Budget, data: DataSummary | None, tries: int) -> dict[str, Any]:
    """Of one that was tried; of its accuracy on old data that, and the most that it may be."""
    old = accuracy.retained
    return {
        "accuracy": accuracy.mean,
        **({"retained": (old.mean, old.high)} if old else {}),
        "finalist": accuracy.finalist,
        "sure": data is not None and has_learnt(accuracy, budget, data, tries),
    }


def _order(recommendation: Recommendation, prefer: Preference) -> list[int]:
    """Each candidate's place, the cheapest first."""
    ordered = cheapest_first(recommendation.evaluations, replace(recommendation.budget, prefer=prefer))
    places = {evaluation.candidate.id: place for place, evaluation in enumerate(ordered)}
    return [places[evaluation.candidate.id] for evaluation in recommendation.evaluations]


def _limit(name: LimitName, values: Sequence[float | None], recommendation: Recommendation) -> dict[str, Any]:
    limit, budget = LIMIT[name], recommendation.budget
    taken = budget.runtime_overhead_bytes if name == "ram" else 0
    show = view.percent if limit.at_least else limit.show
    asked = getattr(budget, limit.field)
    # Each can be typed as it is written, and differs in what it admits.
    met = {limit.meeting(value + taken) for value in values if value is not None} - {None}
    stops = sorted(stop for stop in {*met, asked} if stop is not None)
    if len(stops) > _STEPS:
        kept = {round(n * (len(stops) - 1) / (_STEPS - 1)) for n in range(_STEPS)}
        stops = [stop for n, stop in enumerate(stops) if n in kept or stop == asked]
    return {
        "name": name,
        "what": limit.what,
        "option": limit.option,
        "floor": limit.at_least,
        "soft": name in budget.warn,
        "taken": taken,
        "asked": asked,
        "stops": [[stop, show(stop), limit.typed(stop)] for stop in stops],
    }


def _losses(evaluations: Sequence[Evaluation], budget: Budget) -> Iterator[tuple[int, int, float]]:
    """(best, other, what is expected to be lost with the other), as far as it can matter."""
    judged = [(n, e.accuracy) for n, e in enumerate(evaluations) if e.accuracy]
    for first, best in judged:
        for second, other in judged:
            if best.finalist == other.finalist and best.mean > other.mean:
                loss = expected_loss(other, best, budget)
                if loss <= MOST_TOLERANCE:
                    yield first, second, loss


def _base(base: Accuracy, data: DataSummary, recommendation: Recommendation) -> dict[str, Any]:
    budget, evaluations = recommendation.budget, recommendation.evaluations
    return {
        "accuracy": base.mean,
        "sure": has_learnt(base, budget, data, 1),
        "losses": [expected_loss(base, e.accuracy, budget) if e.accuracy else None for e in evaluations],
    }
