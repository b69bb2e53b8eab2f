"""Updates in a child process, with and without a cap."""

from __future__ import annotations

import pytest
from torch import nn

from advisor.costs import measure, simulate
from advisor.errors import ModelError
from advisor.models.layers import take_census
from advisor.records import Candidate

SIZE = (3, 64, 64)


@pytest.fixture(scope="module")
def network():
    model = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(32, 4)),
    )
    return model, take_census(model, SIZE)


def test_a_roomy_cap_is_survived_and_the_peak_is_near_the_simulated_one(network):
    candidate = Candidate("full")
    simulated = simulate(*network, candidate, 16).peak_memory_bytes
    measured = measure(*network, candidate, 16, allowed_bytes=2 * simulated)
    assert measured.survived
    assert measured.updates == 3
    # Never below the exact tensor accounting; workspace inside operators comes on top.
    assert simulated <= measured.peak_memory_bytes <= 1.5 * simulated
    assert measured.update_seconds > 0
    assert measured.cap_bytes > 2 * simulated
    assert measured.peak_resident_bytes > measured.runtime_bytes


def test_a_tight_cap_is_not_survived(network):
    candidate = Candidate("full")
    simulated = simulate(*network, candidate, 16).peak_memory_bytes
    measured = measure(*network, candidate, 16, allowed_bytes=simulated // 2)
    assert not measured.survived
    assert measured.failure
    assert measured.peak_memory_bytes >= simulated  # known all the same


def test_a_model_that_cannot_leave_the_process_is_named(network):
    class Local(nn.Module):
        def forward(self, x):
            return x

    with pytest.raises(ModelError, match="child process"):
        measure(Local(), network[1], Candidate("full"), 2)
