"""`peft-advisor diff`: what changed between two models, two baselines or two saved answers."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest

from advisor.check import baseline
from advisor.check.records import Figures, LayerFigures
from advisor.cli import main
from advisor.records import Recommendation
from advisor.units import format_bytes, format_percent
from tests.check.records import FIGURES, LAYERS, snapshot

ROOT = Path(__file__).parents[2]
DEARER = Figures(trainable_parameters=2000, delta_bytes=8000, update_flops=1_000_000, peak_bytes=1_000_100)
WIDER = LAYERS | {"features.0": LayerFigures("standard", (32, 3, 3, 3), 864, 2_000_000, 1_200_000)}
NETS = """
from torch import nn

def narrow(width=8):
    front = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
    return nn.Sequential(front, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))

def wide():
    return narrow(32)
"""


@pytest.fixture
def diff(capsys):
    def diff(*arguments):
        with pytest.raises(SystemExit) as done:
            main(["diff", *map(str, arguments)])
        captured = capsys.readouterr()
        return done.value.code or 0, captured.out, captured.err

    return diff


def written(path, content):
    path.write_text(baseline.dumps(content))
    return path


def test_baselines_are_compared_target_by_target(tmp_path, diff):
    before = {"net": {"phone": snapshot(), "camera": snapshot(), "gone": snapshot()}}
    after = {
        "net": {"phone": snapshot(figures=DEARER, layers=WIDER), "camera": snapshot()},
        "new": {"default": snapshot()},
    }
    one, other = written(tmp_path / "a.json", before), written(tmp_path / "b.json", after)
    code, out, _ = diff(one, other)
    lines = [line.rstrip() for line in out.splitlines()]
    assert code == 0
    assert [line for line in lines if line[:1] != " "] == [
        "same  net (camera)",
        "changed net (phone)",
        "changed new",
        "changed net (gone)",
        "3 of 4 changed",
    ]
    # any growth counts, and what shrank is told beside it
    assert "peak memory 1.00 MB -> 1.00 MB (+0.0%)" in " ".join(out.split())
    assert "costs less: FLOPs of an update 2.00 MFLOP -> 1.00 MFLOP (-50.0%)" in " ".join(out.split())
    assert "16x3x3x3 -> 32x3x3x3" in out
    for words in ("--update", "allowed", "FAIL"):
        assert words not in out

    code, out, _ = diff(one, one)
    assert (code, out.splitlines()[-1]) == (0, "nothing changed")


def test_saved_answers_are_compared_with_their_accuracies(tmp_path, diff):
    one, other = ROOT / "reports/demo-new-classes.json", ROOT / "reports/resnet20-cifar10-noise.json"
    code, out, _ = diff(one, other, "--json", tmp_path / "out.json")
    assert code == 0
    text = " ".join(out.split())
    before, after = Recommendation.load(one), Recommendation.load(other)
    assert f"{after.recommended} is recommended instead of {before.recommended}" in text
    old, new = (answer.evaluation(answer.recommended).accuracy.mean for answer in (before, after))
    assert f"accuracy {format_percent(old)}" in text
    assert f"{(new - old) * 100:+.1f} points" in text
    assert "batch-size was 16, is 8" in text
    document = json.loads((tmp_path / "out.json").read_text())
    peak = after.evaluation(after.recommended).cost.peak_memory_bytes
    assert f"{after.recommended}: {format_bytes(peak)} of 64.0 MB at the peak" in text
    assert document["exit_code"] == 0
    assert "accuracy-changed" in [finding["rule"] for finding in document["targets"][0]["findings"]]


def test_a_difference_in_every_format(tmp_path, diff):
    one = written(tmp_path / "a.json", {"net": {"phone": snapshot()}})
    other = written(tmp_path / "b.json", {"net": {"phone": snapshot(figures=DEARER)}})
    rows = list(csv.DictReader(io.StringIO(diff(one, other, "--format", "csv")[1])))
    assert {row["figure"] for row in rows} == {field.name for field in dataclasses.fields(Figures)}
    for row in rows:
        assert row["before"] == str(getattr(snapshot().figures, row["figure"]))
        assert row["now"] == str(getattr(DEARER, row["figure"]))
        assert (row["model"], row["target"], row["state"]) == ("net", "phone", "changed")
    code, out, err = diff(one, other, "--format", "json")
    assert (code, err, json.loads(out)["targets"][0]["target"]) == (0, "", "phone")
    assert diff(one, other, "--format", "markdown")[1] == diff(one, other, "--markdown", "-")[1]
    assert "use terminal, json, markdown or csv" in diff(one, other, "--format", "html")[2]


def test_an_answer_and_a_baseline_share_no_layers(tmp_path, diff):
    one = written(tmp_path / "a.json", {"net": {"default": snapshot()}})
    _, out, _ = diff(one, ROOT / "reports/demo-new-classes.json")
    assert "features.0" not in out
    assert "is recommended instead of norm" in " ".join(out.split())


def test_models_are_priced_and_the_layers_named(tmp_path, diff, monkeypatch):
    (tmp_path / "nets_of_diff.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    size = ("--input-size", "3x16x16", "--methods", "head,norm")
    code, out, err = diff("nets_of_diff:narrow", "nets_of_diff:wide", *size, "--markdown", "out.md")
    assert code == 0, err
    assert "8x3x3x3 -> 32x3x3x3" in out
    assert "is recommended instead" not in out
    assert Path("out.md").read_text().startswith("### Fine-tuning costs: 1 of 1 changed")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.json", "can't be read"),
        ("nowhere.pt", "does not exist"),
        ("other.json", "not a saved recommendation"),
    ],
)
def test_what_is_none_of_them_is_one_line(tmp_path, diff, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    Path("other.json").write_text("{}")
    one = written(tmp_path / "a.json", {"net": {"default": snapshot()}})
    code, out, err = diff(one, name)
    assert (code, out) == (2, "")
    assert words in err.splitlines()[-1]
    assert FIGURES.peak_bytes == 1_000_000
