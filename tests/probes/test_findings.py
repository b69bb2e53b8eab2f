"""What all probes together say of a candidate."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from advisor.costs import Simulator
from advisor.methods import learning_rates
from advisor.models.layers import take_census
from advisor.probes.findings import Findings
from advisor.probes.judging import ACCURACY
from advisor.probes.picture import Conditions
from advisor.probes.train import Probe, Trial
from advisor.records import Candidate
from tests.probes.test_train import SIZE, network

FULL, NORM = Candidate("full"), Candidate("norm")
RIGHT = np.arange(100) < 60
CLEAR = np.where(RIGHT, 1.0, -0.2)  # what it gets right is far from the border, what it doesn't is near
UNCLEAR = np.where(RIGHT, 0.2, -1.0)


@pytest.fixture
def findings():
    model = network()
    census = take_census(model, SIZE)
    simulator = Simulator(model, census, images=60)
    costs = {candidate: simulator.cost(candidate, 8) for candidate in (NORM, FULL)}
    return Findings(costs, census, Conditions(4, 8), 24, ACCURACY, None)


def probe(candidate, margins, updates=24):
    """Judged on these."""
    trial = Trial(candidate, learning_rates(candidate)[0], updates, len(margins), 0)
    correct = bytes((margins > 0).astype(np.uint8))
    return Probe(trial, correct, 1.0, margins=margins.astype(np.float32).tobytes())


def test_of_two_that_get_as_many_right_the_one_that_answers_more_clearly_is_told_to_be_better(findings):
    findings.add(probe(FULL, CLEAR))
    findings.add(probe(NORM, UNCLEAR))
    full, norm = (findings.told(())[0][one] for one in (FULL, NORM))
    assert full.seen == norm.seen == 0.6
    assert full.mean > norm.mean + 0.02


def test_smoothed_shares_are_moved_to_where_right_answers_lie(findings):
    """By themselves they would be as much too high for one as too low for the other."""
    findings.add(probe(FULL, CLEAR))
    assert [each.accuracy for each in findings.seen()] == pytest.approx([0.6])
    findings.add(probe(NORM, UNCLEAR))
    told = [each.accuracy for each in findings.seen()]
    assert statistics.fmean(told) == pytest.approx(0.6, abs=0.02)


def test_what_was_trained_for_less_is_told_by_all_probes_too(findings):
    """What it got right may be luck, as it may of one that was trained to the end."""
    lucky = np.where(np.arange(100) < 80, 0.2, -1.0)
    findings.add(probe(FULL, RIGHT - 0.5))
    findings.add(probe(NORM, lucky, updates=6))
    norm = findings.told(())[0][NORM]
    assert not norm.finalist
    assert norm.seen == 0.8
    assert norm.low < norm.mean < 0.78


def test_what_was_not_tried_is_told_an_estimate_and_what_ended_is_not(findings):
    findings.add(probe(FULL, CLEAR))
    accuracies, predicted = findings.told(())
    assert set(accuracies) == {FULL}
    assert set(predicted) == {NORM}


def test_of_what_learns_at_a_rate_each_length_is_pictured_of_the_rest_the_end():
    model = network()
    census = take_census(model, SIZE)
    simulator = Simulator(model, census, images=60)
    still = Candidate("recalibrate")
    costs = {candidate: simulator.cost(candidate, 8) for candidate in (NORM, still)}
    pictured = Findings(costs, census, Conditions(4, 8), 24, ACCURACY, None).picture([6, 12]).rows
    shares = {one: {point.share for point in pictured if point.training == one} for one in costs}
    assert shares == {NORM: {0.25, 0.5, 1.0}, still: {1.0}}
