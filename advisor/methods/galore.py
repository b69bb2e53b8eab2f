"""GaLore: every weight is trained, the optimizer's state lives in a low-rank projection of the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from advisor.errors import InputError
from advisor.methods import register
from advisor.methods.base import Method, plain_optimizer
from advisor.parts.attachment import Attachment, Setting, Trainable
from advisor.records import Levers

PERIOD = 200  # updates between two refreshes of the projector: the paper's T
SCALE = 0.25  # the paper's alpha
_MOMENTS = {"adam": 2, "adamw": 2, "momentum": 1}  # tensors of a weight's size that the optimizer keeps


@register
class GaLore(Method):
    """The optimizer sees R = P^T G instead of G, the gradient as a (C_out, C_in/groups * k * k) matrix."""

    name = "galore"
    summary = "every weight is trained; optimizer state in a low-rank projection of each gradient"
    formula = "R = PᵀG;  W ← W − η·α·P·Adam(R);  P = the top r left singular vectors of G, every T updates"
    source = "GaLore, arXiv 2403.03507, algorithm 2"
    order = 110
    learning_rates = (5e-4, 2e-3, 1e-2)

    def grid(self, ranks: Sequence[int]) -> Iterable[Setting]:
        """The largest rank: gradients and activations dwarf the state at every one of them."""
        return [{"rank": max(ranks)}]

    def train(self, to: Attachment) -> Iterable[nn.Parameter]:
        """Everything; the method lives in the optimizer."""
        return to.every_parameter()

    def optimizer(
        self, trainable: Trainable, levers: Levers, learning_rate: float
    ) -> torch.optim.Optimizer | None:
        """Adam, AdamW or SGD with momentum in the projected space. InputError for plain SGD."""
        if levers.optimizer == "sgd":
            raise InputError("SGD without momentum keeps no state that could be projected")
        parameters, rank = list(trainable.parameters.values()), int(trainable.setting["rank"])
        if not any(projects(parameter, rank, _MOMENTS[levers.optimizer]) for parameter in parameters):
            return plain_optimizer(trainable, levers, learning_rate)
        return GaLoreOptimizer(parameters, learning_rate, rank=rank, rule=levers.optimizer)


class GaLoreOptimizer(torch.optim.Optimizer):
    """Adam, AdamW or SGD with momentum, with its moments in the projected space wherever that is smaller.

    For a gradient matrix m x n the projection spans the shorter side: r * max(m, n) for each moment and
    a projector r * min(m, n), against m n for each moment; where it isn't smaller, the plain optimizer
    is used. All that the next step depends on is in `state`.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        *,
        rank: int,
        rule: Literal["adam", "adamw", "momentum"] = "adam",
        refresh_every: int = PERIOD,
        scale: float = SCALE,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum: float = 0.9,
        weight_decay: float = 1e-2,
    ) -> None:
        """`betas`, `eps`, `momentum` and AdamW's `weight_decay` are those of torch's own optimizers."""
        super().__init__(parameters, {"lr": lr})
        self.rank, self.rule, self.refresh_every, self.scale = rank, rule, refresh_every, scale
        self._betas, self._eps, self._momentum = betas, eps, momentum
        self._weight_decay = weight_decay if rule == "adamw" else 0.0
        self._refreshes_next = False
        unprojected = [p for group in self.param_groups for p in group["params"] if not self._projects(p)]
        self.plain: torch.optim.Optimizer | None = None  # steps what isn't projected
        if unprojected and rule == "momentum":
            self.plain = torch.optim.SGD(unprojected, lr, momentum=momentum)
        elif unprojected:
            kind = torch.optim.AdamW if rule == "adamw" else torch.optim.Adam
            self.plain = kind(unprojected, lr, betas, eps, weight_decay=self._weight_decay)
        self._share_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        super().load_state_dict(state_dict)
        self._share_state()

    def refresh_next(self) -> None:
        """Make the next step one that refreshes the projectors: the costliest kind."""
        self._refreshes_next = True

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and self._projects(parameter):
                    self._step_one(parameter, parameter.grad.flatten(1), group["lr"])
        self._refreshes_next = False
        if self.plain is not None:
            self.plain.param_groups[0]["lr"] = self.param_groups[0]["lr"]
            self.plain.step()
        return loss

    def _projects(self, parameter: torch.Tensor) -> bool:
        return projects(parameter, self.rank, _MOMENTS[self.rule])

    def _share_state(self) -> None:
        if self.plain is not None:
            self.plain.state = self.state

    def _step_one(self, parameter: nn.Parameter, gradient: torch.Tensor, rate: float) -> None:
        """`gradient`: (m, n)."""
        state = self.state[parameter]
        tall = gradient.shape[0] > gradient.shape[1]
        done = state.get("step", 0)
        if self._refreshes_next or done % self.refresh_every == 0:
            u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
            # .clone(): a slice would keep all the singular vectors alive.
            state["projector"] = (vh[: self.rank].mT if tall else u[:, : self.rank]).clone()
        state["step"] = done + 1
        projector = state["projector"]
        gradient = gradient @ projector if tall else projector.mT @ gradient
        change, factor = self._moved(state, gradient)
        change = change @ projector.mT if tall else projector @ change
        if self._weight_decay:
            parameter.mul_(1 - rate * self._weight_decay)
        parameter.add_(change.view_as(parameter), alpha=-rate * factor * self.scale)

    def _moved(self, state: dict[str, Any], gradient: torch.Tensor) -> tuple[torch.Tensor, float]:
        """What the plain optimizer would subtract, over the learning rate: a tensor and its factor."""
        if "mean" not in state:
            state["mean"] = torch.zeros_like(gradient)
            if self.rule != "momentum":
                state["square"] = torch.zeros_like(gradient)
        if self.rule == "momentum":
            return state["mean"].mul_(self._momentum).add_(gradient), 1.0
        beta1, beta2 = self._betas
        state["mean"].lerp_(gradient, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        correction = (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
        denominator = state["square"].sqrt().add_(self._eps)
        return denominator.reciprocal_().mul_(state["mean"]), correction


def projects(parameter: torch.Tensor, rank: int, moments: int = 2) -> bool:
    """Whether the projected state is smaller than that many moments of the weight's own size."""
    if parameter.ndim < 2:
        return False
    rows, columns = parameter.shape[0], parameter[0].numel()
    short, long = min(rows, columns), max(rows, columns)
    return rank * (moments * long + short) < moments * rows * columns
