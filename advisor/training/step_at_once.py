"""The `per-parameter` update: each parameter is stepped as soon as its gradient is ready."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn


class StepAtOnce(torch.optim.Optimizer):
    """Steps a parameter in the backward pass and frees its gradient, so that no two are held.

    One optimizer for each parameter does the work; its learning rate is that of this one's group for
    the parameter, so that schedulers need not know. `complete` says whether the gradients that arrive are
    whole: with micro-batches, they are in the last one only.
    """

    def __init__(self, each: Mapping[nn.Parameter, torch.optim.Optimizer]) -> None:
        rates = [optimizer.param_groups[0]["lr"] for optimizer in each.values()]
        groups = [{"params": [parameter], "lr": rate} for parameter, rate in zip(each, rates, strict=True)]
        super().__init__(groups, {"lr": rates[0]})
        self.each, self._group = each, {parameter: number for number, parameter in enumerate(each)}
        self.complete = True
        self.stepped: set[nn.Parameter] = set()  # since the gradients were last cleared
        for parameter, optimizer in each.items():
            optimizer.state = self.state
            parameter.register_post_accumulate_grad_hook(self._arrived)

    @property
    def refresh_every(self) -> int:
        """How many updates there are between two costly ones."""
        return max(getattr(optimizer, "refresh_every", 1) for optimizer in self.each.values())

    def refresh_next(self) -> None:
        """Make the next update a costly one."""
        for optimizer in self.each.values():
            make_costliest_next(optimizer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        super().load_state_dict(state_dict)
        for optimizer in self.each.values():
            optimizer.state = self.state  # which is a new one now

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step the parameters whose gradients did not arrive in a backward pass."""
        loss = closure() if closure is not None else None
        for parameter in self.each:
            if parameter.grad is not None:
                self._step(parameter)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        super().zero_grad(set_to_none)
        self.stepped.clear()

    def _arrived(self, parameter: torch.Tensor) -> None:
        if self.complete:
            self._step(parameter)  # type: ignore[arg-type]
            parameter.grad = None

    def _step(self, parameter: nn.Parameter) -> None:
        optimizer = self.each[parameter]
        optimizer.param_groups[0]["lr"] = self.param_groups[self._group[parameter]]["lr"]
        optimizer.step()
        self.stepped.add(parameter)


def make_costliest_next(optimizer: torch.optim.Optimizer | None) -> None:
    """Make the next update one of the rare, costly ones, where the optimizer has such."""
    if getattr(optimizer, "refresh_every", 1) > 1:
        optimizer.refresh_next()  # type: ignore[union-attr]
