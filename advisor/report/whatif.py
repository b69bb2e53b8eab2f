"""The choice under other limits: as the solver makes it, and what a page needs to make the same one.

What a page can't work out by itself - bootstraps on the held-out samples, binomial tails - is worked
out here by the solver's own functions; `templates/solver.js` repeats the comparisons and the sorting.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from advisor.records import Accuracy, Budget, Evaluation, Recommendation
from advisor.report import view
from advisor.solver import Verdict, expected_loss, rank, surely_above, violations, weigh
from advisor.units import format_bytes, format_flops

MOST_TOLERANCE = 0.05  # that can be asked for in a page
_STEPS = 40  # of a slider, between the least and the most that make a difference


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit, as a page can set it."""

    key: str  # the field of `Budget`
    name: str  # as every part of the report has it
    option: str
    violation: str  # what `Violation.limit` calls it
    value: Callable[[Evaluation], float | None]  # what is held against it; None: unknown, breaks nothing
    show: Callable[[float], str]
    is_floor: bool = False


def _accuracy(evaluation: Evaluation) -> float | None:
    return evaluation.accuracy.mean if evaluation.accuracy else None


def _retained(evaluation: Evaluation) -> float | None:
    retained = evaluation.accuracy.retained if evaluation.accuracy else None
    return retained.mean if retained else None


LIMITS = (
    Limit(
        "ram_bytes",
        "peak memory",
        "--ram",
        "ram",
        lambda e: e.cost.peak_memory_bytes,
        format_bytes,
    ),
    Limit(
        "flops",
        "FLOPs per update",
        "--flops-budget",
        "flops",
        lambda e: e.cost.flops.total,
        format_flops,
    ),
    Limit("storage_bytes", "to ship", "--storage", "storage", lambda e: e.cost.delta_bytes, format_bytes),
    Limit(
        "min_accuracy", "accuracy", "--min-accuracy", "min_accuracy", _accuracy, view.percent, is_floor=True
    ),
    Limit(
        "min_retained", "old data", "--min-retained", "min_retained", _retained, view.percent, is_floor=True
    ),
)


def solved_again(recommendation: Recommendation, budget: Budget) -> Verdict:
    """The solver's verdict on the same candidates under another budget; nothing is trained or run for it.

    What did not survive its run stays out.
    """
    evaluations = [
        replace(
            evaluation,
            violations=(
                *(broken for broken in evaluation.violations if broken.limit == "execution"),
                *violations(budget, evaluation.cost, evaluation.accuracy),
            ),
        )
        for evaluation in recommendation.evaluations
    ]
    return weigh(rank(evaluations, budget), budget, recommendation.data)


def facts(recommendation: Recommendation, numbers: dict[str, int]) -> dict[str, Any]:
    """All that `solver.js` takes, as plain values.

    Args:
        numbers: each candidate's number in the page's tables, by its id.
    """
    evaluations, data = recommendation.evaluations, recommendation.data
    judged = [n for n, evaluation in enumerate(evaluations) if evaluation.accuracy]
    choice = view.chosen(recommendation)
    guess = data.largest_class_share if data else None
    base = data.base_accuracy if data and data.scenario == "shift" else None
    limits = [
        limit
        for limit in LIMITS
        if any(limit.value(e) is not None for e in evaluations)
        or getattr(recommendation.budget, limit.key) is not None
    ]
    return {
        "limits": [_limit(limit, recommendation) for limit in limits],
        "recommended": view.printable(choice.candidate.short) if choice else None,
        "tolerance": recommendation.budget.tolerance,
        "fewest_flops": recommendation.budget.fewest_flops,
        "has_data": data is not None,
        "candidates": [
            {
                "name": view.printable(evaluation.candidate.short),
                "number": numbers[evaluation.candidate.id],
                "figures": view.figures_text(evaluation),
                "costs": [
                    evaluation.cost.peak_memory_bytes,
                    evaluation.cost.flops.total,
                    evaluation.cost.delta_bytes,
                ],
                "values": [limit.value(evaluation) for limit in limits],
                "failed": any(broken.limit == "execution" for broken in evaluation.violations),
                "accuracy": _accuracy(evaluation),
                "finalist": evaluation.accuracy is not None and evaluation.accuracy.finalist,
                "sure_among": _sure_among(guess, evaluation.accuracy, len(judged)),
            }
            for evaluation in evaluations
        ],
        "losses": list(_losses(evaluations, judged)),
        "base": _base(base, guess, evaluations) if base else None,
    }


def _limit(limit: Limit, recommendation: Recommendation) -> dict[str, Any]:
    budget = recommendation.budget
    taken = budget.runtime_overhead_bytes if limit.key == "ram_bytes" else 0
    asked = getattr(budget, limit.key)
    values = [value for e in recommendation.evaluations if (value := limit.value(e)) is not None]
    return {
        "key": limit.key,
        "name": limit.name,
        "option": limit.option,
        "floor": limit.is_floor,
        "taken": taken,
        "asked": asked,
        "asked_text": "" if asked is None else limit.show(asked),
        "steps": _steps(values, limit, taken),
    }


def _steps(values: Sequence[float], limit: Limit, taken: int) -> list[list[Any]]:
    """What a slider stops at, the tightest first: [value, text]. Each differs in what it admits."""
    every = sorted({value + taken for value in values}, reverse=limit.is_floor)
    if len(every) > _STEPS:
        kept = {round(n * (len(every) - 1) / (_STEPS - 1)) for n in range(_STEPS)}
        every = [every[n] for n in sorted(kept)]
    # Rounded to what is shown, to the side that admits the value: what is read can be typed.
    stops = dict.fromkeys(_loosened(value, limit.is_floor) for value in every)
    return [[stop, limit.show(stop)] for stop in stops]


def _loosened(value: float, is_floor: bool) -> float:
    if is_floor:
        return math.floor(value * 1000 + 1e-9) / 1000
    step = 10 ** max(len(str(math.ceil(value))) - 3, 0)
    return math.ceil(value / step) * step


def _sure_among(guess: float | None, accuracy: Accuracy | None, most: int) -> int:
    """Of how many tries it may be the best and is still surely better than guessing: at most `most`."""
    if accuracy is None:
        return 0
    known = accuracy
    return bisect_left(range(1, most + 1), True, key=lambda tries: not surely_above(guess, known, tries))


def _losses(evaluations: Sequence[Evaluation], judged: Sequence[int]) -> Iterator[tuple[int, int, float]]:
    """(best, other, what is expected to be lost with the other), as far as it can matter."""
    for first in judged:
        for second in judged:
            best, other = evaluations[first].accuracy, evaluations[second].accuracy
            if best and other and best.finalist == other.finalist and best.mean > other.mean:
                loss = expected_loss(other, best)
                if loss <= MOST_TOLERANCE:
                    yield first, second, loss


def _base(base: Accuracy, guess: float | None, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    return {
        "accuracy": base.mean,
        "sure": surely_above(guess, base, 1),
        "losses": [expected_loss(base, e.accuracy) if e.accuracy else None for e in evaluations],
    }
