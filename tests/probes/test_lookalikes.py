"""What looks alike to the network is held out together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from advisor.data.loading import Dataset, LabelledImages
from advisor.data.pixels import Normalisation
from advisor.probes.lookalikes import groups_of, held_out_together
from advisor.store import Store

VISITS, EACH, CLASSES = 6, 5, 3


@pytest.fixture
def model():
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 7))


def photos(visits=VISITS, each=EACH, noise=10.0):
    """(images, labels, visits): each visit has a scene of its own, each photo is one of them and noise."""
    random = np.random.default_rng(0)
    scenes = random.integers(30, 220, (CLASSES * visits, 3, 4, 4)).repeat(each, 0)
    pixels = scenes.repeat(2, 2).repeat(2, 3) + random.normal(0, noise, (len(scenes), 3, 8, 8))
    of_visit = np.arange(len(scenes)) // each
    images = torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))
    return images, torch.from_numpy(of_visit // visits), torch.from_numpy(of_visit)


def dataset(images, labels, groups=None):
    """A random split of them, as drawn where names tell nothing."""
    order = torch.from_numpy(np.random.default_rng(1).permutation(len(images)))
    whole = LabelledImages(images, labels, groups)
    held_out = order[: len(order) * 3 // 10]
    return Dataset(
        source="photos",
        class_names=("a", "b", "c"),
        train=whole.those(order[len(held_out) :]),
        validation=whole.those(held_out),
        normalisation=Normalisation((0.5,) * 3, (0.25,) * 3),
        named=True,
        is_split_drawn=True,
    )


def scenes_of(part, images, of_visit):
    """The visits of a part's images, found by their pixels."""
    known = {image.numpy().tobytes(): int(visit) for image, visit in zip(images, of_visit, strict=True)}
    return {known[image.numpy().tobytes()] for image in part.images}


def test_photos_of_one_visit_are_on_one_side(model):
    images, labels, of_visit = photos()
    drawn = dataset(images, labels)
    assert scenes_of(drawn.train, images, of_visit) & scenes_of(drawn.validation, images, of_visit)
    apart = held_out_together(model, "2", drawn, 90, 0, None)
    trained, judged = (scenes_of(part, images, of_visit) for part in (apart.train, apart.validation))
    assert trained | judged == set(range(CLASSES * VISITS))
    assert not trained & judged
    assert set(apart.validation.labels.tolist()) == set(range(CLASSES))
    [finding] = apart.findings
    assert (finding.kind, finding.weight) == ("lookalikes", "warning")
    assert finding.text.startswith("90 of 90 images look much like others of their class")
    assert "in 18 groups" in finding.text


def test_of_too_many_to_train_on_all_it_is_told_and_the_split_stays(model):
    drawn = dataset(*photos()[:2])
    told = held_out_together(model, "2", drawn, 5000, 0, None)
    assert (told.train, told.validation) == (drawn.train, drawn.validation)
    assert "give --groups, or hold out others in val/" in told.findings[0].text


def test_images_that_are_all_different_stay_as_they_were_drawn(model):
    drawn = dataset(*photos(visits=VISITS * EACH, each=1)[:2])
    assert held_out_together(model, "2", drawn, 90, 0, None) is drawn


def test_what_names_told_belongs_together_still_does(model):
    images, labels, of_visit = photos()
    by_name = of_visit // 2  # of two visits each
    apart = held_out_together(model, "2", dataset(images, labels, by_name), 90, 0, None)
    pairs = [{v // 2 for v in scenes_of(p, images, of_visit)} for p in (apart.train, apart.validation)]
    assert not pairs[0] & pairs[1]


def test_a_class_of_which_all_looks_alike_is_not_grouped():
    random = np.random.default_rng(0)
    different, same = random.normal(size=(8, 20)), random.normal(size=(1, 20)).repeat(8, 0)
    same = same + 0.01 * random.normal(size=same.shape)
    features = torch.from_numpy(np.concatenate([different, same]))
    assert len(set(groups_of(features, torch.tensor([0] * 8 + [1] * 8)).tolist())) == 16
    assert len(set(groups_of(features, torch.tensor([0] * 4 + [1] * 12)).tolist())) == 9


def test_a_network_that_takes_one_size_alone_sees_images_at_it(tmp_path):
    images, labels, _ = photos()
    large = images.repeat_interleave(20, 2).repeat_interleave(20, 3)  # 160 pixels: more than need be
    strict = nn.Sequential(nn.AvgPool2d(40), nn.Flatten(), nn.Linear(48, 7))
    drawn = dataset(large, labels)
    with Store(tmp_path / "store.db") as store:
        first, again = (held_out_together(strict, "2", drawn, 90, 0, store) for _ in range(2))
    assert "in 18 groups" in first.findings[0].text
    assert torch.equal(first.validation.images, again.validation.images)
