"""Figures that others chose, and the ones that we did: each changes results, and none an error message."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from advisor.data.loading import default_normalisation
from advisor.methods import dora, galore, get_method, learning_rates, lite_residual, loha, lokr, lora
from advisor.models.layers import take_census
from advisor.probes.folds import fold_count
from advisor.probes.judging import ACCURACY
from advisor.probes.scenarios import Situation, adapt_head
from advisor.records import Accuracy, Budget, Candidate, Levers
from advisor.solver.choose import is_as_good, paired_gap
from advisor.training.update import begin, reestimation_updates, update
from tests.probes.test_folds import few


def judged(both, better_alone, other_alone, neither):
    """Two candidates on the same samples, so many right by both, by one alone, by none."""
    counts = (both, better_alone, other_alone, neither)
    right = [np.repeat(which, counts).astype(np.uint8) for which in ([1, 1, 0, 0], [1, 0, 1, 0])]
    samples = sum(counts)
    return [Accuracy(float(each.mean()), 0.0, 1.0, samples, each.tobytes()) for each in right]


@pytest.mark.parametrize(("better", "other"), [(200, 100), (300, 300), (400, 380)])
def test_the_paired_interval_is_the_95_percent_one(better, other):
    """By the normal approximation: the standard error of n differences, of which few are not zero."""
    samples = 4000
    pair = judged(1000, better, other, samples - 1000 - better - other)
    gap = (better - other) / samples
    error = ((better + other) / samples - gap**2) ** 0.5 / samples**0.5
    low, high = paired_gap(*pair)
    assert low == pytest.approx(gap - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(gap + 1.96 * error, abs=0.2 * error)


def test_how_much_of_a_gap_is_believed():
    """Half of it where its standard error is 2 points, as far as finalists truly lie apart."""
    for gap, as_good in ((0.018, True), (0.022, False)):
        best, other = judged(300, 200 + round(gap * 500), 200 - round(gap * 500), 300)
        assert best.mean - other.mean == pytest.approx(gap)
        assert is_as_good(other, best, Budget(tolerance=0.01)) is as_good


def test_wilsons_interval():
    """Of 81 of 263: 0.308 (0.255 to 0.366), Newcombe, Statistics in Medicine 17 (1998), table I."""
    found = ACCURACY.of(bytes([1] * 81 + [0] * 182))
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_images_are_normalised_as_imagenets_are():
    known = default_normalisation(3)
    assert known.mean == (0.485, 0.456, 0.406)  # red, green, blue, as in torchvision's presets
    assert known.std == (0.229, 0.224, 0.225)
    assert default_normalisation(1).mean == default_normalisation(1).std == (0.5,)


@pytest.mark.parametrize("rule", ["adam", "adamw", "momentum"])
def test_galores_first_steps_by_hand(rule):
    torch.manual_seed(0)
    start = torch.randn(6, 30)
    weight = nn.Parameter(start.clone())
    model = nn.Sequential(nn.Linear(30, 6), nn.ReLU(), nn.Linear(6, 2))
    trainable = get_method("galore").attach(model, take_census(model, (30,)), {"rank": 2})
    trainable.parameters = {"weight": weight}
    optimizer = get_method("galore").optimizer(trainable, Levers(optimizer=rule), 0.1)
    gradients = [torch.randn(6, 30) for _ in range(2)]
    projector = torch.linalg.svd(gradients[0], full_matrices=False)[0][:, :2]
    expected, mean, square = start.clone(), torch.zeros(2, 30), torch.zeros(2, 30)
    for step, gradient in enumerate(gradients, 1):
        weight.grad = gradient.clone()
        optimizer.step()
        seen = projector.T @ gradient
        if rule == "momentum":
            mean = 0.9 * mean + seen
            change = mean
        else:
            mean, square = 0.9 * mean + 0.1 * seen, 0.999 * square + 0.001 * seen**2
            change = mean / (1 - 0.9**step) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        if rule == "adamw":
            expected *= 1 - 0.1 * 0.01
        expected -= 0.1 * 0.25 * projector @ change
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-5)


def test_galores_moments_without_a_projection_are_torchs():
    """Where nothing is projected, each rule is torch's own optimizer, with its defaults."""
    for rule, kind in (
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("momentum", torch.optim.SGD),
    ):
        options = {"momentum": 0.9} if rule == "momentum" else {}
        ours, theirs = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
        pair = galore.GaLoreOptimizer([ours], 1e-2, rank=2, rule=rule), kind([theirs], 1e-2, **options)
        for _ in range(3):
            gradient = torch.randn(5)
            ours.grad, theirs.grad = gradient.clone(), gradient.clone()
            for optimizer in pair:
                optimizer.step()
        torch.testing.assert_close(ours, theirs)


def test_what_the_papers_chose():
    assert (galore.PERIOD, galore.SCALE) == (200, 0.25)  # GaLore's T and alpha
    assert lite_residual.GROUPS == 2  # TinyTL
    # LoRA's alpha / r with alpha = 2 r, for all that change weights by products.
    assert {module.SCALE for module in (lora, dora, loha, lokr)} == {2.0}


def test_learning_rates_follow_the_optimizer():
    rates = {
        o: learning_rates(Candidate("full", levers=Levers(optimizer=o)))[0] for o in ("adam", "momentum")
    }
    assert rates["momentum"] == pytest.approx(5 * rates["adam"])
    assert learning_rates(Candidate("full", levers=Levers(optimizer="adamw")))[0] == rates["adam"]
    sgd = learning_rates(Candidate("full", levers=Levers(optimizer="sgd")))[0]
    assert sgd == pytest.approx(50 * rates["adam"])


@pytest.mark.parametrize("size", [4, 5])
def test_an_uneven_last_part_of_a_batch_has_its_own_weight(size):
    """6 images in parts of 4 and 2, or 5 and 1: the gradient is the whole batch's."""
    torch.manual_seed(0)
    images, labels = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 1, 0, 1, 1])
    weights = []
    for micro in (None, size):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        levers = Levers(optimizer="sgd", micro_batch=micro)
        candidate = Candidate("full", levers=levers)
        trainable, optimizer = begin(model, take_census(model, (3, 8, 8)), candidate, 0.5)
        loss = update(trainable, optimizer, images, labels)
        weights.append([loss, *(p.detach() for p in model.parameters())])
    for whole, parts in zip(*weights, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_statistics_are_re_estimated_on_512_images():
    assert reestimation_updates(10_000, 8) == 64
    assert reestimation_updates(100, 8) == 12
    assert reestimation_updates(3, 8) == 1


def test_fewer_than_300_images_are_cross_validated_and_up_to_1500_may_be():
    assert [fold_count(few(count)) for count in (298, 300, 1498, 1500)] == [5, 4, 4, 1]


def test_a_new_row_is_the_mean_of_the_old_ones_and_a_tenth_of_its_own():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(50, 10))
    old = model[1].weight.detach().clone()
    adapt_head(model, "1", Situation("new-classes", 12, 2, False, tuple(range(12))))
    own = model[1].weight[10:].detach() - old.mean(0)
    expected = 0.1 * old.norm(dim=1).mean()
    torch.testing.assert_close(own.norm(dim=1), expected.expand(2), rtol=1e-4, atol=1e-6)
