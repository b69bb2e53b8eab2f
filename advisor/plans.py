"""Which per-layer plans are worth trying: what the solver makes of the gradients, within the limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from advisor.candidates import Pricing
from advisor.costs import Estimator
from advisor.data import Dataset
from advisor.errors import AdvisorError
from advisor.methods.plan import FREEZE, NORM, Plan, written
from advisor.probes.gradients import captured
from advisor.records import BASELINE, Candidate, Census, Cost, Levers
from advisor.solver.allocate import Resource, allocate

_STATES = {"adam": 2, "adamw": 2, "momentum": 1, "sgd": 0}  # that an optimizer keeps of each parameter
_TRIES = 6  # plans simulated for one combination of levers
_NEAR = 0.02  # of the limit: a plan that much below it is not made larger
# What a layer may be given, besides nothing; further ones where they are asked for.
CODES = (NORM, "bias", "sparse0.25", "lora4", BASELINE)


class Planner:
    """Finds the plan that captures the most of the gradients within limits; measures them once."""

    def __init__(
        self,
        simulator: Pricing,
        model: nn.Module,
        census: Census,
        dataset: Dataset,
        batch_size: int,
        codes: Sequence[str] = CODES,
    ) -> None:
        from advisor.methods.plan import option

        self._simulator, self._census, self._batch_size = simulator, census, batch_size
        self._codes = (FREEZE, *codes)
        options = [option(code) for code in codes]
        self._table = Estimator(model, census, options, batch_size).table
        self._benefit = captured(model, census, dataset, batch_size, options)
        self._allowed = self._table.parameters > 0
        self._allowed[:, 0] = True
        norms = np.array([layer.layer_type == "norm" for layer in census.layers])
        is_norm = np.array([code == NORM for code in self._codes])
        self._allowed[:, 1:] &= norms[:, None] == is_norm[None, 1:]
        head = next(n for n, layer in enumerate(census.layers) if layer.name == census.head)
        self._allowed[head] = [code == BASELINE for code in self._codes]

    def best(self, levers: Levers, ram: int | None, flops: int | None) -> tuple[Candidate, Cost] | None:
        """The plan with these levers that captures the most; None: none fits.

        The table knows saved activations, not the peak: what is left for them is found by trying.
        """
        fixed = self._cost(np.zeros(len(self._benefit), dtype=np.int64), levers)
        if fixed is None or _over(fixed[1], ram, flops):
            return None
        best = fixed
        low, high = 0.0, float("inf")
        held = best[1].memory.weights + best[1].memory.buffers + best[1].memory.batch
        left = float("inf") if ram is None else float(ram - held)
        most_flops = float("inf") if flops is None else float(flops)
        allowance = left
        for _ in range(_TRIES):
            plan = self._allocate(levers, allowance, left, most_flops)
            found = None if plan is None else self._cost(plan, levers)
            if found is None:
                break
            cost = found[1]
            if flops is not None and cost.flops.total > flops:
                most_flops -= cost.flops.total - flops
                continue
            if ram is None or cost.peak_memory_bytes <= ram:
                best, low = found, allowance
            else:
                high = allowance
            if ram is None or high == float("inf") or high - low < _NEAR * ram:
                break
            over = cost.peak_memory_bytes - ram
            allowance = high - over if low == 0 and low < high - over else (low + high) / 2
        return best

    def _allocate(
        self, levers: Levers, saved: float, left: float, flops: float
    ) -> NDArray[np.int64] | None:
        table = self._table
        each = 4.0 * table.parameters
        state = _STATES[levers.optimizer] * each
        gradients = each if levers.update == "end" else 0 * each
        none = np.zeros(len(table.saved_again_bytes))
        resources = [
            Resource(table.saved_bytes + state, table.saved_again_bytes.astype(float), saved),
            Resource(np.stack([gradients + state] * 2), none, left),
            Resource(table.flops.astype(float), none, flops - table.outside_flops),
        ]
        limited = [resource for resource in resources if resource.limit < float("inf")]
        return allocate(self._benefit, self._allowed, table.leads_to, limited)

    def _cost(self, plan: NDArray[np.int64], levers: Levers) -> tuple[Candidate, Cost] | None:
        text = written(self._census, [self._codes[number] for number in plan])
        candidate = Candidate.of(Plan.name, {"layers": text}, levers)
        return candidate, self._simulator.cost(candidate, self._batch_size)


def _over(cost: Cost, ram: int | None, flops: int | None) -> bool:
    return (ram is not None and cost.peak_memory_bytes > ram) or (flops is not None and cost.flops.total > flops)
