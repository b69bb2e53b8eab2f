"""What is run next: worth as much as it is expected to raise the accuracy of the choice, for its work."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.probes.acquisition import Option, chosen, contenders, knowledge_gradients
from advisor.probes.picture import Conditions, Picture, Point, Seen, expit, shipped_prior
from advisor.records import Candidate, Levers

NORM, FULL, SSF = Candidate("norm"), Candidate("full"), Candidate("ssf")
FROZEN = Candidate("norm", levers=Levers(statistics="frozen"))
TRAININGS = (NORM, FULL, SSF, FROZEN)
RATES = {NORM: (0.001, 0.005), FULL: (0.0005,), SSF: (0.005,), FROZEN: (0.005,)}
POINTS = [Point(t, rate, share) for t in TRAININGS for rate in RATES[t] for share in (0.25, 1.0)]
UNDER = Conditions(blocks=5, batch_size=8)
PICTURE = Picture(POINTS, UNDER, shipped_prior(UNDER.world))
FINALS = [row for row, point in enumerate(POINTS) if point.share == 1.0]
SAMPLES = 200


def option(training, rate, share, seconds=1.0, work=1.0):
    rows, ends = ((PICTURE.rows[Point(training, rate, part)],) for part in (share, 1.0))
    return Option((training, rate, share), rows, ends, seconds, work, share == 1.0, SAMPLES)


def some_belief():
    return PICTURE.given([Seen(POINTS[0], 0.8, SAMPLES), Seen(Point(FULL, 0.0005, 0.25), 0.83, SAMPLES)])


@pytest.mark.parametrize("asked", range(len(POINTS)))
def test_the_knowledge_gradient_is_the_mean_gain_over_the_answers(asked):
    """Against answers drawn at random, each of them taken into the picture."""
    belief = some_belief()
    random, draws = np.random.default_rng(0), 200_000
    moves = belief.moves(FINALS, [(asked, SAMPLES)])[:, 0]
    means = belief.means[FINALS]
    raised = (means[:, None] + moves[:, None] * random.standard_normal(draws)).max(0).mean() - means.max()
    share = expit(means.max())
    [gain] = knowledge_gradients(belief, [(asked, SAMPLES)], FINALS)
    assert gain == pytest.approx(raised * share * (1 - share), rel=0.1, abs=2e-4)


@pytest.mark.parametrize(("asked", "samples"), [(6, SAMPLES), (6, 4 * SAMPLES), (0, 4 * SAMPLES)])
def test_an_answer_moves_what_is_believed_as_far_as_was_expected(asked, samples):
    """The move that the knowledge gradient reckons with is the one that the answer brings about.

    Of an answer on more of the same images, the part is known that was seen before.
    """
    seen = [Seen(POINTS[0], 0.8, SAMPLES), Seen(POINTS[4], 0.8, SAMPLES)]
    every, belief = range(len(POINTS)), PICTURE.given(seen)
    expects = expit(belief.means[asked])
    answers = (Seen(POINTS[asked], expects + more, samples) for more in (-0.01, 0.01))
    one, other = (PICTURE.given([*seen, answer]) for answer in answers)
    [expected] = belief.moves(every, [(asked, samples)]).T
    # Two answers, apart by so much in log odds, move the means apart in proportion.
    moved = other.means - one.means
    assert moved / np.linalg.norm(moved) == pytest.approx(expected / np.linalg.norm(expected), abs=0.02)
    left = belief.variances - (one.variances + other.variances) / 2
    assert left == pytest.approx(expected**2, rel=0.05, abs=1e-4)


@given(
    accuracies=st.lists(st.floats(0.02, 0.98), min_size=0, max_size=len(POINTS)),
    samples=st.integers(20, 2000),
)
def test_to_know_more_is_never_worth_less_than_nothing(accuracies, samples):
    seen = [Seen(point, accuracy, samples) for point, accuracy in zip(POINTS, accuracies, strict=False)]
    belief = PICTURE.given(seen)
    asked = [(row, samples) for row in range(len(POINTS))]
    assert (knowledge_gradients(belief, asked, FINALS) >= -1e-6).all()
    assert (belief.variances >= 0).all()


def test_of_two_that_tell_the_same_the_one_with_less_work_is_chosen():
    options = [option(NORM, 0.005, 1.0, work=2.0), option(NORM, 0.005, 1.0, work=1.0)]
    assert chosen(some_belief(), options, FINALS, 100.0) == options[1]


def test_what_is_unknown_and_may_be_the_best_comes_before_what_is_known():
    belief = PICTURE.given(
        [
            Seen(point, 0.81 if point.training == FULL else 0.8, 9999)
            for point in POINTS
            if point.training != SSF
        ]
    )
    options = [option(t, rate, 1.0) for t in (NORM, FROZEN, SSF) for rate in RATES[t]]
    picked = chosen(belief, options, FINALS, 100.0)
    assert picked is not None
    assert picked.name[0] == SSF


def test_time_is_kept_for_what_leads():
    belief = some_belief()
    leader = POINTS[max(FINALS, key=lambda row: belief.means[row])]
    ending = option(leader.training, leader.rate, 1.0, seconds=5.0, work=100.0)
    other = option(FROZEN, 0.005, 0.25, seconds=1.0, work=1e-3)
    assert chosen(belief, [ending, other], FINALS, 6.0) == other
    assert chosen(belief, [ending, other], FINALS, 5.9) == ending
    assert chosen(belief, [ending, other], FINALS, 4.0) == other  # then it can't be had anyway
    assert chosen(belief, [ending, other], FINALS, 0.5) is None


def test_where_nothing_is_worth_its_time_the_leader_is_still_trained_to_its_end():
    seen = [Seen(point, 0.9 if point.training == FULL else 0.1, 10**6) for point in POINTS]
    belief = PICTURE.given(seen)
    ending, other = option(FULL, 0.0005, 1.0), option(NORM, 0.005, 1.0)
    assert chosen(belief, [other, ending], FINALS, 100.0) == ending
    assert chosen(belief, [other], FINALS, 100.0) is None
    assert chosen(belief, [], FINALS, 100.0) is None


def test_contenders_are_those_that_may_be_the_best():
    belief = some_belief()
    hopes = belief.means + 2 * np.sqrt(belief.variances)
    assert contenders(belief, FINALS) == sorted(FINALS, key=lambda row: -hopes[row])
