"""Which trainings are tried next, and which go on: pure functions of what is known of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import TypeVar

from advisor.methods import get_method, learning_rates
from advisor.paired import paired_gap
from advisor.records import SMALL_BATCH, Accuracy, Candidate, Cost, StatisticsPolicy

_Item = TypeVar("_Item")
Entry = tuple[Candidate, float]  # and a learning rate


def opening(
    candidates: Iterable[Candidate], wanted: Callable[[Candidate], StatisticsPolicy]
) -> list[Candidate]:
    """Each method whole and with half of the network trained, by turns, the promising first.

    Promising: by `Method.opening`, but where a head is solved in closed form, one that is trained alone can
    wait. Of a method's candidates, one with the wanted statistics, in its middle setting, with the fewest
    other levers.
    """
    candidates = list(candidates)
    solves = any(get_method(c.method).only_head and not learning_rates(c) for c in candidates)

    def suiting(group: Sequence[Candidate]) -> Sequence[Candidate]:
        return [c for c in group if c.levers.statistics == wanted(c)] or group

    def place(candidate: Candidate, part: int) -> tuple[bool, int]:
        method = get_method(candidate.method)
        return solves and method.only_head, method.opening[part]

    trained = [candidate for candidate in candidates if learning_rates(candidate)]
    whole = [_middle(suiting(group)) for group in _by_method(c for c in trained if not c.levers.scope)]
    half = [_widest(suiting(group)) for group in _by_method(c for c in trained if c.levers.scope)]
    whole.sort(key=lambda candidate: place(candidate, 0))
    half.sort(key=lambda candidate: place(candidate, 1))
    return by_turns([whole, half])


def statistics_to_try(candidate: Candidate, batch_size: int, *, shifted: bool) -> StatisticsPolicy:
    """With which normalisation statistics a method is tried first.

    Args:
        shifted: whether re-estimated ones were seen to suit the data better than those of the model.
    """
    updated = get_method(candidate.method).statistics == "updated"
    if updated and batch_size >= SMALL_BATCH:
        return "own"
    if shifted:
        return "reestimated"
    return "frozen" if updated else "own"


def middle_rate(candidate: Candidate) -> float:
    """Where the candidate's learning rates are tried first."""
    return _middle_of(learning_rates(candidate))


def rates_beside(leaders: Sequence[Candidate], rates: Mapping[Candidate, float]) -> list[Entry]:
    """The leaders at the learning rates next to theirs, the larger ones first."""
    return by_turns(
        [(leader, grid[place]) for place in (at + 1, at - 1) if 0 <= place < len(grid)]
        for leader in leaders
        for grid, at in [(learning_rates(leader), _place(leader, rates[leader]))]
    )


def variants(
    leaders: Sequence[Candidate],
    others: Sequence[Candidate],
    rates: Mapping[Candidate, float],
    unseen: Iterable[Candidate],
) -> list[Entry]:
    """Other settings, scopes and levers of the leaders' methods; the others at a rate like the leaders' best.

    By turns, the first leader's first; the others only where the middle of the leaders' grids was not best.
    """
    # The wide scopes first.
    unseen = sorted(unseen, key=lambda c: -math.inf if c.levers.scope is None else -c.levers.scope)
    step = preferred_step(rates[leader] / middle_rate(leader) for leader in leaders)
    moved = [(one, _stepped(one, step)) for one in others if step]
    alike = [[(one, rates[leader]) for one in unseen if one.method == leader.method] for leader in leaders]
    return list(dict.fromkeys(by_turns([*alike, moved])))


def preferred_step(factors: Iterable[float]) -> int:
    """Up, down, or neither: where most of the best learning rates are, as multiples of middle ones."""
    directions = [(factor > 1.01) - (factor < 0.99) for factor in factors]
    return max((0, 1, -1), key=directions.count)


def by_promise(accuracies: Mapping[Candidate, Accuracy]) -> list[Candidate]:
    """Those that can't be told from the most accurate, by accuracy; then the others.

    Can't be told: the paired interval of the difference holds zero. `accuracies` is in order of cost,
    which decides ties.
    """
    by_accuracy = sorted(accuracies, key=lambda candidate: accuracies[candidate].mean, reverse=True)
    if not by_accuracy:
        return []
    leader = accuracies[by_accuracy[0]]
    return sorted(by_accuracy, key=lambda candidate: surely_better(leader, accuracies[candidate]))


def undominated(
    accuracies: Mapping[Candidate, Accuracy], costs: Mapping[Candidate, Cost]
) -> dict[Candidate, Accuracy]:
    """Without those that another one beats in memory, FLOPs and, surely, in accuracy."""

    def beaten(candidate: Candidate) -> bool:
        own = costs[candidate]
        return any(
            cost.peak_memory_bytes <= own.peak_memory_bytes
            and cost.flops.total <= own.flops.total
            and surely_better(accuracies[other], accuracies[candidate])
            for other in accuracies
            if other != candidate and (cost := costs[other])
        )

    return {candidate: accuracy for candidate, accuracy in accuracies.items() if not beaten(candidate)}


def surely_better(one: Accuracy, other: Accuracy) -> bool:
    """Whether the paired interval of their difference is above zero."""
    return paired_gap(one, other)[0] > 0


def by_turns(lists: Iterable[Sequence[_Item]]) -> list[_Item]:
    """The first of each, then the second of each, and so on."""
    return [item for turn in zip_longest(*lists) for item in turn if item is not None]


def _place(candidate: Candidate, rate: float) -> int:
    """Where in the candidate's grid the learning rate is."""
    grid = learning_rates(candidate)
    return min(range(len(grid)), key=lambda number: abs(math.log(grid[number] / rate)))


def _stepped(candidate: Candidate, step: int) -> float:
    """The learning rate so many steps from the middle of the candidate's grid."""
    grid = learning_rates(candidate)
    return grid[min(max(len(grid) // 2 + step, 0), len(grid) - 1)]


def _middle(group: Sequence[Candidate]) -> Candidate:
    """The middle setting with the fewest levers."""
    fewest = min(len(candidate.levers.described()) for candidate in group)
    return _middle_of([c for c in group if len(c.levers.described()) == fewest])


def _widest(group: Sequence[Candidate]) -> Candidate:
    """The one that trains the most blocks, with the fewest other levers."""
    return max(group, key=lambda c: (c.levers.scope or 0, -len(c.levers.described())))


def _by_method(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.method, []).append(candidate)
    return list(groups.values())


def _middle_of(items: Sequence[_Item]) -> _Item:
    return items[len(items) // 2]
