"""Which trainings go on: the promising first, whatever can't be told from the best before the others."""

from __future__ import annotations

import pytest

from advisor.costs import Simulator
from advisor.methods import get_method, learning_rates
from advisor.models.layers import take_census
from advisor.probes.judging import ACCURACY
from advisor.probes.promotion import (
    by_promise,
    by_turns,
    middle_rate,
    opening,
    preferred_step,
    rates_beside,
    statistics_to_try,
    undominated,
    variants,
)
from advisor.records import Candidate, Levers
from tests.probes.test_train import SIZE, network

LORA = [Candidate.of("lora", {"rank": rank}, Levers()) for rank in (2, 4, 8)]


def result(right, samples=200):
    return ACCURACY.of(bytes([1] * right + [0] * (samples - right)))


def test_those_that_may_be_the_best_come_first():
    names = ["cheap", "hopeless", "middle", "good", "as-good", "best"]  # in order of cost
    right = {"cheap": 172, "hopeless": 40, "middle": 170, "good": 178, "as-good": 178, "best": 180}
    best = {Candidate(name): result(right[name]) for name in names}
    order = [candidate.method for candidate in by_promise(best)]
    assert order == ["best", "good", "as-good", "cheap", "middle", "hopeless"]
    # One that is better by chance doesn't go before one that may be as good as the leader.
    wavering = ACCURACY.of(bytes([0, 1] * 100))
    assert by_promise({Candidate("wavering"): wavering, **best})[-1] == Candidate("hopeless")
    assert by_promise({}) == []


def test_what_is_dearer_and_surely_worse_is_dropped():
    simulator = Simulator(network(), take_census(network(), SIZE), images=80)
    head, full = Candidate("head"), Candidate("full")
    costs = {candidate: simulator.cost(candidate, 8) for candidate in (head, full)}
    assert set(undominated({head: result(180), full: result(100)}, costs)) == {head}
    assert set(undominated({head: result(180), full: result(179)}, costs)) == {head, full}
    assert set(undominated({head: result(100), full: result(180)}, costs)) == {head, full}


def test_the_opening_takes_promising_methods_first_whole_and_half():
    narrow = [Candidate("full", levers=Levers(scope=scope)) for scope in (1, 2)]
    candidates = [Candidate("loha"), *LORA[:2], Candidate("full"), Candidate("norm"), *narrow]
    found = opening(candidates, lambda _: "own")
    assert [(c.method, c.levers.scope) for c in found] == [
        *(("norm", None), ("full", 2), ("full", None), ("lora", None), ("loha", None))
    ]


def test_it_takes_each_methods_plain_middle_setting_and_the_wanted_statistics():
    narrow = [Candidate.of("lora", {"rank": 4}, Levers(scope=scope)) for scope in (1, 2)]
    policies = [Candidate("norm", levers=Levers(statistics=policy)) for policy in ("frozen", "reestimated")]
    candidates = [*narrow, *LORA, *policies, Candidate("norm"), Candidate("recalibrate")]
    assert set(opening(candidates, lambda _: "own")) == {narrow[1], LORA[1], Candidate("norm")}
    # Where a method has no such candidate, it is tried as it is.
    assert set(opening(candidates, lambda _: "frozen")) == {narrow[1], LORA[1], policies[0]}


def test_levers_that_only_make_it_quicker_do_not_hide_the_wanted_statistics():
    head = Candidate("head", levers=Levers(scope=0, cached_prefix="ram"))
    updated = Candidate("head", levers=Levers(statistics="updated"))
    assert opening([updated, head], lambda _: "own") == [head]


def test_a_head_that_is_trained_alone_waits_where_one_is_solved():
    trained = [Candidate("head"), Candidate("full")]
    assert [c.method for c in opening(trained, lambda _: "own")] == ["head", "full"]
    solved = Candidate.of("ridge", {"features": "last"}, Levers())
    assert [c.method for c in opening([*trained, solved], lambda _: "own")] == ["full", "head"]


@pytest.mark.parametrize(
    ("method", "batch_size", "shifted", "policy"),
    [
        *(("norm", 8, False, "frozen"), ("norm", 8, True, "reestimated"), ("norm", 32, True, "own")),
        *(("head", 8, False, "own"), ("head", 32, True, "reestimated")),
    ],
)
def test_noisy_statistics_are_not_trained_with_and_outlived_ones_not_kept(
    method, batch_size, shifted, policy
):
    assert statistics_to_try(Candidate(method), batch_size, shifted=shifted) == policy


def test_leaders_are_tried_at_the_rates_next_to_theirs():
    norm, full = Candidate("norm"), Candidate("full")
    low, _, high = learning_rates(norm)
    assert rates_beside([norm], {norm: middle_rate(norm)}) == [(norm, high), (norm, low)]
    assert rates_beside([norm], {norm: high}) == [(norm, middle_rate(norm))]
    both = rates_beside([norm, full], {one: middle_rate(one) for one in (norm, full)})
    assert [one for one, _ in both] == [norm, full] * 2


def test_variants_are_of_the_leaders_methods_wide_ones_first():
    half, quarter = (Candidate.of("lora", {"rank": 4}, Levers(scope=scope)) for scope in (2, 1))
    unseen = [quarter, LORA[0], half, Candidate("full")]
    rates = {LORA[1]: middle_rate(LORA[1])}
    assert [one for one, _ in variants([LORA[1]], [Candidate("norm")], rates, unseen)] == [
        LORA[0],
        half,
        quarter,
    ]
    assert {rate for _, rate in variants([LORA[1]], [], rates, unseen)} == {middle_rate(LORA[1])}


def test_others_are_tried_again_where_the_leaders_did_better_off_the_middle():
    norm, full = Candidate("norm"), Candidate("full")
    for place, rate in enumerate(learning_rates(norm)):
        entries = variants([norm], [full], {norm: rate}, [])
        assert entries == ([] if place == 1 else [(full, learning_rates(full)[place])])


@pytest.mark.parametrize(("factors", "step"), [((1, 5, 5), 1), ((0.2, 0.2, 1), -1), ((1, 5), 0), ((), 0)])
def test_the_preferred_step_is_most_leaders(factors, step):
    assert preferred_step(factors) == step


def test_by_turns():
    assert by_turns([[1, 2, 3], [], [4, 5]]) == [1, 4, 2, 5, 3]


def test_every_method_that_trains_has_a_middle_rate():
    assert middle_rate(Candidate("full")) == get_method("full").learning_rates[1]
