"""What is set for reading, and that what can be typed stays as it is."""

from __future__ import annotations

import re

import pytest
from markupsafe import Markup, escape

from advisor.report.fitted import folded
from advisor.report.typeset import breakable, shell, typeset

STAYS = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("-0.8 +- 2.1 points", "\u22120.8 \u00b1 2.1 points"),
        ("fits: -2.5 points (-62.4 to +2.7)", "fits: \u22122.5 points (\u221262.4 to +2.7)"),
        (
            "90.6-96.5, lora-4 and --min-retained 0.9",
            Markup(
                '<span class="word">90.6-96.5,</span> lora-4 and <span class="word">--min-retained</span> 0.9'
            ),
        ),
        ("<b> & 2.67 MB", "<b> & 2.67 MB"),
    ],
)
def test_signs_are_printed_and_names_and_options_kept(text: str, told: str) -> None:
    assert typeset(text).replace(STAYS, " ") == escape(told)


@pytest.mark.parametrize(
    "figure", ["2.67 MB", "94.3 %", "6.80 MFLOP", "0.62 x FLOPs", "21.7 \u2192 94.3 %", "batch 8 of 3x32x32"]
)
def test_no_line_ends_within_a_figure(figure: str) -> None:
    assert typeset(f"of {figure} in all") == f"of {figure.replace(' ', STAYS)} in all"


def test_no_line_of_the_terminal_ends_within_a_figure() -> None:
    for width in range(20, 60):
        lines = folded(
            "Leave it: 71.0 % of 2,000 images right (69.0 to 73.0 %), with 2.67 MB to ship", width, 9
        )
        assert not [line for line in lines if line.strip().startswith(("%", "MB"))]
        assert " ".join(line.strip() for line in lines).isascii()


@pytest.mark.parametrize("name", ["full", "lora-4@last-3@cached-disk", "<i>@b & c"])
def test_a_name_is_whole_and_broken_before_its_levers(name: str) -> None:
    parts = re.split(r"<[^>]*>", breakable(name))
    assert "".join(parts) == escape(name)
    assert [part for part in parts if part][1:] == [f"@{escape(part)}" for part in name.split("@")[1:]]


def test_a_command_is_copied_as_it_stands() -> None:
    command = "peft-advisor apply 'my  model.pt' advice.json --output tuned/"
    assert re.sub(r"<[^>]*>", "", shell(command)) == escape(command)


def test_no_line_ends_within_an_option():
    told = typeset("<i>; to forbid that: --min-retained 0.96")
    assert told == '&lt;i&gt;; to forbid that: <span class="word">--min-retained</span> 0.96'


def test_no_line_ends_between_an_interval_and_the_signs_around_it():
    told = typeset("94.5 % (92.0-98.2), and 70.1-80.3.")
    assert told.replace(STAYS, " ") == (
        '94.5 % <span class="word">(92.0-98.2),</span> and <span class="word">70.1-80.3.</span>'
    )
