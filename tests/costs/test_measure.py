"""Updates in a child process, with and without a cap."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from advisor.costs import Simulator
from advisor.costs import measure as measuring
from advisor.costs.measure import measure
from advisor.costs.simulate import simulate
from advisor.errors import InputError, ModelError
from advisor.models.layers import take_census
from advisor.records import Candidate, Levers, Measurement

SIZE = (3, 48, 48)
MIB = 2**20
MARGIN = 2 * MIB  # for what libraries allocate by themselves


@pytest.fixture(scope="module")
def network():
    """Mostly activations, and quick: 288 KiB for each image and layer."""
    blocks = (
        layer
        for channels in (3, 32, 32, 32)
        for layer in (nn.Conv2d(channels, 32, 1), nn.BatchNorm2d(32), nn.ReLU())
    )
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))
    return model, take_census(model, SIZE)


@pytest.fixture(scope="module")
def wide_network():
    """Mostly weights: 1 MiB in each of six layers; none of its operators takes workspace."""
    layers = (layer for _ in range(6) for layer in (nn.Linear(512, 512), nn.ReLU()))
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 512), nn.ReLU(), *layers, nn.Linear(512, 4))
    return model, take_census(model, (3, 8, 8))


@pytest.mark.parametrize(
    ("peak", "survives", "allowances", "told"),
    [
        (2000, (False, False), [4 * MIB], False),  # the allocator's own peak is above what is allowed
        (1000, (False, False), [4 * MIB, 32 * MIB], True),  # it isn't: the runtime took more than that
        (1000, (False, True), [4 * MIB, 32 * MIB], True),
        (1000, (True, True), [4 * MIB], True),
    ],
)
def test_the_runtimes_fluctuation_has_4_mib_and_then_32(peak, survives, allowances, told, monkeypatch):
    given, fates = [], iter(survives)

    def capped(job, allowed, allowance, waiting):
        given.append(allowance)
        return Measurement(peak, peak, 0, 0.1, 5, allowed + allowance, survived=next(fates))

    monkeypatch.setattr(measuring, "_capped", capped)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    found = measure(model, take_census(model, (1, 2, 2)), Candidate("full"), 2, allowed_bytes=1000)
    assert given == allowances
    assert found.survived == told
    assert (found.cap_bytes is None) == (told and not any(survives))


@pytest.mark.parametrize(
    ("device", "is_there"), [("cpu", True), ("cuda", True), ("cuda:0", True), ("cuda:1", False)]
)
def test_of_one_gpu_there_is_the_first(device, is_there, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with nullcontext() if is_there else pytest.raises(InputError, match="it sees 1 CUDA GPUs"):
        measuring._check_device(device)


def test_a_roomy_cap_is_survived_and_the_peak_is_near_the_simulated_one(network):
    candidate = Candidate("full")
    simulated = simulate(*network, candidate, 16).peak_memory_bytes
    measured = measure(*network, candidate, 16, allowed_bytes=2 * simulated, timing_seconds=0)
    assert measured.survived
    assert measured.updates == 5
    assert measured.peak_memory_bytes == pytest.approx(simulated, rel=0.02)
    assert 0 < measured.update_seconds_lower_quartile <= measured.update_seconds
    assert measured.update_seconds <= measured.update_seconds_upper_quartile
    assert measured.update_joules is None or measured.update_joules > 0
    assert measured.device == "cpu"
    assert measured.cap_bytes > 2 * simulated
    assert measured.peak_resident_bytes > measured.runtime_bytes


def test_a_tight_cap_is_not_survived(network):
    candidate = Candidate("full")
    simulated = simulate(*network, candidate, 16).peak_memory_bytes
    measured = measure(*network, candidate, 16, allowed_bytes=simulated // 2, timing_seconds=0)
    assert not measured.survived
    assert measured.failure
    assert measured.peak_memory_bytes == pytest.approx(simulated, rel=0.02)  # known all the same


@pytest.mark.parametrize(
    "levers",
    [
        Levers(micro_batch=4, checkpoint=True),
        Levers(scope=1, cached_prefix="disk"),
        Levers(optimizer="sgd", update="per-parameter"),
    ],
    ids=lambda levers: "@".join(levers.described()),
)
def test_a_cap_that_a_lever_makes_enough_is_too_tight_without(levers, network, wide_network):
    model, census = wide_network if levers.update == "per-parameter" else network
    simulator = Simulator(model, census, images=16)
    candidate, plain = Candidate("full", levers=levers), Candidate("full", levers=Levers(levers.optimizer))
    simulated = simulator.cost(candidate, 16).peak_memory_bytes
    allowed = simulated + MARGIN
    assert simulator.cost(plain, 16).peak_memory_bytes > allowed + MARGIN
    fits = measure(model, census, candidate, 16, allowed_bytes=allowed, timing_seconds=0)
    assert fits.survived, fits.failure
    assert fits.peak_memory_bytes == pytest.approx(simulated, rel=0.02)
    assert not measure(model, census, plain, 16, allowed_bytes=allowed, timing_seconds=0).survived


def test_a_prefix_cached_in_memory_is_held(network):
    candidate = Candidate("full", levers=Levers(scope=1, cached_prefix="ram"))
    cost = Simulator(*network, images=100).cost(candidate, 16)
    assert cost.cache_bytes > 25 * MIB
    capped = {"allowed_bytes": cost.peak_memory_bytes + MARGIN, "timing_seconds": 0}
    fits = measure(*network, candidate, 16, cache_bytes=cost.cache_bytes, **capped)
    assert fits.survived, fits.failure
    assert fits.peak_memory_bytes == pytest.approx(cost.peak_memory_bytes, rel=0.02)
    assert fits.peak_resident_bytes > fits.runtime_bytes + cost.cache_bytes  # for real
    # The update that comes after it would still fit: it is the cache alone that is refused.
    too_much = measure(*network, candidate, 16, cache_bytes=2 * cost.cache_bytes, **capped)
    assert not too_much.survived
    assert too_much.peak_memory_bytes == pytest.approx(fits.peak_memory_bytes + cost.cache_bytes, rel=0.01)
    assert too_much.peak_resident_bytes > too_much.runtime_bytes + 2 * cost.cache_bytes


def test_without_workspace_the_allocator_agrees_with_the_simulation_whatever_threads_run(wide_network):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        measured = measure(*wide_network, Candidate("full"), 16, timing_seconds=0)
    finally:
        torch.set_num_threads(threads)
    simulated = simulate(*wide_network, Candidate("full"), 16).peak_memory_bytes
    assert simulated <= measured.peak_memory_bytes <= simulated + 64  # scalars of the loss and the optimizer
    assert measured.cap_bytes is None


def test_state_that_an_optimizer_replaces_is_not_counted_twice(wide_network):
    """GaLore's rare update replaces every projector, and is the one whose peak counts."""
    candidate = Candidate.of("galore", {"rank": 16}, Levers())
    model, census = wide_network
    simulated = simulate(model, census, candidate, 16)
    projectors = (6 * 512 + 192) * 16 * 4
    measured = measure(model, census, candidate, 16, timing_seconds=0).peak_memory_bytes
    assert simulated.peak_memory_bytes - projectors <= measured <= simulated.peak_memory_bytes + 64


