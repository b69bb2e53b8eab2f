"""Which candidate: hard limits, then accuracy, then - among those as good as the best - cost."""

from __future__ import annotations

from collections.abc import Sequence

from advisor.records import Accuracy, Budget, Evaluation, Preference
from advisor.solver.paired import paired_error, paired_gap

_TRUE_SPREAD = 0.02  # accuracy; of finalists on the tasks of measurements/regret.py


def rank(evaluations: Sequence[Evaluation], budget: Budget) -> list[Evaluation]:
    """The fitting candidates, the choice first, each later one the choice if all before it fail.

    With accuracies: the most accurate finalist of the race sets the mark, and of those as good as it the
    cheapest is the choice, but nothing that another beats in both, accuracy and order of cost.
    Candidates that the race dropped early come after all finalists. Without: by cost. What was not
    probed is not known to reach a least accuracy: where others were, it is no choice.
    """
    feasible = [evaluation for evaluation in evaluations if evaluation.fits]
    known = [evaluation for evaluation in feasible if evaluation.accuracy is not None]
    if not known:
        if has_floor(budget) and any(evaluation.accuracy is not None for evaluation in evaluations):
            return []
        return cheapest_first(feasible, budget)
    ranked: list[Evaluation] = []
    for finalist in (True, False):
        group = [e for e in known if e.accuracy is not None and e.accuracy.finalist == finalist]
        left = cheapest_first(group, budget)
        while left:
            ranked.append(_first_choice(left, budget))
            left = [evaluation for evaluation in left if evaluation is not ranked[-1]]
    return ranked


def has_floor(budget: Budget) -> bool:
    """Whether an accuracy has to be known to fit."""
    floors = {"min_accuracy": budget.min_accuracy, "min_retained": budget.min_retained}
    return any(floor is not None and name not in budget.warn for name, floor in floors.items())


def _first_choice(cheapest: Sequence[Evaluation], budget: Budget) -> Evaluation:
    """Of candidates in order of cost, the cheapest that is as good as the most accurate.

    Where it is known what they forget, what surely forgets more than another that is as good isn't. One
    that is neither more accurate than a cheaper one nor forgets less doesn't count, however unsure both are.
    So more to choose from never makes the choice dearer and less accurate, but for what it forgets, and what
    is beaten changes nothing.
    """
    unbeaten: list[Evaluation] = []
    for evaluation in cheapest:
        if all(_mean(evaluation) > _mean(e) or _kept(evaluation) > _kept(e) for e in unbeaten):
            unbeaten.append(evaluation)
    best = max(unbeaten, key=_mean).accuracy
    assert best is not None  # noqa: S101 - the caller ranks only those that have one
    good = [e for e in unbeaten if e.accuracy is not None and is_as_good(e.accuracy, best, budget)]
    most = max(map(_kept, good))
    return next(e for e in good if (old := _retained(e)) is None or old.high >= most)


def cheapest_first(evaluations: Sequence[Evaluation], budget: Budget) -> list[Evaluation]:
    """By the cost that is preferred, then by the others; names decide ties.

    Without a target, the seconds of those that were run are known: they come first, others follow by FLOPs.
    """
    return sorted(evaluations, key=lambda evaluation: _in_order(evaluation, budget.prefer))


def _in_order(evaluation: Evaluation, prefer: Preference) -> tuple[float | str, ...]:
    cost, seconds = evaluation.cost, evaluation.update_seconds
    ram, flops = cost.peak_memory_bytes, cost.flops.total
    rest = (cost.delta_bytes, cost.trainable_parameters, cost.inference_flops_ratio, evaluation.candidate.id)
    if prefer == "flops":
        return (flops, ram, *rest)
    if prefer == "storage":
        return (cost.delta_bytes, ram, flops, *rest[1:])
    if prefer == "time":
        return (seconds if seconds is not None else float("inf"), flops, ram, *rest)
    return (ram, flops, *rest)


def is_as_good(accuracy: Accuracy, best: Accuracy, budget: Budget) -> bool:
    """Whether no more than the tolerance is lost with it, as far as can be expected.

    Of a gap seen on few samples, most is chance: its expectation is the gap times s^2 / (s^2 + e^2),
    with e its standard error and s how far finalists truly lie apart (normal prior and likelihood).
    Being indistinguishable is not enough: where 200 samples tell nothing less than 4 points apart, the
    cheapest indistinguishable candidate would lose 2 points on average. How far finalists truly lie apart
    is known of the share of all images alone; in another metric a gap counts as it was seen.
    """
    return (
        best.mean - accuracy.mean <= budget.tolerance
        or expected_loss(accuracy, best, budget) <= budget.tolerance
    )


def expected_loss(accuracy: Accuracy, best: Accuracy, budget: Budget) -> float:
    """What is expected to be lost with it, as a fraction, in the budget's metric."""
    gap = best.mean - accuracy.mean
    if accuracy.seen is not None and best.seen is not None:
        return gap  # of what is expected of each
    return expected_gap(gap, paired_error(best, accuracy)) if budget.metric == "accuracy" else gap


def expected_gap(gap: float, error: float) -> float:
    """What a gap in accuracy is expected to be, seen with that standard error."""
    return gap * _TRUE_SPREAD**2 / (_TRUE_SPREAD**2 + error**2)


def pareto_front(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Those that no other surely beats in accuracy and all costs at once, by peak memory.

    One beats another where none of its costs - RAM, FLOPs, bytes to ship, trained parameters, inference
    overhead, and seconds as far as both were run - is higher, its accuracy, and that on old data, where it
    is known, is not lower, and this is no chance: it is surely more accurate, or surely no less and cheaper
    in something, or cheaper in each of the first four. So what is dearer in all and not seen to be more
    accurate is beaten; what is less accurate, but not surely, and as cheap in something stays. Accuracies
    count for the race's finalists only: the others' come from shorter training. Where none is known, costs
    alone decide.
    """
    finalists = [e for e in evaluations if e.accuracy is not None and e.accuracy.finalist]
    compared = finalists or list(evaluations)
    front = [e for e in compared if not any(_beats(other, e) for other in compared)]
    return sorted(front, key=lambda evaluation: evaluation.cost.peak_memory_bytes)


def _beats(one: Evaluation, other: Evaluation) -> bool:
    first, second = _costs(one), _costs(other)
    if any(a > b for a, b in zip(first, second, strict=True)):
        return False
    if _mean(one) < _mean(other) or _kept(one) < _kept(other):
        return False
    its, own = other.update_seconds, one.update_seconds
    if its is not None and not (own is not None and own <= its):
        return False
    if one.accuracy is None or other.accuracy is None:
        return first != second
    if all(a < b for a, b in zip(first[:4], second[:4], strict=True)):
        return True
    surely = paired_gap(one.accuracy, other.accuracy)[0]
    return surely > 0 or (surely == 0 and first != second)


def _costs(evaluation: Evaluation) -> tuple[float, ...]:
    cost = evaluation.cost
    return (
        cost.peak_memory_bytes,
        cost.flops.total,
        cost.delta_bytes,
        cost.trainable_parameters,
        cost.inference_flops_ratio,
    )


def _retained(evaluation: Evaluation) -> Accuracy | None:
    return evaluation.accuracy.retained if evaluation.accuracy is not None else None


def _kept(evaluation: Evaluation) -> float:
    old = _retained(evaluation)
    return old.mean if old is not None else 0.0


def _mean(evaluation: Evaluation) -> float:
    return evaluation.accuracy.mean if evaluation.accuracy is not None else 0.0
