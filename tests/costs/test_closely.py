"""A close look at one update adds up to what the update costs, and says what is done with each layer."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from advisor.costs import Simulator
from advisor.costs.closely import MOST_MOMENTS
from advisor.methods import get_method, methods
from advisor.models.layers import take_census
from advisor.records import Candidate, Flops, Layer, LayerCost, Levers, Timeline

SIZE, BATCH, RANK = (3, 16, 16), 4, 2


def stage(channels: int, made: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU())


def network() -> nn.Sequential:
    stages = [stage(3, 8), stage(8, 8), stage(8, 16)]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    model = network()
    return Simulator(model, take_census(model, SIZE), images=40)


def settings() -> list[Candidate]:
    census = take_census(network(), SIZE)
    each = [(name, get_method(name).settings(census, (RANK,))) for name in methods()]
    return [Candidate.of(name, found[0], Levers()) for name, found in each if found]


LEVERS = [
    Levers(scope=1, cached_prefix="ram"),
    Levers(micro_batch=1, checkpoint=True),
    Levers(update="per-parameter", statistics="reestimated"),
    Levers(head="ridge-all"),
    Levers(fuse=True, scope=2, statistics="frozen"),
]
SEEN = [*settings(), *(Candidate("full", (), levers) for levers in LEVERS)]


def look(simulator: Simulator, candidate: Candidate) -> tuple[tuple[LayerCost, ...], Timeline]:
    by_layer, timeline = simulator.closely(candidate, BATCH)
    assert timeline is not None
    return by_layer, timeline


@pytest.mark.parametrize("candidate", SEEN, ids=lambda candidate: candidate.id)
def test_it_adds_up_to_the_cost(simulator: Simulator, candidate: Candidate) -> None:
    cost = simulator.cost(candidate, BATCH)
    by_layer, timeline = look(simulator, candidate)
    assert max((moment.memory for moment in timeline.moments), key=lambda held: held.total) == cost.memory
    assert sum(each.trained_parameters for each in by_layer) == cost.trainable_parameters
    rounding = len(by_layer) if candidate.method == "galore" else 0  # a mean over steps, layer by layer
    total = sum((each.flops for each in by_layer), Flops())
    assert cost.flops.total - rounding <= total.total <= cost.flops.total
    held = Counter[str]()
    for each in timeline.largest:
        held[each.purpose] += each.bytes
    assert held.total() <= cost.peak_memory_bytes
    assert all(size <= getattr(cost.memory, purpose) for purpose, size in held.items())
    assert [each.bytes for each in timeline.largest] == sorted(
        (each.bytes for each in timeline.largest), reverse=True
    )
    assert cost.timeline is None  # pricing hundreds keeps none of it
    assert cost.by_layer == ()


def test_what_is_held_at_the_peak_is_all_told_where_it_is_little(simulator: Simulator) -> None:
    small = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    candidate = Candidate("full", (), Levers(optimizer="sgd"))
    simulator = Simulator(small, take_census(small, (3, 4, 4)))
    _, timeline = look(simulator, candidate)
    assert sum(each.bytes for each in timeline.largest) == simulator.cost(candidate, BATCH).peak_memory_bytes


def test_moments_are_in_order_and_of_the_layers_that_run(simulator: Simulator) -> None:
    _, timeline = look(simulator, Candidate("full"))
    phases = [moment.phase for moment in timeline.moments]
    assert phases == sorted(phases, key=("forward", "backward", "optimizer").index)
    convolutions = [
        (moment.phase, moment.layer) for moment in timeline.moments if moment.layer in ("0.0", "1.0", "2.0")
    ]
    assert convolutions[:3] == [("forward", "0.0"), ("forward", "1.0"), ("forward", "2.0")]
    assert convolutions[3:6] == [("backward", "2.0"), ("backward", "1.0"), ("backward", "0.0")]
    activations = [moment.memory.activations for moment in timeline.moments if moment.phase == "forward"]
    assert activations == sorted(activations)


def test_many_layers_are_so_many_moments_as_a_chart_shows() -> None:
    deep = nn.Sequential(*(stage(3 if n == 0 else 4, 4) for n in range(60)), nn.Flatten(), nn.LazyLinear(2))
    deep(torch.zeros(1, 3, 4, 4))
    simulator = Simulator(deep, take_census(deep, (3, 4, 4)))
    _, timeline = look(simulator, Candidate("full"))
    assert MOST_MOMENTS / 2 < len(timeline.moments) <= MOST_MOMENTS
    peak = max(moment.memory.total for moment in timeline.moments)
    assert peak == simulator.cost(Candidate("full"), BATCH).peak_memory_bytes


@pytest.mark.parametrize(
    ("candidate", "treatments"),
    [
        (Candidate("full"), {"0.0": "trained", "0.1": "trained", "0.2": "passed", "5": "trained"}),
        (Candidate("norm"), {"0.0": "frozen", "0.1": "trained", "1.0": "passed", "5": "trained"}),
        (Candidate("bias"), {"0.0": "partly", "0.1": "partly", "5": "trained"}),
        (Candidate("recalibrate"), {"0.0": "frozen", "0.1": "statistics", "5": "frozen"}),
        (
            Candidate.of("lora", {"rank": RANK}, Levers(scope=1, cached_prefix="ram")),
            {"0.0": "once", "0.1": "once", "2.0": "added", "5": "trained"},
        ),
        (Candidate("head", (), Levers(head="ridge-last")), {"2.0": "frozen", "5": "solved"}),
        (Candidate("head"), {"0.1": "frozen", "5": "trained"}),
    ],
    ids=lambda value: value.id if isinstance(value, Candidate) else "",
)
def test_what_is_done_with_each_layer(
    simulator: Simulator, candidate: Candidate, treatments: dict[str, str]
) -> None:
    by_layer, _ = look(simulator, candidate)
    known = {each.name: each.treatment for each in by_layer}
    assert {name: known[name] for name in treatments} == treatments


def test_layers_stand_in_the_order_of_the_census(simulator: Simulator) -> None:
    layers: tuple[Layer, ...] = take_census(network(), SIZE).layers
    by_layer, _ = look(simulator, Candidate("full"))
    assert [each.name for each in by_layer] == [*(layer.name for layer in layers), ""]
    assert [each.parameters for each in by_layer] == [*(layer.parameters for layer in layers), 0]
