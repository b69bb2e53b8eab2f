"""The photos on a board: divided as they were at home, and the new ones by their bytes."""

from __future__ import annotations

import hashlib
import os
import shutil

import pytest
import torch
from PIL import Image

from advisor.board.photos import read_photos
from advisor.data.pixels import Frame
from advisor.errors import DataError

FRAME, OUTPUTS = Frame((3, 8, 8)), {"cat": 1, "dog": 0}


@pytest.fixture
def folder(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for name in OUTPUTS:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(40):
            values = torch.randint(0, 256, (12 * 10 * 3,), generator=generator).tolist()
            image = Image.frombytes("RGB", (12, 10), bytes(values))
            image.save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def of(folder, split=None, outputs=OUTPUTS):
    return read_photos(folder, folder.parent / "work", FRAME, outputs, split or {})


def contents(photos):
    return {bytes(each.flatten().tolist()) for each in photos.pixels}


def test_new_photos_stay_on_their_side_when_more_come(folder):
    train, held_out, key, _ = of(folder)
    assert (len(train) + len(held_out), len(train.labels)) == (80, len(train))
    assert 12 < len(held_out) < 36
    assert not contents(train) & contents(held_out)
    (folder / "cat" / "0.png").rename(folder / "cat" / "other-name.png")
    shutil.copy(folder / "dog" / "1.png", folder / "dog" / "copy.png")
    Image.new("RGB", (9, 9), (1, 2, 3)).save(folder / "dog" / "more.png")
    again, held_again, other, _ = of(folder)
    assert contents(train) <= contents(again)
    assert contents(held_out) <= contents(held_again)
    assert len(again) + len(held_again) == 82
    assert not contents(again) & contents(held_again)
    assert other != key


def test_known_photos_are_in_their_order(folder):
    files = [folder / "cat" / "3.png", folder / "dog" / "7.png", folder / "cat" / "1.png"]
    split = {"train": [*map(digest, files[:2]), "0" * 16], "held_out": [digest(files[2])]}
    train, held_out, *_ = of(folder, split)
    assert train.labels[:2].tolist() == [1, 0]
    assert held_out.labels[0] == 1
    with Image.open(files[2]) as image:
        expected = read_photos.__globals__["fit"](
            torch.tensor(list(image.tobytes()), dtype=torch.uint8).view(10, 12, 3).permute(2, 0, 1)[None],
            FRAME,
        )
    assert torch.equal(held_out.pixels[0], expected[0])


def test_after_a_power_cut_nothing_is_decoded_again(folder, monkeypatch):
    before, _, key, _ = of(folder)
    monkeypatch.setattr("advisor.board.photos.read_image", None)
    after, _, again, _ = of(folder)
    assert torch.equal(before.pixels, after.pixels)
    assert key == again


def test_a_few_that_cannot_be_read_are_left_out(folder):
    (folder / "cat" / "5.png").write_bytes(b"nothing")
    (folder / "dog" / "notes.txt").write_text("no photo")
    (folder / "cat" / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "dog" / "pipe.png")
    train, held_out, _, left_out = of(folder)
    assert len(train) + len(held_out) == 79
    assert sorted(path.name for path in left_out) == ["5.png", "gone.png", "pipe.png"]
    assert sorted({*train.labels.tolist(), *held_out.labels.tolist()}) == [0, 1]
    for number in range(9):
        (folder / "dog" / f"{number}.png").write_bytes(str(number).encode())
    with pytest.raises(DataError, match=r"12 of 82 photos in .* can't be read"):
        of(folder)


def test_what_tells_no_class_is_one_line(folder):
    with pytest.raises(DataError, match="lies in no folder that is named as a class is"):
        of(folder, outputs={"horse": 0, "cow": 1})
    with pytest.raises(DataError, match="is no folder"):
        of(folder / "nowhere")
    shutil.rmtree(folder / "dog")
    with pytest.raises(DataError, match="photos of 1 class; two are needed"):
        of(folder)
