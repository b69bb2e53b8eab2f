import gzip
import os
import random
import struct
import urllib.request
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from advisor.data import leaks, loading
from advisor.data.loading import (
    Dataset,
    LabelledImages,
    Normalisation,
    default_normalisation,
    load_data,
)
from advisor.data.pixels import Frame, fit
from advisor.data.splits import interleaved, split
from advisor.data.survey import Look, _glance, survey
from advisor.errors import DataError
from advisor.records import Framing
from advisor.store import Store

RGB = (3, 8, 8)
GREY = (1, 8, 8)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_folder(
    root: Path, counts: dict[str, int], *, suffix: str = ".png", mode: str = "RGB", blue: int = 0
):
    """Class folders of 8x8 images, each image of its own single colour."""
    for place, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            colour = (place * 20 % 256, index % 256, index // 256 + blue)
            image = Image.new("RGB", (8, 8), colour).convert(mode)
            image.save(root / name / f"{index:04}{suffix}")
    return root


def write_npz(path: Path, **arrays) -> str:
    np.savez(path, **arrays)
    return str(path)


def error_of(source, size=RGB, **options) -> str:
    with pytest.raises(DataError) as caught:
        load_data(str(source), size, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def ids(images: LabelledImages) -> list[tuple[int, ...]]:
    """Each image by its first pixel: `write_folder` gives each its own colour."""
    return [tuple(pixel) for pixel in images.images[:, :, 0, 0].tolist()]


# Records


def test_batch_is_normalised_per_channel():
    images = LabelledImages(torch.full((2, 3, 4, 4), 255, dtype=torch.uint8), torch.tensor([5, 7]))
    values, labels = images.batch(torch.tensor([1]), Normalisation((0.0, 0.5, 1.0), (1.0, 0.5, 0.1)))
    assert values.dtype == torch.float32
    assert values.shape == (1, 3, 4, 4)
    assert values[0, :, 0, 0].tolist() == [1.0, 1.0, 0.0]
    assert labels.tolist() == [7]
    assert images.images.max() == 255  # the stored bytes are untouched
    assert len(images) == 2


def test_one_value_serves_every_channel():
    images = LabelledImages(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.tensor([0]))
    values, _ = images.batch(torch.tensor([0]), Normalisation((0.5,), (0.5,)))
    assert values.unique().tolist() == [-1.0]


def test_default_normalisation():
    assert default_normalisation(3).mean == (0.485, 0.456, 0.406)
    assert default_normalisation(1) == Normalisation((0.5,), (0.5,))
    assert len(default_normalisation(4).std) == 4
    assert load_data("digits", RGB).normalisation == default_normalisation(3)


@pytest.mark.parametrize(
    ("normalisation", "said"),
    [
        (Normalisation((0.5, 0.5), (0.5, 0.5)), "mean has 2 values, the model takes 3"),
        (Normalisation((0.5,), (0.5, 0.5)), "std has 2 values"),
        (Normalisation((0.5,), (0.0,)), "greater than 0"),
        (Normalisation((float("nan"),), (1.0,)), "finite"),
    ],
)
def test_wrong_normalisation(normalisation, said):
    assert said in error_of("digits", normalisation=normalisation)


# Folders


def test_image_folder(tmp_path):
    write_folder(tmp_path, {"cat": 10, "ant": 20})
    data = load_data(f"{tmp_path}/", RGB)
    assert data.source == f"{tmp_path}/"
    assert data.class_names == ("ant", "cat")
    assert data.named
    assert data.train.images.dtype == torch.uint8
    assert data.train.images.shape == (21, 3, 8, 8)
    assert Counter(data.validation.labels.tolist()) == {0: 6, 1: 3}
    assert data.train.labels.dtype == torch.int64
    # "ant" was written second: its red is 20.
    assert {
        red for (red, _, _), label in zip(ids(data.train), data.train.labels, strict=True) if label == 0
    } == {20}


def test_integer_folders_are_in_numeric_order(tmp_path):
    write_folder(tmp_path, {str(number): 2 for number in (10, 9, 2)})
    assert load_data(str(tmp_path), RGB).class_names == ("2", "9", "10")


def test_one_name_makes_the_order_alphabetical(tmp_path):
    write_folder(tmp_path, dict.fromkeys(("10", "9", "other"), 2))
    assert load_data(str(tmp_path), RGB).class_names == ("10", "9", "other")


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg", ".bmp", ".webp", ".ppm", ".gif", ".tiff"])
def test_every_format(tmp_path, suffix):
    write_folder(tmp_path, {"a": 2, "b": 2}, suffix=suffix)
    assert len(load_data(str(tmp_path), RGB).train) == 2


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA", "1", "CMYK"])
def test_every_mode_becomes_rgb_as_pil_does(tmp_path, mode):
    suffix = ".tiff" if mode == "CMYK" else ".png"
    write_folder(tmp_path, {"a": 4, "b": 4}, suffix=suffix, mode=mode)
    data = load_data(str(tmp_path), RGB)
    with Image.open(tmp_path / "b" / f"0001{suffix}") as image:
        assert image.mode == mode
        expected = image.convert("RGB").getpixel((0, 0))
    assert expected in ids(data.train) + ids(data.validation)


def test_transparent_palette_is_read_without_a_warning(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(2):
            image = Image.new("P", (8, 8), 1)
            image.save(tmp_path / name / f"{index}.png", transparency=b"\x00\x80")
    assert len(load_data(str(tmp_path), RGB).train) == 2


def test_sixteen_bit_images_are_scaled_not_clipped(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(2):
            pixels = np.full((8, 8), 0x4000, dtype=np.uint16)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    assert load_data(str(tmp_path), GREY).train.images.unique().tolist() == [0x40]


def test_hidden_and_foreign_files_are_ignored(tmp_path):
    write_folder(tmp_path, {"a": 4, "b": 4, ".cache": 2})
    (tmp_path / "a" / "._0001.png").write_bytes(b"not an image")
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "labels.csv").write_text("x")
    data = load_data(str(tmp_path), RGB)
    assert data.class_names == ("a", "b")
    assert len(data.train) + len(data.validation) == 8


def test_nested_images_belong_to_the_outer_folder(tmp_path):
    write_folder(tmp_path, {"a": 2, "b": 2})
    write_folder(tmp_path / "a", {"more": 3})
    data = load_data(str(tmp_path), RGB)
    labels = torch.cat([data.train.labels, data.validation.labels])
    assert Counter(labels.tolist()) == {0: 5, 1: 2}


@pytest.mark.parametrize("held_out", ["test", "val", "valid", "validation", "Test"])
def test_own_split_is_kept(tmp_path, held_out):
    write_folder(tmp_path / "train", {"a": 6, "b": 6})
    write_folder(tmp_path / held_out, {"a": 2, "b": 3})
    data = load_data(str(tmp_path), RGB)
    assert data.class_names == ("a", "b")
    assert (len(data.train), len(data.validation)) == (12, 5)


def test_validation_folder_before_test_folder(tmp_path):
    for part, count in (("train", 6), ("test", 3), ("val", 2)):
        write_folder(tmp_path / part, {"a": count, "b": count})
    assert len(load_data(str(tmp_path), RGB).validation) == 4


def test_own_split_respects_the_limits(tmp_path):
    write_folder(tmp_path / "train", {"a": 20, "b": 10})
    write_folder(tmp_path / "val", {"a": 20, "b": 10})
    data = load_data(str(tmp_path), RGB, max_train=15, max_validation=6)
    assert Counter(data.train.labels.tolist()) == {0: 10, 1: 5}
    assert Counter(data.validation.labels.tolist()) == {0: 4, 1: 2}


def test_classes_may_be_named_train_and_test(tmp_path):
    write_folder(tmp_path, {"train": 4, "test": 4, "bus": 4})
    assert load_data(str(tmp_path), RGB).class_names == ("bus", "test", "train")


def test_symlinked_class_folders_are_followed(tmp_path):
    write_folder(tmp_path / "all", {"a": 4, "b": 4, "c": 4})
    (tmp_path / "some").mkdir()
    for name in "ab":
        (tmp_path / "some" / name).symlink_to(tmp_path / "all" / name)
    assert load_data(str(tmp_path / "some"), RGB).class_names == ("a", "b")


def test_only_the_sample_is_decoded(tmp_path, monkeypatch):
    write_folder(tmp_path, {"a": 30, "b": 30})
    opened: list[str] = []
    really = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(str(path)) or really(path))
    for module in (leaks, loading):  # of more images than that, not all are looked at for copies
        monkeypatch.setattr(module, "MOST_LOOKED_AT", 20)
    chosen = load_data(str(tmp_path), RGB, max_train=6, max_validation=4)
    used = {(place * 20, int(Path(path).stem), 0) for path in opened for place in [path.count("/b/")]}
    assert used == set(ids(chosen.train)) | set(ids(chosen.validation))
    assert len(set(opened)) == 10


def test_large_jpeg_is_decoded_well_enough(tmp_path):
    gradient = np.linspace(0, 255, 640).astype(np.uint8)
    pixels = np.broadcast_to(gradient[None, :, None], (640, 640, 3))
    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(2):
            Image.fromarray(pixels.copy()).save(tmp_path / name / f"{index}.jpg", quality=95)
    found = load_data(str(tmp_path), RGB).train.images[0, 0, 4].float()
    expected = torch.from_numpy(gradient.copy()).float().reshape(8, 80).mean(1)
    assert (found - expected).abs().max() < 4


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [24, 50, 64, 65])  # decoded at 1/8, 1/4, 1/4, 1/2
def test_a_jpeg_decoded_at_a_reduced_scale_is_much_the_same_image(tmp_path, side, interpolation):
    """Of detail at every scale, as photos have it, next to nothing is lost."""
    random = np.random.default_rng(0)
    layers = [
        random.normal(0, 8, (512 // 2**k, 512 // 2**k, 3)).repeat(2**k, 0).repeat(2**k, 1) for k in range(8)
    ]
    picture = Image.fromarray((128 + sum(layers)).clip(0, 255).astype(np.uint8))
    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(2):
            picture.save(tmp_path / name / f"{index}.jpg", quality=95)
    framing = Framing(interpolation=interpolation)
    found = load_data(str(tmp_path), (3, side, side), framing=framing).train.images[0]
    with Image.open(tmp_path / "a" / "0.jpg") as image:
        whole = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    difference = (found.float() - fit(whole, Frame((3, side, side), framing))[0].float()).abs()
    assert difference.mean() < 1
    assert difference.max() < 12


def test_missing_path(tmp_path):
    assert "no such file or folder" in error_of(tmp_path / "nothing")
    assert "no such file or folder" in error_of("")
    assert "no such file or folder" in error_of("a\0b")
    assert "no such file or folder" in error_of("x" * 5000)


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("images.zip", "unpack it, and give the folder"),
        ("labels.csv", "give their folder, and --labels {path}"),
        ("own.py", "give {path}:NAME"),
        ("images.dat", "one folder of images for each class"),
    ],
)
def test_file_of_another_kind(tmp_path, name, mend):
    path = tmp_path / name
    path.write_bytes(b"PK")
    message = error_of(path)
    assert "neither a folder nor an .npz" in message
    assert mend.format(path=path) in message


def test_empty_folder(tmp_path):
    message = error_of(tmp_path)
    assert "no class folders" in message
    assert "one folder for each class" in message


def test_images_without_class_folders(tmp_path):
    write_folder(tmp_path, {"a": 3})
    assert "holds 3 images but no class folders" in error_of(tmp_path / "a")


def test_one_class(tmp_path):
    write_folder(tmp_path, {"a": 3})
    message = error_of(tmp_path)
    assert "only one class, 'a'" in message
    assert "two classes or more" in message


def test_class_folder_without_images(tmp_path):
    write_folder(tmp_path, {"a": 3, "b": 3, "c": 0})
    message = error_of(tmp_path)
    assert f"{tmp_path / 'c'} holds no images" in message
    assert "or remove it" in message


def test_class_with_a_single_image(tmp_path):
    write_folder(tmp_path, {"a": 3, "b": 1})
    assert "class 'b' has a single image" in error_of(tmp_path)


def test_train_folder_beside_others(tmp_path):
    write_folder(tmp_path / "train", {"a": 3, "b": 3})
    write_folder(tmp_path, {"unlabelled": 3})
    message = error_of(tmp_path)
    assert "no val/ or test/" in message
    assert f"give {tmp_path / 'train'}" in message


def test_split_folders_with_other_classes(tmp_path):
    write_folder(tmp_path / "train", {"a": 3, "b": 3, "c": 3})
    write_folder(tmp_path / "val", {"a": 3, "b": 3})
    message = error_of(tmp_path)
    assert f"'c' is in {tmp_path / 'train'} but not in {tmp_path / 'val'}" in message


def test_flat_validation_folder(tmp_path):
    write_folder(tmp_path / "train", {"a": 3, "b": 3})
    write_folder(tmp_path, {"val": 3})
    assert f"{tmp_path / 'val'} holds 3 images but no class folders" in error_of(tmp_path)


def test_unreadable_images_are_counted_and_the_first_is_named(tmp_path):
    write_folder(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "a" / "0003.png").write_bytes(b"")
    (tmp_path / "b" / "0002.png").write_text("<html>404</html>")
    message = error_of(tmp_path)
    assert message.startswith(f"{Path('a', '0003.png')} can't be read: it is not an image")
    assert "2 of " in message
    assert "replace or remove" in message


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_truncated_image(tmp_path, suffix):
    write_folder(tmp_path, {"a": 1, "b": 2})
    for index in range(2):
        path = tmp_path / "a" / f"noise{index}{suffix}"
        Image.fromarray(noise(64, 64, 3)).save(path)
        path.write_bytes(path.read_bytes()[:1500])
    assert "truncated" in error_of(tmp_path, max_train=8)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def damaged_inside(path: Path) -> None:
    """Begins and ends as it should: only decoding tells."""
    content = bytearray(path.read_bytes())
    middle = content.index(b"IDAT") + 4
    content[middle : middle + 8] = b"\xff" * 8
    path.write_bytes(content)


def as_text(path: Path) -> None:
    path.write_text("<html>404</html>")


@pytest.mark.parametrize("damage", [cut_short, damaged_inside, as_text])
def test_a_few_unreadable_images_are_left_out_counted_and_named(tmp_path, damage):
    write_folder(tmp_path, {"a": 30, "b": 30})
    whole = load_data(str(tmp_path), RGB)
    damage(tmp_path / "a" / "0003.png")
    damage(tmp_path / "b" / "0007.png")
    data = load_data(str(tmp_path), RGB)
    assert len(data.train) + len(data.validation) == 58
    assert set(ids(data.train)) | set(ids(data.validation)) == (
        set(ids(whole.train)) | set(ids(whole.validation))
    ) - {(0, 3, 0), (20, 7, 0)}
    (warning,) = data.warnings
    assert f"{tmp_path}: 2 of 60 images can't be read and are left out: {Path('a', '0003.png')} (" in warning
    assert "up to 5 % may be" in warning
    assert data.unreadable == 2
    assert (whole.warnings, whole.unreadable) == ((), 0)
    damage(tmp_path / "b" / "0000.png")
    damage(tmp_path / "b" / "0001.png")
    assert "4 of 60 images can't, and only up to 5 %" in error_of(tmp_path)


@pytest.mark.parametrize("damage", [cut_short, damaged_inside])
@pytest.mark.parametrize("own_split", [False, True])
def test_a_small_sample_and_all_images_hold_out_the_same_without_the_unreadable(tmp_path, damage, own_split):
    parts = [tmp_path / "train", tmp_path / "val"] if own_split else [tmp_path]
    for blue, part in enumerate(parts):
        write_folder(part, {"a": 60, "b": 60, "c": 60}, blue=blue)
        for name, index in (("a", 11), ("b", 5), ("b", 44), ("c", 0)):
            damage(part / name / f"{index:04}.png")
    sample, everything = (load_data(str(tmp_path), RGB, max_train=most) for most in (20, 10**6))
    assert len(sample.train) <= 20
    assert torch.equal(sample.validation.images, everything.validation.images)
    assert torch.equal(sample.validation.labels, everything.validation.labels)
    assert sample.class_names == everything.class_names
    assert set(ids(sample.train)) <= set(ids(everything.train))
    if damage is cut_short:  # seen without decoding, in the images that are not sampled, too
        assert sample.warnings == everything.warnings
        assert sample.unreadable == 4 * len(parts)


def test_a_class_that_loses_its_images_is_named(tmp_path):
    write_folder(tmp_path, {"a": 100, "b": 2, "c": 2})
    cut_short(tmp_path / "b" / "0000.png")
    message = error_of(tmp_path)
    assert "class 'b' has a single image (1 can't be read, such as" in message
    assert str(Path("b", "0000.png")) in message
    cut_short(tmp_path / "b" / "0001.png")
    assert "class folder 'b' holds no image that can be read" in error_of(tmp_path)
    for index in range(2):
        (tmp_path / "b" / f"{index:04}.png").write_bytes((tmp_path / "a" / "0000.png").read_bytes())
    damaged_inside(tmp_path / "b" / "0000.png")
    assert "class 'b' has too few images that can be read" in error_of(tmp_path)


def parts_of(data: Dataset) -> tuple[LabelledImages, ...]:
    return data.train, data.validation


@pytest.mark.parametrize("damage", [None, cut_short, damaged_inside])
def test_what_a_store_knows_is_decoded_only_when_it_is_looked_at(tmp_path, monkeypatch, damage):
    write_folder(tmp_path / "data", {"a": 30, "b": 30})
    if damage is not None:
        damage(tmp_path / "data" / "a" / "0003.png")
        damage(tmp_path / "data" / "b" / "0007.png")
    plain = load_data(str(tmp_path / "data"), RGB)
    opened: list[str] = []
    really = Image.open
    with Store(tmp_path / "store") as store:
        first = load_data(str(tmp_path / "data"), RGB, store=store)
        monkeypatch.setattr(Image, "open", lambda path: opened.append(str(path)) or really(path))
        again = load_data(str(tmp_path / "data"), RGB, store=store)
        seen_anyway = 2 * (damage is cut_short)  # by the survey, which makes sure
        assert len(opened) == seen_anyway
        assert (again.warnings, again.unreadable) == (plain.warnings, plain.unreadable)
        for one, two, three in zip(parts_of(plain), parts_of(first), parts_of(again), strict=True):
            assert one.key == two.key == three.key
            assert torch.equal(one.labels, three.labels)
        assert len(opened) == seen_anyway
        assert torch.equal(again.train.images, plain.train.images)
        assert len(opened) == seen_anyway + len(plain.train)
        assert torch.equal(again.validation.images, first.validation.images)


def test_too_much_that_cannot_be_decoded_is_refused_again_by_what_the_store_knows(tmp_path):
    write_folder(tmp_path / "data", {"a": 30, "b": 30})
    for index in range(2):
        for name in "ab":
            damaged_inside(tmp_path / "data" / name / f"{index:04}.png")
    with Store(tmp_path / "store") as store:
        messages = {error_of(tmp_path / "data", store=store) for _ in range(2)}
    assert messages == {error_of(tmp_path / "data")}


def looked_at(*parts: LabelledImages) -> list[torch.Tensor]:
    return [part.images for part in parts]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Path.unlink, r"changed since this run began and can't be read: No such file.*; start it again"),
        (cut_short, "changed since this run began and can't be read: "),
        (lambda path: Image.new("RGB", (8, 8)).save(path), "changed since this run began; start it again"),
    ],
)
def test_an_image_that_is_another_one_when_it_is_looked_at_is_named(tmp_path, change, said):
    write_folder(tmp_path / "data", {"a": 6, "b": 6})
    with Store(tmp_path / "store") as store:
        load_data(str(tmp_path / "data"), RGB, store=store)
        late = load_data(str(tmp_path / "data"), RGB, store=store)
    change(tmp_path / "data" / "a" / "0001.png")
    with pytest.raises(DataError, match=f"a.0001.png has {said}"):
        looked_at(*parts_of(late))


