"""Folders as people have them: what is a class, what is a part, what is neither, and what is said of it."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from advisor.data.loading import load_data
from advisor.data.parts import part_of
from advisor.data.sources import find
from advisor.errors import DataError

RGB = (3, 8, 8)


def draw(folder: Path, count: int, *, suffix: str = ".png", shade: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.new("RGB", (8, 8), (shade, index, 0)).save(folder / f"{index:03}{suffix}")


def classes(root: Path, count: int = 4, names: str = "ab") -> None:
    for shade, name in enumerate(names):
        draw(root / name, count, shade=shade)


def found(root: Path, labels: str | None = None):
    return find(str(root), labels)


def refused(root: Path, labels: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        found(root, labels)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Parts


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("training", "testing"),
        ("Training", "Testing"),
        ("training_set", "test_set"),
        ("train", "eval"),
        ("train", "dev"),
        ("seg_train", "seg_test"),
        ("train2017", "val2017"),
        ("TrainData", "ValidationData"),
        ("train_images", "holdout"),
    ],
)
def test_parts_by_all_their_usual_names(tmp_path, train, held_out):
    classes(tmp_path / train, 6)
    classes(tmp_path / held_out, 3)
    there = found(tmp_path)
    assert there.class_names == ("a", "b")
    assert (len(there.train.labels), len(there.held_out.labels)) == (12, 6)


@pytest.mark.parametrize("name", ["train_station", "test tube", "evaluator", "valley", "contest", "2017", ""])
def test_other_names_are_no_parts(name):
    assert part_of(name) is None


def test_what_is_left_alone_is_said(tmp_path):
    classes(tmp_path / "seg_train")
    classes(tmp_path / "seg_test")
    draw(tmp_path / "seg_pred", 3)
    assert any("left alone" in line and "seg_pred/" in line for line in found(tmp_path).said)


def test_a_part_without_classes_is_not_held_out(tmp_path):
    classes(tmp_path / "train")
    draw(tmp_path / "test", 5)
    there = found(tmp_path)
    assert there.held_out is None
    assert any("held out instead" in line for line in there.said)


@pytest.mark.parametrize("names", [("train", "valid", "test"), ("train", "test"), ("val", "test")])
def test_parts_are_no_classes(tmp_path, names):
    """As Roboflow's multi-label and detection exports lie: no class folder anywhere."""
    for name in names:
        draw(tmp_path / name, 3)
    assert "look like parts of a split" in refused(tmp_path)


def test_two_folders_for_one_part(tmp_path):
    classes(tmp_path / "train")
    classes(tmp_path / "training")
    assert "train/ and training/" in refused(tmp_path)


def test_held_out_parts_without_a_training_part(tmp_path):
    classes(tmp_path / "val")
    classes(tmp_path / "test")
    assert "no train/" in refused(tmp_path)


def test_a_lone_train_folder_is_all_there_is(tmp_path):
    classes(tmp_path / "train")
    assert found(tmp_path).class_names == ("a", "b")


# Folders around folders, and what systems leave in them


def test_a_folder_around_it_all(tmp_path):
    classes(tmp_path / "archive" / "dataset")
    (tmp_path / "__MACOSX" / "archive").mkdir(parents=True)
    (tmp_path / ".DS_Store").touch()
    there = found(tmp_path)
    assert there.class_names == ("a", "b")
    assert any("archive" in line for line in there.said)


@pytest.mark.parametrize("junk", ["__MACOSX", "@eaDir", ".ipynb_checkpoints", "#recycle"])
def test_junk_is_no_class_and_no_image(tmp_path, junk):
    classes(tmp_path)
    draw(tmp_path / junk, 2)
    draw(tmp_path / "a" / junk, 2)
    (tmp_path / "a" / "._001.png").write_bytes(b"junk")
    there = found(tmp_path)
    assert there.class_names == ("a", "b")
    assert there.total == 8


