"""The metric: what counts as right, and how sure it is; brute force and laws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advisor.errors import InputError
from advisor.probes.judging import ACCURACY, Metric, by_class, metric_of
from advisor.solver.paired import paired_gap

NAMES = ("good", "scratch", "dent")
ANSWERS = st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=3, max_size=40)


def _right(labels: list[int], answers: list[int]) -> bytes:
    return bytes(int(label == answer) for label, answer in zip(labels, answers, strict=True))


def test_of_five_hundred_good_parts_and_ten_scratched_ones_balanced_accuracy_and_recall_see_what_is_missed():
    labels = [0] * 500 + [1] * 10
    correct = _right(labels, [0] * 508 + [1] * 2)
    found = {
        name: metric_of(name, torch.tensor(labels), NAMES, (0, 1, 2)).of(correct)
        for name in ("accuracy", "balanced", "recall:scratch")
    }
    assert found["accuracy"].mean == pytest.approx(502 / 510)
    assert found["balanced"].mean == pytest.approx((1 + 0.2) / 2)
    assert (found["recall:scratch"].mean, found["recall:scratch"].samples) == (0.2, 10)
    assert found["balanced"].high - found["balanced"].low > 0.2  # ten images tell little
    assert found["balanced"].effective_samples == 39  # Kish: 4 / (1 / 500 + 1 / 10)


@given(ANSWERS)
def test_balanced_accuracy_is_the_mean_of_the_classes_shares(drawn):
    labels = torch.tensor([label for label, _ in drawn])
    right = torch.tensor([ok for _, ok in drawn], dtype=torch.float64)
    found = metric_of("balanced", labels, NAMES, (0, 1, 2)).of(bytes(right.to(torch.uint8).tolist()))
    shares = [float(right[labels == label].mean()) for label in labels.unique()]
    assert found.mean == pytest.approx(sum(shares) / len(shares))
    assert 0 <= found.low <= found.mean <= found.high <= 1


def _margins(of: torch.Tensor) -> bytes:
    return of.float().numpy().tobytes()


@pytest.mark.parametrize("accuracy", [0.6, 0.75, 0.9])
def test_smoothed_shares_are_those_of_right_answers_and_chance_moves_what_lies_between_two_less(accuracy):
    """Of two networks that find the same images hard, on 1,000 draws of 100 images."""
    random = torch.Generator().manual_seed(0)
    same = torch.special.ndtri(torch.tensor(accuracy)) + torch.randn(1000, 100, generator=random)
    both = [(same + 0.4 * torch.randn(1000, 100, generator=random)) / 1.16**0.5 for _ in range(2)]
    plain = [(drawn > 0).double().mean(1) for drawn in both]
    smooth = [torch.tensor([ACCURACY.smoothed(_margins(each)) for each in drawn]) for drawn in both]
    assert float(smooth[0].mean()) == pytest.approx(accuracy, abs=0.05)
    assert float((smooth[0] - smooth[1]).std()) < 0.75 * float((plain[0] - plain[1]).std())


@given(st.lists(st.integers(-400, 400), min_size=1, max_size=40), st.floats(1e-3, 1e3))
def test_smoothed_shares_do_not_depend_on_the_outputs_unit(margins, unit):
    one, other = (ACCURACY.smoothed(_margins(torch.tensor(margins) * by)) for by in (0.1, unit))
    assert 0 <= one <= 1
    assert one == pytest.approx(other, abs=0.01)


def test_margins_that_say_nothing_or_everything_are_smoothed_too():
    """Outputs that are all alike, of a network of one class, and of one whose outputs aren't finite."""
    assert ACCURACY.smoothed(_margins(torch.zeros(5))) == 0
    assert ACCURACY.smoothed(_margins(torch.full((5,), float("inf")))) == 1
    assert ACCURACY.smoothed(_margins(torch.full((5,), float("nan")))) == 0


def test_smoothed_shares_are_in_the_metric():
    """Wrong on all of the rare class: half of the classes' mean."""
    labels = torch.tensor([0] * 90 + [1] * 10)
    balanced = metric_of("balanced", labels, NAMES[:2], (0, 1))
    found = balanced.smoothed(_margins(torch.tensor([1.0] * 90 + [-1.0] * 10)))
    assert found == pytest.approx(0.5, abs=0.01)
    assert ACCURACY.smoothed(_margins(torch.tensor([1.0] * 90 + [-1.0] * 10))) > 0.8


@given(ANSWERS, st.floats(0.1, 10))
def test_equal_weights_are_no_weights(drawn, weight):
    correct = bytes(ok for _, ok in drawn)
    alike, plain = Metric("same", (weight,) * len(drawn)).of(correct), ACCURACY.of(correct)
    assert (alike.mean, alike.low, alike.high) == pytest.approx((plain.mean, plain.low, plain.high))
    other = bytes(not ok for ok in correct)
    assert paired_gap(alike, Metric("same", alike.weights).of(other)) == pytest.approx(
        paired_gap(plain, ACCURACY.of(other))
    )


def test_what_is_won_on_the_rare_class_decides_a_balanced_comparison():
    labels = torch.tensor([0] * 190 + [1] * 10)
    common, rare = bytes([1] * 190 + [0] * 10), bytes([1] * 180 + [0] * 10 + [1] * 10)
    balanced = metric_of("balanced", labels, NAMES, (0, 1, 2))
    assert paired_gap(ACCURACY.of(common), ACCURACY.of(rare))[1] > 0
    assert paired_gap(balanced.of(rare), balanced.of(common))[0] > 0.2


def test_each_class_is_told_in_the_order_of_the_data():
    labels = torch.tensor([5, 5, 7, 7, 7])  # the model's outputs; the data's classes are 7, 5 and 6
    told = by_class(ACCURACY.of(bytes([1, 0, 1, 1, 0])), labels, None, (7, 5, 6), known=6)
    assert told.recalls == (0.6667, 0.5, None)
    assert told.balanced is not None
    assert told.balanced.mean == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert (told.known_classes, told.new_classes) == pytest.approx((1 / 2, 2 / 3))


def test_groups_widen_the_interval_of_every_metric():
    labels, groups = torch.tensor([0, 1] * 50), torch.arange(100) // 10
    correct = bytes([1] * 50 + [0] * 50)
    alone = by_class(ACCURACY.of(correct), labels, None, (0, 1), known=2)
    grouped = by_class(ACCURACY.of(correct), labels, groups, (0, 1), known=2)
    assert alone.balanced is not None
    assert grouped.balanced is not None
    assert grouped.effective_samples == grouped.balanced.effective_samples == 10
    assert grouped.balanced.high - grouped.balanced.low > 2 * (alone.balanced.high - alone.balanced.low)


def test_enough_of_the_class_is_judged_to_tell_its_recall():
    metric = metric_of("recall:dent", torch.tensor([0, 0, 2, 0, 2, 0, 0]), NAMES, (0, 1, 2))
    assert [metric.least_samples(wanted) for wanted in (1, 2, 3)] == [3, 5, 7]
    assert ACCURACY.least_samples(40) == 40
    with pytest.raises(ValueError, match="no sample of recall:dent"):
        metric.of(b"\1\1")


@pytest.mark.parametrize(
    ("name", "told"),
    [("recall:dint", "no class 'dint'; it has good, scratch"), ("recall:DENT", "no held-out image")],
)
def test_a_class_that_is_not_there_is_told(name, told):
    with pytest.raises(InputError, match=told):
        metric_of(name, torch.tensor([0, 1]), NAMES, (0, 1, 2))
