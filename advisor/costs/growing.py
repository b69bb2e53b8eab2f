"""What it costs to add images to a head that was solved: a forward pass of each, and the solving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from advisor.costs.memo import OperatorMemo
from advisor.costs.recorder import Recorder
from advisor.costs.simulate import Simulator, without_collector
from advisor.parts.sums import Spectrum, Sums
from advisor.records import Census


@dataclass(frozen=True, slots=True)
class GrowingCost:
    """Simulated, on tensors without values."""

    forward_flops: int  # of all images, of the model without what a method added to it
    solving_flops: int
    solving_bytes: int  # at the peak: sums, features of all images, eigenvectors, what LAPACK works in


def growing_cost(
    model: nn.Module, census: Census, sizes: Sequence[int], classes: int, images: int
) -> GrowingCost:
    """Of so many images, for a head of these groups of features and so many classes."""
    meta = torch.device("meta")

    def run() -> None:
        sums = Sums.none(sizes, classes, meta)
        features = torch.empty(images, sum(sizes), device=meta)
        labels = torch.empty(images, dtype=torch.int64, device=meta)
        sums.add(features, labels)
        spectrum = Spectrum(sums)
        penalty = spectrum.cross_validated()
        spectrum.head(penalty)
        spectrum.left_out(features, labels, penalty)

    with without_collector():
        forward = sum(Simulator(model, census, workspace=False).forward_flops().values())
        solving = Recorder(nn.Module(), {}, OperatorMemo()).record(run)
    return GrowingCost(
        forward_flops=images * forward,
        solving_flops=sum(flops.total for flops in solving.flops.values()),
        solving_bytes=solving.memory.total,
    )
