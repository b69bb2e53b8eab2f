"""What the images are brought to where the user doesn't say."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from advisor import Request, recommend
from advisor.data import Normalisation
from advisor.delivery.apply import Application, _recorded, apply_advice
from advisor.errors import ModelError
from advisor.models import load_module
from advisor.records import Framing
from advisor.report.formats import from_json, to_json
from advisor.story.situation import prepare


class Small(nn.Module):
    """A network of any image size that doesn't say which, as those for CIFAR are."""

    def __init__(self, channels: int = 3, classes: int = 2) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, classes)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class Folding(Small):
    """With space-to-depth in front: its convolution takes other channels than its images have."""

    def __init__(self) -> None:
        super().__init__(channels=48)

    def forward(self, x):
        return super().forward(nn.functional.pixel_unshuffle(x, 4))


CONFIG = {
    "architecture": "small",
    "tag": "own",
    "input_size": (3, 32, 32),
    "mean": (0.1, 0.2, 0.3),
    "std": (0.5, 0.6, 0.7),
    "crop_pct": 0.8,
    "interpolation": "bicubic",
}


def write_images(folder, sizes, *, count=10, mode="RGB"):
    """Two classes of noise; sizes: (width, height) of the images in turn."""
    random = np.random.default_rng(0)
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for index in range(count):
            width, height = sizes[index % len(sizes)]
            shape = (height, width, 3)
            image = Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).convert(mode)
            image.save(folder / label / f"{index:02}.png")
    return str(folder)


def story(model, **options):
    return prepare(model, Request(**options), lambda *_: None)


@pytest.mark.parametrize("kind", ["folder", "npz", "torchvision"])
def test_the_input_size_is_that_of_all_images(tmp_path, kind):
    if kind == "npz":
        data = str(tmp_path / "data.npz")
        np.savez(data, images=np.zeros((20, 24, 32, 3), np.uint8), labels=np.arange(20) % 2)
    else:
        data = write_images(tmp_path / "eurosat" / "2750", [(32, 24)])
        data = f"torchvision:EuroSAT:{tmp_path}" if kind == "torchvision" else data
    found = story(Small(), data=data)
    assert found.census.input_size == (3, 24, 32)
    assert found.given.dataset.train.images.shape[1:] == (3, 24, 32)
    assert found.assumed[0] == f"the input size is 3x24x32: the images of {data} are all 24x32"


def test_the_first_convolution_tells_the_channels_and_else_the_images(tmp_path):
    colour, grey = write_images(tmp_path / "c", [(8, 8)]), write_images(tmp_path / "g", [(8, 8)], mode="L")
    assert story(Small(1), data=colour).census.input_size == (1, 8, 8)
    assert story(Small(3), data=grey).census.input_size == (3, 8, 8)
    for data, channels in ((colour, 3), (grey, 1)):
        flat = nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, 2))
        assert story(flat, data=data).census.input_size == (channels, 8, 8)
    assert story(Folding(), data=colour).census.input_size == (3, 8, 8)
    assert story(Small(1), data="digits").census.input_size == (1, 8, 8)


def test_no_size_is_made_up(tmp_path):
    for sizes, said in (
        ([(32, 32), (40, 16)], r"have several, from 16x40 to 32x32; give --input-size"),
        ([(600, 600)], r"600x600, are larger than what is taken without being asked \(512\); give --input"),
    ):
        data = write_images(tmp_path / said[:4], sizes, count=2)
        with pytest.raises(ModelError, match=said):
            story(Small(), data=data)
        assert story(Small(), data=data, input_size=(3, 32, 32)).census.input_size == (3, 32, 32)
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(100, 2))
    with pytest.raises(ModelError, match=r"the size of the images of .* was tried: .*3x8x8 .*--input-size"):
        story(fixed, data=write_images(tmp_path / "other", [(8, 8)]))


