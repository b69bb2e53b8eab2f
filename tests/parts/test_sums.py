"""Sums that are added to later: the head of all images, whatever came first, and exact leave-one-out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.parts.closed_form import Examples
from advisor.parts.sums import Spectrum, Sums
from tests.parts.test_closed_form import SHAPES, examples

CLASSES = 4


def summed(features, labels, sizes, classes=CLASSES):
    sums = Sums.none(sizes, classes)
    sums.add(features, labels)
    return sums


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    counts=st.tuples(st.integers(2, 60), st.integers(1, 40), st.integers(1, 20)),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3).map(tuple),
    known=st.integers(1, CLASSES),
    power=st.floats(-3, 2),
)
def test_adding_later_gives_the_head_of_all_together(seed, counts, sizes, known, power):
    features, labels = examples(sum(counts), sizes, seed)
    labels[: counts[0]] %= known  # the others are new classes, all of them later
    first, *later = zip(features.split(counts), labels.split(counts), strict=True)
    grown = summed(*first, sizes, known)
    for number, part in enumerate(later):
        grown.grow(CLASSES if number else max(known, int(part[1].max()) + 1))
        grown.add(*part)
    together = summed(features, labels, sizes)
    for one, other in ((grown.gram, together.gram), (grown.moments, together.moments)):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-9)
    assert grown.count == together.count == sum(counts)
    spectra = Spectrum(grown), Spectrum(together)
    penalty = 10**power * spectra[1].values.sum()[None] / min(sum(sizes), sum(counts))
    answers = []
    for spectrum in spectra:
        weight, bias = spectrum.head(penalty)
        answers.append(features @ weight.T + bias)
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("penalty", [0.01, 3.0])
def test_left_out_is_what_a_head_without_the_image_answers(shape, penalty):
    count, sizes = SHAPES[shape]
    features, labels = examples(count, sizes)
    spectrum = Spectrum(summed(features, labels, sizes))
    asked = torch.tensor([penalty], dtype=torch.float64)
    found = spectrum.left_out(features, labels, asked)
    x = ((features - spectrum.mean) * spectrum._scale).double()
    targets = torch.nn.functional.one_hot(labels, CLASSES).double()
    for image in range(0, count, 7):
        others = torch.arange(count) != image
        mean, shares = x[others].mean(0), targets[others].mean(0)
        centred = x[others] - mean
        gram = centred.T @ centred + penalty * torch.eye(sum(sizes), dtype=torch.float64)
        weight = torch.linalg.solve(gram, centred.T @ (targets[others] - shares))
        torch.testing.assert_close(found[image], shares + (x[image] - mean) @ weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_images_the_penalty_is_nearly_that_of_leave_one_out(shape):
    """The two are compared by the error that each one's head makes when images are left out."""
    count, sizes = SHAPES[shape]
    features, labels = examples(count, sizes)
    spectrum = Spectrum(summed(features, labels, sizes))
    targets = torch.nn.functional.one_hot(labels, CLASSES).double()

    def error(penalty):
        return float(((targets - spectrum.left_out(features, labels, penalty)) ** 2).sum())

    tried = torch.logspace(-5, 3, 33, dtype=torch.float64) * spectrum.values.sum() / min(count, sum(sizes))
    least = min(error(penalty[None]) for penalty in tried)
    assert error(spectrum.cross_validated()) <= 1.03 * least


def test_examples_give_their_sums_kept_or_streamed(monkeypatch):
    features, labels = examples(90, (5, 7))
    for most in (200, 70):
        monkeypatch.setattr("advisor.parts.closed_form.MOST_ROWS", most)
        sums = Examples.of((5, 7), CLASSES, features, labels).sums()
        wanted = summed(features, labels, (5, 7))
        assert (sums.count, sums.sizes) == (90, (5, 7))
        torch.testing.assert_close(sums.gram, wanted.gram, rtol=1e-12, atol=1e-9)
        torch.testing.assert_close(sums.targets, wanted.targets)
