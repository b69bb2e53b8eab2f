"""Which per-layer plans are worth trying: what a solver makes of the gradients, within the limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from advisor.costs import Estimator
from advisor.data import Dataset
from advisor.methods.plan import FREEZE, NORM, Plan, option, written
from advisor.probes import captured
from advisor.records import BASELINE, Budget, Candidate, Census, Cost, Levers
from advisor.solver import limits_of
from advisor.solver.allocate import Resource, allocate

# What a layer is given, besides nothing.
CODES = (NORM, "bias", "sparse0.25", "lora4", BASELINE)
_STATES = {"adam": 2, "adamw": 2, "momentum": 1, "sgd": 0}  # that an optimizer keeps of each parameter
_FLOAT = 4  # bytes
_PART = 8  # images: statistics of so many still serve
_TRIES = 8  # plans that are simulated for one set of levers
_NEAR = 0.02  # of the limit: a plan that is so far below it is not made larger


def worth_trying(
    price: Callable[[Candidate], Cost | None],
    model: nn.Module,
    census: Census,
    dataset: Dataset,
    batch_size: int,
    levers: Levers,
    budget: Budget,
) -> list[Candidate]:
    """The best plan with these levers, and where memory is short with what saves it; none where all fits.

    Nor where all of the network can be trained with the batch in parts: no plan came to more than that
    (measurements/README.md).

    Args:
        price: what an update of a candidate costs; None where it can't be run.
        model: with a head.
        dataset: its labels are the model's outputs.
    """
    limits = {name: limit for name, limit in limits_of(budget).items() if name not in budget.warn}
    ram, flops = limits.get("ram", math.inf), limits.get("flops", math.inf)
    everything = price(Candidate(BASELINE, levers=levers))
    if everything is not None:
        ram -= everything.kernels * budget.kernel_bytes  # a plan has much the same

    def everything_fits(with_levers: Levers) -> bool | None:
        cost = price(Candidate(BASELINE, levers=with_levers))
        return None if cost is None else cost.peak_memory_bytes <= ram and cost.flops.total <= flops

    light = replace(levers, checkpoint=True, update="per-parameter")
    if everything_fits(levers) in (True, None):
        return []
    in_parts = [replace(each, micro_batch=_PART) for each in (levers, light) if batch_size > _PART]
    if any(map(everything_fits, in_parts)):
        return []
    planner = Planner(price, model, census, dataset, batch_size)
    found = [planner.best(levers, ram, flops), planner.best(light, ram, flops) if ram < math.inf else None]
    return [plan for plan in found if plan is not None]


class Planner:
    """Finds the plan that captures most of the gradients within limits; measures gradients and costs once."""

    def __init__(
        self,
        price: Callable[[Candidate], Cost | None],
        model: nn.Module,
        census: Census,
        dataset: Dataset,
        batch_size: int,
        codes: Sequence[str] = CODES,
        *,
        relative: bool = True,
    ) -> None:
        """Record one update of each option, and the gradients of a few batches. See `worth_trying`."""
        options = [option(code) for code in codes]
        self._price, self._census, self._codes = price, census, (FREEZE, *codes)
        self._table = Estimator(model, census, options, batch_size).table
        self._benefit = captured(model, census, dataset, batch_size, options, relative=relative)
        parameters = self._table.parameters
        self._allowed = parameters > 0
        for number, code in enumerate(self._codes):
            if code not in (FREEZE, NORM, BASELINE):  # where it trains the whole weight, `full` says so
                self._allowed[:, number] &= parameters[:, number] < parameters[:, self._codes.index(BASELINE)]
        for layer, allowed in zip(census.layers, self._allowed, strict=True):
            if layer.name == census.head:  # a new head has to be trained, and any other may be
                allowed[:] = [code == BASELINE for code in self._codes]
            elif layer.layer_type == NORM:
                allowed[:] &= [code == NORM for code in self._codes]
            else:
                allowed[:] &= [code != NORM for code in self._codes]
            allowed[0] = layer.name != census.head

    def best(self, levers: Levers, ram: float, flops: float) -> Candidate | None:
        """The plan with these levers that captures most; None: none trains more than the head, or all fits.

        The table knows what is saved for the backward pass, not the peak, and not what levers save of it: how
        much may be saved is found by simulating one plan after the other.

        Args:
            ram: bytes that an update may hold at its peak; infinite where there is no limit.
            flops: that it may take, likewise.
        """
        nothing = np.zeros(len(self._benefit), dtype=np.int64)
        least, most = (
            self._price(self._candidate(nothing, levers)),
            self._saved(levers).max(axis=(0, 2)).sum(),
        )
        if least is None or least.peak_memory_bytes > ram or least.flops.total > flops:
            return None
        held = least.memory.weights + least.memory.buffers + least.memory.batch
        best: Candidate | None = None
        low, high = 0.0, float(most) if levers.checkpoint or ram == math.inf else float(ram - held)
        allowance, most_flops = high, flops
        last, less = None, 0.0
        for _ in range(_TRIES):
            plan = self._allocate(levers, allowance, ram - held, most_flops)
            if plan is None:
                break
            candidate = self._candidate(plan, levers)
            cost = self._price(candidate)
            if cost is None:
                break
            over = cost.peak_memory_bytes - ram
            if cost.flops.total > flops:
                most_flops -= cost.flops.total - flops
                continue
            if over <= 0:
                best, low = (candidate if self._trains(plan) else None), allowance
            else:
                high = allowance
            if high - low <= _NEAR * ram:
                break
            # Without levers, what is above the limit is as much as has to be saved less; and more than that
            # where the plan had not saved all that it might.
            less = 2 * less if candidate == last else float(over)
            exact = high - less > low and over > 0 and not levers.checkpoint
            allowance, last = high - less if exact else (low + high) / 2, candidate
        return best

    def _trains(self, plan: NDArray[np.int64]) -> bool:
        """Whether it trains more than the head."""
        layers = zip(self._census.layers, plan, strict=True)
        return any(number > 0 and layer.name != self._census.head for layer, number in layers)

    def _allocate(self, levers: Levers, saved: float, held: float, flops: float) -> NDArray[np.int64] | None:
        """Within bytes that are saved in the forward pass, and that are held after the backward pass."""
        table = self._table
        again = table.saved_again_bytes.astype(np.float64)
        trained = self._saved(levers) - table.saved_bytes
        if levers.update == "end":
            trained = trained + _FLOAT * table.parameters
        resources = (
            Resource(self._saved(levers), again, saved),
            Resource(trained.astype(np.float64), np.zeros_like(again), held),
            Resource(table.flops.astype(np.float64), np.zeros_like(again), flops - table.outside_flops),
        )
        limited = [resource for resource in resources if resource.limit < math.inf]
        return allocate(self._benefit, self._allowed, table.leads_to, limited)

    def _saved(self, levers: Levers) -> NDArray[np.float64]:
        """Bytes held when the forward pass ends, for each option: saved activations and optimizer state."""
        state = _FLOAT * _STATES[levers.optimizer] * self._table.parameters
        return (self._table.saved_bytes + state).astype(np.float64)

    def _candidate(self, plan: NDArray[np.int64], levers: Levers) -> Candidate:
        text = written(self._census, [self._codes[number] for number in plan])
        return Candidate.of(Plan.name, {"layers": text}, levers)
