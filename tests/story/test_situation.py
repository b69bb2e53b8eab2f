"""What every command starts from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from advisor.errors import DataError, InputError
from advisor.store import Store
from advisor.story.situation import Request, prepare


def test_the_random_weights_of_a_name_follow_the_seed_alone():
    state = torch.get_rng_state()
    found = [
        prepare("torchvision:squeezenet1_1", Request(seed=seed), lambda *_: None).base_fingerprint
        for seed in (0, 0, 1)
    ]
    assert torch.equal(state, torch.get_rng_state())
    assert found[0] == found[1] != found[2]


def test_what_is_given_but_empty_is_not_taken_for_not_given():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    request = Request(input_size=(1, 8, 8), data="digits")
    with pytest.raises(InputError, match="names no method"):
        prepare(model, replace(request, methods=()), lambda *_: None)
    with pytest.raises(InputError, match="0 class names were given, the model has 10 outputs"):
        prepare(model, replace(request, class_names=()), lambda *_: None)


def test_a_network_without_a_classifier_gets_one_for_the_data(tmp_path):
    model = torchvision.models.squeezenet1_1(weights=None, num_classes=5)
    model.classifier = nn.Identity()
    torch.save(model, tmp_path / "m.pt")
    request = Request(data="digits", input_size=(3, 32, 32), train_images=100)
    story = prepare(str(tmp_path / "m.pt"), request, lambda *_: None)
    assert (story.census.classes, story.given.situation.head_replaced) == (10, True)
    assert story.census.head is not None
    assert any("no classifier (classifier is missing)" in each for each in story.warnings)
    without = prepare(str(tmp_path / "m.pt"), Request(input_size=(3, 64, 64)), lambda *_: None)
    assert without.census.head is None


def test_outputs_that_are_probabilities_are_warned_of():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1))
    story = prepare(model, Request(input_size=(1, 8, 8)), lambda *_: None)
    assert any("ends in a softmax" in each for each in story.warnings)


def test_old_data_has_the_outputs_for_labels_and_no_new_classes(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    names = np.array(["a", "b", "c", "d"])
    for name, labels in (("old", [2, 0, 1] * 4), ("new", [0, 1, 2, 3] * 4)):
        images = np.full((len(labels), 8, 8), 10, np.uint8) * (np.array(labels)[:, None, None] + 1)
        np.savez(
            tmp_path / f"{name}.npz",
            images=images.astype(np.uint8),
            labels=labels,
            class_names=names[: max(labels) + 1],
        )
    old, new = str(tmp_path / "old.npz"), str(tmp_path / "new.npz")
    request = Request(input_size=(1, 8, 8), data=new, retain=old, class_names=("c", "a", "b"))
    retained = prepare(model, request, lambda *_: None).given.dataset.retained
    assert len(retained) == 12
    assert model[1].out_features == 3  # the caller's module is left alone
    outputs = {10: 1, 20: 2, 30: 0}  # by brightness
    assert [outputs[int(image.max())] for image in retained.images] == retained.labels.tolist()
    with pytest.raises(DataError, match="never seen"):
        prepare(model, replace(request, data=old, retain=new), lambda *_: None)
    with pytest.raises(InputError, match="--data"):
        prepare(model, replace(request, data=None), lambda *_: None)


def test_what_is_unreadable_of_old_and_of_unlabelled_images_is_left_out_and_named(tmp_path):
    for folder in ("new/a", "new/b", "old/a", "old/b", "camera"):
        (tmp_path / folder).mkdir(parents=True)
        for index in range(30):
            Image.fromarray(np.full((8, 8), index, np.uint8)).save(tmp_path / folder / f"{index}.png")
    (tmp_path / "old" / "b" / "3.png").write_bytes(b"no image")
    (tmp_path / "camera" / "7.png").unlink()
    (tmp_path / "camera" / "7.png").symlink_to("nowhere.png")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    new, old, camera = (str(tmp_path / name) for name in ("new", "old", "camera"))
    request = Request(input_size=(1, 8, 8), data=new, retain=old, unlabelled=camera, class_names=("a", "b"))
    story = prepare(model, request, lambda *_: None)
    assert (len(story.given.dataset.retained), len(story.given.dataset.unlabelled)) == (59, 29)
    told = [warning for warning in story.warnings if "can't be read" in warning]
    assert len(told) == 2
    assert told[0].startswith(f"{camera}: 1 of 30 images can't be read and is left out: 7.png (No such file")
    assert told[1].startswith(f"{old}: 1 of 60 images can't be read and is left out: b/3.png (it is not an")
    for index in range(4, 9):
        (tmp_path / "camera" / f"{index}.png").unlink()
        (tmp_path / "camera" / f"{index}.png").write_bytes(b"")
    with pytest.raises(DataError, match="5 of 30 images can't, and only up to 5 %"):
        prepare(model, request, lambda *_: None)


def test_images_without_labels_are_read_from_any_folder_and_shift_with_the_others(tmp_path):
    labels = np.arange(20) % 2
    np.savez(tmp_path / "data.npz", images=np.full((20, 8, 8), 200, np.uint8), labels=labels)
    deep = tmp_path / "camera" / "monday"
    deep.mkdir(parents=True)
    for number, folder in enumerate((deep, deep.parent, deep)):
        Image.fromarray(np.full((9, 9), 10 * number, np.uint8)).save(folder / f"{number}.png")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    camera = str(tmp_path / "camera")
    request = Request(input_size=(1, 8, 8), data=str(tmp_path / "data.npz"), unlabelled=camera)
    found = prepare(model, request, lambda *_: None).given.dataset.unlabelled
    assert sorted(found.images[:, 0, 0, 0].tolist()) == [0, 10, 20]
    assert found.labels.tolist() == [-1, -1, -1]
    rehearsed = prepare(
        model, replace(request, rehearse="brightness:5"), lambda *_: None
    ).given.dataset.unlabelled
    assert (rehearsed.images.float().mean((1, 2, 3)) > found.images.float().mean((1, 2, 3))).all()
    few = prepare(model, replace(request, train_images=2), lambda *_: None).given.dataset.unlabelled
    assert len(few) == 2

    np.savez(tmp_path / "camera.npz", images=np.zeros((5, 8, 8), np.uint8))
    archive = replace(request, unlabelled=str(tmp_path / "camera.npz"))
    assert len(prepare(model, archive, lambda *_: None).given.dataset.unlabelled) == 5
    (tmp_path / "empty").mkdir()
    for wrong, said in (
        (str(tmp_path), "holds images of the labelled data"),
        (request.data, "holds images of the labelled data"),
        (str(tmp_path / "empty"), "holds no images"),
        (str(tmp_path / "nowhere"), "no such file or folder"),
    ):
        with pytest.raises(DataError, match=said):
            prepare(model, replace(request, unlabelled=wrong), lambda *_: None)
    with pytest.raises(InputError, match="--data"):
        prepare(model, replace(request, data=None), lambda *_: None)
    with pytest.raises(InputError, match="new classes"):
        prepare(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), request, lambda *_: None)


@pytest.mark.parametrize("known", [2, 1])  # a head that grows; one that is replaced
def test_what_a_store_knows_of_new_classes_needs_no_image(tmp_path, monkeypatch, known):
    for place, name in enumerate(("a", "b", "c", "d")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(20):
            picture = np.full((8, 8), 60 * place + index, np.uint8)
            Image.fromarray(picture).save(tmp_path / "data" / name / f"{index}.png")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, known))
    request = Request(input_size=(1, 8, 8), data=str(tmp_path / "data"), rehearse="gaussian-noise:1")
    plain = prepare(model, request, lambda *_: None)
    with Store(tmp_path / "store") as store:
        first = prepare(model, request, lambda *_: None, store)
        with monkeypatch.context() as patch:
            patch.setattr(Image, "open", lambda path: pytest.fail(f"{path} is decoded"))
            again = prepare(model, request, lambda *_: None, store)
    rows = {each.given.imprinted_from for each in (plain, first, again)}
    assert rows == {2 if known == 2 else 0}
    for name, tensor in plain.loaded.module.state_dict().items():
        assert torch.equal(first.loaded.module.state_dict()[name], tensor)
        assert torch.equal(again.loaded.module.state_dict()[name], tensor)
    assert again.warnings == plain.warnings
    assert torch.equal(again.given.dataset.train.images, plain.given.dataset.train.images)
