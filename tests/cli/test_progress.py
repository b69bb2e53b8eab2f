"""The bars at the width of a plain terminal."""

from __future__ import annotations

import io
import re

import pytest
import torch
from rich.console import Console
from torch import nn

from advisor.cli.progress import _STAGES, ProgressBars

LONG = "lora-conv=depthwise-factor-rank=8@last-4@micro-1@checkpoint@per-parameter at 0.003, 50 updates"


def shown(width, running):
    """The lines of all stages, each half done."""
    text = io.StringIO()
    bars = ProgressBars(Console(file=text, force_terminal=True, width=width, color_system=None))
    for stage in _STAGES:
        bars(stage, 0.5, running)
    text.truncate(0)
    bars._console.print(bars._bars.get_renderable())
    return [line for line in text.getvalue().replace("\0", "").split("\n") if line.strip()]


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize("running", ["", LONG, "[red]markup[/red] and [brackets"])
def test_bar_elapsed_and_time_left_are_always_there(width, running):
    lines = shown(width, running)
    assert len(lines) == len(_STAGES)
    for line, name in zip(lines, _STAGES.values(), strict=True):
        assert len(line) <= width
        assert name in line
        assert "━━━━" in line
        assert line.count("0:00:00") + line.count("-:--:--") == 2
        assert " left " in line
    if running == LONG:
        assert all("…" in line or LONG in line for line in lines)
        assert all(LONG[:10] in line for line in lines)
    elif running:
        assert all("[red]" in line for line in lines)


def test_what_leads_is_told_above_the_bars_and_not_too_often():
    text = io.StringIO()
    bars = ProgressBars(Console(file=text, force_terminal=True, width=80, color_system=None))
    for lead in ("ridge, about 70 %", "norm, about 71 %"):  # the second follows at once
        bars("lead", 0.0, lead)
    assert [line for line in text.getvalue().splitlines() if "far" in line] == [
        "So far: ridge, about 70 %; Ctrl-C takes it"
    ]


@pytest.fixture
def seen(tmp_path):
    """What `profile` of a network of 14 parameters shows in a terminal of 80 columns."""
    pytest.importorskip("pty")
    from tests.processes import Terminal

    torch.save(nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(1, 2)), tmp_path / "model.pt")

    def show(*options, **environment):
        asked = ("profile", "model.pt", "--input-size", "1x3x3", "--methods", "head", *options)
        terminal = Terminal(*asked, cwd=tmp_path, **environment)
        try:
            assert terminal.ended() == 0
        finally:
            terminal.close()
        return terminal.seen

    return show


def test_in_a_terminal(seen):
    shown = seen()
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown)
    lines = [line for line in re.split(r"[\r\n]+", plain) if line]
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if re.match(r"Costing every candidate ━+ 0:00:\d\d 0:00:\d\d left", line)]
    assert "\x1b[?25h" in shown  # the cursor is back


def test_a_dumb_terminal_gets_lines_alone(seen):
    shown = seen(TERM="dumb")
    assert "\x1b" not in shown
    assert "Loading ...\r\nCosting every candidate ...\r\n" in shown


def test_no_colour_is_no_colour(seen):
    assert not re.search(r"\x1b\[[\d;]*[349]\dm", seen(NO_COLOR="1"))


def test_quiet_in_a_terminal(seen):
    shown = seen("--quiet")
    assert shown.startswith("Model: ")
    assert "Loading" not in shown
