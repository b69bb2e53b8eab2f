"""Cross-validation: every image is held out once, by a network that never saw it."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from advisor.data.loading import LabelledImages
from advisor.models.layers import take_census
from advisor.probes.folds import CrossValidation, fold_count
from advisor.probes.scenarios import features_before
from advisor.probes.train import Trainer, Trial
from advisor.records import Candidate, Levers
from tests.probes.test_train import SIZE, Counting, blocks, dataset, network


def few(count, drawn=True):
    return replace(dataset(samples=count), is_split_drawn=drawn)


def cross_validation(data, folds, model=None, **given):
    model = network() if model is None else model
    return CrossValidation(model, take_census(model, SIZE), data, 4, folds, **given)


def test_images_without_a_split_of_their_own_are_cross_validated_unless_there_are_many():
    assert fold_count(few(50)) == 5
    assert fold_count(few(400)) == 4
    assert fold_count(few(1600)) == 1
    assert fold_count(few(50, drawn=False)) == fold_count(few(400, drawn=False)) == 1
    data = few(50)
    lonely = LabelledImages(data.train.images[:3], torch.tensor([0, 0, 1]))
    assert fold_count(replace(data, train=lonely, validation=lonely)) == 2  # two images of class 1
    # Of more images, too: were the only one of its class held out, none would be left to learn from.
    data = few(400)
    for count, folds in ((1, 1), (2, 4)):
        parts = [
            LabelledImages(part.images, (torch.arange(len(part)) < rare).long())
            for part, rare in ((data.train, count), (data.validation, 0))
        ]
        assert fold_count(replace(data, train=parts[0], validation=parts[1])) == folds


@given(st.integers(12, 80), st.integers(2, 5), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_every_image_is_held_out_once_and_classes_are_spread(count, folds, seed):
    data = dataset(samples=count, seed=seed)
    trainer = CrossValidation(network(), take_census(network(), SIZE), data, 4, folds)
    parts = [trainer._trainer(fold).dataset for fold in range(folds)]
    assert sum(len(part.validation) for part in parts) == len(trainer.dataset.validation)
    for part in parts:
        assert len(part.train) + len(part.validation) == len(data.train) + len(data.validation)
        for label in (0, 1):
            share = int((part.validation.labels == label).sum()) * folds
            assert abs(share - int((trainer.dataset.validation.labels == label).sum())) < folds


@pytest.mark.parametrize(("samples", "trainings"), [(1, 1), (20, 1), (27, 2), (60, 3)])
def test_a_probe_trains_as_many_networks_as_its_images_need(samples, trainings):
    trainer = cross_validation(few(60), 3)
    trial = Trial(Candidate("full"), 1e-2, 12, samples, 0)
    found = trainer.probe(trial)
    assert len(found.correct) == len(trainer.judge_base(samples)) == samples
    assert trainer.trainings(samples) == trainings
    for fold in range(trainings):
        mine = found.correct[20 * fold : 20 * (fold + 1)]
        assert mine == trainer._trainer(fold).probe(replace(trial, samples=len(mine))).correct


def test_few_images_are_all_judged_from_the_start_and_more_of_them_fold_by_fold():
    assert cross_validation(few(60), 3).steps == (60,)
    assert cross_validation(few(400), 4).steps == (100, 200, 300, 400)


def test_what_a_fold_has_answered_is_not_trained_again():
    trainer, trial = cross_validation(few(400), 4), Trial(Candidate("full"), 1e-2, 4, 100, 0)
    first = trainer.probe(trial)
    trained = []
    for fold in range(4):
        own = trainer._trainer(fold)
        own.probe = lambda trial, own=own, fold=fold: trained.append(fold) or Trainer.probe(own, trial)
    found = trainer.probe(replace(trial, samples=300))
    assert trained == [1, 2]
    assert found.correct[:100] == first.correct


@pytest.mark.parametrize("statistics", ["own", "reestimated"])
def test_what_is_frozen_runs_once_for_all_folds_and_nothing_else_comes_out(statistics):
    """Unless its statistics are re-estimated: then it is another one in each fold."""
    data, levers = few(60), Levers(statistics=statistics)
    trial = Trial(Candidate("head", levers=levers), 1e-2, 6, 60, 0)
    trainer = cross_validation(data, 3)
    found = trainer.probe(trial)
    assert len(trainer._fronts) == (statistics == "own")
    alone = [
        Trainer(trainer.model, trainer.census, part, 4).probe(replace(trial, samples=len(part.validation)))
        for part in trainer._parts
    ]
    assert found.correct == b"".join(each.correct for each in alone)


def test_old_images_are_judged_once_each():
    data = replace(few(60), retained=dataset(samples=24, seed=1).train)  # 16
    trainer = CrossValidation(network(), take_census(network(), SIZE), data, 4, 3)
    found = trainer.probe(Trial(Candidate("norm"), 1e-2, 4, 60, 0))
    assert len(found.retained) == 16
    assert len(trainer.judge_base_retained(60)) == 16


def test_a_fold_that_fails_fails_the_trial():
    trainer = CrossValidation(network(), take_census(network(), SIZE), few(40), 4, 2)
    found = trainer.probe(Trial(Candidate("full"), 1e30, 4, 40, 0))
    assert found.correct is None
    assert found.failure == "diverged"


def test_new_rows_are_imprinted_without_the_images_held_out():
    data = few(30)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    adapted = copy.deepcopy(model)
    trainer = CrossValidation(adapted, take_census(adapted, SIZE), data, 4, 3, imprinted_from=0)
    rows = [trainer._trainer(fold).model[1].weight for fold in range(3)]
    assert not torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], model[1].weight)
    # Each fold's own network judges what it held out.
    own = [trainer._trainer(fold).judge_base(10) for fold in range(3)]
    assert trainer.judge_base(30) == b"".join(own)


def test_what_new_rows_are_imprinted_from_is_what_probes_go_on_from():
    data, seen = few(60), []
    model = blocks()
    model[0].append(Counting(seen))
    trainer = cross_validation(data, 3, model, imprinted_from=0)
    plain = features_before(copy.deepcopy(model), "4", trainer.dataset.validation, data.normalisation, 64)
    seen.clear()
    trainer._trainer(0)
    assert torch.allclose(trainer._before_head, plain, atol=1e-6)
    ridge = Candidate.of("ridge", {"features": "last"}, Levers())
    assert trainer.probe(Trial(ridge, None, 0, 60, 0)).correct is not None
    for candidate in (Candidate("head"), Candidate("full", levers=Levers(scope=2))):
        assert trainer.probe(Trial(candidate, 1e-2, 4, 60, 0)).correct is not None
    assert sum(seen) == 60  # each image once for all of it


def test_its_key_is_told_without_imprinting(monkeypatch):
    data, model = few(30), nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    given_ = model, take_census(model, SIZE), data, 4, 3, 0
    made = []
    monkeypatch.setattr("advisor.probes.folds.imprint", lambda *_: made.append(1))
    trainer = CrossValidation(*given_)
    assert trainer.key() == CrossValidation(*given_).key()
    assert not made
    trainer.judge_base(3)
    assert len(made) == 1
    there = pickle.loads(pickle.dumps(trainer))
    there.judge_base(30)
    assert len(made) == 3  # sent with it


def test_folds_start_from_the_head_that_is_shipped_where_nothing_was_imprinted():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    trainer = CrossValidation(model, take_census(model, SIZE), few(30), 4, 3)
    assert all(torch.equal(trainer._trainer(fold).model[1].weight, model[1].weight) for fold in range(3))


def test_the_folds_are_part_of_what_a_probe_depends_on():
    keys = [
        CrossValidation(network(), take_census(network(), SIZE), few(30), 4, folds).key() for folds in (2, 3)
    ]
    assert keys[0] != keys[1]
    assert keys[0]["code"] == keys[1]["code"]


def test_what_a_probe_runs_is_part_of_its_key(monkeypatch):
    """A probe found in the store must have been run by the code as it stands: folds, training, heads."""
    import advisor.models.fingerprint as prints

    def key():
        prints._file_digest.cache_clear()
        return Trainer(network(), take_census(network(), SIZE), few(30), 4).key()["code"]

    before, read = key(), prints.Path.read_bytes
    for changed in (
        "folds.py",
        "train.py",
        "scenarios.py",
        "update.py",
        "low_rank.py",
        "galore.py",
        "blocks.py",
    ):
        monkeypatch.setattr(
            prints.Path, "read_bytes", lambda path, name=changed: read(path) + b"#" * (path.name == name)
        )
        assert key() != before, changed
    monkeypatch.undo()
    assert key() == before
