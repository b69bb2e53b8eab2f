"""GaLore's optimizer: where it projects, how large its state is, and that it is Adam in the limit."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from advisor.methods.galore import GaLoreOptimizer, projects
from advisor.models.layers import take_census
from advisor.records import Candidate, Levers
from advisor.training.update import begin


def state_size(optimizer):
    return sum(
        value.numel()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.ndim  # not Adam's step counter
    )


def test_state_lives_in_the_projected_space():
    weight = nn.Parameter(torch.randn(64, 32, 3, 3))  # a 64 x 288 matrix
    optimizer = GaLoreOptimizer([weight], 1e-3, rank=4)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    assert state_size(optimizer) == 2 * 4 * 288 + 64 * 4


def test_state_is_never_larger_than_adams():
    shapes = [(8, 8), (16, 1, 3, 3), (64, 64, 1, 1), (5,), (3, 200), (200, 3), (1, 7)]
    for shape in shapes:
        for rank in (1, 4, 16, 64):
            weight = nn.Parameter(torch.randn(shape))
            optimizer = GaLoreOptimizer([weight], 1e-3, rank=rank)
            weight.grad = torch.randn_like(weight)
            optimizer.step()
            assert state_size(optimizer) <= 2 * weight.numel(), (shape, rank)


def test_one_weight_that_is_projected_is_enough_and_without_any_it_is_torchs():
    """Biases never are."""
    for inputs, kind in ((200, GaLoreOptimizer), (2, torch.optim.Adam)):
        model = nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, 2))
        trainable, optimizer = begin(
            model, take_census(model, (inputs,)), Candidate.of("galore", {"rank": 4}, Levers()), 1e-3
        )
        assert len(trainable.parameters) == 4
        assert type(optimizer) is kind


def test_without_a_projection_it_is_adam():
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    mine = GaLoreOptimizer([ours], 1e-2, rank=4)
    adam = torch.optim.Adam([theirs], 1e-2)
    for _ in range(10):
        gradient = torch.randn(5)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        adam.step()
    torch.testing.assert_close(ours, theirs)


def test_the_update_lies_in_the_span_of_the_projector():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(16, 40))
    optimizer = GaLoreOptimizer([weight], 1e-2, rank=3)
    weight.grad = torch.randn(16, 40)
    optimizer.step()
    projector = optimizer.state[weight]["projector"]
    torch.testing.assert_close(projector.mT @ projector, torch.eye(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(projector @ (projector.mT @ weight), weight.detach(), atol=1e-6, rtol=0)


def test_the_projector_is_refreshed_every_period():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(8, 30))
    optimizer = GaLoreOptimizer([weight], 1e-2, rank=2, refresh_every=3)
    seen = []
    for _ in range(7):
        weight.grad = torch.randn(8, 30)
        optimizer.step()
        seen.append(optimizer.state[weight]["projector"].clone())
    changed = [not torch.equal(a, b) for a, b in pairwise(seen)]
    assert changed == [False, False, True, False, False, True]


def test_it_descends():
    torch.manual_seed(0)
    target = torch.randn(12, 20)
    weight = nn.Parameter(torch.zeros(12, 20))
    optimizer = GaLoreOptimizer([weight], 2e-1, rank=4, refresh_every=10)
    first = None
    for _ in range(200):
        optimizer.zero_grad()
        loss = (weight - target).square().mean()
        loss.backward()
        optimizer.step()
        first = first if first is not None else loss.item()
    assert loss.item() < 0.2 * first


def test_a_weight_whose_first_gradient_comes_late_gets_its_projector_then():
    first, late = (nn.Parameter(torch.zeros(8, 30)) for _ in range(2))
    optimizer = GaLoreOptimizer([first, late], 1e-2, rank=2)
    first.grad = torch.randn(8, 30)
    optimizer.step()
    late.grad = torch.randn(8, 30)
    optimizer.step()
    assert "projector" in optimizer.state[late]
    assert late.abs().sum() > 0


def test_what_is_not_projected_follows_the_learning_rate():
    weight, bias = nn.Parameter(torch.zeros(8, 30)), nn.Parameter(torch.zeros(8))
    optimizer = GaLoreOptimizer([weight, bias], 1e-2, rank=2)
    optimizer.param_groups[0]["lr"] = 0.0
    weight.grad, bias.grad = torch.randn(8, 30), torch.randn(8)
    optimizer.step()
    assert not weight.any()
    assert not bias.any()


@pytest.mark.parametrize(
    ("shape", "moments", "expected"),
    [
        ((3, 3), 2, False),  # 2 * (2 * 3 + 3) against 2 * 9: as large is not smaller
        ((3, 4), 2, True),  # 2 * (2 * 4 + 3) against 2 * 12
        ((4, 3), 2, True),
        ((3, 4), 1, False),  # 2 * (4 + 3) against 12
        ((3, 2, 2), 2, True),
        ((100,), 2, False),
    ],
)
def test_what_is_projected_keeps_a_smaller_state(shape, moments, expected):
    assert projects(torch.empty(shape), 2, moments) is expected
