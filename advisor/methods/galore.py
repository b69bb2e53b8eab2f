"""GaLore: every weight is trained, the optimizer's state lives in a low-rank projection of the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from advisor.methods import register
from advisor.methods.base import Setting, Trainable, listed_parameters, merge_attached, train_only
from advisor.records import Census, Levers

PERIOD = 200  # updates between two refreshes of the projector: the paper's T
SCALE = 0.25  # the paper's alpha


@register
class GaLore:
    """Adam on R = P^T G instead of G; G is the gradient as a (C_out, C_in/groups * k * k) matrix."""

    name = "galore"
    summary = "every weight is trained; optimizer state in a low-rank projection of each gradient"
    formula = "R = PᵀG;  W ← W − η·α·P·Adam(R);  P = the top r left singular vectors of G, every T updates"
    source = "GaLore, arXiv 2403.03507, algorithm 2"
    learns_classes = True
    learning_rates = (5e-4, 2e-3, 1e-2)

    def settings(self, census: Census, ranks: Sequence[int]) -> Iterable[Setting]:  # noqa: ARG002
        """The largest rank: gradients and activations dwarf the state at every one of them."""
        return [{"rank": max(ranks)}]

    def attach(self, model: nn.Module, census: Census, setting: Setting) -> Trainable:
        """Train everything; the method lives in the optimizer."""
        return train_only(model, listed_parameters(model, census), "updated", setting)

    def optimizer(self, trainable: Trainable, levers: Levers, learning_rate: float) -> torch.optim.Optimizer:
        """GaLoreAdam; with the SGD lever there is no state to project, so plain SGD."""
        parameters = list(trainable.parameters.values())
        if levers.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=learning_rate)
        rank = int(trainable.setting["rank"])
        if not any(projects(parameter, rank) for parameter in parameters):
            return torch.optim.Adam(parameters, lr=learning_rate)
        return GaLoreAdam(parameters, learning_rate, rank=rank)

    merge = staticmethod(merge_attached)


class GaLoreAdam(torch.optim.Optimizer):
    """Adam whose moments are kept in the projected space wherever that is smaller.

    For a gradient matrix m x n the projection spans the shorter side: state r * max(m, n) twice and
    a projector r * min(m, n), against 2 m n; where it isn't smaller, plain Adam is used.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        *,
        rank: int,
        refresh_every: int = PERIOD,
        scale: float = SCALE,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})
        self.rank, self.refresh_every, self.scale = rank, refresh_every, scale
        self.updates = 0
        unprojected = [p for group in self.param_groups for p in group["params"] if not projects(p, rank)]
        # Steps what isn't projected.
        self.plain = torch.optim.Adam(unprojected, lr, betas, eps) if unprojected else None
        if self.plain is not None:
            self.plain.state = self.state

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return super().state_dict() | {"updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        super().load_state_dict(state_dict)
        self.updates = state_dict["updates"]
        if self.plain is not None:
            self.plain.state = self.state  # which is a new one now

    def refresh_next(self) -> None:
        """Make the next step one that refreshes the projectors: the costliest kind."""
        self.updates = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = closure() if closure is not None else None
        refresh = self.updates % self.refresh_every == 0
        self.updates += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and projects(parameter, self.rank):
                    self._step_one(parameter, group, refresh)
        if self.plain is not None:
            self.plain.param_groups[0]["lr"] = self.param_groups[0]["lr"]
            self.plain.step()
        return loss

    def _step_one(self, parameter: nn.Parameter, group: dict[str, Any], refresh: bool) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None  # noqa: S101 - step() passes only those
        gradient = gradient.flatten(1)
        tall = gradient.shape[0] > gradient.shape[1]
        if refresh or "projector" not in state:
            u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
            # .clone(): a slice would keep all the singular vectors alive.
            state["projector"] = (vh[: self.rank].mT if tall else u[:, : self.rank]).clone()
        projector = state["projector"]
        gradient = gradient @ projector if tall else projector.mT @ gradient
        if "mean" not in state:
            state["step"] = 0
            state["mean"], state["square"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        state["mean"].lerp_(gradient, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        correction = (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
        denominator = state["square"].sqrt().add_(group["eps"])
        change = denominator.reciprocal_().mul_(state["mean"])
        change = change @ projector.mT if tall else projector @ change
        parameter.add_(change.view_as(parameter), alpha=-group["lr"] * correction * self.scale)


def projects(parameter: torch.Tensor, rank: int) -> bool:
    """Whether the projected state is smaller than Adam's own."""
    if parameter.ndim < 2:
        return False
    rows, columns = parameter.shape[0], parameter[0].numel()
    short, long = min(rows, columns), max(rows, columns)
    return rank * (2 * long + short) < 2 * rows * columns
