"""A classifier in closed form: ridge regression on one-hot targets, on features of one forward pass.

The features are what the head reads and, for a wide one, the pooled outputs of the blocks before it
(Head2Toe, arXiv 2201.03529). Each is standardised, and each block's are weighed so that together they count
as much as any other block's. The penalty is the one with the least exact leave-one-out error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from advisor.errors import InputError
from advisor.models.blocks import pool
from advisor.parts.sums import Spectrum, Sums, eigenvectors, one_hot, penalties, scales, unscaled
from advisor.records import FEATURES, Block, Census, Features

MOST_ROWS = 2048  # images whose features are kept as they are: leave-one-out is over these
MOST_FEATURES = 4096  # of a wide head: solving takes time by their cube, memory by their square
_AT_ONCE = 64  # images whose features enter the sums together


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
        self.pooled: dict[int, torch.Tensor] = {}  # by the block's place, of what is being classified

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) of the head's input (N, features)."""
        features = torch.cat([x, *(self.pooled[place] for place in sorted(self.pooled))], 1)
        self.pooled.clear()
        result: torch.Tensor = self.linear(features)
        return result


class _Tap:
    """A forward hook that writes down what a block's output comes to when it is pooled.

    No function: a wide head's taps are copied and pickled along with what they write to.
    """

    def __init__(self, into: dict[Any, torch.Tensor], key: Any, block: Block) -> None:
        self._into, self._key, self._channels = into, key, block.features

    def __call__(self, _module: nn.Module, _args: object, output: torch.Tensor) -> None:
        self._into[self._key] = pool(output, self._channels)


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
        return head
    wide = WideHead(head, feature_sizes(census, features))
    wide.linear.requires_grad_(head.weight.requires_grad)
    for place, block in enumerate(blocks):
        model.get_submodule(block.modules[-1]).register_forward_hook(_Tap(wide.pooled, place, block))
    parent, _, name = census.head.rpartition(".")
    setattr(model.get_submodule(parent), name, wide)
    return wide.linear


@contextmanager
def pooled_outputs(model: nn.Module, blocks: Sequence[Block]) -> Iterator[dict[Block, torch.Tensor]]:
    """While it lasts, what it yields holds the blocks' pooled outputs (n, channels) of the last images."""
    seen: dict[Block, torch.Tensor] = {}
    handles = [
        model.get_submodule(block.modules[-1]).register_forward_hook(_Tap(seen, block, block))
        for block in blocks
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """While it lasts, what it yields holds what the module was called with last."""
    seen: list[torch.Tensor] = []

    def hook(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen[:] = args

    handle = module.register_forward_pre_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


class Examples:
    """Features and labels of images, as much of them as a ridge regression needs.

    Up to `MOST_ROWS` images' features are kept as they are; of more, sums are kept besides.
    """

    def __init__(self, sizes: Sequence[int], classes: int) -> None:
        """`sizes`: of the groups of features that count alike."""
        self.sizes, self.classes, self.count = tuple(sizes), classes, 0
        self._rows: list[tuple[torch.Tensor, torch.Tensor]] = []  # features (n, F), labels (n,)
        self._sums: Sums | None = None

    @classmethod
    def of(cls, sizes: Sequence[int], classes: int, features: torch.Tensor, labels: torch.Tensor) -> Examples:
        """Of features (N, F) that are all there."""
        examples = cls(sizes, classes)
        for some, their in zip(features.split(_AT_ONCE), labels.split(_AT_ONCE), strict=True):
            examples.add(some, their)
        return examples

    def add(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Take in features (n, F) of images with these labels (n,)."""
        self.count += len(features)
        if self.count <= MOST_ROWS:
            self._rows.append((features, labels))
            return
        if self._sums is None:
            self._sums = self._summed(self._rows, self.sizes)
        self._sums.add(features, labels)

    def sums(self) -> Sums:
        """Of all images: what more of them can be added to."""
        return self._sums if self._sums is not None else self._summed(self._rows, self.sizes)

    def solve(self, groups: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight (classes, F) and bias (classes,) of the ridge regression, in single precision.

        Each output estimates the probability of its class.

        Args:
            groups: how many of the groups of features are used, the first ones; None: all.
        """
        sizes = self.sizes[:groups]
        rows = [(features[:, : sum(sizes)], labels) for features, labels in self._rows]
        if self._sums is None and self.count <= sum(sizes):
            return self._solved_by_rows(sizes, rows)
        return self._solved_by_sums(
            rows, self._sums.of_first(groups) if self._sums is not None else self._summed(rows, sizes)
        )

    def _summed(self, rows: Sequence[_Rows], sizes: Sequence[int]) -> Sums:
        sums = Sums.none(sizes, self.classes, rows[0][0].device)
        for features, labels in rows:
            sums.add(features, labels)
        return sums

    def _solved_by_rows(
        self, sizes: Sequence[int], rows: Sequence[_Rows]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """By an eigenproblem of as many unknowns as there are images: X' (XX' + c)^-1 Y."""
        x = torch.cat([features for features, _ in rows])
        targets = torch.cat([one_hot(labels, self.classes) for _, labels in rows])
        mean, shares = x.mean(0), targets.mean(0)
        scale = scales(sizes, x.std(0, correction=0))
        x.sub_(mean).mul_(scale)
        values, vectors = eigenvectors((x @ x.T).double())
        inner = vectors.T @ targets.sub_(shares)
        kept = zip(vectors.split([len(labels) for _, labels in rows]), rows, strict=True)
        along = ((part, labels) for part, (_, labels) in kept)
        penalty = self._best_penalty(values, inner, shares, along)
        weight = x.T @ (vectors @ (inner / (values + penalty)[:, None])).float()
        return unscaled(weight.double(), mean.double(), scale.double(), shares)

    def _solved_by_sums(self, rows: Sequence[_Rows], sums: Sums) -> tuple[torch.Tensor, torch.Tensor]:
        """By an eigenproblem of as many unknowns as there are features."""
        spectrum = Spectrum(sums)
        along = ((spectrum.along(features), labels) for features, labels in rows)
        return spectrum.head(self._best_penalty(spectrum.values, spectrum.inner, spectrum.shares, along))

    def _best_penalty(
        self, values: torch.Tensor, inner: torch.Tensor, shares: torch.Tensor, rows: Iterable[_Rows]
    ) -> torch.Tensor:
        """The penalty (1,) of the least squared leave-one-out error.

        The prediction that image i gets without itself is off by r_i / (1 - h_i), with r its residual and h
        the diagonal of the hat matrix, in which the intercept has a share of 1 / n.

        Args:
            values: (r,) eigenvalues.
            inner: (r, classes), the targets along the eigenvectors.
            rows: images (n, r) along the eigenvectors, each of which has unit length over all images.
        """
        options = penalties(values, self.count)
        errors = torch.zeros_like(options)
        for along, labels in rows:
            targets = one_hot(labels, self.classes).sub_(shares)
            squares = along**2
            for place, penalty in enumerate(options):
                kept = values / (values + penalty)
                residuals = targets - along @ (kept[:, None] * inner)
                residuals /= (1 - 1 / self.count - squares @ kept).clamp_min(1e-9)[:, None]
                errors[place] += residuals.square_().sum()
        return options.gather(0, errors.argmin()[None])


_Rows = tuple[torch.Tensor, torch.Tensor]  # of some images: a row each, labels