def test_all_of_timms_configuration_is_used_said_and_recorded(tmp_path):
    model, data = Small(), write_images(tmp_path / "data", [(80, 60), (48, 90)], count=12)
    model.pretrained_cfg = CONFIG
    found = recommend(model, request=Request(data=data, methods=("head",), probe_seconds=2.0, verify=False))
    assert found.input_size == (3, 32, 32)
    values = "3x32x32, mean 0.1 0.2 0.3, std 0.5 0.6 0.7, crop 0.8, bicubic"
    assert found.assumed == (f"from timm's configuration of small.own: {values}",)
    section = to_json(found)["data"]
    assert (section["crop"], section["interpolation"], section["crop_mode"]) == (0.8, "bicubic", "center")
    assert (section["mean"], section["std"]) == ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])

    # What the report says is enough, for a model that has lost its configuration.
    again = story(Small(), data=data, **_recorded(from_json(to_json(found)).data), input_size=(3, 32, 32))
    seen, plain = again.given.dataset, story(Small(), data=data, input_size=(3, 32, 32)).given.dataset
    first = story(_configured(), data=data).given.dataset
    assert again.assumed == ()
    assert torch.equal(seen.validation.images, first.validation.images)
    assert torch.equal(seen.train.images, first.train.images)
    assert seen.normalisation == first.normalisation
    assert not torch.equal(plain.train.images, first.train.images)


def _configured(**changed):
    model = Small()
    model.pretrained_cfg = CONFIG | changed
    return model


def test_apply_sees_the_images_that_recommend_saw(tmp_path, monkeypatch):
    data = write_images(tmp_path / "data", [(80, 60), (48, 90)], count=20)
    (tmp_path / "data" / "a" / "00.png").write_bytes(b"no image")
    (tmp_path / "own_network.py").write_text("from test_assumed import _configured as make\n")
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.syspath_prepend(tmp_path)
    request = Request(data=data, methods=("head",), probe_seconds=2.0, verify=False, train_images=8)
    found = recommend("own_network:make", request=request)
    assert "1 of 40 images can't be read" in "".join(found.warnings)
    assert found.data.unreadable_samples == 1
    seen = []
    monkeypatch.setattr(
        "advisor.delivery.apply.prepare", lambda *given: seen.append(prepare(*given)) or seen[0]
    )
    # Whatever so few images of noise come to, the head can be trained on them.
    judged = next(e for e in found.evaluations if e.accuracy)
    application = Application(output=tmp_path / "out", epochs=1, candidate=judged.candidate.id)
    applied = apply_advice("own_network:make", found, application)
    recipe = applied.recipe
    assert (recipe.crop, recipe.interpolation, recipe.crop_mode) == (0.8, "bicubic", "center")
    assert (recipe.mean, recipe.std) == (CONFIG["mean"], CONFIG["std"])
    assert applied.warnings == ()  # nothing that wasn't said
    of_recommend = prepare("own_network:make", request, lambda *_: None).given.dataset
    assert len(of_recommend.train) < len(seen[0].given.dataset.train) == 39 - 11
    assert torch.equal(of_recommend.validation.images, seen[0].given.dataset.validation.images)
    assert torch.equal(of_recommend.validation.labels, seen[0].given.dataset.validation.labels)


def test_what_is_given_goes_before_the_configuration(tmp_path):
    data = write_images(tmp_path / "data", [(80, 60)])
    given = Normalisation((0.4,), (0.3,))
    found = story(_configured(), data=data, normalisation=given, input_size=(3, 20, 20))
    assert found.given.dataset.normalisation == given
    assert found.census.input_size == (3, 20, 20)
    assert found.given.dataset.framing == Framing(0.8, "bicubic")
    assert found.assumed == ("from timm's configuration of small.own: crop 0.8, bicubic",)
    framed = story(_configured(), data=data, framing=Framing())
    assert framed.given.dataset.framing == Framing()
    assert "crop" not in framed.assumed[0]


def test_without_data_only_the_size_is_assumed():
    found = story(_configured())
    assert found.assumed == ("from timm's configuration of small.own: 3x32x32",)
    assert story(Small(), input_size=(3, 8, 8)).assumed == ()


@pytest.mark.parametrize(("channels", "said"), [(3, "ImageNet's mean and std"), (1, "a mean and std of 0.5")])
def test_a_normalisation_by_default_is_said(tmp_path, channels, said):
    data = write_images(tmp_path / "data", [(8, 8)])
    found = story(Small(channels), data=data, input_size=(channels, 8, 8))
    assert [said in line and "--mean" in line for line in found.assumed] == [True]
    assert (
        story(Small(), data=data, input_size=(3, 8, 8), normalisation=Normalisation((0,), (1,))).assumed == ()
    )


