"""What belongs together, as `--groups` says it: by a table or by a pattern of names."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from advisor.data import load_data
from advisor.data.grouping import said_groups
from advisor.errors import DataError

_NAMES = ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]


def _table(tmp_path, text, name="groups.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "text",
    [
        "file,group\na/1.png,x\na/2.png,y\nb/1.png,x\nb/2.png,y\n",
        "\ufefffilename;visit;note\na/1.png;7;-\na\\2.png;8;-\n./b/1.png;7;-\nb/2.png;8;-\n",
        "patient\tnote\timage\np\t-\ta/1.png\nq\t-\ta/2.png\np\t-\tb/1.png\nq\t-\tb/2.png\n",
    ],
)
def test_a_table_tells_them(tmp_path, text):
    groups, rest = said_groups(_table(tmp_path, text), _NAMES)
    assert groups[0] == groups[2] != groups[1] == groups[3]
    assert rest == ""


def test_a_files_name_will_do_where_it_is_the_only_one(tmp_path):
    table = _table(tmp_path, "file,group\n1.png,x\n3.png,x\n")
    groups, rest = said_groups(table, ["a/1.png", "a/2.png", "b/3.png"])
    assert groups[0] == groups[2] != groups[1]
    assert "1 that it says nothing of" in rest
    twice = _table(tmp_path, "file,group\nc/1.png,x\nd/1.png,y\n")
    with pytest.raises(DataError, match=r"several rows for 1\.png, none of which is that of a/1\.png"):
        said_groups(twice, _NAMES)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("file,class\na/1.png,x\n", "must have the columns file and group"),
        ("", "must have the columns file and group"),
        ("file,group\n", "has no rows"),
        ("file,group\na/1.png,x\na/1.png,y\n", "two groups, x and y"),
        ("file,group\nz.png,x\n", "none of the images, such as a/1.png"),
    ],
)
def test_tables_that_tell_nothing(tmp_path, text, told):
    with pytest.raises(DataError, match=told):
        said_groups(_table(tmp_path, text), _NAMES)


def test_a_pattern_still_does():
    groups, _ = said_groups("[0-9]", _NAMES)
    assert groups[0] == groups[2] != groups[1] == groups[3]
    for pattern in ("(", "video", "nowhere.csv"):
        with pytest.raises(DataError, match="is no file, and"):
            said_groups(pattern, _NAMES)


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.text("xy", min_size=1, max_size=2), min_size=1)
)
def test_two_images_go_together_exactly_where_their_groups_are_equal(tmp_path_factory, groups):
    rows = "".join(f"{name}.png,{group}\n" for name, group in groups.items())
    table = _table(tmp_path_factory.mktemp("groups"), f"file,group\n{rows}")
    found, _ = said_groups(table, [f"in/{name}.png" for name in groups])
    wanted = list(groups.values())
    for one in range(len(wanted)):
        for other in range(len(wanted)):
            assert (found[one] == found[other]) == (wanted[one] == wanted[other])


def test_held_out_images_of_groups_that_are_trained_on_are_left_out(tmp_path):
    rng, rows = np.random.default_rng(0), ["file,group"]
    for part, first in (("train", 0), ("val", 6)):
        for label in ("a", "b"):
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for number in range(first, first + 8):
                image = rng.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(image).save(folder / f"{label}{number}.png")
                rows.append(f"{part}/{label}/{label}{number}.png,visit{number}")
    data = load_data(str(tmp_path), (3, 8, 8), grouping=_table(tmp_path, "\n".join(rows)))
    assert len(data.validation) == 16 - 2 * 2  # numbers 6 and 7 of either class are in both parts
    assert "4 of 16 held-out images belong, by --groups" in data.findings[-1].text
