"""`peft-advisor compare`: one table, one page, and the answers for other commands."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from advisor.records import Recommendation
from tests.cli.test_cli import one_line
from tests.device import profiles


@pytest.fixture
def networks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, width in (("small", 4), ("wide", 64)):
        layers = [nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
        torch.save(nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 2)), f"{name}.pt")
    return ("small.pt", "wide.pt")


ASKED = ("--input-size", "3x12x12", "--methods", "head,norm", "--no-store")


def test_a_table_a_page_and_the_answers(networks, tell, tmp_path):
    for board in ("pi4", "jetson"):
        (tmp_path / f"{board}.json").write_text(json.dumps(profiles.profile()))
    boards = ("--target", "pi4.json", "--target", "jetson.json", "--ram", "1GB")
    code, out, err = tell("compare", *networks, *boards, *ASKED, "--report", "p.html", "--output", "answers")
    assert (code, "error" in err) == (0, False)
    first = [line.split()[0] for line in out.splitlines() if line.strip()][:8]
    assert first == ["pi4:", "network", "small", "wide", "jetson:", "network", "small", "wide"]
    assert "2 networks on 2 boards" in (tmp_path / "p.html").read_text()
    names = {f"{name}-on-{board}.json" for name in ("small", "wide") for board in ("pi4", "jetson")}
    assert {path.name for path in (tmp_path / "answers").iterdir()} == names
    assert Recommendation.load(tmp_path / "answers" / "small-on-pi4.json").target.name == "pi4"


def test_it_is_printed_as_markdown_too(networks, tell):
    code, out, _ = tell("compare", *networks, *ASKED, "--format", "markdown")
    assert code == 0
    assert sum(line.startswith(("| small", "| wide", "| **")) for line in out.splitlines()) == 2


def test_where_nothing_fits_the_exit_code_tells(networks, tell):
    code, out, _ = tell("compare", *networks, "--ram", "10kB", *ASKED)
    assert code == 1
    assert out.count("nothing fits") == 2


@pytest.mark.parametrize(
    "arguments",
    [("small.pt", "small.pt"), ("small.pt", "--best", "0"), ("small.pt", "--target", "none.json")],
)
def test_what_can_not_be_compared_is_said_in_one_line(networks, tell, arguments):
    code, _, err = tell("compare", *arguments, *ASKED)
    assert code == 2
    assert one_line(err)