def test_the_key_follows_what_the_files_hold_and_how_they_are_framed(tmp_path):
    def keys(place: str, size=RGB, **options) -> list[str]:
        return [part.key for part in parts_of(load_data(str(tmp_path / place), size, **options))]

    for place in ("one", "two", "changed"):
        write_folder(tmp_path / place, {"a": 12, "b": 9})
    one = keys("one")
    assert keys("two") == one  # wherever they lie
    with Store(None) as store:
        assert keys("one", store=store) == keys("one", store=store) == one
    for size, options in (
        ((3, 9, 8), {}),
        (RGB, {"framing": Framing(0.5)}),
        (RGB, {"framing": Framing(interpolation="bicubic")}),
        (RGB, {"framing": Framing(mode="border")}),
        (RGB, {"seed": 1}),
    ):
        assert not {*keys("one", size, **options)} & {*one}, (size, options)
    for path in sorted((tmp_path / "changed").glob("*/*.png")):
        before = path.read_bytes()
        Image.new("RGB", (8, 8), (1, 2, 3)).save(path)
        assert sum(now != then for now, then in zip(keys("changed"), one, strict=True)) == 1, path
        path.write_bytes(before)
    assert keys("changed") == one


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".ppm", ".gif", ".tif"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_survey_knows_size_colour_and_truncation_of_every_format(tmp_path, suffix, mode):
    picture = Image.fromarray(noise(40, 24, 3)).convert(mode)
    paths = [str(tmp_path / f"{name}{suffix}") for name in ("whole", "short")]
    for path in paths:
        picture.save(path)
    content = Path(paths[1]).read_bytes()
    Path(paths[1]).write_bytes(content[: len(content) // 2])
    found = survey(paths, lambda position: paths[position])
    assert found.readable == (0,)
    assert [each.name for each in found.unreadable] == paths[1:]
    coloured = mode == "RGB" or suffix in (".webp", ".gif")  # these keep no grey images
    assert found.sizes <= {(3 if coloured else 1, 40, 24), (1, 40, 24)}


@given(st.integers(1, 70), st.integers(1, 300), st.sampled_from(["lossy", "lossless", "alpha", "animated"]))
@settings(max_examples=40, deadline=None)
def test_the_size_of_every_kind_of_webp_is_told_without_decoding_it(tmp_path_factory, height, width, kind):
    path = str(tmp_path_factory.mktemp("webp") / "image.webp")
    picture = Image.fromarray(noise(height, width, 4 if kind == "alpha" else 3))
    others = {"save_all": True, "append_images": [Image.new("RGB", (width, height))]}
    picture.save(path, lossless=kind == "lossless", **(others if kind == "animated" else {}))
    plain = Look((3, height, width)) if kind in ("lossy", "lossless") else None  # the others are decoded
    assert _glance(path) == plain
    content = Path(path).read_bytes()
    Path(path).write_bytes(content + b"trailer")  # PIL reads it, too
    assert _glance(path) == plain
    for short in (content[:-1], content[:29], content[:11]):
        Path(path).write_bytes(short)
        assert _glance(path) is None


def test_jpegs_with_segments_before_and_bytes_after_them_are_read(tmp_path):
    paths = [str(tmp_path / f"{name}.jpg") for name in ("plain", "exif", "trailer", "progressive")]
    picture, exif = Image.fromarray(noise(40, 24, 3)), Image.Exif()
    exif[0x010E] = "a long description " * 3000
    picture.save(paths[0])
    picture.save(paths[1], exif=exif)
    picture.save(paths[2])
    with Path(paths[2]).open("ab") as file:
        file.write(b"what a camera adds")
    picture.save(paths[3], progressive=True)
    found = survey(paths, lambda position: paths[position])
    assert (found.readable, found.sizes) == ((0, 1, 2, 3), {(3, 40, 24)})


def test_broken_link(tmp_path):
    write_folder(tmp_path, {"a": 1, "b": 2})
    (tmp_path / "a" / "1.png").symlink_to(tmp_path / "gone.png")
    assert "1.png can't be read: No such file" in error_of(tmp_path)


@pytest.mark.parametrize("side", [10_000, 20_000])  # PIL warns of the first and refuses the second
def test_decompression_bomb(tmp_path, side):
    write_folder(tmp_path, {"a": 1, "b": 2})
    Image.new("1", (side, 10_000)).save(tmp_path / "a" / "bomb.png")
    assert "bomb.png can't be read: it is larger than" in error_of(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_forbidden_folder(tmp_path):
    write_folder(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a").chmod(0)
    try:
        assert "check its permissions" in error_of(tmp_path)
    finally:
        (tmp_path / "a").chmod(0o755)


def test_files_for_a_model_with_four_channels(tmp_path):
    write_folder(tmp_path, {"a": 2, "b": 2})
    assert "wrong channels" in error_of(tmp_path, (4, 8, 8))


# Channels and sizes


def test_luminance_of_arrays_and_files_is_pils(tmp_path):
    pixels = noise(4, 8, 8, 3)
    for index, image in enumerate(pixels):
        folder = tmp_path / "files" / f"class{index // 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    path = write_npz(tmp_path / "data.npz", images=pixels, labels=[0, 0, 1, 1])
    from_files = load_data(str(tmp_path / "files"), GREY)
    from_array = load_data(path, GREY)
    assert torch.equal(from_files.train.images, from_array.train.images)
    expected = {np.asarray(Image.fromarray(image).convert("L")).tobytes() for image in pixels}
    assert {image.numpy().tobytes() for image in from_array.train.images} <= expected


def test_grey_is_repeated_for_three_channels():
    images = load_data("digits", RGB).train.images
    assert images.shape[1:] == RGB
    assert torch.equal(images[:, 0], images[:, 2])


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (48, 48), (16, 30), (7, 9)])
@pytest.mark.parametrize("side", [16, 32])
def test_resizing_is_torchvisions_resize_and_centre_crop(shape, side):
    from torchvision.transforms.v2 import functional as transforms

    smooth = transforms.gaussian_blur(torch.from_numpy(noise(1, 3, *shape)), [5, 5])
    expected = transforms.center_crop(transforms.resize(smooth, [side], antialias=True), [side])
    found = fit(smooth, Frame((3, side, side)))
    assert found.shape == expected.shape
    # A half pixel at most: the crop is rounded to the source's grid, not to the result's.
    assert (found.float() - expected.float()).abs().mean() < 1.5


def test_exact_size_is_not_resampled():
    images = torch.from_numpy(noise(2, 3, 16, 16))
    assert torch.equal(fit(images, Frame((3, 16, 16))), images)


def test_longer_side_is_only_cropped():
    images = torch.from_numpy(noise(2, 3, 16, 20))
    assert torch.equal(fit(images, Frame((3, 16, 16))), images[..., 2:18])


@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_any_size_fits_and_a_flat_image_stays_flat(height, width, rows, columns):
    found = fit(torch.full((1, 1, height, width), 77, dtype=torch.uint8), Frame((1, rows, columns)))
    assert found.shape == (1, 1, rows, columns)
    assert found.unique().tolist() == [77]


def test_long_thin_image_needs_little_memory():
    found = fit(torch.zeros(1, 3, 1, 200_000, dtype=torch.uint8), Frame((3, 224, 224)))
    assert found.shape == (1, 3, 224, 224)


# The split


def test_split_is_independent_of_file_system_order(tmp_path, monkeypatch):
    write_folder(tmp_path, {"a": 12, "b": 9, "c": 7})
    first = load_data(str(tmp_path), RGB, seed=3)
    walk, iterdir = os.walk, Path.iterdir

    def shuffled_walk(*args, **options):
        for parent, folders, files in walk(*args, **options):
            random.Random(1).shuffle(files)
            yield parent, folders, files

    monkeypatch.setattr(os, "walk", shuffled_walk)
    monkeypatch.setattr(Path, "iterdir", lambda self: reversed(list(iterdir(self))))
    again = load_data(str(tmp_path), RGB, seed=3)
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.validation.labels, again.validation.labels)


def test_split_is_independent_of_the_folders_place(tmp_path):
    for place in ("one", "two"):
        write_folder(tmp_path / place, {"a": 12, "b": 9})
    one, two = (load_data(str(tmp_path / place), RGB) for place in ("one", "two"))
    assert torch.equal(one.validation.images, two.validation.images)


def test_seed_changes_thesplit():
    one, two = (load_data("digits", GREY, seed=seed) for seed in (0, 1))
    assert not torch.equal(one.validation.images, two.validation.images)


def test_global_random_state_is_left_alone():
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    load_data("digits", GREY)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_more_classes_than_the_limits_get_one_each(tmp_path):
    path = write_npz(tmp_path / "many.npz", images=noise(60, 8, 8), labels=np.arange(60) % 20)
    data = load_data(path, GREY, max_train=5, max_validation=5)
    assert sorted(data.train.labels.tolist()) == list(range(20))
    assert sorted(data.validation.labels.tolist()) == list(range(20))


@given(
    counts=st.lists(st.integers(2, 40), min_size=2, max_size=8),
    most_train=st.integers(1, 150),
    most_held_out=st.integers(1, 60),
    seed=st.integers(0, 2**31),
)
# The rounding would take both images of a class of two.
@example(counts=[2] * 10 + [40], most_train=100, most_held_out=60, seed=0)
@settings(max_examples=150, deadline=None)
def test_split_is_disjoint_stratified_deterministic(counts, most_train, most_held_out, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    train, held_out = split(labels, most_train, most_held_out, seed)

    assert len(set(train.tolist()) | set(held_out.tolist())) == len(train) + len(held_out)
    for again, known in zip(split(labels, most_train, most_held_out, seed), (train, held_out), strict=True):
        assert np.array_equal(again, known)
    classes = len(counts)
    wanted = min(most_held_out, int(0.3 * len(labels)))
    assert len(held_out) == max(wanted, classes)
    assert len(train) == max(min(most_train, len(labels) - len(held_out)), classes)
    for chosen in (train, held_out):
        found = np.bincount(labels[chosen], minlength=classes)
        assert found.min() >= 1
        # A larger class never gets less, but for the rounding.
        order = np.argsort(counts, kind="stable")
        assert all(found[a] <= found[b] + 1 for a, b in pairwise(order))


@given(counts=st.lists(st.integers(1, 30), min_size=2, max_size=6), data=st.data())
@settings(max_examples=80, deadline=None)
def test_every_first_part_is_nearly_stratified(counts, data):
    labels = np.repeat(np.arange(len(counts)), counts)
    order = interleaved([np.flatnonzero(labels == label) for label in range(len(counts))])
    assert sorted(order.tolist()) == list(range(len(labels)))
    length = data.draw(st.integers(1, len(labels)))
    found = np.bincount(labels[order[:length]], minlength=len(counts))
    assert np.abs(found - length * np.array(counts) / len(labels)).max() <= len(counts) / 2 + 1


# Arrays


@pytest.mark.parametrize("shape", [(20, 8, 8), (20, 8, 8, 1), (20, 1, 8, 8), (20, 8, 8, 3), (20, 3, 8, 8)])
@pytest.mark.parametrize("size", [RGB, GREY])
def test_npz_layouts(tmp_path, shape, size):
    images = noise(*shape)
    path = write_npz(tmp_path / "data.npz", images=images, labels=np.arange(20) % 2)
    data = load_data(path, size)
    assert data.train.images.shape[1:] == size
    assert data.class_names == ("0", "1")
    assert not data.named
    if len(shape) == 4 and size[0] == 3 == shape[3]:
        rows = {image.transpose(2, 0, 1).tobytes() for image in images}
        assert {image.numpy().tobytes() for image in data.train.images} <= rows


@pytest.mark.parametrize("shape", [(20, 8, 8, 4), (20, 4, 8, 8), (20, 13, 8, 8), (20, 8, 8, 13)])
def test_npz_with_as_many_channels_as_the_model(tmp_path, shape):
    channels = 4 if 4 in shape else 13
    path = write_npz(tmp_path / "data.npz", images=noise(*shape), labels=np.arange(20) % 2)
    assert load_data(path, (channels, 8, 8)).train.images.shape[1:] == (channels, 8, 8)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((20, 8, 8, 4), RGB), ((20, 4, 8, 8), GREY), ((20, 8, 8, 2), RGB), ((20, 9, 8, 7), RGB)],
)
def test_wrong_channels(tmp_path, shape, size):
    path = write_npz(tmp_path / "data.npz", images=noise(*shape), labels=np.arange(20) % 2)
    message = error_of(path, size)
    assert "wrong channels" in message
    assert f"takes {size[0]}" in message


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npz_floats_are_scaled(tmp_path, dtype):
    images = (noise(20, 8, 8) / 255).astype(dtype)
    path = write_npz(tmp_path / "data.npz", images=images, labels=np.arange(20) % 2)
    found = load_data(path, GREY).train.images
    expected = {np.rint(image.astype(np.float32) * 255).astype(np.uint8).tobytes() for image in images}
    assert {image.numpy().tobytes() for image in found} <= expected


