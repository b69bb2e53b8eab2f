"""The choice as a pure function of records."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.errors import InputError, UnitError
from advisor.records import (
    Accuracy,
    Budget,
    Candidate,
    Cost,
    Estimate,
    Evaluation,
    Flops,
    Measurement,
    Memory,
)
from advisor.solver import answer, cheaper_text, pareto_front, parse_budget, rank, relaxations, violations
from advisor.solver.choose import expected_gap, expected_loss, paired_gap
from advisor.solver.limits import LIMIT, allowed_memory, enforced_memory


def cost(memory=100, flops=100, delta=100):
    return Cost(1, delta, Flops(forward=flops), Memory(weights=memory), {}, "simulated")


def accuracy(right, samples=1000, finalist=True):
    correct = bytes([1] * right + [0] * (samples - right))
    mean = right / samples
    return Accuracy(mean, max(mean - 0.03, 0), min(mean + 0.03, 1), samples, correct, 1e-3, 50, finalist)


def evaluation(name, budget=None, right=None, finalist=True, **costs):
    judged = accuracy(right, finalist=finalist) if right is not None else None
    made = Evaluation(Candidate(name), cost(**costs), accuracy=judged)
    return replace(made, violations=violations(budget or Budget(), made.cost, judged))


def test_hard_limits_name_what_breaks_them_in_numbers():
    budget = Budget(ram_bytes=50, flops=60, storage_bytes=70, min_accuracy=0.9)
    found = violations(budget, cost(), accuracy(500))
    assert [v.limit for v in found] == ["ram", "flops", "storage", "min_accuracy"]
    assert "100 B, 50 B over the 50 B allowed" in found[0].reason
    assert violations(Budget(ram_bytes=100, flops=100, storage_bytes=100), cost()) == ()


def test_what_forgets_too_much_does_not_fit():
    forgetful = replace(accuracy(900), retained=accuracy(700))
    [found] = violations(Budget(min_retained=0.8), cost(), forgetful)
    assert (found.limit, found.value, found.allowed) == ("min_retained", 0.7, 0.8)
    assert not violations(Budget(min_retained=0.7), cost(), forgetful)
    assert not violations(Budget(min_retained=0.8), cost(), accuracy(900))  # unknown
    lost = replace(evaluation("full"), accuracy=forgetful, violations=(found,))
    kept = replace(evaluation("norm"), accuracy=replace(accuracy(850), retained=accuracy(850)))
    assert rank([lost, kept], Budget(min_retained=0.8)) == [kept]
    text = answer(kept, [lost, kept], Budget(min_retained=0.8), None)
    assert "85.0 % on the old data" in text
    relaxed = relaxations(kept, [lost, kept], Budget(min_retained=0.8), None)[0]
    assert relaxed.sentence.startswith(
        "With --min-retained 0.700 (10.0 points lower) the answer is full: +5.0 +- 1.4 points"
    )
    assert relaxed.sentence.endswith(" points, -15.0 on old data")
    assert "70.0 %" in answer(None, [lost], Budget(min_retained=0.8), None)


def test_of_those_as_good_what_surely_forgets_more_is_no_choice():
    def remembering(name, right, memory):
        made = evaluation(name, right=950, memory=memory)
        return replace(made, accuracy=replace(made.accuracy, retained=accuracy(right)))

    cheap, dear = remembering("head", 650, memory=10), remembering("ridge", 760, memory=20)
    dear = replace(dear, accuracy=replace(dear.accuracy, mean=0.951))
    assert rank([cheap, dear], Budget(tolerance=0.01)) == [dear, cheap]
    near = replace(cheap, accuracy=replace(cheap.accuracy, retained=accuracy(740)))
    assert rank([near, dear], Budget(tolerance=0.01)) == [near, dear]  # that may be chance
    # Nor has it to be more accurate than what is cheaper.
    loyal = replace(dear, accuracy=replace(dear.accuracy, mean=0.949))
    assert rank([cheap, loyal], Budget(tolerance=0.01)) == [loyal, cheap]
    assert pareto_front([cheap, loyal]) == [cheap, loyal]
    better = replace(dear, accuracy=replace(dear.accuracy, mean=0.99))  # no longer as good
    assert rank([cheap, better], Budget(tolerance=0.01)) == [better, cheap]


def test_the_runtimes_footprint_comes_off_the_memory():
    assert violations(Budget(ram_bytes=120, runtime_overhead_bytes=30), cost())
    assert not violations(Budget(ram_bytes=120, runtime_overhead_bytes=20), cost())


def test_memory_is_told_against_what_an_update_s_kernels_leave_of_it():
    budget = Budget(ram_bytes=120, runtime_overhead_bytes=20, kernel_bytes=5)
    [broken] = violations(budget, replace(cost(), kernels=2))
    assert "peak memory 100 B, 10 B over the 90 B allowed" in broken.reason
    assert allowed_memory(budget, replace(cost(), kernels=2)) == 90
    assert broken.value - broken.allowed == 10


def test_the_most_accurate_wins_where_the_difference_is_clear():
    cheap, good = evaluation("cheap", right=700, memory=1), evaluation("good", right=900)
    assert rank([cheap, good], Budget())[0] is good


def test_within_the_tolerance_the_cheapest_wins():
    cheap, good = evaluation("cheap", right=895, memory=1), evaluation("good", right=900)
    assert rank([cheap, good], Budget(tolerance=0.01))[0] is cheap


def test_a_gap_on_few_samples_is_mostly_chance():
    def pair(right, other, samples):
        good = replace(evaluation("good"), accuracy=accuracy(right, samples))
        # Wrong on other samples than the first.
        found = accuracy(other, samples)
        found = replace(found, correct=found.correct[::-1])
        return good, replace(evaluation("cheap", memory=1), accuracy=found)

    good, cheap = pair(30, 29, 40)  # 2.5 points
    assert rank([good, cheap], Budget(tolerance=0.01))[0] is cheap
    good, cheap = pair(3000, 2900, 4000)  # the same, and sure
    assert rank([good, cheap], Budget(tolerance=0.01))[0] is good
    good, cheap = pair(30, 29, 40)
    assert rank([good, cheap], Budget(tolerance=0.0))[0] is good


def test_a_bare_flops_budget_prefers_fewest_flops():
    lean = evaluation("lean", right=900, memory=200, flops=10)
    small = evaluation("small", right=900, memory=20, flops=100)
    assert rank([lean, small], Budget(prefer="flops"))[0] is lean
    assert rank([lean, small], Budget())[0] is small


def test_dropped_candidates_come_after_every_finalist():
    dropped = evaluation("dropped", right=990, finalist=False)
    finalist = evaluation("finalist", right=600)
    assert [e.candidate.method for e in rank([dropped, finalist], Budget())] == [
        "finalist",
        "dropped",
    ]


def test_what_was_not_probed_is_not_known_to_reach_a_least_accuracy():
    budget = Budget(min_accuracy=0.9)
    poor, unknown = evaluation("poor", budget, right=800), evaluation("unknown", budget)
    assert rank([poor, unknown], budget) == []
    assert rank([unknown], budget) == [unknown]
    good = evaluation("good", budget, right=950)
    assert rank([poor, unknown, good], budget) == [good]


def test_without_accuracies_cost_decides():
    a, b = evaluation("a", memory=5, flops=50), evaluation("b", memory=50, flops=5)
    assert rank([a, b], Budget())[0] is a
    assert rank([a, b], Budget(prefer="flops"))[0] is b


def test_what_breaks_a_limit_is_never_ranked():
    budget = Budget(ram_bytes=50)
    assert rank([evaluation("big", budget, right=999)], budget) == []


@given(
    right=st.lists(st.booleans(), min_size=5, max_size=200),
    other=st.lists(st.booleans(), min_size=5, max_size=200),
)
@settings(max_examples=60, deadline=None)
def test_the_paired_interval_holds_the_paired_difference(right, other):
    n = min(len(right), len(other))
    a = Accuracy(sum(right[:n]) / n, 0, 1, n, bytes(right[:n]))
    b = Accuracy(sum(other[:n]) / n, 0, 1, n, bytes(other[:n]))
    low, high = paired_gap(a, b)
    assert low - 1e-9 <= a.mean - b.mean <= high + 1e-9
    back = paired_gap(b, a)
    assert back[0] <= 0 or high <= 0


def test_the_front_holds_what_nothing_beats():
    a = evaluation("a", right=900, memory=100, flops=100)
    b = evaluation("b", right=800, memory=50, flops=100)
    beaten = evaluation("beaten", right=800, memory=60, flops=100)
    early = evaluation("early", right=999, memory=1, flops=1, finalist=False)
    assert [e.candidate.method for e in pareto_front([a, b, beaten, early])] == ["b", "a"]


def test_what_was_run_is_beaten_by_what_was_run_and_is_as_quick_alone():
    def run(seconds):
        return Measurement(9, 9, 9, seconds, 5, None, survived=True)

    good, poor = evaluation("good", right=900, memory=50), evaluation("poor", right=700)
    timed = replace(poor, measured=run(0.1))
    assert pareto_front([good, poor]) == [good]
    assert pareto_front([good, timed]) == [good, timed]  # who knows how long the good one takes
    for seconds, front in ((0.2, True), (0.1, False), (0.05, False)):
        quick = replace(good, measured=run(seconds))
        assert (timed in pareto_front([quick, timed])) == front


def test_what_costs_as_much_and_is_known_to_be_no_better_stays():
    """Neither beats the other, with accuracies or without."""
    for right in (None, 800):
        same = [evaluation(name, right=right) for name in ("one", "other")]
        assert pareto_front(same) == same


def test_the_answer_is_one_sentence_with_the_numbers():
    chosen = evaluation("norm", right=713)
    text = answer(chosen, [chosen], Budget(ram_bytes=64_000_000), None)
    assert "norm" in text
    assert "71.3 %" in text
    assert "64.0 MB" in text
    assert "\n" not in text


def test_without_data_the_answer_says_what_is_unknown():
    chosen = evaluation("norm")
    assert "unknown" in answer(chosen, [chosen], Budget(), None)


def test_nothing_fits_names_the_least_that_would():
    budget = Budget(ram_bytes=50)
    text = answer(
        None,
        [evaluation("head", budget, memory=80), evaluation("full", budget, memory=900)],
        budget,
        None,
    )
    assert text.startswith("Nothing fits")
    assert "80 B (head)" in text


def test_relaxations_say_how_much_more_admits_what():
    budget = Budget(ram_bytes=100)
    made = [
        evaluation("head", budget, right=500, memory=90),
        evaluation("norm", budget, memory=130),
        evaluation("full", budget, memory=500),
    ]
    found = relaxations(made[0], made, budget, None)
    assert [(r.candidate_id, r.by, r.effect) for r in found] == [
        ("norm", 30, "fits"),
        ("full", 400, "fits"),
        ("head", 10, "stays"),
        (None, 11, "answer"),
    ]
    assert [r.sentence for r in found] == [
        "With --ram 130B (30 B more) norm fits (not tried)",
        "With --ram 500B (400 B more) full fits (not tried)",
        "With --ram 90B (10 B less) the answer stays",
        "With --ram 89B (11 B less) nothing fits",
    ]


@pytest.mark.parametrize("warn", [frozenset(), frozenset({"step_time"})])
def test_where_seconds_are_limited_what_was_not_run_may_be_too_slow(warn):
    budget = Budget(ram_bytes=100, step_seconds=1.0, warn=warn)
    made = [evaluation("head", budget, right=500, memory=90), evaluation("norm", budget, memory=130)]
    [norm] = [r for r in relaxations(made[0], made, budget, None) if r.candidate_id == "norm"]
    assert norm.sentence.endswith("if it is quick enough: it was not run") == (not warn)


@given(st.floats(0.001, 0.5), st.floats(0.001, 0.2))
def test_what_was_seen_of_a_gap_counts_less_the_less_sure_it_is_by_squares(gap, error):
    """As of a normal variable seen with normal noise: odds of signal to noise."""
    once, twice = (gap / expected_gap(gap, times * error) - 1 for times in (1, 2))
    assert twice == pytest.approx(4 * once)
    assert expected_gap(gap, 0) == pytest.approx(gap)


def test_what_is_expected_to_be_no_better_is_not_offered():
    budget = Budget(ram_bytes=100)
    head = evaluation("head", budget, right=500, memory=90)
    made = [
        head,
        replace(evaluation("norm", budget, memory=130), predicted=Estimate(0.44, 0.1, 0.9)),
        replace(evaluation("full", budget, memory=500), predicted=Estimate(0.5, 0.1, 0.9)),
    ]
    assert {r.effect for r in relaxations(head, made, budget, None)} == {"stays", "answer"}
    better = [*made, replace(evaluation("lora", budget, memory=300), predicted=Estimate(0.62, 0.5, 0.7))]
    found = relaxations(head, better, budget, None)
    assert [r.candidate_id for r in found if r.effect == "fits"] == ["lora"]


def test_another_answer_that_is_no_better_says_what_speaks_for_it():
    budget = Budget(ram_bytes=100, prefer="flops", tolerance=0.02)
    chosen = evaluation("head", budget, right=500, memory=90, flops=2000)
    cheaper = evaluation("norm", budget, right=495, memory=130, flops=1000)
    sentence = relaxations(chosen, [chosen, cheaper], budget, None)[0].sentence
    assert sentence.startswith("With --ram 130B (30 B more) the answer is norm: -")
    assert sentence.endswith(", for FLOPs per update of 1.00 kFLOP instead of 2.00 kFLOP")


def test_budgets_as_typed():
    budget = parse_budget(ram="512MB", flops="2GFLOPs", storage="1MiB", min_accuracy="80", tolerance_points=1)
    assert budget.ram_bytes == 512_000_000
    assert budget.flops == 2_000_000_000
    assert budget.storage_bytes == 2**20
    assert budget.min_accuracy == 0.8
    assert budget.tolerance == 0.01


@pytest.mark.parametrize("text", ["0", "0MB", "-5MB", "512XB", "512", "MB", "", " ", "1e400MB", "nanMB"])
def test_bad_sizes_are_refused_in_one_line(text):
    with pytest.raises(UnitError) as error:
        parse_budget(ram=text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["0GFLOPs", "-1GFLOPs", "2GFLOPS", "2GFLOP/s", "2", "2GB"])
def test_bad_flops_are_refused_in_one_line(text):
    with pytest.raises(UnitError) as error:
        parse_budget(flops=text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"min_accuracy": "0"},
        {"min_accuracy": "101"},
        {"min_retained": "0"},
        {"min_accuracy": "nan"},
        {"tolerance_points": -1},
        {"ram": "10MB", "runtime_overhead": "10MB"},
    ],
)
def test_bad_numbers_are_refused(options):
    with pytest.raises(InputError):
        parse_budget(**options)


def test_limits_of_every_kind_as_typed():
    budget = parse_budget(
        ram="1MB", step_time="50ms", max_trainable="1.5k", max_overhead="merge", prefer="time", warn=["ram"]
    )
    assert (budget.step_seconds, budget.max_trainable, budget.max_overhead) == (0.05, 1500, 0.0)
    assert (budget.prefer, budget.warn) == ("time", ("ram",))
    assert parse_budget(max_overhead="2.5%").max_overhead == 0.025
    assert (
        parse_budget(flops="fewest") == parse_budget(flops="fewest", prefer="flops") == Budget(prefer="flops")
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_overhead": "5"}, "--max-overhead: '5' is no percentage; write it like 2.5%"),
        ({"max_trainable": "50x"}, "--max-trainable: count '50x': unknown unit 'x'"),
        ({"step_time": "50"}, "--step-time: duration '50': no unit"),
        ({"ram": "0MB"}, "--ram: size '0MB' must be greater than 0"),
        ({"ram": "1GB", "runtime_overhead": "3s"}, "--runtime-overhead: size '3s': unknown unit 's'"),
        ({"storage": "5"}, "--storage: size '5': no unit"),
        ({"flops": "2MB"}, "--flops-budget: FLOP count '2MB': unknown unit 'MB'"),
        ({"prefer": "speed"}, "--prefer 'speed' is not known; use ram, flops, storage or time"),
        ({"warn": ["ram"]}, "give --ram"),
        ({"warn": ["flops-budget"]}, "did you mean flops?"),
        ({"flops": "fewest", "prefer": "ram"}, "give one"),
        ({"ram": "1GB", "ram_includes_runtime": True, "runtime_overhead": "1MB"}, "give one"),
        ({"ram_includes_runtime": True}, "give it, too"),
    ],
)
def test_what_can_not_be_a_limit_is_told_with_its_option(options, said):
    with pytest.raises(InputError) as error:
        parse_budget(**options)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "meets", "misses"),
    [
        ("ram", 123_456, 124_000, 123_000),
        ("flops", 98_765, 98_800, 98_700),
        ("storage", 7, 7, 6),
        ("step_time", 0.012345, 0.0124, 0.0123),
        ("max_trainable", 0, 0, None),  # nothing is less than none
        ("max_overhead", 0.0123, 0.013, 0.012),
        ("max_overhead", 0.0, 0.0, None),
        ("min_accuracy", 0.7014, 0.701, 0.702),
        ("min_retained", 0.7016, 0.701, 0.702),
        ("min_accuracy", 1.0, 1.0, None),  # 1.001 would be read as a percentage
    ],
)
def test_limits_are_written_to_three_digits_and_shares_to_a_tenth_of_a_percent(name, value, meets, misses):
    """The tightest that the value meets and the loosest that it misses."""
    for found, expected in ((LIMIT[name].meeting(value), meets), (LIMIT[name].missing(value), misses)):
        assert found == (expected if expected is None else pytest.approx(expected))


def test_a_soft_limit_is_told_and_excludes_nothing():
    budget = Budget(ram_bytes=50, flops=60, warn=("ram",))
    found = violations(budget, cost())
    assert [(v.limit, v.hard) for v in found] == [("flops", True), ("ram", False)]
    big = evaluation("big", replace(budget, flops=None), right=900)
    assert big.fits
    assert rank([big], budget) == [big]


def test_what_was_run_is_judged_on_what_it_took():
    run = Measurement(120, 500, 300, 0.08, 5, None, survived=True)
    budget = Budget(ram_bytes=110, step_seconds=0.05)
    assert [v.limit for v in violations(budget, cost(), measured=run)] == ["execution", "step_time"]
    assert "80.0 ms, 30.0 ms over the 50.0 ms allowed" in violations(budget, cost(), measured=run)[1].reason
    assert violations(budget, cost()) == ()  # unknown


def test_what_died_in_its_run_fits_at_no_limit_that_is_known():
    """Whatever it had asked for by then."""
    died = Measurement(20, 500, 300, 0.0, 0, 200, survived=False, failure="killed")
    for budget, allowed in ((Budget(), 0), (Budget(ram_bytes=110), 110)):
        [found] = violations(budget, cost(), measured=died)
        assert (found.limit, found.value, found.allowed, found.hard) == ("execution", 20, allowed, True)
        assert found.reason == "did not survive its run: killed"
    # Nor is it said to fit with more memory.
    budget = Budget(ram_bytes=110)
    made = [evaluation("head", budget, memory=50), evaluation("norm", budget)]
    made[1] = replace(made[1], measured=died, violations=violations(budget, cost(), measured=died))
    assert {each.candidate_id for each in relaxations(made[0], made, budget, None)} == {"head", None}


def test_a_soft_limit_of_memory_is_not_enforced():
    budget = Budget(ram_bytes=100, runtime_overhead_bytes=30)
    assert enforced_memory(budget) == allowed_memory(budget) == 70
    assert enforced_memory(replace(budget, warn=("ram",))) is enforced_memory(Budget()) is None


def test_what_cannot_be_merged_says_what_it_costs_at_each_inference():
    [found] = violations(Budget(max_overhead=0.0), replace(cost(), inference_flops_ratio=1.05))
    assert found.reason == "can't be merged: an inference takes 5.0 % more FLOPs"
    [found] = violations(Budget(max_overhead=0.01), replace(cost(), inference_flops_ratio=1.05))
    assert found.reason == "added inference 5.0 %, 4.0 % over the 1.0 % allowed"


def test_of_what_is_expected_of_each_a_gap_counts_whole():
    """Where all probes together have told what each comes to, chance is allowed for already."""
    best, other = accuracy(30, 40), accuracy(29, 40)
    assert expected_loss(other, best, Budget()) < 0.02
    told = [replace(each, seen=each.mean) for each in (other, best)]
    assert expected_loss(*told, Budget()) == pytest.approx(1 / 40)


def test_the_order_of_costs_is_as_preferred():
    small = evaluation("small", right=900, memory=1, flops=9, delta=9)
    lean = evaluation("lean", right=900, memory=9, flops=1, delta=9)
    light = evaluation("light", right=900, memory=9, flops=9, delta=1)
    quick = evaluation("quick", right=900, memory=9, flops=9, delta=9)
    quick = replace(quick, measured=Measurement(9, 9, 9, 0.01, 5, None, survived=True))
    found = [small, lean, light, quick]
    first = {prefer: rank(found, Budget(prefer=prefer))[0] for prefer in ("ram", "flops", "storage", "time")}
    assert first == {"ram": small, "flops": lean, "storage": light, "time": quick}
    assert "points below the best that fits, good" in answer(
        evaluation("cheap", right=700),
        [evaluation("cheap", right=700), evaluation("good", right=900)],
        Budget(),
        None,
    )


@pytest.mark.parametrize(("right", "told"), [(0, ""), (1, "0.1 +- 0.1 points"), (10, "0.5 +- ")])
def test_what_a_cheaper_choice_costs_is_told_from_what_is_printed_as_a_tenth_of_a_point_on(right, told):
    made = [
        replace(evaluation(name), accuracy=accuracy(count, 2000))
        for name, count in (("cheap", 0), ("dear", right))
    ]
    text = cheaper_text(made[0], made)
    assert text.startswith(told)
    assert bool(text) == bool(told)


def test_where_no_limit_alone_is_in_the_way_two_are_named_together():
    budget = Budget(ram_bytes=50, flops=50)
    [way] = relaxations(None, [evaluation("head", budget)], budget, None)
    assert way.limits == {"ram": 100, "flops": 100}
    assert (
        way.sentence
        == "With --ram 100B (50 B more) and --flops-budget 100FLOP (50 FLOP more) the answer is head"
    )


@pytest.mark.parametrize(
    ("typed", "meant"), [("0.8", 0.8), ("1", 1), ("80", 0.8), ("100", 1), (" 80 %", 0.8), ("0.5%", 0.005)]
)
def test_a_floor_is_a_share_or_in_percent(typed, meant):
    assert parse_budget(min_accuracy=typed).min_accuracy == pytest.approx(meant)
    assert parse_budget(min_retained=typed).min_retained == pytest.approx(meant)


@pytest.mark.parametrize("typed", ["0", "-0.1", "100.5", "101%"])
def test_a_floor_that_is_no_share_is_refused(typed):
    with pytest.raises(InputError, match=r"--min-accuracy: .* out of range; give a fraction such as 0.8"):
        parse_budget(min_accuracy=typed)