@pytest.mark.parametrize(
    ("changed", "framing"),
    [
        ({"crop_pct": None, "interpolation": ""}, Framing(0.875)),
        ({"crop_mode": "squash"}, Framing(0.8, "bicubic", "squash")),
        ({"crop_mode": "border", "crop_pct": 1.15}, Framing(1.15, "bicubic", "border")),
        ({"interpolation": "lanczos"}, Framing(0.8)),
        ({"crop_pct": float("nan"), "mean": "broken", "std": [0, 0, 0]}, Framing(0.875, "bicubic")),
    ],
)
def test_configurations_of_every_kind(changed, framing):
    images = load_module(_configured(**changed)).images
    assert images.framing == framing
    assert images.unknown == ("lanczos" if "lanczos" in changed.values() else "")
    assert images.mean == (() if "mean" in changed else CONFIG["mean"])


@pytest.mark.parametrize("broken", [None, 3, {}, {"input_size": (3, "x", 2)}, {"input_size": 224}])
def test_a_broken_configuration_is_none(broken):
    model = Small()
    model.pretrained_cfg = broken
    loaded = load_module(model)
    assert loaded.images is None
    assert loaded.input_size is None


def test_pixels_may_be_folded_into_channels_before_the_first_convolution():
    folding, grey = Folding(), Small(1)
    folding.pretrained_cfg = grey.default_cfg = CONFIG
    assert load_module(folding).input_size == (3, 32, 32)
    assert load_module(grey).input_size == (1, 32, 32)
    assert load_module(grey).images.mean == ()  # of other channels


def test_tresnets_channels_are_those_of_its_images():
    timm = pytest.importorskip("timm")
    loaded = load_module(timm.create_model("tresnet_m", num_classes=2))
    assert loaded.input_size == (3, 224, 224)
    assert (loaded.images.mean, loaded.images.std) == ((0.0,) * 3, (1.0,) * 3)
    assert loaded.images.framing == Framing(0.875, "bilinear")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_module_is_made_ready_as_one_from_a_file_is(tmp_path, dtype):
    model = Small().to(dtype).train()
    model.input_size, model.classes = (3, 16, 16), ["b", "a"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loaded = load_module(nn.DataParallel(model))
    assert loaded.input_size == (3, 16, 16)
    assert loaded.class_names == ("b", "a")
    assert not loaded.module.training
    assert {value.dtype for value in loaded.module.parameters()} == {torch.float32}
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {value.dtype for value in model.parameters()} == {dtype}
    found = story(model, data=write_images(tmp_path / "data", [(30, 20)]))
    assert found.given.situation.label_map == (1, 0)
    assert found.census.input_size == (3, 16, 16)
    recommendation = recommend(model, request=replace(Request(verify=False), methods=("head",)))
    assert recommendation.recommended is not None


def test_a_module_that_cant_be_copied_is_refused_in_one_line():
    model = Small()
    model.lock = threading.Lock()
    with pytest.raises(ModelError, match=r"Small can't be copied \(.*\); give a file, or its state dict$"):
        load_module(model)


def test_a_module_of_a_known_architecture_needs_no_size():
    torchvision = pytest.importorskip("torchvision")
    loaded = load_module(torchvision.models.squeezenet1_1(weights=None, num_classes=3).half())
    assert (loaded.name, loaded.input_size, loaded.source) == ("squeezenet1_1", (3, 224, 224), "SqueezeNet")


class Failing(Small):
    def __init__(self, fail) -> None:
        super().__init__()
        self.fail = fail

    def forward(self, x):
        self.fail(x)
        return super().forward(x)


def _name_error(x):
    return undefined  # noqa: F821


def _other_dtype(x):
    return nn.functional.conv2d(x, torch.ones(4, x.shape[1], 1, 1, dtype=torch.float16))


def _own_check(x):
    assert x.shape[2] == 224, "wrong image size"


def _reshape(x):
    return x.reshape(-1, 13)


@pytest.mark.parametrize(
    ("fail", "by_size"), [(_name_error, False), (_other_dtype, False), (_own_check, True), (_reshape, True)]
)
def test_input_size_is_blamed_only_where_it_may_be_the_cause(fail, by_size):
    with pytest.raises(ModelError) as caught:
        story(Failing(fail), input_size=(3, 16, 16))
    assert ("--input-size" in str(caught.value)) == by_size
    assert ("the size is not the cause" in str(caught.value)) != by_size
    assert "\n" not in str(caught.value)
