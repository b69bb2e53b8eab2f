"""The race's clock: what is known of one probe tells what others will take."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.costs import Simulator
from advisor.models.layers import take_census
from advisor.probes.clock import Clock, front_of
from advisor.probes.train import Probe, Trial
from advisor.records import Candidate, Levers
from advisor.training.loop import level_updates
from tests.probes.test_train import SIZE, network

NORM, FULL = Candidate("norm"), Candidate("full")
CACHED = Candidate("norm", levers=Levers(scope=1, cached_prefix="ram"))
CACHED_FULL = replace(CACHED, method="full")
COST = Simulator(network(), take_census(network(), SIZE), images=80).cost(NORM, 8)


def clock(seconds=100.0, **known):
    return Clock(seconds, dict.fromkeys((NORM, FULL, CACHED, CACHED_FULL), COST), **known)


def trial(candidate=NORM, updates=10, samples=20, rate=1e-3, **others):
    return Trial(candidate, rate, updates, samples, 0, **others)


def probe(trial, setup=1.0, each=0.5, judging=2.0):
    seconds = setup + trial.updates * each + judging
    times = {"setup_seconds": setup, "update_seconds": each, "judging_seconds": judging}
    return Probe(trial, bytes(trial.samples), seconds, **times)


def test_nothing_is_known_at_first_but_how_long_an_image_takes():
    assert clock(seconds_per_image=0.1).expected(trial()) == pytest.approx(2.0)


def test_a_probe_tells_what_one_like_it_will_take():
    now = clock()
    now.learn(probe(trial()), now=True)
    assert now.expected(trial(rate=1e-2)) == pytest.approx(1 + 10 * 0.5 + 2)
    assert now.expected(trial(FULL)) == pytest.approx(1 + 10 * 0.5)  # its judging is not known


def test_a_longer_training_is_expected_to_go_on_from_a_shorter_one():
    now = clock()
    now.learn(probe(trial()), now=True)
    assert now.expected(trial(updates=20)) == pytest.approx(1 + (20 - level_updates(10)) * 0.5 + 2)
    # One that was read from the store left nothing to go on from.
    read = clock()
    read.learn(probe(trial()), now=False)
    assert read.expected(trial(updates=20)) == pytest.approx(1 + 20 * 0.5 + 2)


def test_a_front_is_waited_for_once():
    now = clock()
    now.timed[CACHED] = 30.0, 0.5
    assert now.expected(trial(CACHED)) == pytest.approx(30 + 5)
    now.learn(probe(trial(CACHED), setup=30.0, judging=0.0), now=True)
    assert now.expected(trial(CACHED_FULL)) == pytest.approx(5)


def test_only_what_is_cached_or_re_estimated_has_a_front():
    assert front_of(NORM) is None
    assert front_of(CACHED) == front_of(CACHED_FULL) is not None
    assert front_of(Candidate("norm", levers=Levers(statistics="reestimated"))) is not None


def test_work_is_of_what_is_still_to_be_done():
    now = clock(batch_size=8, solved_on=80)
    each, forward = COST.flops.total, COST.flops.forward / 8
    assert now.work(trial()) == 10 * each + 20 * forward
    assert now.work(trial(heads=("last",))) == 10 * each + 100 * forward  # solved on 80, judged on 20
    assert now.work(trial(CACHED)) == 10 * each + 2 * 20 * forward  # its front runs once
    now.learn(probe(trial()), now=True)
    now.learn(probe(trial(CACHED)), now=True)
    assert now.work(trial(updates=20)) == (20 - level_updates(10)) * each + 20 * forward
    assert now.work(trial(CACHED_FULL)) == 10 * each + 20 * forward


@given(updates=st.integers(1, 50), more=st.integers(1, 50), done=st.integers(1, 50))
def test_longer_takes_more_and_what_is_done_spares_some(updates, more, done):
    now = clock(batch_size=8)
    before = now.work(trial(updates=updates))
    assert before < now.work(trial(updates=updates + more))
    now.learn(probe(trial(updates=done)), now=True)
    assert now.work(trial(updates=updates)) <= before


def test_time_that_was_spent_before_counts():
    now = clock(seconds=10.0, before=4.0)
    assert 4.0 <= now.spent < 10.0
    assert now.left == pytest.approx(10 - now.spent, abs=0.5)
    assert clock(seconds=1.0, before=4.0).left == 0.0


def test_what_is_not_known_is_told_from_what_is_nearest_in_flops():
    """A cached head's updates cost next to nothing: scaled by FLOPs, their time would be absurd elsewhere."""
    tiny = replace(
        COST, flops=replace(COST.flops, forward=10, input_gradient=0, weight_gradient=0, optimizer=0)
    )
    head, whole = Candidate("head", levers=Levers(scope=0, cached_prefix="ram")), Candidate("head")
    now = Clock(100.0, {NORM: COST, FULL: COST, head: tiny, whole: COST})
    now.timed |= {head: (0.0, 0.1), FULL: (0.0, 0.5)}
    assert now.expected(trial(whole, samples=0)) == pytest.approx(10 * 0.5)


def test_work_is_the_same_where_a_race_goes_on_that_was_killed():
    undisturbed, killed = clock(batch_size=8), clock(batch_size=8)
    for done in (trial(), trial(CACHED)):
        undisturbed.learn(probe(done), now=True)
        killed.learn(probe(done), now=False)
    for next_one in (trial(updates=20), trial(CACHED, updates=20), trial(CACHED_FULL)):
        assert killed.work(next_one) == undisturbed.work(next_one)
    assert killed.expected(trial(updates=20)) > undisturbed.expected(trial(updates=20))
