"""What some probes tell of all candidates."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.methods import learning_rates
from advisor.probes.picture import (
    Conditions,
    Picture,
    Point,
    Prior,
    Seen,
    effects,
    logit,
    pictured,
    shipped_prior,
    whole,
)
from advisor.records import Candidate, Levers

UNDER, SAMPLES = Conditions(blocks=10, batch_size=8), 200
PRIOR = shipped_prior(UNDER.world)
TRAININGS = [
    Candidate("full"),
    Candidate("full", levers=Levers(scope=5)),
    Candidate("norm"),
    Candidate("norm", levers=Levers(statistics="frozen")),
    Candidate.of("lora", {"rank": 4}, Levers()),
    Candidate.of("lora", {"rank": 8}, Levers(scope=5)),
    Candidate("head"),
]


def told(seen, wanted, prior=None):
    return pictured(seen, wanted, UNDER, prior or PRIOR)


def seen(training, accuracy, *, step=1, share=1.0, samples=SAMPLES):
    return Seen(Point(training, learning_rates(training)[step], share), accuracy, samples)


def test_without_a_probe_nothing_is_known():
    with pytest.raises(ValueError, match="without a probe"):
        told([], whole(TRAININGS[0]))


def test_a_task_that_is_easier_is_easier_for_all():
    known = [TRAININGS[0], TRAININGS[2]]
    others = [point for training in TRAININGS[3:] for point in whole(training)]
    hard = told([seen(training, 0.3) for training in known], others)
    easy = told([seen(training, 0.9) for training in known], others)
    assert all(one.mean > other.mean + 0.2 for one, other in zip(easy, hard, strict=True))


def test_a_training_tells_the_most_of_those_like_it():
    """That one method does well here says more of its other settings than of other methods."""
    lora = Candidate.of("lora", {"rank": 4}, Levers())
    wanted = [
        Point(replace(lora, setting=(("rank", 8),)), learning_rates(lora)[1]),
        Point(Candidate("norm"), learning_rates(Candidate("norm"))[1]),
    ]
    common = [seen(Candidate("full"), 0.6), seen(Candidate("head"), 0.6)]
    well, badly = (told([*common, seen(lora, accuracy)], wanted) for accuracy in (0.8, 0.4))
    gains = [one.mean - other.mean for one, other in zip(well, badly, strict=True)]
    assert gains[0] > gains[1]


def test_what_was_trained_for_longer_says_more_of_the_end():
    full = Candidate("full")
    common = [seen(Candidate("head"), 0.6), seen(Candidate("norm"), 0.6)]
    end = [Point(full, learning_rates(full)[1])]

    def width(share):
        [found] = told([*common, seen(full, 0.7, share=share)], end)
        return logit(found.high, 10**6) - logit(found.low, 10**6)

    assert width(1.0) < width(1 / 4) < width(1 / 16)


def test_more_images_and_more_probes_narrow_the_interval():
    end = [Point(Candidate("norm"), learning_rates(Candidate("norm"))[1])]
    [one] = told([seen(Candidate("full"), 0.6)], end)
    [more] = told([seen(Candidate("full"), 0.6, samples=2000)], end)
    [two] = told([seen(Candidate("full"), 0.6), seen(Candidate("head"), 0.6)], end)
    assert more.high - more.low < one.high - one.low
    assert two.high - two.low < one.high - one.low


def test_a_method_that_no_study_knows_is_predicted_too():
    """What was never measured is taken for an average one: its interval is the wider for it."""
    known = Candidate("norm")
    means = {effect: mean for effect, mean in PRIOR.means.items() if "norm" not in effect[1]}
    [found] = told([seen(Candidate("full"), 0.6)], whole(known)[1:2], replace(PRIOR, means=means))
    assert 0.2 < found.mean < 0.9


def test_it_is_the_posterior_of_the_stated_model():
    """Against the joint Gaussian of all answers, written out."""
    names = sorted({group for training in TRAININGS for group, _ in effects(whole(training)[0], UNDER)})
    spreads = dict.fromkeys([*names, *PRIOR.spreads], 0.05)
    prior = Prior({("method", "norm"): 0.3}, spreads, 0.05, shared=0.4, smoothed=0.5)
    known = [seen(TRAININGS[0], 0.65), seen(TRAININGS[4], 0.6, share=0.25, samples=2 * SAMPLES)]
    wanted = Point(TRAININGS[2], learning_rates(TRAININGS[2])[2])
    rows = [effects(point, UNDER) for point in [*(s.point for s in known), wanted]]
    kernel = np.array([[sum(0.0025 * w * b.get(e, 0.0) for e, w in a.items()) for b in rows] for a in rows])
    means = np.array([0.3 * row.get(("method", "norm"), 0.0) for row in rows])
    one, two = (1 / (p * (1 - p)) for p in (130.5 / 201, 240.5 / 401))  # of a single image
    left = 0.4 + 0.5 * 0.6  # of a plain answer's variance, in a smoothed one
    noise = np.diag([left * one / SAMPLES + 0.0025, left * two / (2 * SAMPLES) + 0.0025])
    # Of the second's 400 images the first has seen 200, which are as hard for both.
    noise += 0.4 * (one * two) ** 0.5 / (2 * SAMPLES) * (1 - np.eye(2))
    solved = np.linalg.solve(kernel[:2, :2] + noise, np.eye(2))
    answers = np.array([logit(0.65, SAMPLES), logit(0.6, 2 * SAMPLES)]) - means[:2]
    mean = means[2] + kernel[2, :2] @ solved @ answers
    spread = kernel[2, 2] - kernel[2, :2] @ solved @ kernel[:2, 2] + 0.0025
    [found] = told(known, [wanted], prior)
    expected = [1 / (1 + math.exp(-(mean + z * 1.959964 * spread**0.5))) for z in (0, -1, 1)]
    assert [found.mean, found.low, found.high] == pytest.approx(expected)


@settings(max_examples=25, deadline=None)
@given(
    accuracies=st.lists(st.floats(0, 1), min_size=1, max_size=len(TRAININGS)),
    samples=st.integers(1, 5000),
    share=st.sampled_from([1.0, 0.5, 1 / 16]),
)
def test_an_estimate_is_a_share_within_its_interval(accuracies, samples, share):
    known = [
        seen(training, accuracy, share=share, samples=samples)
        for training, accuracy in zip(TRAININGS, accuracies, strict=False)
    ]
    for found in told(known, [point for training in TRAININGS for point in whole(training)]):
        assert 0 <= found.low <= found.mean <= found.high <= 1


def test_every_effect_has_its_spread():
    points = [point for training in TRAININGS for point in whole(training, "all")]
    for side in (32, 224):
        under = replace(UNDER, side=side, images=100)
        groups = {group for point in points for group, _ in effects(point, under)}
        assert shipped_prior(under.world).spreads.keys() >= groups


def weights(training, *, times=1.0, share=1.0, head=None, images=400):
    """Of each group's effects: their sum, at so many times the lowest learning rate."""
    rate = times * learning_rates(training)[0]
    found = {}
    for (group, _), weight in effects(
        Point(training, rate, share, head), replace(UNDER, images=images)
    ).items():
        found[group] = found.get(group, 0.0) + weight
    return found


