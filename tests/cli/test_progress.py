"""The bars at the width of a plain terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

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
