"""A classifier in closed form: ridge regression on one-hot targets, on features of one forward pass.

The features are what the head reads and, for a wide one, the pooled outputs of the blocks before it
(Head2Toe, arXiv 2201.03529). Each is standardised, and each block's are weighed so that together they count
as much as any other block's. The penalty is the one with the least exact leave-one-out error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from advisor.errors import InputError
from advisor.models.blocks import pool
from advisor.records import FEATURES, Block, Census, Features

MOST_ROWS = 2048  # images whose features are kept as they are: leave-one-out is over these
MOST_FEATURES = 4096  # of a wide head: solving takes time by their cube, memory by their square
# Times the mean eigenvalue: from hardly any penalty to hardly anything learnt.
_PENALTIES = -4, 2, 13  # powers of ten: the first, the last, how many
_LEAST_SPREAD = 1e-6  # of the largest: a feature that varies less is a constant that was rounded


class WideHead(nn.Module):
    """In the head's place: a linear map of the head's input and of pooled outputs of earlier blocks.

    Until it is solved it answers as the head did.
    """

    def __init__(self, head: nn.Linear, sizes: Sequence[int]) -> None:
        """`sizes`: how many features the head reads, and each of the blocks gives."""
        super().__init__()
        self.linear = nn.Linear(
            sum(sizes), head.out_features, device=head.weight.device, dtype=head.weight.dtype
        )
        with torch.no_grad():
            self.linear.weight.zero_()[:, : sizes[0]].copy_(head.weight)
            self.linear.bias.zero_()
            if head.bias is not None:
                self.linear.bias.copy_(head.bias)
        self.pooled: list[Any] = [None] * (len(sizes) - 1)  # of the images that are being classified

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) of the head's input (N, features)."""
        features = torch.cat([x, *self.pooled], 1)
        self.pooled = [None] * len(self.pooled)
        result: torch.Tensor = self.linear(features)
        return result


class _Tap:
    """A forward hook that hands a block's pooled output to the wide head; copied along with it."""

    def __init__(self, head: WideHead, place: int) -> None:
        self._head, self._place = head, place

    def __call__(self, _module: nn.Module, _args: object, output: torch.Tensor) -> None:
        self._head.pooled[self._place] = pool(output)