@pytest.mark.parametrize(("times", "raised", "risked"), [(1, 0, 0), (5, 1, 0), (25, 1, 1)])
def test_a_rate_is_raised_by_one_step_and_risked_beyond(times, raised, risked):
    found = weights(Candidate("full"), times=times)
    assert found.get("rate raised, trained head", 0.0) == pytest.approx(raised)
    assert found.get("rate risked, trained head", 0.0) == pytest.approx(risked)
    assert found["method, trained head"] == 1


def test_a_solved_head_gains_as_what_is_before_it_is_trained():
    """By the share of the network, and the root of the share of the updates."""
    part = Candidate("full", levers=Levers(scope=5))  # of 10 blocks
    found = weights(part, share=0.25, head="last")
    assert found["gain, solved head"] == found["method, solved head"] == pytest.approx(0.25)
    assert not any(group.endswith("trained head") or group.startswith("length") for group in found)
    assert weights(part, share=0.25)["method, trained head"] == 1
    assert weights(part, share=0.25)["depth, trained head"] == pytest.approx(-0.5 + 0.25)  # and its square


@pytest.mark.parametrize(("images", "expected"), [(50, -1), (400, 0), (800, 1 / 3), (3200, 1), (10**6, 1)])
def test_images_count_by_their_doublings(images, expected):
    assert weights(Candidate("full"), images=images).get("head by images", 0.0) == pytest.approx(expected)


def test_what_was_not_seen_may_fail_altogether():
    """Its interval reaches twice as far again below all that was told apart."""
    known, rate = Candidate("full"), learning_rates(Candidate("norm"))[1]
    picture = Picture([*whole(known), Point(Candidate("norm"), rate)], UNDER, PRIOR)
    belief = picture.given([seen(known, 0.3)])
    row = picture.rows[Point(Candidate("norm"), rate)]
    mean = float(belief.means[row])
    away = 1.959964 * (float(belief.variances[row]) + PRIOR.noise**2) ** 0.5

    def low(row, floor):
        return logit(replace(belief, floor=floor).estimate(row).low, 10**9)

    assert low(row, -50.0) == pytest.approx(mean - away, abs=1e-3)  # nothing is as low as that
    assert low(row, mean + 1) == pytest.approx(mean - 3 * away, abs=1e-3)
    assert low(row, mean - away / 2) == pytest.approx(mean - 2 * away, abs=1e-3)
    judged = picture.rows[seen(known, 0.3).point]
    assert low(judged, 50.0) == low(judged, -50.0)
