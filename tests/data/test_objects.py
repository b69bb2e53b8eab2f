"""Datasets of the user's own, named as `file.py:NAME` or `package.module:name`."""

import sys
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.data.pixels import Frame
from advisor.data.sources import find
from advisor.errors import DataError

_COMMON = """
import numpy as np, torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
print("imported")

class Shades(Dataset):
    classes = ["dark", "light"]

    def __init__(self, count=12):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.full((3, 4, 4), 0.2 + 0.6 * (index % 2)), index % 2
"""


@pytest.fixture
def named(tmp_path, monkeypatch):
    """Writes code into a file and gives what is typed to name something in it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"data_{tmp_path.name}".replace("-", "_")

    def write(code: str, attribute: str) -> str:
        (tmp_path / f"{name}.py").write_text(_COMMON + textwrap.dedent(code))
        return f"{tmp_path / name}.py:{attribute}"

    yield write
    sys.modules.pop(name, None)


def _images(pool, size=(3, 4, 4)):
    images, failures = pool.read(np.arange(len(pool.labels)), Frame(size))
    assert not failures
    return images


def test_a_class_an_object_and_a_function(named, capsys):
    source = named("made = Shades(8)\ndef build():\n    return Shades(10)\n", "Shades")
    file = source.rpartition(":")[0]
    counts = [len(find(f"{file}:{name}").train.labels) for name in ("Shades", "made", "build")]
    assert counts == [12, 8, 10]
    found = find(source)
    assert found.class_names == ("dark", "light")
    assert found.named
    assert found.train.labels.tolist() == [0, 1] * 6
    assert _images(found.train)[:2].amax((1, 2, 3)).tolist() == [51, 204]
    assert capsys.readouterr().out == ""  # what the code prints is not the result


def test_parts_of_a_dict_and_of_a_tuple(named):
    code = """
        def splits():
            return {"train": Shades(12), "validation": Shades(4), "test": Shades(6)}
        def pair():
            return Shades(12), DataLoader(Shades(4), shuffle=True)
    """
    found = find(named(code, "splits"))
    assert len(found.held_out.labels) == 4
    assert "left alone" in found.notes[0]
    assert "test" in found.notes[0]


@pytest.mark.parametrize(
    "item",
    [
        'np.full((4, 4, 3), 51, np.uint8), "light"',
        'np.full((4, 4), 0.2), "light"',
        'torch.full((3, 4, 4), 51.0), "light"',
        '{"image": torch.full((3, 4, 4), 51, dtype=torch.uint8), "label": "light"}',
        '{"pixel_values": torch.full((3, 4, 4), 0.2), "labels": "light"}',
    ],
)
def test_items_of_every_kind_become_the_same(named, item):
    other = item.replace("51", "255").replace("0.2", "1.0").replace("light", "dark")
    found = find(named(f"images = [({item}) if i % 2 else ({other}) for i in range(8)]", "images"))
    assert found.class_names == ("dark", "light")
    images = _images(found.train)
    assert images[0].unique().tolist() == [255]
    assert images[1].unique().tolist() == [51]
    assert next(iter(found.train.sizes(3)))[1:] == (4, 4)


def test_a_subset_takes_its_labels_and_names_from_the_whole(named):
    code = """
        class Kept(Shades):
            targets = [0, 1] * 6
            reads = 0
            def __getitem__(self, index):
                Kept.reads += 1
                return super().__getitem__(index)
        part = Subset(Kept(), [0, 1, 4, 7])
    """
    found = find(named(code, "part"))
    assert found.train.labels.tolist() == [0, 1, 0, 1]
    assert found.class_names == ("dark", "light")


def test_what_fails_is_left_out_and_named(named):
    code = """
        class Holed(Shades):
            def __getitem__(self, index):
                if index == 3:
                    raise OSError("its file is gone")
                return super().__getitem__(index)
        made = Holed(40)
    """
    found = find(named(code, "made"))
    assert [(each.name, each.reason) for each in found.unreadable] == [("image 3", "its file is gone")]
    assert len(_images(found.train)) == 39
    assert found.train.name(3) == "image 4"


def test_random_transforms_are_told(named):
    code = """
        class Jittered(Shades):
            def __getitem__(self, index):
                image, label = super().__getitem__(index)
                return image * torch.rand(()), label
    """
    assert "another image each time" in find(named(code, "Jittered")).notes[0]


@pytest.mark.parametrize(
    ("code", "attribute", "told"),
    [
        ("def build(root): ...", "build", "calling it needs root"),
        ("def build(): 1 / 0", "build", "calling it failed: ZeroDivisionError"),
        ("def build(): return 3", "build", "gives a int; it must be a torch.utils.data.Dataset"),
        ("made = []", "made", "without images"),
        ("made = [1, 2]", "made", "gives a int for each image"),
        ("made = {'first': Shades()}", "made", "one of them must be called train"),
        ("made = [(torch.randn(3, 4, 4) - 2, 0)] * 4", "made", "leave it out of the transform"),
        ("made = [(torch.zeros(9), 0)] * 4", "made", "of shape (9,) for an image"),
        ("made = [(torch.rand(3, 4, 4), 0.5)] * 4", "made", "save whole numbers"),
        ("", "Shade", "has no function Shade; did you mean Shades?"),
    ],
)
def test_what_is_no_dataset_is_told_in_one_line(named, code, attribute, told):
    with pytest.raises(DataError) as error:
        find(named(code, attribute))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 255), st.sampled_from(["uint8", "float", "float255"]), st.booleans())
def test_a_grey_value_survives_whatever_the_form(value, form, is_tensor):
    from advisor.data.objects import _Items

    scale = {"uint8": 1, "float": 1 / 255, "float255": 1}[form]
    dtype = np.uint8 if form == "uint8" else np.float32
    images = [np.full((3, 5, 3), each * scale, dtype) for each in (value, 255, 0, 2)]
    if is_tensor:
        images = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
    items = _Items("here", [(image, place % 2) for place, image in enumerate(images)])
    assert _images(items.pool(items.labels), (3, 3, 5))[0].unique().tolist() == [value]
