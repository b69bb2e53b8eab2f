"""A solved head that grows: what all images together give, on disk, and one line for what can't grow."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from advisor import load_adapter
from advisor.delivery.adapters import RECIPE, TENSORS, read_recipe
from advisor.delivery.grow import Growth, grow, verdict
from advisor.delivery.kept_sums import SUMS, KeptSums, marks_of
from advisor.errors import InputError
from advisor.models import load_model
from advisor.parts.sums import Spectrum
from tests.delivery.test_apply import advised, carried_out, situation  # noqa: F401 - a fixture

OLD, NEW = range(7), range(7, 10)


def digits(where, chosen, start, stop, named=True):
    """An .npz of digits, such as 7, among those from `start` to `stop`."""
    found = load_digits()
    places = [n for n in range(start, stop) if found.target[n] in chosen]
    labels = found.target[places]
    names = {}
    if named:
        values, labels = np.unique(labels, return_inverse=True)
        names = {"class_names": np.array([f"digit {value}" for value in values])}
    np.savez(where, images=(found.images[places] / 16).astype(np.float32), labels=labels, **names)
    return str(where)


@pytest.fixture(scope="module")
def advice(situation, tmp_path_factory):  # noqa: F811
    """For a network of seven digits, on images of these."""
    data = digits(tmp_path_factory.mktemp("old") / "old.npz", OLD, 0, 700)
    return advised(situation, "seven.pt", data=data, class_names=tuple(f"digit {n}" for n in OLD))


@pytest.fixture(scope="module")
def adapters(situation, advice, tmp_path_factory):  # noqa: F811
    """Folders with adapters of several candidates; nobody writes there."""
    made = {}

    def of(candidate):
        if candidate not in made:
            made[candidate] = tmp_path_factory.mktemp("adapter")
            carried_out(situation, advice, made[candidate], candidate, "seven.pt")
        return made[candidate]

    return of


@pytest.fixture
def model(situation):  # noqa: F811
    return str(situation / "seven.pt")


def answers(model, folder, source):
    """Accuracy, by class name, of the adapter in the folder on an .npz."""
    recipe, data = read_recipe(folder), np.load(source)
    images = torch.from_numpy(np.rint(data["images"] * 255)).float().div(255)[:, None]
    with torch.no_grad():
        out = load_adapter(load_model(model).module, folder)((images - recipe.mean[0]) / recipe.std[0])
    names = dict(zip(recipe.class_outputs, recipe.class_names, strict=True))
    got = np.array([names.get(each, "") for each in out.argmax(1).tolist()])
    wanted = data["class_names"][data["labels"]]
    return {str(name): float((got == wanted)[wanted == name].mean()) for name in data["class_names"]}


CANDIDATES = [
    "ridge-features=last",
    "ridge-features=all",
    "norm@head-ridge-last",
    "lora-rank=2@head-ridge-all",
]


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_new_classes_are_recognised_and_old_ones_not_forgotten(model, adapters, tmp_path, candidate):
    folder = adapters(candidate)
    test = digits(tmp_path / "test.npz", range(10), 1400, 1797)
    before = answers(model, folder, test)
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    new = digits(tmp_path / "new.npz", NEW, 0, 700)
    grown = grow(model, Growth(folder, new, tmp_path / "grown"))
    assert grown.new_classes == ("digit 7", "digit 8", "digit 9")
    assert (grown.recipe.classes, grown.recipe.base_classes) == (10, 7)
    after = answers(model, tmp_path / "grown", test)
    old = [f"digit {n}" for n in OLD]
    assert np.mean([after[name] for name in grown.new_classes]) > 0.8
    assert np.mean([after[n] for n in old]) > np.mean([before[n] for n in old]) - 0.05
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == files
    merged = tmp_path / "grown" / "merged.pt"
    assert merged.exists() is candidate.endswith("last")
    if merged.exists():
        images = torch.randn(5, 1, 8, 8)
        loaded = load_adapter(load_model(model).module, tmp_path / "grown")
        plain = load_model(str(merged)).module
        with torch.no_grad():
            torch.testing.assert_close(plain(images), loaded(images), rtol=1e-4, atol=1e-4)
    assert "Each is judged by a head that was solved without it" in verdict(grown)


@pytest.mark.parametrize("candidate", CANDIDATES[1:3])
def test_step_by_step_is_all_at_once(model, adapters, tmp_path, candidate):
    folder, every = adapters(candidate), digits(tmp_path / "all.npz", range(10), 0, 900)
    once = grow(model, Growth(folder, every, tmp_path / "once"))
    step = folder
    for number, (chosen, start, stop) in enumerate([(NEW, 0, 300), (OLD, 300, 900), (range(10), 0, 900)]):
        part = digits(tmp_path / f"{number}.npz", chosen, start, stop)
        last, step = grow(model, Growth(step, part, tmp_path / str(number))), tmp_path / str(number)
    assert last.recipe.images == once.recipe.images
    assert len(last.recipe.added) == 3
    assert last.recipe.class_names == once.recipe.class_names
    tensors = [load_file(path / TENSORS) for path in (step, tmp_path / "once")]
    assert tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[0].items():
        torch.testing.assert_close(tensor, tensors[1][name], rtol=1e-3, atol=1e-5)


def test_what_was_added_is_left_out(model, adapters, tmp_path):
    new, more = (digits(tmp_path / f"{n}.npz", NEW, 0, n) for n in (300, 400))
    out = tmp_path / "out"
    first = grow(model, Growth(adapters(CANDIDATES[0]), new, out))
    written = (out / TENSORS).read_bytes()
    with pytest.raises(InputError, match="images were added before; give others"):
        grow(model, Growth(out, new, out))
    assert (out / TENSORS).read_bytes() == written
    second = grow(model, Growth(out, more, out))
    assert any("were added before, and are not counted twice" in warning for warning in second.warnings)
    assert second.before == first.recipe.images
    assert second.of_known_before is not None
    assert (out / f"{TENSORS}~").read_bytes() == written
    once = grow(model, Growth(adapters(CANDIDATES[0]), more, tmp_path / "once"))
    assert once.recipe.images == second.recipe.images


def test_folders_of_images_and_a_class_of_one(model, adapters, tmp_path):
    found = load_digits()
    for name, count in (("Digit 3", 4), ("blank", 1)):
        (tmp_path / "new" / name).mkdir(parents=True)
        for number, place in enumerate(np.flatnonzero(found.target == 3)[-count:]):
            pixels = Image.fromarray((found.images[place] * (255 / 16)).astype(np.uint8))
            pixels.resize((12, 12)).rotate(10 * number).save(tmp_path / "new" / name / f"{number}.png")
    grown = grow(model, Growth(adapters(CANDIDATES[0]), str(tmp_path / "new"), tmp_path / "out"))
    assert grown.images == {"Digit 3": 4, "blank": 1}
    assert grown.new_classes == ("blank",)
    assert grown.recipe.class_outputs[-1] == 7
    assert grown.of_new.mean == 0.0  # without its only image it isn't known


@pytest.mark.parametrize("candidate", ["head", "full"])
def test_a_head_that_was_trained_can_not_grow(model, adapters, tmp_path, candidate):
    folder = adapters(candidate)
    assert not (folder / SUMS).exists()
    with pytest.raises(InputError, match=f"the head of {candidate} was trained, .*ridge-features=last"):
        grow(model, Growth(folder, digits(tmp_path / "new.npz", NEW, 0, 100), tmp_path / "out"))


def broken(tmp_path, folder, how):
    copied = shutil.copytree(folder, tmp_path / "copied")
    document, sums = json.loads((copied / RECIPE).read_text()), copied / SUMS
    match how:
        case "missing":
            sums.unlink()
        case "of another run":
            sums.write_bytes(sums.read_bytes()[:-1] + b"x")
        case "unsummed":
            (copied / RECIPE).write_text(json.dumps(document | {"sums_sha256": ""}))
        case "no recipe":
            (copied / RECIPE).unlink()
    return copied


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"sums.safetensors: is missing, and nothing can be added"),
        ("of another run", r"is not the file that recipe.json was written with"),
        ("unsummed", r"was written without sums.safetensors"),
        ("no recipe", r"recipe.json: can't be read"),
    ],
)
def test_an_adapter_that_is_not_whole(model, adapters, tmp_path, how, message):
    folder = broken(tmp_path, adapters(CANDIDATES[0]), how)
    with pytest.raises(InputError, match=message) as found:
        grow(model, Growth(folder, digits(tmp_path / "new.npz", NEW, 0, 100), tmp_path / "out"))
    assert "\n" not in str(found.value)
    assert not (tmp_path / "out").exists()


def test_images_that_can_not_be_added(model, adapters, tmp_path):
    folder = adapters(CANDIDATES[0])
    (tmp_path / "empty" / "digit 8").mkdir(parents=True)
    (tmp_path / "none").mkdir()
    np.savez(tmp_path / "five.npz", images=np.zeros((4, 5, 8, 8), np.uint8), labels=[0, 0, 1, 1])
    numbers = digits(tmp_path / "numbers.npz", NEW, 0, 100, named=False)
    for source, message in (
        (tmp_path / "empty", "holds no images"),
        (tmp_path / "none", "holds no class folders"),
        (numbers, "its classes have numbers and the adapter's have names .*class_names"),
        (tmp_path / "nowhere", "no such file or folder"),
    ):
        with pytest.raises(InputError, match=message) as found:
            grow(model, Growth(folder, str(source), tmp_path / "out"))
        assert "\n" not in str(found.value)
    named = {"class_names": np.array(["a", "b"])}
    np.savez(tmp_path / "five.npz", images=np.zeros((4, 5, 8, 8), np.uint8), labels=[0, 0, 1, 1], **named)
    with pytest.raises(InputError, match="wrong channels"):
        grow(model, Growth(folder, str(tmp_path / "five.npz"), tmp_path / "out"))
    np.savez(
        tmp_path / "twins.npz", images=np.zeros((2, 8, 8), np.uint8), labels=[0, 1], class_names=["a", "A"]
    )
    with pytest.raises(InputError, match="several classes are named 'a'"):
        grow(model, Growth(folder, str(tmp_path / "twins.npz"), tmp_path / "out"))


def test_another_model_and_a_model_in_the_way(situation, model, adapters, tmp_path):  # noqa: F811
    new, folder = digits(tmp_path / "new.npz", NEW, 0, 100), adapters(CANDIDATES[0])
    with pytest.raises(InputError, match="trained on other weights"):
        grow(str(situation / "model.pt"), Growth(folder, new, tmp_path / "out"))
    taken = tmp_path / "here" / "merged.pt"
    taken.parent.mkdir()
    shutil.copy(model, taken)
    with pytest.raises(InputError, match="apply would write over it"):
        grow(str(taken), Growth(folder, new, taken.parent))
    assert taken.read_bytes() == Path(model).read_bytes()


def test_numbers_are_outputs(situation, tmp_path):  # noqa: F811
    old, new = (digits(tmp_path / f"{c[0]}.npz", c, 0, 400, named=False) for c in (OLD, NEW))
    advice = advised(situation, "seven.pt", data=old)
    carried_out(situation, advice, tmp_path / "old", CANDIDATES[0], "seven.pt")
    grown = grow(str(situation / "seven.pt"), Growth(tmp_path / "old", new, tmp_path / "out"))
    assert grown.recipe.class_names == tuple("0123456789")
    assert grown.recipe.class_outputs == tuple(range(10))


def test_sums_come_back_from_their_file(adapters, tmp_path):
    folder = adapters(CANDIDATES[1])
    recipe = read_recipe(folder)
    kept = KeptSums.read(folder / SUMS, recipe.sums_sha256)
    assert kept.content() == (folder / SUMS).read_bytes()
    assert torch.equal(kept.sums.gram, kept.sums.gram.T)
    assert kept.sums.count == recipe.images == len(kept.marks.unique())
    width = sum(kept.sums.sizes)
    assert (folder / SUMS).stat().st_size < 8 * width * (width + 40) / 2 + 8 * recipe.images + 1000
    # The head that was written is one of these sums.
    weight = load_file(folder / TENSORS)
    linear = next(tensor for name, tensor in weight.items() if name.endswith("weight"))
    spectrum = Spectrum(kept.sums)
    mean = spectrum.values.sum() / min(width, kept.sums.count)
    apart = [
        (spectrum.head(power * mean[None])[0] - linear).norm() / linear.norm()
        for power in torch.logspace(-4, 2, 13, dtype=torch.float64)
    ]
    assert min(apart) < 1e-3


def test_marks_tell_images_and_labels_apart():
    images = torch.randint(0, 255, (6, 3, 4, 4), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    marks = marks_of(images, labels)
    assert len(marks.unique()) == 6
    assert torch.equal(marks_of(images[2:], labels[2:]), marks[2:])
    assert not (marks_of(images, labels + 1) == marks).any()


def test_another_head_in_the_folder_sets_the_sums_aside(situation, advice, tmp_path):  # noqa: F811
    carried_out(situation, advice, tmp_path, CANDIDATES[0], "seven.pt")
    kept = (tmp_path / SUMS).read_bytes()
    carried_out(situation, advice, tmp_path, "head", "seven.pt", epochs=1, restart=True)
    assert not (tmp_path / SUMS).exists()
    assert (tmp_path / f"{SUMS}~").read_bytes() == kept
    assert read_recipe(tmp_path).sums_sha256 == ""


def test_what_the_recipe_tells(model, adapters, tmp_path):
    new = digits(tmp_path / "new.npz", NEW, 0, 300)
    grown = grow(model, Growth(adapters(CANDIDATES[0]), new, tmp_path / "out"))
    recipe = read_recipe(tmp_path / "out")
    assert recipe == replace(grown.recipe, versions=recipe.versions)
    assert (recipe.accuracy, recipe.predicted_accuracy) == (None, None)
    assert recipe.added[0]["new_classes"] == ["digit 7", "digit 8", "digit 9"]
    assert recipe.added[0]["images"] == sum(grown.images.values())
