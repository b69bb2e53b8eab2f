"""The per-layer table: what it adds up to, against simulations of the same plans."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from advisor.costs import Estimator, Simulator
from advisor.errors import InputError
from advisor.models.layers import take_census
from advisor.records import Candidate, Levers
from measurements.plans import planned, random_plans

SIZE = (3, 64, 64)
OPTIONS = (
    *(Candidate("full"), Candidate("norm"), Candidate("bias")),
    *(Candidate.of("lora", {"rank": 4}, Levers()), Candidate.of("dora", {"rank": 2}, Levers())),
)


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "shufflenet_v2_x0_5", "efficientnet_b0"])
def test_random_plans_cost_what_their_simulation_says(name):
    model = torchvision.models.get_model(name, weights=None)
    census = take_census(model, SIZE)
    estimator = Estimator(model, census, OPTIONS, batch_size=8)
    plans = random_plans(estimator, 16, np.random.default_rng(0))
    estimates = estimator(plans)
    simulator = Simulator(model, census, workspace=False)
    compared = 0
    for plan, parameters, flops, saved in zip(
        plans, estimates.trainable_parameters, estimates.flops, estimates.saved_bytes, strict=True
    ):
        if not parameters:
            assert saved == 0
            continue
        with planned(plan, OPTIONS) as candidate:
            cost = simulator.cost(candidate, 8)
        assert parameters == cost.trainable_parameters
        assert flops == pytest.approx(cost.flops.total, rel=0.05)
        assert saved == pytest.approx(sum(each.saved_bytes for each in cost.by_layer_type.values()), rel=0.05)
        compared += 1
    assert compared >= 8


def chain() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    )


@pytest.fixture(scope="module")
def small():
    model = chain()
    return Estimator(model, take_census(model, (3, 16, 16)), OPTIONS, 4)


def test_a_frozen_plan_costs_a_forward_pass(small):
    estimates = small(np.zeros((1, len(small.layers)), dtype=np.int64))
    model = chain()
    forward = (
        Simulator(model, take_census(model, (3, 16, 16))).cost(Candidate("recalibrate"), 4).flops.forward
    )
    assert estimates.trainable_parameters == estimates.saved_bytes == 0
    assert estimates.flops == pytest.approx(forward, rel=0.05)


def test_what_no_layer_does_is_counted_once():
    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Conv2d(3, 2, 1), nn.Linear(2, 4)

        def forward(self, x):
            x = self.first(x)
            for _ in range(20):
                x = torch.sin(x) * 2
            return self.head(x.mean((2, 3)))

    model = Scales()
    census = take_census(model, (3, 16, 16))
    frozen = Estimator(model, census, OPTIONS, 4)(np.zeros((1, 2), dtype=np.int64))
    forward = Simulator(model, census).cost(Candidate("head"), 4).flops.forward
    assert frozen.flops == pytest.approx(forward, rel=0.05)


def test_the_optimizers_steps_are_counted():
    """Of one image they are most of an update: a dozen FLOPs a weight, against six of three passes."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 4))
    census = take_census(model, (3, 4, 4))
    trained = Estimator(model, census, [Candidate("full")], 1)(
        np.ones((1, len(census.layers)), dtype=np.int64)
    )
    cost = Simulator(model, census).cost(Candidate("full"), 1)
    assert cost.flops.optimizer > cost.flops.total / 2
    assert trained.flops == pytest.approx(cost.flops.total, rel=0.02)


def test_parameters_add_up(small):
    rng = np.random.default_rng(0)
    plans = random_plans(small, 50, rng)
    each = [
        small(np.where(np.arange(plans.shape[1]) == place, plans, 0)).trainable_parameters
        for place in range(plans.shape[1])
    ]
    np.testing.assert_array_equal(sum(each), small(plans).trainable_parameters)


def test_training_one_more_layer_never_costs_less(small):
    layers, options = small.trains.shape
    for plan in random_plans(small, 20, np.random.default_rng(1)):
        before = small(plan[None])
        for place, option in itertools.product(range(layers), range(1, options)):
            if plan[place] == 0 and small.trains[place, option]:
                more = plan.copy()
                more[place] = option
                after = small(more[None])
                assert after.flops >= before.flops
                assert after.saved_bytes >= before.saved_bytes


def test_an_option_that_trains_nothing_in_a_layer_leaves_it_frozen(small):
    relu = small.layers.index("2")
    assert not small.trains[relu].any()
    plan = np.zeros((2, len(small.layers)), dtype=np.int64)
    plan[1, relu] = 1
    estimates = small(plan)
    assert estimates.flops[0] == estimates.flops[1]


def test_no_plans_no_estimates(small):
    assert small(np.zeros((0, len(small.layers)), dtype=np.int64)).flops.shape == (0,)


def test_options_have_no_levers():
    model = chain()
    census = take_census(model, (3, 16, 16))
    with pytest.raises(InputError, match="without levers"):
        Estimator(model, census, [Candidate("full", levers=Levers(checkpoint=True))], 4)


def test_the_model_is_left_untouched():
    model = chain()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Estimator(model, take_census(model, (3, 16, 16)), OPTIONS, 4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
