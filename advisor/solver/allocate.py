"""A per-layer plan: what is done in each layer, so that as much as possible is won within the limits.

A mixed-integer linear programme, solved by HiGHS. Each layer takes one option. What an option costs
depends on the other layers in one thing only: whether gradients flow through this one, on their way to
a trained layer before it; that is decided, and paid for, once. Any layers may be trained, not only the last.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger(__name__)
_Numbers = NDArray[np.float64]
_GAP = 1e-3  # of the best, that a plan may be short of it
_ROUGH = 1e-2  # likewise of a plan that only shows where to look
_MARGIN = 1e-5  # of a limit, that is left: HiGHS takes what is above it by 1e-6 for within
_OPTIMAL, _INFEASIBLE = 0, 2  # milp's status
# How long is looked for a better plan. Counted, not timed: a busy machine finds the same one. One branching
# and three rounds are usual.
_BRANCHINGS, _ROUNDS = 1000, 100


@dataclass(frozen=True, slots=True)
class Resource:
    """What is limited: what each option takes of it in each layer, and how much there is."""

    by_layer: _Numbers  # (2, L, O): where no gradient flows on through the layer, and where one does
    by_call: _Numbers  # (C - L,): what a layer's further calls take where a gradient flows through them
    limit: float


def allocate(
    benefit: _Numbers,
    allowed: NDArray[np.bool_],
    leads_to: NDArray[np.bool_],
    resources: Sequence[Resource],
) -> NDArray[np.int64] | None:
    """The plan with the largest sum of benefits that takes no more than there is; None: none does.

    Args:
        benefit: (L, O), of each option in each layer; option 0 leaves the layer frozen.
        allowed: (L, O): which options a layer may take.
        leads_to: (L, C): whether a layer's output enters a call, the layers' first calls before further ones.

    Returns:
        (L,) numbers of options, within 0.1 % of the best plan's benefit; where that takes more branchings
        than are allowed, which the log tells, the best that was found by then.
    """
    shape = _Shape(_affordable(allowed, leads_to, resources), leads_to)
    rows = [*shape.one_option_each(), *shape.flows_follow()]
    for resource in resources:
        # Of the limit: in bytes and FLOPs the solver's tolerances, which are absolute, would mean nothing.
        whole = abs(resource.limit) or 1.0
        rows.append((shape.taken(resource) / whole, -np.inf, resource.limit / whole - _MARGIN))
    programme = _Programme(shape.spread(benefit) / (np.abs(benefit).max() or 1.0), rows)
    best: _Numbers | None = None
    won = -np.inf
    # Where gradients flow is the hard part. With options in shares it takes few branchings, and says what any
    # plan with other flows can win; for given flows, whole options win nearly as much, and are soon found.
    for _ in range(_ROUNDS):
        shares = programme.solve(whole=shape.flows)
        if shares is None:
            break
        flows = np.where(shape.flows, np.round(shares), np.nan)
        found = programme.solve(fixed=flows)
        if found is not None and programme.value(found) > won:
            best, won = found, programme.value(found)
            # Once none is worth that, it is the best but for the gap.
            programme.demand(won + max(_GAP * abs(won), _MARGIN))
        programme.exclude(flows)
    else:
        _log.warning("the plan may be short of the best: the search ended after %d rounds", _ROUNDS)
    return None if best is None else _filled(shape.plan(best), benefit, allowed, leads_to, resources)


def _filled(
    plan: NDArray[np.int64],
    benefit: _Numbers,
    allowed: NDArray[np.bool_],
    leads_to: NDArray[np.bool_],
    resources: Sequence[Resource],
) -> NDArray[np.int64]:
    """The plan with what is left spent, on layers that are trained already or that gradients flow through.

    Within the gap the solver leaves out what wins little, even where it costs nothing.
    """
    layers, every = len(plan), np.arange(len(plan))
    flows: NDArray[np.bool_] = np.any(leads_to[plan > 0], axis=0)
    costs = [resource.by_layer[flows[:layers].astype(int), every] for resource in resources]  # (L, O)
    left = [
        (1 - _MARGIN) * resource.limit - cost[every, plan].sum() - flows[layers:] @ resource.by_call
        for resource, cost in zip(resources, costs, strict=True)
    ]
    filled = plan.copy()
    gains = np.where(
        allowed & ((plan > 0) | flows[:layers])[:, None], benefit - benefit[every, plan][:, None], 0
    )
    for place in np.argsort(-gains, axis=None, kind="stable")[: np.count_nonzero(gains > 0)]:
        layer, option = np.unravel_index(place, gains.shape)
        before = filled[layer]
        more = [cost[layer, option] - cost[layer, before] for cost in costs]
        fits = all(taken <= rest for taken, rest in zip(more, left, strict=True))
        if fits and benefit[layer, option] > benefit[layer, before]:
            filled[layer] = option
            left = [rest - taken for rest, taken in zip(left, more, strict=True)]
    return filled


def _affordable(
    allowed: NDArray[np.bool_], leads_to: NDArray[np.bool_], resources: Sequence[Resource]
) -> NDArray[np.bool_]:
    """Without the options that take more than there is, whatever is done in the other layers."""
    layers = len(leads_to)
    flows = leads_to.astype(float)  # were the layer of this row trained
    affordable = allowed.copy()
    for resource in resources:
        still, through = np.where(allowed, resource.by_layer, np.inf)
        least_through = through.min(axis=1)
        least = np.minimum(still.min(axis=1), least_through)  # others may make gradients flow through it
        others = np.where(leads_to[:, :layers], least_through, least)
        np.fill_diagonal(others, 0.0)
        around = others.sum(axis=1) + flows[:, layers:] @ resource.by_call
        own = np.where(leads_to[:, :layers].diagonal()[:, None], through, np.minimum(still, through))
        affordable[:, 1:] &= (around[:, None] + own <= resource.limit)[:, 1:]
    return affordable


_Row = tuple[_Numbers | dict[Any, float], float, float]  # of the programme: weights, least, most


class _Shape:
    """Where each decision stands among the programme's variables, all of them 0 or 1.

    First one for each option that a layer may take where no gradient flows on, then one for each where
    one does, then one for each call: whether a gradient flows through it.
    """

    def __init__(self, allowed: NDArray[np.bool_], leads_to: NDArray[np.bool_]) -> None:
        self._layers, self._options = np.nonzero(allowed)
        self._leads_to = leads_to
        self._count = len(self._layers)
        self._flow = 2 * self._count
        self.size = self._flow + leads_to.shape[1]
        self.flows = np.arange(self.size) >= self._flow

    def one_option_each(self) -> list[_Row]:
        """Of those where a gradient flows on, where one does; else of the others."""
        rows: list[_Row] = []
        for layer in range(len(self._leads_to)):
            still = np.flatnonzero(self._layers == layer)
            flow = self._flow + layer
            rows.append((dict.fromkeys(still + self._count, 1.0) | {flow: -1.0}, 0.0, 0.0))
            rows.append((dict.fromkeys(still, 1.0) | {flow: 1.0}, 1.0, 1.0))
        return rows

    def flows_follow(self) -> list[_Row]:
        """A gradient flows through what a trained layer's output enters, and on from there; nowhere else."""
        rows: list[_Row] = []
        calls = self._leads_to.shape[1]
        causes: list[dict[int, float]] = [{} for _ in range(calls)]
        for layer, call in zip(*np.nonzero(_nearest(self._leads_to)), strict=True):
            trained = np.flatnonzero((self._options > 0) & (self._layers == layer))
            cause = dict.fromkeys([*trained, *(trained + self._count)], -1.0)
            rows.append((cause | {self._flow + call: 1.0}, 0.0, np.inf))
            if call != layer:
                rows.append(({self._flow + layer: -1.0, self._flow + call: 1.0}, 0.0, np.inf))
                cause |= {self._flow + layer: -1.0}
            causes[call] |= cause
        rows += [(causes[call] | {self._flow + call: 1.0}, -np.inf, 0.0) for call in range(calls)]
        return rows

    def taken(self, resource: Resource) -> _Numbers:
        """Of a resource, by each decision."""
        by_option = resource.by_layer[:, self._layers, self._options].reshape(-1)
        return np.concatenate([by_option, np.zeros(len(self._leads_to)), resource.by_call])

    def spread(self, benefit: _Numbers) -> _Numbers:
        """The benefit of each decision."""
        once = benefit[self._layers, self._options]
        return np.concatenate([once, once, np.zeros(self._leads_to.shape[1])])

    def plan(self, decisions: _Numbers) -> NDArray[np.int64]:
        """The option that each layer takes."""
        taken = decisions[: self._count] + decisions[self._count : self._flow] > 0.5
        plan = np.zeros(len(self._leads_to), dtype=np.int64)
        plan[self._layers[taken]] = self._options[taken]
        return plan


