"""What a ridge regression needs to know of images: sums over them, which more images can be added to.

Sums of these and of those are the sums of all, so a head that is solved of them is the one that all images
together give, whatever came first: nothing is forgotten, and no old image is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional

# Times the mean eigenvalue: from hardly any penalty to hardly anything learnt.
_PENALTIES = -4, 2, 13  # powers of ten: the first, the last, how many
_LEAST_SPREAD = 1e-6  # of the largest: a feature that varies less is a constant that was rounded


@dataclass(slots=True)
class Sums:
    """Over images, in double precision."""

    sizes: tuple[int, ...]  # of the groups of features that count alike; F in all
    count: int  # images
    gram: torch.Tensor  # (F, F) of the features
    moments: torch.Tensor  # (F, classes): features times targets
    features: torch.Tensor  # (F,)
    targets: torch.Tensor  # (classes,): how many images each class has

    @classmethod
    def none(cls, sizes: Sequence[int], classes: int, device: torch.device | None = None) -> Sums:
        """Of no images yet."""
        zeros, width = partial(torch.zeros, dtype=torch.float64, device=device), sum(sizes)
        return cls(tuple(sizes), 0, zeros(width, width), zeros(width, classes), zeros(width), zeros(classes))

    def add(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Take in features (n, F) of images with these labels (n,)."""
        x, targets = features.double(), one_hot(labels, len(self.targets))
        self.gram.addmm_(x.T, x)
        self.moments.addmm_(x.T, targets)
        self.features += x.sum(0)
        self.targets += targets.sum(0)
        self.count += len(labels)

    def grow(self, classes: int) -> None:
        """To so many classes; the new ones have no images yet."""
        more = classes - len(self.targets)
        self.moments, self.targets = (
            functional.pad(each, (0, more)) for each in (self.moments, self.targets)
        )

    def of_first(self, groups: int | None) -> Sums:
        """Of the first groups of features alone; None: of all."""
        sizes = self.sizes[:groups]
        used = sum(sizes)
        return Sums(
            sizes,
            self.count,
            self.gram[:used, :used],
            self.moments[:used],
            self.features[:used],
            self.targets,
        )


class Spectrum:
    """The regression as an eigenproblem of as many unknowns as there are features: (X'X + c)^-1 X' Y.

    X is standardised, so its `values` grow with the number of images.
    """

    def __init__(self, sums: Sums) -> None:
        """Solve the eigenproblem; a head comes of it with any penalty."""
        self._count = sums.count
        self.mean, self.shares = sums.features / sums.count, sums.targets / sums.count
        spread = (sums.gram.diagonal() / sums.count - self.mean**2).clamp_min(0).sqrt()
        self._scale = scales(sums.sizes, spread)
        gram = torch.addr(sums.gram, self.mean, self.mean, alpha=-sums.count)
        self.values, self._vectors = eigenvectors(gram.mul_(self._scale).mul_(self._scale[:, None]))
        del gram
        moments = torch.addr(sums.moments, self.mean, self.shares, alpha=-sums.count)
        moments.mul_(self._scale[:, None])
        # What lies along an eigenvalue of zero is rounding.
        self._roots = self.values.clamp_min(1e-12 * self.values.max()).sqrt()
        self.inner = (self._vectors.T @ moments) / self._roots[:, None]  # targets along the eigenvectors

    def along(self, features: torch.Tensor) -> torch.Tensor:
        """Images (n, F) along the eigenvectors, each of which has unit length over all images."""
        return (features - self.mean) * self._scale @ self._vectors / self._roots

    def head(self, penalty: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight (classes, F) and bias (classes,), in single precision, for features as they are."""
        weight = self._vectors @ (self.inner * (self._roots / (self.values + penalty))[:, None])
        return unscaled(weight, self.mean, self._scale, self.shares)

    def cross_validated(self) -> torch.Tensor:
        """The penalty (1,) of the least generalised cross-validation error (Golub, Heath, Wahba 1979).

        That is leave-one-out with every image's share in the fit taken for the mean share, so it needs no
        image, only their sums: the error is n |Y - HY|^2 / (n - tr H)^2, the intercept a part of H.
        On photos that is as good as leave-one-out. The penalty of the first images is up to 4 points worse
        where many more images or classes are added, and up to 2 where it is scaled with their number.
        """
        squares = self.inner.square().sum(1)
        outside = (self._count * (1 - self.shares.square().sum()) - squares.sum()).clamp_min(0)
        options = penalties(self.values, self._count)
        kept = self.values / (self.values + options[:, None])  # (penalties, F)
        residual = outside + ((1 - kept) ** 2 * squares).sum(1)
        free = (self._count - 1 - kept.sum(1)).clamp_min(1e-9)
        return options.gather(0, (residual / free**2).argmin()[None])

    def left_out(self, features: torch.Tensor, labels: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
        """What each image that is in the sums would be answered by a head solved without it: (n, classes).

        The mean and the scale of features stay those of all images.
        """
        along = self.along(features)
        kept = self.values / (self.values + penalty)
        targets = one_hot(labels, len(self.shares))
        residuals = targets - self.shares - along @ (kept[:, None] * self.inner)
        free = (1 - 1 / self._count - along**2 @ kept).clamp_min(1e-9)
        return targets - residuals / free[:, None]


def penalties(values: torch.Tensor, count: int) -> torch.Tensor:
    """Those to choose from, for the eigenvalues of so many images."""
    mean = values.sum() / min(len(values), count)
    return torch.logspace(*_PENALTIES, dtype=torch.float64, device=values.device) * mean


def one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Targets (n, classes) of labels (n,)."""
    zeros = torch.zeros(len(labels), classes, dtype=torch.float64, device=labels.device)
    return zeros.scatter_(1, labels[:, None], 1.0)


def scales(sizes: Sequence[int], spread: torch.Tensor) -> torch.Tensor:
    """What features are multiplied by, so that each varies alike, and each group as much as any other."""
    shares = [torch.full((s,), s**-0.5, dtype=spread.dtype, device=spread.device) for s in sizes]
    least = _LEAST_SPREAD * spread.max()
    return torch.cat(shares) / spread.clamp_min(
        least + (least == 0)
    )  # features that all are constant stay so


def unscaled(
    weight: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor, shares: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (classes, F) and bias (classes,) for features as they are, of a weight (F, classes)."""
    weight = weight * scale[:, None]
    return weight.T.float().contiguous(), (shares - mean @ weight).float()


def eigenvectors(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues, none below zero, and eigenvectors of a symmetric matrix."""
    # Where only shapes run, LAPACK takes nothing, so something else has to stand for what it would.
    only_shapes = matrix.is_meta or type(matrix) is not torch.Tensor  # a fake tensor says it is on the CPU
    size = _solver_workspace(len(matrix)) if only_shapes else 0
    workspace = torch.empty(size, dtype=torch.uint8, device=matrix.device)
    values, vectors = torch.linalg.eigh(matrix)
    del workspace
    return values.clamp_min(0), vectors


def _solver_workspace(order: int) -> int:
    """Bytes that LAPACK's divide-and-conquer eigensolver (dsyevd) works in, for an order x order matrix."""
    return 8 * (1 + 6 * order + 2 * order**2) + 4 * (3 + 5 * order)