def test_npz_class_names(tmp_path):
    arrays = {"images": noise(20, 8, 8), "labels": np.arange(20) % 2 * 2}
    path = write_npz(tmp_path / "data.npz", class_names=["ant", "bee", "cat"], **arrays)
    data = load_data(path, GREY)
    assert data.named
    assert data.class_names == ("ant", "bee", "cat")  # there may be names without an image
    assert set(data.train.labels.tolist()) == {0, 2}


def test_npz_labels_with_gaps_keep_their_numbers_as_names(tmp_path):
    path = write_npz(tmp_path / "data.npz", images=noise(20, 8, 8), labels=np.arange(20) % 2 * 7 + 3)
    data = load_data(path, GREY)
    assert data.class_names == ("3", "10")
    assert set(data.train.labels.tolist()) == {0, 1}


def good() -> dict[str, np.ndarray]:
    return {"images": noise(20, 8, 8), "labels": np.arange(20) % 2}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": None}, "no arrays of images and labels that go together (it holds labels)"),
        ({"labels": None}, "no arrays of images and labels that go together (it holds images)"),
        ({"labels": np.arange(19) % 2}, "20 images but 19 labels"),
        ({"labels": np.eye(20, dtype=int) + 1}, "labels has shape (20, 20)"),
        ({"labels": np.full((20, 2), 0.5)}, "not one 1 among zeros"),
        ({"labels": np.arange(20) % 2 - 1}, "10 of 20 labels are negative, such as -1"),
        ({"labels": np.arange(20) % 2 * 0.5}, "labels are float64"),
        ({"labels": np.zeros(20, int)}, "only one class, '0'"),
        ({"labels": np.r_[np.zeros(19, int), 1]}, "class '1' has a single image"),
        ({"images": noise(20, 64)}, "images has shape (20, 64)"),
        ({"images": noise(0, 8, 8), "labels": np.zeros(0, int)}, "none of them 0"),
        ({"images": noise(20, 8, 8).astype(int) * 2}, "images are int64"),
        ({"images": noise(20, 8, 8) % 2}, "every pixel is 0 or 1"),
        ({"images": noise(20, 8, 8) / 255 / 255}, "divided by 255 twice"),
        ({"images": np.full((20, 8, 8), np.nan)}, "NaN"),
        ({"images": np.full((20, 8, 8), np.inf)}, "infinite"),
        ({"images": noise(20, 8, 8) * 2.0}, "range from"),
        ({"images": np.linspace(-2, 2, 1280).reshape(20, 8, 8)}, "undo their normalisation"),
        ({"images": np.array([None] * 20)}, "object arrays"),
        ({"class_names": np.array(["only"])}, "1 class_names, but a label is 1"),
        ({"class_names": np.array(["a", "a"])}, "'a' twice"),
        ({"class_names": np.array([1, 2])}, "list of strings"),
    ],
)
def test_wrong_npz(tmp_path, change, said):
    arrays = {name: array for name, array in (good() | change).items() if array is not None}
    message = error_of(write_npz(tmp_path / "data.npz", **arrays), GREY)
    assert said in message
    assert str(tmp_path / "data.npz") in message


