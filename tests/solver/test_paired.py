"""How far two candidates lie apart on the same samples, against formulas written out."""

from __future__ import annotations

from dataclasses import replace
from statistics import pvariance

import pytest

from advisor.records import Accuracy
from advisor.solver.paired import paired_error, paired_gap, paired_half_width


def judged(right, weights=None, seeds=1):
    """So many right of `seeds` trainings, for each sample."""
    mean = sum(right) / len(right) / seeds
    return Accuracy(mean, 0.0, 1.0, len(right), bytes(right), weights=weights, seeds=seeds)


def test_what_was_read_back_is_compared_by_its_intervals():
    """As if the two were independent: all that is left of them is how wide these are."""
    one, other = Accuracy(0.8, 0.7, 0.9, 100), Accuracy(0.6, 0.45, 0.75, 100)
    assert paired_gap(one, other) == pytest.approx((0.7 - 0.75, 0.9 - 0.45))
    assert paired_error(one, other) == pytest.approx((0.2 + 0.3) / (2 * 1.959964))


def test_the_error_is_that_of_a_mean_of_differences():
    one, other = [1] * 60 + [0] * 40, [1] * 50 + [0] * 20 + [1] * 30
    apart = [a - b for a, b in zip(one, other, strict=True)]
    assert paired_error(judged(one), judged(other)) == pytest.approx((pvariance(apart) / 100) ** 0.5)
    assert paired_error(judged(one), judged(one)) == 0
    low, high = paired_gap(judged(one), judged(other))
    assert (low + high) / 2 == pytest.approx(-0.2, abs=0.01)
    assert high - low == pytest.approx(2 * 1.96 * (pvariance(apart) / 100) ** 0.5, rel=0.1)


def test_where_no_shared_sample_counts_intervals_are_compared():
    one = replace(judged([1, 0], (0.0, 1.0)), low=0.2, high=0.6)
    other = replace(judged([1], (0.0,)), low=0.1, high=0.9)
    assert paired_gap(one, other) == pytest.approx((0.2 - 0.9, 0.6 - 0.1))
    assert paired_error(one, other) == pytest.approx((0.4 + 0.8) / (2 * 1.959964))


def test_what_no_sample_shows_may_be_true_of_three():
    """Two that are right on the same samples are not told to be surely alike, nor two that never are."""
    one, none = judged([1] * 60 + [0] * 40), judged([0] * 100)
    assert paired_half_width(one, one) == paired_half_width(judged([1] * 100), none) == 0.03
    assert paired_half_width(one, judged([1] * 61 + [0] * 39)) == 0.03
    assert paired_half_width(one, none) == pytest.approx(1.959964 * (0.6 * 0.4 / 100) ** 0.5)
    assert paired_half_width(judged([1]), judged([1])) == 1.0
    found = judged([1] * 20, (0.0,) * 10 + (2.0,) * 10)
    assert paired_half_width(found, found) == pytest.approx(0.3)


def test_only_what_both_have_seen_counts():
    one, other = [1] * 30 + [0] * 30, [1, 0] * 10
    assert paired_error(judged(one), judged(other)) == paired_error(judged(one[:20]), judged(other))
    assert paired_gap(judged(one), judged(other)) == paired_gap(judged(one[:20]), judged(other))


def test_a_single_sample_that_both_have_seen_is_one():
    assert paired_gap(judged([1]), judged([0])) == (1, 1)
    assert paired_error(judged([1]), judged([0])) == 0


def test_of_several_trainings_a_sample_has_its_share():
    assert paired_gap(judged([2], seeds=4), judged([1], seeds=4)) == (0.25, 0.25)


def test_weights_count():
    """The first of three samples is right by the other alone; the last counts twice."""
    weights = (1.0, 1.0, 2.0)
    one, other = judged([0, 0, 1], weights), judged([1, 0, 1], weights)
    apart, mean = (-1, 0, 0), -1 / 4
    spread = sum((w * (d - mean)) ** 2 for w, d in zip(weights, apart, strict=True)) ** 0.5
    assert paired_error(one, other) == pytest.approx(spread / 4)
