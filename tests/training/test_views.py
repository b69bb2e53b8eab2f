"""Augmentation: which views a training sees, the same ones whatever caches and whoever computes."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace

import pytest
import torch

from advisor.costs.allocator import peak_of
from advisor.data.loading import LabelledImages
from advisor.data.pixels import Normalisation
from advisor.models.layers import take_census
from advisor.probes.folds import CrossValidation
from advisor.probes.train import FineTune, Trainer, Trial, trained_as
from advisor.records import Candidate, Levers
from advisor.training.views import CACHED_VIEWS, View, Views, view_count
from tests.probes.test_train import SIZE, blocks, dataset

PLAIN = Normalisation((0.0,), (1.0,))
LAST = Candidate("norm", levers=Levers(scope=1))
EVERY = torch.arange(12)


def images(side, count=12):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(1, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    return LabelledImages(pixels, torch.arange(count) % 3)


def census():
    return take_census(blocks(), SIZE)


def test_a_view_depends_on_seed_image_and_number_alone():
    whole = View(images(12), "standard", 1, 2).batch(EVERY, PLAIN)[0]
    backwards = View(images(12), "standard", 1, 2).batch(EVERY.flip(0), PLAIN)[0]
    assert torch.equal(whole.flip(0), backwards)
    alone = torch.cat([View(images(12), "standard", 1, 2).batch(EVERY[i : i + 1], PLAIN)[0] for i in EVERY])
    assert torch.equal(whole, alone)
    for other in (View(images(12), "standard", 2, 2), View(images(12), "standard", 1, 3)):
        assert not torch.equal(whole, other.batch(EVERY, PLAIN)[0])


def test_flip_shows_each_image_and_its_mirror_image_in_turn():
    own, mirrored = (images(10).batch(EVERY, PLAIN)[0].flip(dims) for dims in ((), (3,)))
    views = Views.of(images(10), Candidate("full"), census(), "flip", 0)
    first = views.batch(EVERY, 0, PLAIN)[0]
    is_own = [torch.equal(each, its) for each, its in zip(first, own, strict=True)]
    assert all(
        torch.equal(each, its) for each, its, as_is in zip(first, mirrored, is_own, strict=True) if not as_is
    )
    assert 0 < sum(is_own) < len(EVERY)  # not all begin alike
    second, labels = views.batch(EVERY, 1, PLAIN)
    assert torch.equal(second, first.flip(3))
    assert torch.equal(labels, images(10).labels)
    assert torch.equal(views.batch(EVERY, 2, PLAIN)[0], first)


@pytest.mark.parametrize("side", [32, 80])
def test_standard_shows_a_part_of_the_image_at_the_images_size(side):
    own = images(side).batch(EVERY, PLAIN)[0]
    seen = View(images(side), "standard", 0, 1).batch(EVERY, PLAIN)[0]
    assert seen.shape == own.shape
    assert not torch.equal(seen, own)
    for image, view in zip(own, seen, strict=True):
        assert image.min() <= view[view != 0].min()
        assert view.max() <= image.max()


def test_small_images_are_shifted_by_an_eighth_at_most():
    """Each pixel that is seen is one of the image's, moved as all others are."""
    own, shifts = images(32).images[0].float() / 255, Counter()
    for number in range(1, 200):
        seen = own.clone()
        View(images(32), "standard", 0, number).change(seen, 0)
        padded = torch.nn.functional.pad(own, (4,) * 4)
        found = [
            (top, left, mirrored)
            for top in range(9)
            for left in range(9)
            for mirrored in (False, True)
            if torch.equal(seen.flip(2) if mirrored else seen, padded[:, top : top + 32, left : left + 32])
        ]
        assert len(found) == 1
        shifts.update(zip(("top", "left", "mirrored"), found[0], strict=True))
    assert {value for kind, value in shifts if kind == "top"} == set(range(9))
    assert {value for kind, value in shifts if kind == "left"} == set(range(9))
    assert 60 < shifts["mirrored", True] < 140


def test_large_images_are_cropped_to_areas_and_aspects_as_torchvisions():
    """Of a plane that rises by one a pixel, the view tells where the crop was."""
    side = 100
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    plane = torch.stack([rows, columns]).float()
    areas = []
    for number in range(1, 200):
        seen = plane.clone()
        View(images(side), "standard", 0, number).change(seen, 0)
        height, width = (float(seen[i].max() - seen[i].min()) + 1 for i in (0, 1))
        areas.append(height * width / side**2)
        assert 0.7 < width / height < 1.4
    assert 0.07 < min(areas) < 0.15
    assert 0.85 < max(areas) <= 1
    assert 0.4 < sum(areas) / len(areas) < 0.65


def test_what_no_gradient_trains_sees_images_as_they_are():
    for candidate in (Candidate("recalibrate"), Candidate.of("ridge", {"features": "last"}, Levers())):
        assert view_count(candidate, census(), "standard") == 1
    assert view_count(Candidate("full"), census(), "none") == 1
    assert view_count(Candidate("full"), census(), "flip") == 2
    assert view_count(Candidate("full"), census(), "standard") is None
    assert view_count(LAST, census(), "standard") == CACHED_VIEWS


