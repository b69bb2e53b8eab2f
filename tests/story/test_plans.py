"""Which plans are tried: within the limits as simulated, and only where there are some that bind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from advisor.costs import Simulator
from advisor.data.loading import Dataset, LabelledImages
from advisor.data.pixels import Normalisation
from advisor.methods.plan import read
from advisor.models.layers import take_census
from advisor.records import Budget, Candidate, Levers
from advisor.story.plans import worth_trying

SIZE = (3, 16, 16)
BATCH = 8


def block(channels: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]


@pytest.fixture(scope="module")
def ask():
    torch.manual_seed(0)
    inner = [nn.Sequential(*block(8)) for _ in range(5)]
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(*inner, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )
    census = take_census(model, SIZE)
    images = torch.randint(0, 256, (48, *SIZE), dtype=torch.uint8)
    part = LabelledImages(images, torch.arange(48) % 4)
    data = Dataset("made", tuple("abcd"), part, part, Normalisation((0.5,) * 3, (0.5,) * 3), named=True)
    simulator = Simulator(model, census, 48)

    def go(budget, levers=None, batch=BATCH):
        def price(candidate):
            return simulator.cost(candidate, batch)

        return worth_trying(price, model, census, data, batch, levers or Levers(), budget)

    return go, lambda candidate: simulator.cost(candidate, BATCH)


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_each_fits_and_trains_more_than_the_head(ask, share):
    go, price = ask
    full, head = price(Candidate("full")), price(Candidate("head"))
    ram = int(share * full.peak_memory_bytes)
    found = go(Budget(ram_bytes=ram))
    assert found
    for candidate in found:
        cost = price(candidate)
        assert cost.peak_memory_bytes <= ram
        assert cost.trainable_parameters > head.trainable_parameters
        assert read(dict(candidate.setting)["layers"])[-1].last == 20
    assert len({candidate.levers for candidate in found}) == len(found)


def test_what_is_left_for_the_runtime_is_taken_off(ask):
    go, price = ask
    ram = int(0.6 * price(Candidate("full")).peak_memory_bytes)
    found = go(Budget(ram_bytes=ram + 5000, runtime_overhead_bytes=5000))
    assert [each.id for each in found] == [each.id for each in go(Budget(ram_bytes=ram))]


def test_there_is_none_where_a_batch_in_parts_trains_everything(ask):
    go, price = ask
    one = price(Candidate("full")).peak_memory_bytes  # of eight images
    assert go(Budget(ram_bytes=one + 20_000), batch=32) == []
    flops = int(0.7 * 4 * price(Candidate("full")).flops.total)
    assert go(Budget(flops=flops), batch=32)


def test_flops_are_limited_as_well(ask):
    go, price = ask
    flops = int(0.7 * price(Candidate("full")).flops.total)
    [found] = go(Budget(flops=flops))
    assert price(found).flops.total <= flops
    [other] = go(Budget(flops=flops), Levers(optimizer="sgd"))
    assert other.levers.optimizer == "sgd"


def test_more_memory_never_trains_less(ask):
    go, price = ask
    full = price(Candidate("full"))
    trained = []
    for share in (0.5, 0.65, 0.8, 0.95):
        found = [
            c for c in go(Budget(ram_bytes=int(share * full.peak_memory_bytes))) if not c.levers.checkpoint
        ]
        trained.append(max((price(c).flops.input_gradient for c in found), default=0))
    assert trained == sorted(trained)


def test_there_is_none_where_everything_fits_or_the_limit_only_warns_or_nothing_does(ask):
    go, price = ask
    full = price(Candidate("full")).peak_memory_bytes
    assert go(Budget()) == []
    assert go(Budget(ram_bytes=full)) == []
    assert go(replace(Budget(ram_bytes=full // 2), warn=("ram",))) == []
    assert go(Budget(ram_bytes=1000)) == []
