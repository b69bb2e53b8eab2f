"""`peft-advisor data`: what is told of a folder of images before anything is trained on it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from advisor.data.balance import balance, enough
from tests.cli.printed import PRINTED
from tests.processes import run_command


def draw(root, counts, names="{}.png"):
    for shade, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            coarse = np.random.default_rng(1000 * shade + index).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(coarse.repeat(4, 0).repeat(4, 1)).save(root / name / names.format(index))
    return root


def test_a_good_folder(tmp_path):
    ended = run_command("data", draw(tmp_path / "data", {"a": 20, "b": 20}), cwd=tmp_path)
    assert ended.returncode == 0
    assert "40 images of 2 classes, 20 each" in ended.stdout
    assert "28 to train on, 12 held out (drawn here)" in ended.stdout
    assert "Nothing odd was found" in ended.stdout


def test_names_of_files_are_no_commands_to_the_terminal(tmp_path):
    root = draw(tmp_path / "data", {"a": 20, "b": 20})
    (root / "a" / "\x1b[31mred\n.png").write_bytes((root / "a" / "0.png").read_bytes())
    ended = run_command("data", root, cwd=tmp_path)
    assert ended.returncode == 0
    assert "\x1b" not in ended.stdout
    assert "a/\ufffd[31mred .png" in ended.stdout


def test_what_is_wrong_is_told_with_its_files_and_can_end_the_command(tmp_path):
    root = draw(tmp_path / "data", {"a": 40, "b": 40})
    (root / "b" / "again.png").write_bytes((root / "a" / "0.png").read_bytes())
    ended = run_command("data", root, "--json", "found.json", cwd=tmp_path)
    assert ended.returncode == 0
    assert "a/0.png" in ended.stdout
    told = json.loads((tmp_path / "found.json").read_text())
    assert [finding["kind"] for finding in told["findings"]] == ["two-classes", "copies", "enough"]
    assert told["counts"] == {"a": 40, "b": 41}
    assert run_command("data", root, "--strict", cwd=tmp_path).returncode == 1
    ended = run_command(
        "recommend",
        "torchvision:squeezenet1_1",
        "--data",
        root,
        "--strict",
        "--input-size",
        "3x32x32",
        cwd=tmp_path,
    )
    assert ended.returncode == 2
    assert "--strict: 2 images lie in two classes" in ended.stderr


@pytest.mark.parametrize("form", ["json", "markdown", "csv"])
def test_every_format_has_what_was_found(tmp_path, form):
    root = draw(tmp_path / "data", {"=a": 10, "b|c": 12})
    (root / "b|c" / "again.png").write_bytes((root / "=a" / "0.png").read_bytes())
    ended = run_command("data", root, "--format", form, cwd=tmp_path)
    assert ended.returncode == 0
    told = ended.stdout
    if form == "json":
        document = json.loads(told)
        PRINTED.validate(document)
        assert document["counts"] == {"=a": 10, "b|c": 13}
    elif form == "markdown":
        assert "\n- images: 23 images of 2 classes, 10 to 13 each\n" in told
        assert "\n- **warning** 2 images lie in two classes" in told
        assert "\n  - =a/0.png\n" in told
        assert "\n| b\\|c | 13 |\n" in told
    else:
        assert told == "class,images\n'=a,10\nb|c,13\n"


def test_a_format_that_there_is_not_is_one_line(tmp_path):
    ended = run_command("data", "photos", "--format", "html", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "--format 'html' is not known; use terminal, json, markdown or csv" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_with_a_model_it_tells_how_the_images_are_read(tmp_path):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    with torch.no_grad():  # right of bright and dark, where white is 1 and black is 0
        model[2].weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 3))
        model[2].bias.copy_(torch.tensor([1.5, -1.5]))
    torch.save(model, tmp_path / "model.pt")
    for name, low in (("dark", 70), ("light", 150)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(40):
            shade = np.random.default_rng(index + low).integers(low, low + 40, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(shade).save(tmp_path / "data" / name / f"{index}.png")
    typed = ("data", "data", "--model", "model.pt", "--input-size", "3x8x8")
    wrong = run_command(*typed, "--mean", "0.9,0.9,0.9", "--std", "1,1,1", cwd=tmp_path)
    assert "!! the images seem to be read otherwise than in training" in wrong.stdout
    right = run_command(*typed, "--mean", "0,0,0", "--std", "1,1,1", cwd=tmp_path)
    assert "!!" not in right.stdout


def test_no_data(tmp_path):
    ended = run_command("data", "nowhere", cwd=tmp_path)
    assert ended.returncode == 2
    assert "no such file or folder" in ended.stderr


@pytest.mark.parametrize(
    ("counts", "kinds"),
    [
        ({"a": 50, "b": 50}, []),
        ({"a": 570, "b": 30}, ["uneven"]),
        ({"a": 100, "b": 30, "c": 30}, ["uneven"]),
        ({"a": 50, "b": 3}, ["uneven", "few"]),
    ],
)
def test_balance(counts, kinds):
    assert [finding.kind for finding in balance(counts, named=True)] == kinds


@pytest.mark.parametrize(
    ("labels", "said"),
    [((0, 1, 2), None), ((1, 2, 3), "labels begin at 1"), ((0, 2, 5), "no image has the label 1, 3, 4")],
)
def test_labels_that_are_numbers(labels, said):
    found = balance({str(label): 50 for label in labels}, named=False)
    assert [said in finding.text for finding in found] == ([] if said is None else [True])


def test_four_times_as_many_tell_it_to_half():
    assert "\N{PLUS-MINUS SIGN}10 points" in enough(96).text
    assert "\N{PLUS-MINUS SIGN}5 points" in enough(384).text
    assert "in 96 groups" in enough(500, 96).text
