"""What a step of torch's own optimizers holds and computes, without running it.

A simulated update spends most of its time in the optimizer, which does the same to every parameter.
The tests hold this against the real steps; optimizers that are not listed here are run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from advisor.costs.flops import operator_flops


@dataclass(frozen=True, slots=True)
class Step:
    """One parameter's step."""

    name: str  # of the work that it is
    states: tuple[str, ...]  # tensors of the parameter's size that are kept
    counts: bool  # a step counter is kept, a scalar
    temporaries: int  # tensors of the parameter's size, the last of which lives until the next's is made
    flops_per_element: int
    flops: int  # on top of that


def known_step(optimizer: torch.optim.Optimizer) -> Step | None:
    """The step of plain Adam, AdamW and SGD as `plain_optimizer` makes them; None for all others."""
    kind: Any = type(optimizer)
    if kind in (torch.optim.Adam, torch.optim.AdamW):
        # The root of the second moment, then the quotient with its correction: torch's `denom`.
        return Step("adam", ("exp_avg", "exp_avg_sq"), True, 2, *_flops_of(kind, 0.0))
    if kind is torch.optim.SGD:
        momentum = optimizer.defaults["momentum"]
        states = ("momentum_buffer",) if momentum else ()
        return Step("momentum" if momentum else "sgd", states, False, 0, *_flops_of(kind, momentum))
    return None


def make_state(optimizer: torch.optim.Optimizer, step: Step, parameters: Iterable[nn.Parameter]) -> None:
    """The state that the parameters' first steps leave behind."""
    for parameter in parameters:
        like = partial(torch.empty_strided, parameter.shape, parameter.stride(), dtype=parameter.dtype)
        state: dict[str, Any] = {name: like(device=parameter.device) for name in step.states}
        if step.counts:
            state["step"] = torch.zeros(())
        if state:
            optimizer.state[parameter] = state


@cache
def _flops_of(kind: type, momentum: float) -> tuple[int, int]:
    """FLOPs an element, and on top of it, counted in real steps of two small parameters."""
    counted = []
    for elements in (16, 32):
        parameter = nn.Parameter(torch.zeros(elements))
        options = {"momentum": momentum} if momentum else {}
        optimizer = kind([parameter], lr=0.1, **options)
        parameter.grad = torch.zeros(elements)
        optimizer.step()  # the first one differs
        counter = _Counter()
        with counter:
            optimizer.step()
        counted.append(counter.flops)
    per_element, rest = divmod(counted[1] - counted[0], 16)
    assert rest == 0, f"a step of {kind.__name__} is not linear in its elements"  # noqa: S101
    return per_element, counted[0] - 16 * per_element


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        found = operator_flops(func, args, kwargs or {}, result)
        self.flops += found.result if found is not None else 0
        return result
