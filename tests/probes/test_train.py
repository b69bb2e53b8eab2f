"""The training loop: fair, repeatable, and leaving the user's model alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from advisor.models.layers import take_census
from advisor.probes.data import Dataset, LabelledImages, Normalisation
from advisor.probes.train import accuracy_of, evaluate, fine_tune, probe
from advisor.records import Candidate, Levers

SIZE = (1, 6, 6)


def dataset(samples=120, seed=0):
    """Two classes, told apart by where the bright half is."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 2
    images = torch.randint(0, 90, (samples, *SIZE), generator=generator)
    images[labels == 0, :, :3] += 120
    images[labels == 1, :, 3:] += 120
    split = samples * 2 // 3
    parts = [LabelledImages(images[p].to(torch.uint8), labels[p]) for p in (slice(split), slice(split, None))]
    return Dataset("made", ("a", "b"), *parts, Normalisation((0.5,), (0.5,)), False)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    ).eval()


def run(model, candidate, data, **options):
    settings = {"learning_rate": 1e-2, "updates": 30, "batch_size": 8, "seed": 0} | options
    return fine_tune(model, take_census(model, SIZE), candidate, data, **settings)


@pytest.mark.parametrize("method", ["full", "head", "norm", "bias"])
def test_training_learns_and_leaves_the_model_alone(method):
    model, data = network(), dataset()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = run(model, Candidate(method), data, updates=120)
    right = evaluate(trained.model, data.validation, data.normalisation)
    assert sum(right) / len(right) > 0.9
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_same_seed_gives_the_same_result_and_the_global_generator_is_left_alone():
    model, data = network(), dataset()
    candidate = Candidate.of("lora", {"rank": 2}, Levers())
    state = torch.get_rng_state()
    first = run(model, candidate, data).delta()
    assert torch.equal(state, torch.get_rng_state())
    second = run(model, candidate, data).delta()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = run(model, candidate, data, seed=1).delta()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_loss_that_becomes_nan_is_a_result():
    model, data = network(), dataset()
    with torch.no_grad():
        model[0].weight[0] = float("nan")
    assert run(model, Candidate("full"), data) is None
    found = probe(
        model,
        take_census(network(), SIZE),
        Candidate("full"),
        data,
        learning_rate=1e-3,
        updates=5,
        batch_size=8,
        validation_samples=10,
        seed=0,
    )
    assert found.correct is None


def test_a_learning_rate_far_too_high_is_no_crash():
    found = run(network(), Candidate("full"), dataset(), learning_rate=1e30)
    assert found is None


def test_evaluation_is_in_eval_mode_and_in_order():
    data, model = dataset(), network().train()
    right = evaluate(model, data.validation, data.normalisation, 7)
    assert len(right) == 7
    images, labels = data.validation.batch(torch.arange(7), data.normalisation)
    with torch.no_grad():
        expected = (model.eval()(images).argmax(1) == labels).tolist()
    assert list(right) == [int(value) for value in expected]


@given(st.lists(st.booleans(), min_size=1, max_size=500))
def test_the_interval_is_wilsons(outcomes):
    accuracy = accuracy_of(bytes(outcomes))
    assert 0 <= accuracy.low <= accuracy.mean <= accuracy.high <= 1
    n, p, z = len(outcomes), accuracy.mean, 1.959964
    for bound in (accuracy.low, accuracy.high):
        if bound not in (0.0, 1.0, accuracy.mean):
            # Wilson's bounds solve |p - b| = z sqrt(b (1 - b) / n).
            assert math.isclose(abs(p - bound), z * math.sqrt(bound * (1 - bound) / n), rel_tol=1e-6)
