"""A head in closed form: it is the ridge regression that brute force finds, however it is fed."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from advisor.errors import InputError
from advisor.models.layers import take_census
from advisor.parts import closed_form
from advisor.parts.closed_form import Examples, feature_blocks, feature_sizes, inputs_of, solvable, widen

SIZE = (3, 12, 12)
CLASSES = 4
SHAPES = {"more features": (30, (20, 40)), "more images": (90, (20, 40)), "few features": (90, (5, 7))}


def examples(count, sizes, seed=0):
    """Features of very different scales, some of which tell the class."""
    torch.manual_seed(seed)
    features = torch.randn(count, sum(sizes)) * torch.rand(sum(sizes)) * 3 + torch.randn(sum(sizes))
    labels = torch.randint(0, CLASSES, (count,))
    features[:, 0] += labels
    return features, labels


def fed(features, labels, sizes, at_once=8):
    found = Examples(sizes, CLASSES)
    for some, their in zip(features.split(at_once), labels.split(at_once), strict=True):
        found.add(some, their)
    return found


def scaled(features, sizes):
    spread = (features - features.mean(0)) / features.std(0, correction=0)
    return (spread * torch.cat([torch.full((size,), size**-0.5) for size in sizes])).double()


def by_brute_force(features, labels, sizes):
    """What sklearn predicts with the penalty for which each image, left out, is predicted best."""
    x, targets = scaled(features, sizes), nn.functional.one_hot(labels, CLASSES).double()
    short = x @ x.T if len(x) <= sum(sizes) else x.T @ x
    errors = {}
    for power in range(13):
        penalty = float(10 ** (-4 + power / 2) * torch.linalg.eigvalsh(short).clamp_min(0).mean())
        error = 0.0
        for left_out in range(len(x)):
            others = torch.arange(len(x)) != left_out
            model = Ridge(alpha=penalty).fit(x[others], targets[others])
            error += ((targets[left_out].numpy() - model.predict(x[left_out : left_out + 1])) ** 2).sum()
        errors[penalty] = error
    best = min(errors, key=errors.get)
    return torch.from_numpy(Ridge(alpha=best).fit(x, targets).predict(x))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_what_brute_force_finds(shape):
    count, sizes = SHAPES[shape]
    features, labels = examples(count, sizes)
    weight, bias = fed(features, labels, sizes).solve()
    found = (features @ weight.T + bias).double()
    torch.testing.assert_close(found, by_brute_force(features, labels, sizes), rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", ["more images", "few features"])
def test_of_more_images_than_are_kept_sums_are(shape, monkeypatch):
    count, sizes = SHAPES[shape]
    features, labels = examples(count, sizes)
    whole = fed(features, labels, sizes).solve()
    monkeypatch.setattr(closed_form, "MOST_ROWS", count - 1)  # all but the last batch judge the penalty
    streamed = fed(features, labels, sizes).solve()
    for one, other in zip(whole, streamed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_the_first_groups_alone_are_a_regression_of_their_own():
    features, labels = examples(60, (6, 9, 4))
    every = fed(features, labels, (6, 9, 4))
    alone = fed(features[:, :15].contiguous(), labels, (6, 9))
    for one, other in zip(every.solve(groups=2), alone.solve(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_feature_that_never_varies_does_no_harm():
    features, labels = examples(60, (6, 9))
    features[:, 3] = 7.0
    weight, bias = fed(features, labels, (6, 9)).solve()
    assert weight.isfinite().all()
    assert bias.isfinite().all()
    assert weight[:, 3].abs().max() * 7 < 1e-3


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 3), nn.ReLU(), nn.Conv2d(10, 12, 3), nn.ReLU()),
        *(nn.Conv2d(12, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES)),
    ).eval()


def test_it_reads_blocks_from_the_last_to_the_first():
    census = take_census(network(), SIZE)
    assert solvable(census) == ("last", "late", "all")
    assert feature_sizes(census, "last") == (16,)
    assert feature_sizes(census, "late") == (16, 12)
    assert feature_sizes(census, "all") == (16, 12, 10, 8)


def test_a_wide_head_answers_as_before_and_is_copied_whole():
    model = network()
    images = torch.randn(5, *SIZE)
    with torch.no_grad():
        wanted = model(images)
        first = model[:2](images).mean((2, 3))
        linear = widen(model, take_census(model, SIZE), "all")
        for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(one(images), wanted, rtol=0, atol=1e-6)
        with inputs_of(linear) as inputs:
            model(images)
        torch.testing.assert_close(inputs[0][:, -8:], first)
        copied = copy.deepcopy(model)
        copied[-1].linear.weight.zero_()
        assert not torch.allclose(copied(images), wanted)
        torch.testing.assert_close(model(images), wanted, rtol=0, atol=1e-6)


def test_channels_are_found_where_they_come_last():
    class ToLast(nn.Module):
        def forward(self, x):
            return x.permute(0, 2, 3, 1)

    class Last(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    class Pooled(nn.Module):
        def forward(self, x):
            return x.mean((1, 2))

    torch.manual_seed(0)
    inner = Last(nn.Conv2d(8, 8, 1)), Last(nn.Conv2d(8, 9, 1))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), ToLast(), *inner, Pooled(), nn.Linear(9, CLASSES))
    census = take_census(model.eval(), SIZE)
    assert [block.features for block in feature_blocks(census, "all")] == [8, 8]


def test_of_a_very_wide_network_every_other_block_is_read(monkeypatch):
    census = take_census(network(), SIZE)
    monkeypatch.setattr(closed_form, "MOST_FEATURES", 16 + 12 + 8)
    assert feature_sizes(census, "all") == (16, 12, 8)


def test_a_head_that_reads_no_vector_is_none_to_solve():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    census = take_census(model.eval(), SIZE)
    assert solvable(census) == ()
    with pytest.raises(InputError, match="Linear layer"):
        widen(model, census, "last")