def _nearest(leads_to: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pairs from which all others follow: those with no layer between the two."""
    layers = len(leads_to)
    back = leads_to[:, :layers]
    onward = leads_to.copy()
    onward[:, :layers] &= ~back.T  # where two lead to each other, neither lies between
    between = onward[:, :layers].astype(np.float32) @ onward.astype(np.float32) > 0
    return leads_to & ~between


class _Programme:
    """Decisions, each 0 or 1, that are worth the most under rows of constraints."""

    def __init__(self, worth: _Numbers, rows: Sequence[_Row]) -> None:
        from scipy.sparse import csr_array

        self._worth = worth
        matrix = np.zeros((len(rows), len(worth)))
        for number, (row, _, _) in enumerate(rows):
            if isinstance(row, dict):
                matrix[number, list(row)] = list(row.values())
            else:
                matrix[number] = row
        self._rows = [csr_array(worth[None]), csr_array(matrix)]
        self._least = [-np.inf, *(least for _, least, _ in rows)]
        self._most = [np.inf, *(most for _, _, most in rows)]

    def value(self, decisions: _Numbers) -> float:
        """What the decisions are worth."""
        return float(self._worth @ decisions)

    def demand(self, least: float) -> None:
        """From now on, the decisions have to be worth that much."""
        self._least[0] = least

    def exclude(self, fixed: _Numbers) -> None:
        """From now on, not all decisions that are fixed may be as they are; the others are NaN."""
        from scipy.sparse import csr_array

        signs = np.select([fixed == 1, fixed == 0], [-1.0, 1.0], 0.0)
        self._rows.append(csr_array(signs[None]))
        self._least.append(1.0 - np.sum(fixed == 1))
        self._most.append(np.inf)

    def solve(self, whole: NDArray[np.bool_] | None = None, fixed: _Numbers | None = None) -> _Numbers | None:
        """The decisions; None: none meet the constraints.

        Args:
            whole: which are 0 or 1, the others being shares; all by default.
            fixed: decisions that are made already; NaN for the others.
        """
        gap = _GAP if whole is None else _ROUGH
        # Presolving now and then ends in numerical trouble, or finds infeasible what isn't.
        for presolve in (True, False):
            found = self._solved(whole, fixed, gap, presolve=presolve, most=_BRANCHINGS)
            if found.x is not None:
                break
        if found.status not in (_OPTIMAL, _INFEASIBLE):
            _log.warning(
                "the plan may be short of the best: the search ended after %d branchings", _BRANCHINGS
            )
            if found.x is None:  # then the first that is found, or that there is none
                found = self._solved(whole, fixed, np.inf, presolve=False)
        return found.x

    def _solved(
        self,
        whole: NDArray[np.bool_] | None,
        fixed: _Numbers | None,
        gap: float,
        *,
        presolve: bool,
        most: int | None = None,
    ) -> Any:
        """What milp says; `most`: so many branchings."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import vstack

        made = np.full(len(self._worth), np.nan) if fixed is None else fixed
        return milp(
            -self._worth,
            integrality=np.ones(len(self._worth)) if whole is None else whole.astype(int),
            bounds=Bounds(np.nan_to_num(made, nan=0.0), np.nan_to_num(made, nan=1.0)),
            constraints=LinearConstraint(vstack(self._rows), self._least, self._most),
            options={"mip_rel_gap": gap, "presolve": presolve}
            | ({} if most is None else {"node_limit": most}),
        )