def test_pickle_in_an_npz_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    path = write_npz(tmp_path / "data.npz", images=noise(4, 8, 8), labels=np.array([Bomb()] * 4))
    assert "object arrays" in error_of(path, GREY)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 truncated", None])
def test_not_an_npz(tmp_path, content):
    path = tmp_path / "data.npz"
    if content is None:  # an .npy under another name
        with path.open("wb") as file:
            np.save(file, noise(4, 8, 8))
    else:
        path.write_bytes(content)
    message = error_of(path, GREY)
    assert "not a readable .npz file" in message
    assert "numpy.savez" in message


def test_truncated_npz(tmp_path):
    path = Path(write_npz(tmp_path / "data.npz", **good()))
    path.write_bytes(path.read_bytes()[:-200])
    assert "not a readable .npz file" in error_of(path, GREY)


# scikit-learn's and torchvision's


def test_digits():
    data = load_data("digits", GREY)
    assert data.class_names == tuple("0123456789")
    assert data.named
    assert len(data.train) + len(data.validation) == 1797
    assert len(data.validation) == 539
    assert (int(data.train.images.min()), int(data.train.images.max())) == (0, 255)


def write_mnist(root: Path) -> None:
    """The four files of MNIST, in its own format, with 40 and 20 images."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 40), ("t10k", 20)):
        header = struct.pack(">IIII", 2051, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + noise(count, 28, 28).tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())


def test_torchvision_with_train_and_test(tmp_path):
    write_mnist(tmp_path)
    data = load_data(f"torchvision:MNIST:{tmp_path}", (1, 28, 28))
    assert (len(data.train), len(data.validation)) == (40, 20)
    assert data.class_names[7] == "7 - seven"
    assert data.named
    assert {image.numpy().tobytes() for image in data.train.images} == {
        image.tobytes() for image in noise(40, 28, 28)
    }


def test_torchvision_with_splits_and_synonyms(tmp_path):
    from torchvision.datasets import Imagenette

    for part, count in (("train", 6), ("val", 3)):
        counts = dict.fromkeys(Imagenette._WNID_TO_CLASS, count)
        write_folder(tmp_path / "imagenette2" / part, counts, suffix=".jpeg")
    data = load_data(f"torchvision:Imagenette:{tmp_path}", RGB)
    assert (len(data.train), len(data.validation)) == (60, 30)
    assert data.class_names[0] == "tench"


def test_torchvision_without_splits_issplit(tmp_path):
    write_folder(tmp_path / "eurosat" / "2750", {"River": 10, "Forest": 10})
    data = load_data(f"torchvision:EuroSAT:{tmp_path}", RGB)
    assert (len(data.train), len(data.validation)) == (14, 6)
    assert data.class_names == ("Forest", "River")


def test_torchvision_labels_without_a_list_of_them(tmp_path):
    for part, count in (("train", 5), ("test", 3)):
        write_folder(tmp_path / "rendered-sst2" / part, {"negative": count, "positive": count + 1})
    data = load_data(f"torchvision:RenderedSST2:{tmp_path}", RGB)
    assert Counter(data.train.labels.tolist()) == {0: 5, 1: 6}
    assert Counter(data.validation.labels.tolist()) == {0: 3, 1: 4}


def test_torchvision_unknown_name(tmp_path):
    assert "did you mean CIFAR10?" in error_of(f"torchvision:Cifar10:{tmp_path}")
    assert "no dataset 'os'" in error_of(f"torchvision:os:{tmp_path}")


def test_torchvision_without_a_path():
    assert "torchvision:CIFAR10:/path" in error_of("torchvision:CIFAR10")


def test_torchvision_path_missing(tmp_path):
    assert "no such file or folder" in error_of(f"torchvision:CIFAR10:{tmp_path}/gone")


@pytest.mark.parametrize("name", ["CIFAR10", "MNIST", "SVHN", "STL10", "SEMEION", "ImageNet", "Food101"])
def test_torchvision_never_downloads(tmp_path, monkeypatch, name):
    def no_network(*args, **options):
        pytest.fail("it tried to download")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    message = error_of(f"torchvision:{name}:{tmp_path}")
    assert "was not found" in message or "needs a package" in message
    assert "download=True" not in message
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize(
    ("name", "said"), [("EMNIST", "needs split"), ("FakeData", "not read from a folder")]
)
def test_torchvision_that_a_path_does_not_describe(tmp_path, name, said):
    assert said in error_of(f"torchvision:{name}:{tmp_path}")


def test_torchvision_with_a_broken_image(tmp_path):
    write_folder(tmp_path / "eurosat" / "2750", {"River": 4, "Forest": 4})
    (tmp_path / "eurosat" / "2750" / "River" / "0002.png").write_bytes(b"broken")
    assert "1 of" in error_of(f"torchvision:EuroSAT:{tmp_path}")
    (tmp_path / "eurosat" / "2750" / "Forest" / "0000.png").write_bytes(b"broken")  # the first of all
    assert "2 of 8" in error_of(f"torchvision:EuroSAT:{tmp_path}")
    for path in (tmp_path / "eurosat" / "2750").rglob("*.png"):
        path.write_bytes(b"broken")
    assert "EuroSAT can't be read" in error_of(f"torchvision:EuroSAT:{tmp_path}")


@pytest.mark.parametrize("damage", [cut_short, damaged_inside])
@pytest.mark.parametrize("first", [0, 5])
def test_torchvision_leaves_out_a_few_broken_images(tmp_path, damage, first):
    write_folder(tmp_path / "eurosat" / "2750", {"River": 30, "Forest": 30})
    damage(tmp_path / "eurosat" / "2750" / "Forest" / f"{first:04}.png")
    data = load_data(f"torchvision:EuroSAT:{tmp_path}", RGB)
    assert len(data.train) + len(data.validation) == 59
    assert (20, first, 0) not in {*ids(data.train), *ids(data.validation)}  # the colour of the wrong class
    assert "1 of 60 images can't be read and is left out" in data.warnings[0]
    for part, count in (("train", 40), ("test", 30)):  # labels that come with the images alone
        write_folder(tmp_path / "rendered-sst2" / part, {"negative": count, "positive": count})
    damage(tmp_path / "rendered-sst2" / "train" / "negative" / f"{first:04}.png")
    data = load_data(f"torchvision:RenderedSST2:{tmp_path}", RGB)
    assert Counter(data.train.labels.tolist()) == {0: 39, 1: 40}
    assert data.unreadable == 1


def test_arrays_with_a_few_infinite_images_are_used_without_them(tmp_path):
    images = np.full((60, 8, 8), 0.5)
    images[7, 3, 3], images[9] = np.nan, np.inf
    images[:, 0, 0] = np.arange(60) / 255
    path = write_npz(tmp_path / "data.npz", images=images, labels=np.arange(60) % 2)
    data = load_data(path, GREY)
    seen = {*data.train.images[:, 0, 0, 0].tolist(), *data.validation.images[:, 0, 0, 0].tolist()}
    assert seen == set(range(60)) - {7, 9}
    assert all(
        int(image[0, 0, 0]) % 2 == label
        for image, label in zip(data.train.images, data.train.labels.tolist(), strict=True)
    )
    assert "2 of 60 images can't be read and are left out: image 7 (it holds NaN" in data.warnings[0]


def test_gzip_under_an_image_name(tmp_path):
    write_folder(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a" / "0000.png").write_bytes(gzip.compress(b"x"))
    assert "not an image" in error_of(tmp_path)


def test_datasets_can_be_compared_by_identity():
    data = load_data("digits", GREY)
    assert isinstance(data, Dataset)
    assert data == data  # noqa: PLR0124 - tensors have no truth value: == must not look into them


# timm's framing


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop", [0.875, 1.0, 1.15])
@pytest.mark.parametrize("shape", [(90, 120), (150, 70), (40, 40)])
def test_framing_is_timms(mode, interpolation, crop, shape):
    data = pytest.importorskip("timm.data")
    mean = (0.2, 0.4, 0.6)
    transform = data.create_transform(
        (3, 64, 64), crop_pct=crop, crop_mode=mode, interpolation=interpolation, mean=mean, normalize=False
    )
    smooth = Image.fromarray(noise(*shape, 3)).filter(ImageFilter.GaussianBlur(3))
    expected = transform(smooth).float()
    image = torch.from_numpy(np.array(smooth)).permute(2, 0, 1)[None]
    frame = Frame((3, 64, 64), Framing(crop, interpolation, mode), mean)
    found = fit(image, frame)[0].float()
    assert found.shape == expected.shape
    if mode != "border" and crop > 1:
        return  # timm fills what is lacking with black
    # A half pixel at most, as above.
    assert (found - expected).abs().mean() < 1.5


def test_what_has_the_inputs_size_stays_as_it_is_whatever_the_framing():
    images = torch.from_numpy(noise(2, 3, 16, 16))
    assert torch.equal(fit(images, Frame((3, 16, 16), Framing(0.875, "bicubic", "squash"))), images)


@pytest.mark.parametrize("crop", [0.0, -1.0, float("nan")])
def test_a_crop_that_is_no_share_is_refused(crop):
    with pytest.raises(DataError, match=r"such as 0\.875"):
        load_data("digits", GREY, framing=Framing(crop))