@pytest.mark.parametrize("levers", [Levers(), Levers(statistics="frozen"), Levers(scope=1)])
@pytest.mark.parametrize("method", ["head", "norm", "ridge", "full"])
def test_a_training_has_as_many_views_however_it_is_run(method, levers):
    candidate = Candidate.of(method, {"features": "last"} if method == "ridge" else {}, levers)
    quick = trained_as(candidate, census())
    for augment in ("none", "flip", "standard"):
        assert view_count(candidate, census(), augment) == view_count(quick, census(), augment)


@pytest.mark.parametrize("augment", ["flip", "standard"])
@pytest.mark.parametrize("levers", [Levers(scope=1), Levers(scope=1, statistics="reestimated")])
def test_a_cached_front_has_every_view(augment, levers, monkeypatch):
    data = replace(dataset(), augment=augment)
    candidate = Candidate("full", levers=levers)
    deltas = []
    for quick in (True, False):
        if not quick:
            monkeypatch.setattr("advisor.probes.train.trained_as", lambda candidate, census: candidate)
        trainer = Trainer(blocks(), census(), data, 8)
        tuned = FineTune(trainer, candidate, 1e-2, 50, 0)
        assert (tuned.trainable.levers.cached_prefix != "no") == quick
        assert tuned.run(50)
        deltas.append((tuned.trainable.delta(), tuned.judge()))
    (cached, judged), (plain, wanted) = deltas
    assert all(torch.allclose(cached[name], plain[name], atol=1e-5) for name in plain)
    assert judged == wanted
    without = FineTune(Trainer(blocks(), census(), dataset(), 8), candidate, 1e-2, 50, 0)
    without.run(50)
    assert any(not torch.allclose(cached[name], each) for name, each in without.trainable.delta().items())


def test_views_run_through_a_front_once_for_all_candidates():
    trainer = Trainer(blocks(), census(), replace(dataset(), augment="standard"), 8)
    for method in ("norm", "bias"):
        FineTune(trainer, Candidate(method, levers=Levers(scope=1)), 1e-3, 4, 0).run(4)
    assert len(trainer._features) == CACHED_VIEWS  # one of them with what is judged on
    FineTune(trainer, LAST, 1e-3, 4, 1).run(4)  # another seed has other views
    assert len(trainer._features) == 2 * CACHED_VIEWS - 1


@pytest.mark.parametrize("augment", ["flip", "standard"])
@pytest.mark.parametrize("candidate", [Candidate("norm"), LAST])
def test_an_augmented_training_goes_on_as_if_nothing_had_happened(candidate, augment):
    data = replace(dataset(), augment=augment)
    trainer = Trainer(blocks(), census(), data, 8)
    whole, first, second = (FineTune(trainer, candidate, 1e-2, 40, 3) for _ in range(3))
    whole.run(40)
    first.run(23)  # in the third epoch
    second.restore(first.state())
    second.run(40)
    wanted = whole.trainable.delta()
    assert all(torch.equal(each, wanted[name]) for name, each in second.trainable.delta().items())


@pytest.mark.parametrize("candidate", [Candidate("norm"), LAST])
def test_another_process_finds_the_same(candidate):
    trial = Trial(candidate, 1e-2, 25, 40, 0, ("last",))
    for trainer in (
        Trainer(blocks(), census(), replace(dataset(), augment="standard"), 8),
        CrossValidation(blocks(), census(), replace(dataset(), augment="standard"), 8, 3),
    ):
        elsewhere = pickle.loads(pickle.dumps(trainer))
        here, there = trainer.probe(trial), elsewhere.probe(trial)
        assert not here.failure
        assert (here.correct, here.solved) == (there.correct, there.solved)


def test_a_head_in_closed_form_is_solved_on_images_as_they_are():
    candidate = Candidate("norm", levers=Levers(scope=1, head="ridge-last", statistics="frozen"))
    plain, augmented = (
        FineTune(Trainer(blocks(), census(), replace(dataset(), augment=augment), 8), candidate, 0.0, 8, 0)
        for augment in ("none", "standard")
    )
    for tuned in (plain, augmented):  # at a learning rate of 0 nothing else moves
        assert tuned.run(8)
        tuned.finish()
    head = plain.trainable.model[-1], augmented.trainable.model[-1]
    assert torch.equal(head[0].weight, head[1].weight)


def test_the_key_tells_what_was_trained_on():
    keys = [
        Trainer(blocks(), census(), replace(dataset(), augment=augment), 8).key()
        for augment in ("none", "flip", "standard")
    ]
    assert len({str(key) for key in keys}) == 3


@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize("augment", ["flip", "standard"])
def test_a_view_takes_the_memory_of_few_images_beside_the_batch(augment, side):
    given = images(side)
    view, views = View(given, augment, 0, 1), Views.of(given, Candidate("full"), census(), augment, 0)
    plain = peak_of(lambda: given.batch(EVERY, PLAIN))
    for run in (lambda: view.batch(EVERY, PLAIN), lambda: views.batch(EVERY, 0, PLAIN)):
        assert peak_of(run) <= plain + 3 * 4 * given.images[0].numel()