def test_one_name_in_two_unicode_forms_is_one_class(tmp_path):
    draw(tmp_path / "train" / unicodedata.normalize("NFC", "caf\u00e9"), 4)
    draw(tmp_path / "train" / "tea", 4)
    draw(tmp_path / "val" / unicodedata.normalize("NFD", "caf\u00e9"), 2)
    draw(tmp_path / "val" / "tea", 2)
    assert found(tmp_path).class_names == ("caf\u00e9", "tea")


def test_folders_in_class_folders(tmp_path):
    for kind, names in (("fruit", "xy"), ("dairy", "z")):
        for name in names:
            draw(tmp_path / kind / name, 3)
    first = found(tmp_path)
    assert first.class_names == ("dairy", "fruit")
    assert any("--labels leaf" in line for line in first.said)
    assert found(tmp_path, "leaf").class_names == ("x", "y", "z")


def test_leaves_of_one_name_are_told_apart(tmp_path):
    for kind in ("fruit", "dairy"):
        for name in ("fresh", "old"):
            draw(tmp_path / kind / name, 3)
    assert found(tmp_path, "leaf").class_names == ("dairy/fresh", "dairy/old", "fruit/fresh", "fruit/old")


def test_data_for_detection(tmp_path):
    for part in ("train", "valid"):
        draw(tmp_path / part / "images", 3)
        (tmp_path / part / "labels").mkdir()
        (tmp_path / part / "labels" / "000.txt").write_text("0 .5 .5 .1 .1")
    assert "detection or segmentation" in refused(tmp_path)


# Files


def test_files_of_every_name_of_a_jpeg_are_read(tmp_path):
    for name, suffixes in (("a", (".jpg", ".JPEG", ".jfif")), ("b", (".jpe", ".JPG", ".Png"))):
        (tmp_path / name).mkdir()
        for index, suffix in enumerate(suffixes):
            kind = "PNG" if suffix.lower() == ".png" else "JPEG"
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{index}{suffix}", kind)
    assert found(tmp_path).total == 6


def test_what_is_no_image_is_counted(tmp_path):
    classes(tmp_path)
    for index in range(3):
        (tmp_path / "a" / f"{index}.mp4").touch()
    (tmp_path / "b" / "notes.txt").touch()
    assert "left out, as they are no images that can be read: 3 .mp4" in found(tmp_path).said


def test_a_class_of_files_that_are_not_read_is_told(tmp_path):
    classes(tmp_path)
    draw(tmp_path / "c", 0)
    (tmp_path / "c" / "0.xcf").touch()
    assert "1 .xcf" in refused(tmp_path)


# Tables


def flat(root: Path, count: int = 8) -> list[str]:
    draw(root, count)
    return [f"{index:03}.png" for index in range(count)]


LINES = {
    "with names": "filename,label\n{}",
    "of other columns, too": "id,filename,width,label\n{}",
    "bare": "{}",
    "semicolons": "filename;label\n{}",
    "tabs": "filename\tlabel\n{}",
    "blanks": "{}",
}


@pytest.mark.parametrize("kind", LINES)
def test_a_table_tells_the_classes(tmp_path, kind):
    between = {"semicolons": ";", "tabs": "\t", "blanks": " "}.get(kind, ",")
    rows = []
    for index, name in enumerate(flat(tmp_path / "images")):
        cells = [name, "ab"[index % 2]]
        rows.append(between.join([str(index), name, "8", cells[1]] if "columns" in kind else cells))
    table = tmp_path / "table.csv"
    table.write_text(LINES[kind].format("\n".join(rows)))
    there = found(tmp_path / "images", str(table))
    assert there.class_names == ("a", "b")
    assert there.train.labels.tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize("written", ["id", "path", "name"])
def test_images_are_named_by_path_by_name_or_without_suffix(tmp_path, written):
    names = flat(tmp_path / "all" / "images")
    shown = {"id": lambda n: n[:-4], "path": lambda n: f"./images/{n}", "name": lambda n: n}[written]
    table = tmp_path / "all" / "train.csv"
    table.write_text("image,breed\n" + "\n".join(f"{shown(n)},{n[2]}" for n in names))
    assert found(tmp_path / "all", str(table)).total == 8