def feature_blocks(census: Census, features: Features) -> tuple[Block, ...]:
    """The blocks whose outputs a head of these features reads besides its own input, the last one first.

    The late ones are the last third. Where they give too many features, every second or third one is read.
    """
    if features == "last":
        return ()
    # What the last block gives is, pooled, the head's own input.
    able = [block for block in reversed(census.blocks[:-1]) if block.features]
    if features == "late":
        able = able[: -(-len(able) // 3)]
    own = head_features(census)
    for step in range(1, len(able) + 1):
        if own + sum(block.features for block in able[::step]) <= MOST_FEATURES:
            return tuple(able[::step])
    return ()


def feature_sizes(census: Census, features: Features) -> tuple[int, ...]:
    """How many features are the head's own, and of each block."""
    return head_features(census), *(block.features for block in feature_blocks(census, features))


def head_features(census: Census) -> int:
    """What the head reads of one image; 0 where it isn't a Linear layer that is called once with a vector."""
    for layer in census.layers:
        if layer.name == census.head and layer.layer_type == "linear":
            return layer.weight_shape[1] if (layer.calls, layer.output_positions) == (1, 1) else 0
    return 0


def solvable(census: Census) -> tuple[Features, ...]:
    """Features of which a head can be solved on this model: the fewest first."""
    if not head_features(census):
        return ()
    sizes: dict[tuple[int, ...], Features] = {}
    for features in FEATURES:
        sizes.setdefault(feature_sizes(census, features), features)
    return tuple(sizes.values())


def widen(model: nn.Module, census: Census, features: Features) -> nn.Linear:
    """Give the model a head of these features, in place; outputs are unchanged.

    Returns:
        The Linear layer that reads them: the head itself, or the one inside its replacement.

    Raises:
        InputError: the model's head isn't a Linear layer that reads one vector an image.
    """
    if census.head is None or not head_features(census):
        raise InputError("a head in closed form takes the place of a Linear layer that reads one vector")
    head: Any = model.get_submodule(census.head)
    blocks = feature_blocks(census, features)
    if not blocks and head.bias is not None:
        return head  # type: ignore[no-any-return]
    wide = WideHead(head, feature_sizes(census, features))
    wide.linear.requires_grad_(head.weight.requires_grad)
    for place, block in enumerate(blocks):
        model.get_submodule(block.modules[-1]).register_forward_hook(_Tap(wide, place))
    parent, _, name = census.head.rpartition(".")
    setattr(model.get_submodule(parent), name, wide)
    return wide.linear


@contextmanager
def pooled_outputs(model: nn.Module, blocks: Sequence[Block]) -> Iterator[dict[Block, torch.Tensor]]:
    """While it lasts, what it yields holds the blocks' pooled outputs (n, channels) of the last images."""
    seen: dict[Block, torch.Tensor] = {}

    def tap(block: Block) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, output: torch.Tensor) -> None:
            seen[block] = pool(output)

        return hook

    handles = [
        model.get_submodule(block.modules[-1]).register_forward_hook(tap(block)) for block in blocks
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def head_inputs(model: nn.Module, census: Census) -> Iterator[list[torch.Tensor]]:
    """While it lasts, what it yields holds what the head was called with last."""
    assert census.head is not None  # noqa: S101 - the caller is about to solve it
    seen: list[torch.Tensor] = []

    def hook(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen[:] = args

    handle = model.get_submodule(census.head).register_forward_pre_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


class Examples:
    """Features and labels of images, as much of them as a ridge regression needs.

    Up to `MOST_ROWS` images' features are kept as they are; with more, their Gram matrix takes all of them.
    """

    def __init__(self, sizes: Sequence[int], classes: int) -> None:
        """`sizes`: of the groups of features that count alike."""
        self.sizes, self.classes, self.count = tuple(sizes), classes, 0
        self._rows: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []
        self._gram: torch.Tensor | None = None  # (F, F)
        self._sums = torch.empty(0)  # (F,) of the features
        self._moments = torch.empty(0)  # (F, classes): features times targets
        self._shares = torch.empty(0)  # (classes,) sums of targets

    def add(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Take in features (n, F) of images with these labels (n,)."""
        self.count += len(features)
        if self.count <= MOST_ROWS:
            self._rows.append(features)
            self._labels.append(labels)
            return
        if self._gram is None:
            for rows, known in zip(self._rows, self._labels, strict=True):
                self._accumulate(rows, known)
        self._accumulate(features, labels)

    def _accumulate(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        x, targets = features.double(), self._one_hot(labels)
        if self._gram is None:
            self._gram, self._sums = x.T @ x, x.sum(0)
            self._moments, self._shares = x.T @ targets, targets.sum(0)
            return
        self._gram.addmm_(x.T, x)
        self._sums += x.sum(0)
        self._moments.addmm_(x.T, targets)
        self._shares += targets.sum(0)

    def _one_hot(self, labels: torch.Tensor) -> torch.Tensor:
        zeros = torch.zeros(len(labels), self.classes, dtype=torch.float64, device=labels.device)
        return zeros.scatter_(1, labels[:, None], 1.0)

    def solve(self, groups: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight (classes, F) and bias (classes,) of the ridge regression.

        Args:
            groups: how many of the groups of features are used, the first ones; None: all.

        Returns:
            In single precision. Each output estimates the probability of its class.
        """
        sizes = self.sizes[:groups]
        used = sum(sizes)
        rows = torch.cat([rows[:, :used] for rows in self._rows])
        targets = self._one_hot(torch.cat(self._labels))
        if self._gram is None:
            mean, shares = rows.mean(0, dtype=torch.float64), targets.mean(0)
            spread = rows.std(0, correction=0).double()
        else:
            mean, shares = self._sums[:used] / self.count, self._shares / self.count
            spread = (self._gram.diagonal()[:used] / self.count - mean**2).clamp_min(0).sqrt()
        weights = [torch.full((s,), s**-0.5, dtype=torch.float64, device=rows.device) for s in sizes]
        scale = torch.cat(weights) / spread.clamp_min(_LEAST_SPREAD * spread.max())
        x = (rows - mean.float()) * scale.float()
        targets -= shares
        if self._gram is not None:
            gram = self._gram[:used, :used] - self.count * torch.outer(mean, mean)
            gram *= torch.outer(scale, scale)
            moments = (self._moments[:used] - self.count * torch.outer(mean, shares)) * scale[:, None]
            values, vectors = torch.linalg.eigh(gram)
            values = values.clamp_min(0)
            along = _whitened(x, values, vectors)
            inner = vectors.T @ moments / _roots(values)
        elif len(x) <= used:
            values, along = torch.linalg.eigh((x @ x.T).double())
            values = values.clamp_min(0)
            inner = along.T @ targets
        else:
            values, vectors = torch.linalg.eigh((x.T @ x).double())
            values = values.clamp_min(0)
            along = _whitened(x, values, vectors)
            inner = along.T @ targets
        penalty = self._best_penalty(values, along, inner, targets)
        shrunk = inner / (values + penalty)[:, None]
        if self._gram is None:
            weight = x.T @ (along @ shrunk).float()
        else:
            weight = (vectors @ (shrunk * _roots(values))).float()
        weight = weight.double() * scale[:, None]
        return weight.T.float().contiguous(), (shares - mean @ weight).float()

    def _best_penalty(
        self, values: torch.Tensor, along: torch.Tensor, inner: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """The penalty of the least squared leave-one-out error.

        The prediction that image i gets without itself is off by r_i / (1 - h_i), with r its residual and h
        the diagonal of the hat matrix, in which the intercept has a share of 1 / n.
        """
        squares = along**2
        penalties = torch.logspace(*_PENALTIES, dtype=torch.float64, device=values.device) * values.mean()
        errors = []
        for penalty in penalties:
            kept = values / (values + penalty)
            leverage = squares @ kept + 1 / self.count
            residuals = targets - along @ (kept[:, None] * inner)
            residuals /= (1 - leverage).clamp_min(1e-9)[:, None]
            errors.append((residuals**2).sum())
        return penalties.gather(0, torch.stack(errors).argmin()[None])


def _roots(values: torch.Tensor) -> torch.Tensor:
    """(F, 1) square roots, none of them zero: what lies along a zero is rounding."""
    return values.clamp_min(1e-12 * values.max()).sqrt()[:, None]


def _whitened(x: torch.Tensor, values: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """The images (n, F) along the eigenvectors, each of unit length over all images."""
    return (x @ vectors.float()).double() / _roots(values).T


def solver_workspace(order: int) -> int:
    """Bytes that LAPACK's divide-and-conquer eigensolver (dsyevd) works in, for an order x order matrix."""
    return 8 * (1 + 6 * order + 2 * order**2) + 4 * (3 + 5 * order)
