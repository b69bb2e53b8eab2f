"""Datasets as Hugging Face's `datasets` and its hub keep them, written here as they write them."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from advisor.data.pixels import Frame
from advisor.data.sources import find
from advisor.errors import DataError

arrow = pytest.importorskip("pyarrow")

_FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["owl", "cat"], "_type": "ClassLabel"}}


def _png(value, size=(6, 4)):
    file = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(file, "PNG")
    return file.getvalue()


def _table(labels, features=None, **columns):
    images = [{"bytes": _png(10 * place), "path": None} for place in range(len(labels))]
    made = arrow.table({"image": images, "label": labels, **columns})
    said = json.dumps({"info": {"features": _FEATURES if features is None else features}})
    return made.replace_schema_metadata({"huggingface": said})


def _save(folder, *tables):
    """As `save_to_disk` does, a file for each table."""
    folder.mkdir(parents=True)
    names = [f"data-{place:05}-of-{len(tables):05}.arrow" for place in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with arrow.OSFile(str(folder / name), "wb") as file, arrow.ipc.new_stream(file, table.schema) as out:
            out.write_table(table)
    said = {"_data_files": [{"filename": name} for name in names]}
    (folder / "state.json").write_text(json.dumps(said))
    return folder


def test_one_that_was_saved_in_several_files(tmp_path):
    folder = _save(tmp_path / "saved", _table([0, 1, 1]), _table([1, 0]))
    for source in (f"hf:{folder}", str(folder)):
        found = find(source)
        assert found.class_names == ("owl", "cat")
        assert found.train.labels.tolist() == [0, 1, 1, 1, 0]
        assert found.train.sizes(3) == {(3, 4, 6)}
    images, failures = found.train.read(np.arange(5), Frame((3, 4, 6)))
    assert not failures
    assert images[:, 0, 0, 0].tolist() == [0, 10, 20, 0, 10]
    first, second, *_, last = found.train.contents(np.arange(5))
    assert second == last != first


def test_parts_and_a_test_set_without_classes(tmp_path):
    for name, labels in (("train", [0, 1] * 4), ("test", [-1] * 4)):
        _save(tmp_path / name, _table(labels))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    found = find(f"hf:{tmp_path}")
    assert found.held_out is None
    assert "test" in found.notes[0]
    _save(tmp_path / "validation", _table([1, 0]))
    assert find(f"hf:{tmp_path}").held_out.labels.tolist() == [1, 0]


def test_parquet_as_the_hub_keeps_it(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "data").mkdir()
    for name, labels in (("train-00000-of-00001", [0, 1, 1, 0]), ("validation-00000-of-00001", [1, 0])):
        parquet.write_table(_table(labels), tmp_path / "data" / f"{name}.parquet")
    found = find(str(tmp_path))
    assert found.train.labels.tolist() == [0, 1, 1, 0]
    assert found.held_out.labels.tolist() == [1, 0]


def test_which_column_holds_the_classes(tmp_path):
    kind = {"names": ["near", "far"], "_type": "ClassLabel"}
    folder = _save(tmp_path / "saved", _table([0, 1], {**_FEATURES, "distance": kind}, distance=[1, 0]))
    assert find(f"hf:{folder}").class_names == ("owl", "cat")
    assert find(f"hf:{folder}").notes == ("the classes are those of the column label",)
    other = find(f"hf:{folder}", "distance")
    assert other.class_names == ("near", "far")
    assert other.train.labels.tolist() == [1, 0]
    with pytest.raises(DataError, match="no column 'distanc' for --labels; did you mean distance"):
        find(f"hf:{folder}", "distanc")


def test_texts_are_classes_too(tmp_path):
    folder = _save(tmp_path / "saved", _table(["b", "a", "b"], {}))
    found = find(f"hf:{folder}")
    assert found.class_names == ("a", "b")
    assert found.train.labels.tolist() == [1, 0, 1]


def test_a_damaged_image_is_left_out(tmp_path):
    table = _table([0, 1] * 20)
    images = table.column("image").to_pylist()
    images[3] = {"bytes": b"no image", "path": "broken.png"}
    images[4] = {"bytes": _png(9), "path": "fine.png"}
    folder = _save(tmp_path / "saved", table.set_column(0, "image", [images]))
    found = find(f"hf:{folder}")
    assert [each.name for each in found.unreadable] == ["broken.png"]
    assert found.train.name(3) == "fine.png"


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda folder: (folder / "state.json").write_text("{"), "state.json is damaged"),
        (lambda folder: (folder / "data-00000-of-00001.arrow").write_bytes(b"no table"), "can't be read"),
        (lambda folder: (folder / "data-00000-of-00001.arrow").unlink(), "can't be read"),
    ],
)
def test_damage_is_told_in_one_line(tmp_path, break_it, told):
    folder = _save(tmp_path / "saved", _table([0, 1]))
    break_it(folder)
    with pytest.raises(DataError, match=told) as error:
        find(f"hf:{folder}")
    assert "\n" not in str(error.value)


def test_columns_that_hold_no_images_or_classes(tmp_path):
    text = _table([0, 1]).drop_columns(["image"]).append_column("text", [["a", "b"]])
    with pytest.raises(DataError, match=r"none of its columns \(label, text\) holds image files"):
        find(f"hf:{_save(tmp_path / 'text', text)}")
    without = _table([0, 1], {}).rename_columns(["image", "mood"])
    with pytest.raises(DataError, match="give it with --labels COLUMN"):
        find(f"hf:{_save(tmp_path / 'without', without)}")
    with pytest.raises(DataError, match="row 1 has no label"):
        find(f"hf:{_save(tmp_path / 'holes', _table([0, None]))}")


def test_without_pyarrow_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    import sys

    folder = _save(tmp_path / "saved", _table([0, 1]))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs pyarrow: pip install 'peft-advisor\[hf\]'"):
        find(f"hf:{folder}")


def test_an_imagefolder(tmp_path):
    for name in ("cat", "owl"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "0.png")
    assert find(f"hf:{tmp_path}").class_names == ("cat", "owl")