def test_hugging_face_metadata_is_found(tmp_path):
    for part, count in (("train", 8), ("test", 4)):
        names = flat(tmp_path / part, count)
        rows = [json.dumps({"file_name": n, "label": int(n[2]) % 2}) for n in names]
        (tmp_path / part / "metadata.jsonl").write_text("\n".join(rows))
    there = found(tmp_path)
    assert there.class_names == ("0", "1")
    assert not there.named
    assert (len(there.train.labels), len(there.held_out.labels)) == (8, 4)


@pytest.mark.parametrize("folder", [".", "images"])
def test_a_table_of_a_known_name_beside_the_images_is_found(tmp_path, folder):
    rows = [f"{name},{'ab'[int(name[2]) % 2]}" for name in flat(tmp_path / folder)]
    (tmp_path / "metadata.csv").write_text("file_name,label\n" + "\n".join(rows))
    there = found(tmp_path)
    assert there.class_names == ("a", "b")
    assert any("metadata.csv" in line for line in there.said)


def test_roboflows_table_of_marks_is_found(tmp_path):
    for part in ("train", "valid"):
        names = flat(tmp_path / part)
        rows = [f"{n}, {int(n[2]) % 2}, {1 - int(n[2]) % 2}" for n in names]
        (tmp_path / part / "_classes.csv").write_text("filename, odd, even\n" + "\n".join(rows))
    there = found(tmp_path)
    assert there.class_names == ("even", "odd")
    assert there.held_out is not None


def test_images_of_several_classes_are_refused(tmp_path):
    names = flat(tmp_path / "train")
    draw(tmp_path / "valid", 2)
    (tmp_path / "train" / "_classes.csv").write_text("filename,a,b\n" + "\n".join(f"{n},1,1" for n in names))
    assert "several classes" in refused(tmp_path)


def test_a_column_tells_the_parts(tmp_path):
    rows = [f"{n},{n[2]},{'valid' if int(n[2]) > 5 else 'train'}" for n in flat(tmp_path)]
    rows = [row.replace(",6,", ",0,").replace(",7,", ",1,") for row in rows]
    table = tmp_path / "labels.csv"
    table.write_text("file,label,split\n" + "\n".join(rows))
    there = found(tmp_path, str(table))
    assert len(there.held_out.labels) == 2


def test_what_the_table_lacks_is_counted(tmp_path):
    names = flat(tmp_path)
    table = tmp_path / "labels.csv"
    rows = [f"{n},{int(n[2]) % 2}" for n in names[:6]]
    table.write_text("file,label\n" + "\n".join([*rows, "gone.png,1"]))
    said = " ".join(found(tmp_path, str(table)).said)
    assert "1 rows name an image that is not there" in said
    assert "2 images" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,label\nx.png,1\ny.png,0", "of its 2 rows 0 name an image"),
        ("file,width,height\n000.png,3,4\n001.png,5,6", "can't be told"),
        ("000.png,1\n001.png", "row 2 has 1 columns"),
        ("file,label\n000.png,1\n000.png,2\n001.png,1", "two classes"),
        ("", "no rows"),
    ],
)
def test_wrong_tables(tmp_path, text, said):
    flat(tmp_path)
    table = tmp_path / "labels.csv"
    table.write_text(text)
    assert said in refused(tmp_path, str(table))


def test_a_table_that_lies_there_is_named(tmp_path):
    flat(tmp_path)
    (tmp_path / "truth.csv").write_text("file,label")
    assert f"--labels {tmp_path / 'truth.csv'}" in refused(tmp_path)


def test_the_classes_of_a_table_are_loaded(tmp_path):
    rows = [f"{n},{'ab'[int(n[2]) % 2]}" for n in flat(tmp_path)]
    table = tmp_path / "table.txt"
    table.write_text("\n".join(rows))
    data = load_data(found(tmp_path, str(table)), RGB)
    assert (len(data.train), len(data.validation)) == (6, 2)
