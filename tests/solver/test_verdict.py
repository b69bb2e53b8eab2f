"""When the answer is to do nothing: the model is as good as it is, or nothing can be learnt."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scipy.special import bdtrc

from advisor.records import Budget, DataSummary, Estimate
from advisor.solver import rank, relaxations, solve
from tests.solver.test_solver import accuracy, evaluation


def data(base=None, guess=0.5, scenario="shift"):
    found = accuracy(base) if base is not None else None
    return DataSummary("x", scenario, 2, 0, 100, 1000, found, 1.0, largest_class_share=guess)


def weighed(evaluations, base=None, budget=None, **options):
    budget = budget or Budget(tolerance=0.01)
    return solve(evaluations, budget, data(base, **options))


def test_what_is_better_than_the_model_is_used():
    better = evaluation("full", right=900)
    verdict = weighed([better], base=700)
    assert (verdict.outcome, verdict.choices, verdict.reason) == ("use", (better,), "")


@pytest.mark.parametrize(("right", "base"), [(976, 976), (970, 976), (980, 976)])
def test_what_is_no_better_than_the_model_as_it_is_leaves_it_alone(right, base):
    verdict = weighed([evaluation("recalibrate", right=right)], base=base)
    assert verdict.outcome == "leave"
    assert not verdict.choices
    assert verdict.reason.startswith("Leave the model as it is: 97.6 % of 1,000")
    assert f"recalibrate, is {'within 1.0 %' if right > base else 'no better'}" in verdict.reason
    assert f"{(right - base) / 10:+.1f} points" in verdict.reason


@pytest.mark.parametrize(("expected", "is_told"), [(0.8, True), (0.98, True), (0.976, False), (0.7, False)])
def test_leaving_it_alone_tells_of_what_was_not_tried_and_is_expected_to_be_better(expected, is_told):
    base = 750 if expected < 0.9 else 960
    hoped = replace(evaluation("norm"), accuracy=None, predicted=Estimate(expected, expected - 0.1, 1.0))
    tried = evaluation("recalibrate", right=base)
    budget = Budget(tolerance=0.018)
    verdict = solve([tried, hoped], budget, data(base))
    assert verdict.outcome == "leave"
    said = "norm, which was not tried, is expected to come to"
    assert (said in verdict.reason) == ("--probe-time" in verdict.reason) == is_told


def test_without_a_tolerance_a_gain_however_small_is_taken():
    found = [evaluation("full", right=980)]
    assert weighed(found, base=976, budget=Budget(tolerance=0.0)).outcome == "use"


def test_a_model_below_the_floor_is_not_left_alone():
    budget = Budget(tolerance=0.01, min_accuracy=0.978)
    assert weighed([evaluation("full", budget, right=980)], base=976, budget=budget).outcome == "use"


def test_a_head_that_had_to_grow_can_not_be_left_alone():
    found = [evaluation("full", right=976)]
    assert weighed(found, base=976, scenario="new-classes").outcome == "use"


def test_what_is_not_surely_above_guessing_is_not_recommended():
    """Two classes of noise, 80 images: the best of twelve tries gets 48 right."""
    tries = [
        replace(evaluation(f"m{n}"), accuracy=accuracy(right, 80))
        for n, right in enumerate([48, 46, 44, *[40] * 9])
    ]
    verdict = weighed(tries, guess=0.5)
    assert verdict.outcome == "none"
    assert "always answering the largest class, which is right for 50.0 %" in verdict.reason
    assert "the best of 12 that were tried, m0, for 60.0 %" in verdict.reason
    verdict = weighed([replace(tries[0], accuracy=accuracy(62, 80)), *tries[1:]], guess=0.5)
    assert [e.candidate.method for e in verdict.choices] == ["m0"]


def test_the_more_is_tried_the_luckier_the_best_may_be():
    def best_of(count):
        others = [evaluation(f"m{n}", right=500) for n in range(count - 1)]
        return weighed([evaluation("lucky", right=535), *others], guess=0.5).outcome

    assert best_of(1) == "use"  # 535 of 1,000 by luck alone: 1.4 %
    assert best_of(40) == "none"


def test_a_model_that_can_do_no_more_than_guess_is_not_left_alone_but_told_so():
    assert weighed([evaluation("full", right=500)], base=505).outcome == "none"


def test_what_is_no_better_than_guessing_is_told_as_it_was_seen():
    """Drawn to what all candidates say, an accuracy may look surely better than what it was held against."""
    weak = evaluation("full", right=520)
    assert "for 52.0 % (" in weighed([weak], base=505).reason
    weak = replace(weak, accuracy=replace(weak.accuracy, mean=0.6, low=0.57, high=0.63, seen=0.51))
    assert f"for 51.0 % of {weak.accuracy.samples:,}. Check" in weighed([weak], base=505).reason


def test_without_accuracies_the_cheapest_is_used_and_where_nothing_fits_nothing_is():
    cheap, dear = evaluation("cheap", memory=1), evaluation("dear", memory=9)
    assert solve([cheap, dear], Budget(), None).choices == (cheap, dear)
    assert solve([], Budget(), None).outcome == "none"


def test_a_looser_limit_says_which_of_a_methods_candidates_it_admits():
    budget = Budget(ram_bytes=50)
    whole, narrow = evaluation("tent", budget, memory=180), evaluation("tent", budget, memory=40)
    levers = replace(narrow.candidate.levers, scope=3)
    narrow = replace(narrow, candidate=replace(narrow.candidate, levers=levers))
    found = relaxations(narrow, [whole, narrow], budget, None)[0]
    assert found.sentence == (
        "With --ram 180B (130 B more) tent (on the whole network, not on the last 3 blocks alone) "
        "fits (not tried)"
    )
    [found] = relaxations(None, [whole], budget, None)  # where no part of it fits, its name is enough
    assert found.sentence == "With --ram 180B (130 B more) the answer is tent"


def test_where_classes_count_alike_answering_one_of_them_always_has_learnt_nothing():
    """950 of 1,000 are of one class: always answering it is right for 95 %, and for half of each of two."""
    lazy = replace(evaluation("lazy"), accuracy=replace(accuracy(960), balanced=accuracy(505)))
    able = replace(evaluation("able"), accuracy=replace(accuracy(930), balanced=accuracy(900)))
    for metric in ("balanced", "recall:scratch"):
        budget = Budget(metric=metric)
        told = weighed([lazy], guess=0.95, budget=budget)
        assert told.outcome == "none"
        assert "answering the same class" in told.reason
        assert "50.0 %; the best of 1 that were tried, lazy, for 50.5 %" in told.reason
        assert weighed([able], guess=0.95, budget=budget).choices == (able,)
    assert weighed([able], guess=0.95).outcome == "none"  # as a share of all images it is below guessing


def test_of_a_recall_judged_on_eight_images_a_gap_counts_as_it_was_seen():
    cheap = replace(evaluation("cheap", memory=1), accuracy=accuracy(5, 8))
    dear = replace(evaluation("dear", memory=9), accuracy=accuracy(7, 8))
    assert rank([cheap, dear], Budget())[0] is cheap
    assert rank([cheap, dear], Budget(metric="recall:hat"))[0] is dear


def test_luck_is_told_from_learning_by_the_97_5th_percentile():
    """As many of 1,000 images as one guesser in 40 gets of two alike classes; among 10 tries, 400."""
    for tries, chance in ((1, 0.025), (10, 0.0025)):
        enough = next(right for right in range(501, 1000) if bdtrc(right - 1, 1000, 0.5) <= chance)
        assert bdtrc(enough - 2, 1000, 0.5) < 2 * chance  # one less would do for twice the chance
        others = [evaluation(f"lora-rank={rank}", right=400) for rank in range(1, tries)]
        for right, outcome in ((enough, "use"), (enough - 1, "none")):
            found = [evaluation("full", right=right), *others]
            assert weighed(found, scenario="new-classes").outcome == outcome