def test_updates_are_timed_for_as_long_as_asked(wide_network):
    measured = measure(*wide_network, Candidate("head"), 1, timing_seconds=1)
    assert measured.updates > 5
    assert measured.updates * measured.update_seconds_lower_quartile < 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_its_allocator_is_asked(wide_network):
    candidate = Candidate("full")
    simulated = simulate(*wide_network, candidate, 16).peak_memory_bytes
    limits = {"device": "cuda", "timing_seconds": 0}
    measured = measure(*wide_network, candidate, 16, allowed_bytes=4 * simulated + 64 * MIB, **limits)
    assert measured.survived, measured.failure
    assert measured.device == "cuda"
    # The device's allocator rounds up, cuBLAS keeps workspace, and Adam's loop is another there.
    assert 0.9 * simulated <= measured.peak_memory_bytes <= 4 * simulated + 64 * MIB
    assert measured.update_seconds > 0
    tight = measure(*wide_network, candidate, 16, allowed_bytes=simulated // 2, **limits)
    assert not tight.survived
    assert "allocator's peak" in tight.failure


@pytest.mark.parametrize("device", ["mps", "gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_named(wide_network, device):
    with pytest.raises(InputError, match=device):
        measure(*wide_network, Candidate("full"), 2, device=device)


def test_a_model_that_cannot_leave_the_process_is_named(network):
    class Local(nn.Module):
        def forward(self, x):
            return x

    with pytest.raises(ModelError, match="child process"):
        measure(Local(), network[1], Candidate("full"), 2)
