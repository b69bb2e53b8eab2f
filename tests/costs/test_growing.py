"""The cost of adding images, against FLOPs counted by hand and the allocator's own peak."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advisor.costs.allocator import peak_of
from advisor.costs.growing import growing_cost
from advisor.models.layers import take_census
from advisor.parts.sums import Spectrum, Sums


@pytest.mark.parametrize(("sizes", "images"), [((40,), 30), ((64, 96), 500)])
def test_it_is_what_is_held_and_done(sizes, images):
    model = nn.Sequential(nn.Conv2d(3, 40, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 5)).eval()
    census = take_census(model, (3, 8, 8))
    found = growing_cost(model, census, sizes, 5, images)
    assert found.forward_flops >= images * 2 * (36 * 40 * 27 + 40 * 5)
    width = sum(sizes)
    # The Gram matrix, its eigenvectors, and every image along these.
    assert found.solving_flops > (4 * images + 9 * width) * width**2
    assert found.solving_flops < 1.3 * (4 * images + 9 * width) * width**2

    def solve():
        sums = Sums.none(sizes, 5)
        features, labels = torch.randn(images, width), torch.arange(images) % 5
        sums.add(features, labels)
        spectrum = Spectrum(sums)
        penalty = spectrum.cross_validated()
        spectrum.head(penalty)
        spectrum.left_out(features, labels, penalty)

    assert found.solving_bytes == pytest.approx(peak_of(solve), rel=0.05)
