"""Which candidate: hard limits, then accuracy, then - among those as good as the best - cost."""

from __future__ import annotations

from collections.abc import Sequence

from advisor.paired import paired_gap
from advisor.records import Budget, Evaluation


def rank(evaluations: Sequence[Evaluation], budget: Budget) -> list[Evaluation]:
    """The fitting candidates, the choice first, each later one the choice if all before it fail.

    With accuracies: the most accurate finalist of the race sets the mark; those within the tolerance
    of it, or statistically indistinguishable from it, come by cost; the others follow by accuracy.
    Candidates that the race dropped early come after all finalists. Without: by cost.
    """
    feasible = [evaluation for evaluation in evaluations if evaluation.fits]
    known = [evaluation for evaluation in feasible if evaluation.accuracy is not None]
    if not known:
        return cheapest_first(feasible, budget)
    ranked: list[Evaluation] = []
    for finalist in (True, False):
        group = [e for e in known if e.accuracy is not None and e.accuracy.finalist == finalist]
        if group:
            best = max(group, key=_mean)
            as_good = [e for e in group if is_as_good(e, best, budget.tolerance)]
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


def is_as_good(evaluation: Evaluation, best: Evaluation, tolerance: float) -> bool:
    """Whether the accuracy is within the tolerance of the best, or not distinguishable from it."""
    if _mean(evaluation) >= _mean(best) - tolerance:
        return True
    assert evaluation.accuracy is not None  # noqa: S101 - the caller ranks only those that have one
    assert best.accuracy is not None  # noqa: S101
    return paired_gap(best.accuracy, evaluation.accuracy)[0] <= 0


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
