"""Which candidate: hard limits, then accuracy, then - among those as good as the best - cost."""

from __future__ import annotations

from collections.abc import Sequence

from advisor.paired import paired_gap
from advisor.records import Accuracy, Budget, Evaluation

_TRUE_SPREAD = 0.02  # accuracy; of finalists on the tasks of measurements/regret.py
_Z95 = 1.959964  # the normal distribution's 97.5 % quantile


def rank(evaluations: Sequence[Evaluation], budget: Budget) -> list[Evaluation]:
    """The fitting candidates, the choice first, each later one the choice if all before it fail.

    With accuracies: the most accurate finalist of the race sets the mark; those within the tolerance
    of it come by cost; the others follow by accuracy.
    Candidates that the race dropped early come after all finalists. Without: by cost. What was not
    probed is not known to reach a least accuracy: where others were, it is no choice.
    """
    feasible = [evaluation for evaluation in evaluations if evaluation.fits]
    known = [evaluation for evaluation in feasible if evaluation.accuracy is not None]
    if not known:
        has_floor = budget.min_accuracy is not None or budget.min_retained is not None
        if has_floor and any(evaluation.accuracy is not None for evaluation in evaluations):
            return []
        return cheapest_first(feasible, budget)
    ranked: list[Evaluation] = []
    for finalist in (True, False):
        group = [e for e in known if e.accuracy is not None and e.accuracy.finalist == finalist]
        if group:
            best = max(group, key=_mean)
            as_good = [e for e in group if _as_good(e, best, budget)]
            ranked += cheapest_first(as_good, budget)
            ranked += sorted((e for e in group if e not in as_good), key=_mean, reverse=True)
    return ranked


def cheapest_first(evaluations: Sequence[Evaluation], budget: Budget) -> list[Evaluation]:
    """By FLOPs after a bare --flops-budget, else by peak memory; bytes to ship decide ties."""

    def key(evaluation: Evaluation) -> tuple[int, ...]:
        cost = evaluation.cost
        first, second = cost.peak_memory_bytes, cost.flops.total
        if budget.fewest_flops:
            first, second = second, first
        return first, second, cost.delta_bytes

    return sorted(evaluations, key=key)


def is_as_good(accuracy: Accuracy, best: Accuracy, budget: Budget) -> bool:
    """Whether no more than the tolerance is lost with it, as far as can be expected.

    Of a gap seen on few samples, most is chance: its expectation is the gap times s^2 / (s^2 + e^2),
    with e its standard error and s how far finalists truly lie apart (normal prior and likelihood).
    Being indistinguishable is not enough: where 200 samples tell nothing less than 4 points apart, the
    cheapest indistinguishable candidate would lose 2 points on average. How far finalists truly lie apart
    is known of the share of all images alone; in another metric a gap counts as it was seen.
    """
    gap = best.mean - accuracy.mean
    if gap <= budget.tolerance:
        return True
    if budget.metric != "accuracy":
        return False
    low, high = paired_gap(best, accuracy)
    error = (high - low) / (2 * _Z95)
    return gap * _TRUE_SPREAD**2 / (_TRUE_SPREAD**2 + error**2) <= budget.tolerance


def _as_good(evaluation: Evaluation, best: Evaluation, budget: Budget) -> bool:
    assert evaluation.accuracy is not None  # noqa: S101 - the caller ranks only those that have one
    assert best.accuracy is not None  # noqa: S101
    return is_as_good(evaluation.accuracy, best.accuracy, budget)


def pareto_front(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Those that no other beats in accuracy, peak memory and FLOPs at once, by peak memory.

    Accuracies count for the race's finalists only: the others' come from shorter training.
    """
    judged = [e for e in evaluations if e.accuracy is not None and e.accuracy.finalist]
    compared = judged or list(evaluations)
    front = [e for e in compared if not any(_dominates(other, e) for other in compared)]
    return sorted(front, key=lambda evaluation: evaluation.cost.peak_memory_bytes)


def _dominates(one: Evaluation, other: Evaluation) -> bool:
    first, second = _axes(one), _axes(other)
    return first != second and all(a <= b for a, b in zip(first, second, strict=True))


def _axes(evaluation: Evaluation) -> tuple[float, ...]:
    cost = evaluation.cost
    return (-_mean(evaluation), cost.peak_memory_bytes, cost.flops.total)


def _mean(evaluation: Evaluation) -> float:
    return evaluation.accuracy.mean if evaluation.accuracy is not None else 0.0
