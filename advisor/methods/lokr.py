"""LoKr: each weight's change is a Kronecker product of a small full factor and a low-rank one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isqrt, prod
from typing import Any

import torch
from torch import nn

from advisor.methods import register
from advisor.methods.base import Method
from advisor.models.layers import layer_type
from advisor.parts.attachment import Attachment, Setting
from advisor.parts.bypass import LayerModule, reparametrise
from advisor.parts.low_rank import (
    Plan,
    WeightForm,
    as_weight,
    attach_plans,
    capped,
    each_rank,
    matrix_shape,
)
from advisor.records import Layer

SCALE = 2.0  # as in LoRA


class KroneckerProduct(nn.Module):
    """dW = scale * C ⊗ D on the weight as (C_out, C_in/g, taps), each dimension split near its root.

    With C_out = l k and C_in/g = m n, l <= k and m <= n: `left` is C, (l, m); D is (k, n * taps), held
    as `up` (k, r) times `down` (r, n * taps) where that is smaller, else whole as `right`. D is zero at
    the start, and the entries of C have variance 1: D then moves the weight as far in one update as
    LoRA's B A does.
    """

    def __init__(self, layer: LayerModule, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        weight = layer.weight
        options: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        groups = getattr(layer, "groups", 1)
        left, right = factor_shapes(*matrix_shape(weight.shape, groups, layer_type(layer)))
        self.left = nn.Parameter(torch.empty(left, **options))
        nn.init.normal_(self.left)
        self.low_rank = rank <= break_even(right)
        if self.low_rank:
            self.up = nn.Parameter(torch.zeros(right[0], rank, **options))
            self.down = nn.Parameter(torch.empty(rank, right[1], **options))
            nn.init.kaiming_uniform_(self.down, a=5**0.5)
        else:
            self.right = nn.Parameter(torch.zeros(right, **options))

    def weight_change(self, layer: LayerModule) -> torch.Tensor:
        """dW in the shape of the layer's weight."""
        right = self.up @ self.down if self.low_rank else self.right
        taps = prod(getattr(layer, "kernel_size", ()))
        left = (self.scale * self.left).unsqueeze(-1)  # scaled while it is small
        return as_weight(torch.kron(left, right.unflatten(1, (-1, taps))), layer)


@register
class LoKr(Method):
    """Weight form: one convolution with W + dW. The fewest parameters at a given rank of dW."""

    name = "lokr"
    summary = "a Kronecker product of a small and a low-rank factor added to each weight, and the head"
    formula = "W' = W + (α/r)·C⊗(BA); A, B, C and the head trained, B = 0 at the start"
    source = "LyCORIS, arXiv 2309.14859, eq. 4 and 5"
    order = 100
    peft_type = "LOKR"
    learning_rates = (5e-4, 2e-3, 1e-2)

    def grid(self, ranks: Sequence[int]) -> Iterable[Setting]:
        """Each rank."""
        return each_rank(ranks)

    def train(self, to: Attachment) -> Iterable[nn.Parameter]:
        """What changes every adapted weight, and the head; depthwise kernels are trained themselves."""
        return attach_plans(to, int(to.setting["rank"]), _adapt, plan=plan_kronecker)


def plan_kronecker(layer: Layer, rank: int) -> Plan:
    """The rank asked for; above break-even D is held whole, unless the adapter then outgrew the weight."""
    left, right = factor_shapes(*matrix_shape(layer.weight_shape, layer.groups, layer.layer_type))
    room = prod(layer.weight_shape) - prod(left)
    if prod(right) > room:  # C is 1 x 1: no dimension has factors
        return capped(layer, rank, room // sum(right))
    whole = rank > break_even(right)
    note = f"{layer.name}: rank {rank}: its factor held whole, {prod(right)} parameters" if whole else ""
    return Plan(layer, "low-rank", rank, note)


def factor_shapes(outputs: int, inputs: int, taps: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes (l, m) of C and (k, n * taps) of D, for l k = C_out and m n = C_in/g."""
    (l, k), (m, n) = factorization(outputs), factorization(inputs)  # noqa: E741 - the paper's letters
    return (l, m), (k, n * taps)


def factorization(dimension: int) -> tuple[int, int]:
    """Two factors as near each other as can be, the smaller first: 128 -> (8, 16), 127 -> (1, 127)."""
    small = next(size for size in range(isqrt(dimension), 0, -1) if dimension % size == 0)
    return small, dimension // small


def break_even(shape: tuple[int, int]) -> int:
    """The highest rank at which the two thin factors of a matrix hold no more than the matrix."""
    return prod(shape) // sum(shape)


def _adapt(layer: LayerModule, plan: Plan) -> nn.Module:
    kronecker = KroneckerProduct(layer, plan.rank, SCALE)
    reparametrise(layer, WeightForm(layer, kronecker))
    return kronecker
