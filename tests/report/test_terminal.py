"""Terminal output against golden files, and what holds for all of them.

`OVERWRITE_GOLDEN=1 pytest tests/report` writes them anew; look at what changed.
"""

from __future__ import annotations

import io
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from advisor.records import Recommendation
from advisor.report import print_profile, print_recommendation
from advisor.report.next_steps import next_steps
from advisor.report.view import main_ones

GOLDEN = Path(__file__).parent / "golden"
everything = partial(print_recommendation, everything=True)
PRINTERS: dict[str, Callable[..., None]] = {
    "recommend": partial(print_recommendation, saved="advice.json"),
    "all": everything,
    "profile": print_profile,
}


def shown(printer: Callable[..., None], recommendation: Recommendation, width: int) -> str:
    file = io.StringIO()
    printer(recommendation, Console(file=file, width=width, force_terminal=False, no_color=True))
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("recommend", "with_data"),
        ("recommend", "without_data"),
        ("recommend", "nothing_fits"),
        ("recommend", "next_chosen"),
        ("recommend", "hostile"),
        ("recommend", "zeros"),
        ("recommend", "remembered"),
        ("recommend", "left_alone"),
        ("all", "with_data"),
        ("all", "remembered"),
        ("profile", "profile"),
        ("profile", "empty"),
    ],
)
def test_golden(samples: dict[str, Recommendation], kind: str, name: str, width: int) -> None:
    path = GOLDEN / f"{kind}-{name}-{width}.txt"
    output = shown(PRINTERS[kind], samples[name], width)
    if os.environ.get("OVERWRITE_GOLDEN"):
        path.write_text(output, encoding="utf-8")
    assert output == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("kind", ["all", "profile"])
def test_nothing_is_cut(sample: Recommendation, kind: str, width: int) -> None:
    output = shown(PRINTERS[kind], sample, width)
    assert max(map(len, output.splitlines())) <= width
    assert "1 multiply-add = 2 FLOPs" in output
    assert "MB = 10^6 bytes" in output
    shown_ones = sample.evaluations if kind == "all" else main_ones(sample)
    for evaluation in shown_ones:  # a name may go on in the next line
        assert evaluation.candidate.short in "".join(output.split())


def test_order_of_candidates(samples: dict[str, Recommendation]) -> None:
    output = shown(everything, samples["next_chosen"], 120)
    table = output[output.index("Candidates") : output.index("What would")]
    names = re.findall(r"^[> x] ([a-z]+)", table, flags=re.M)[1:]
    # The chosen one; what fits, by accuracy; the rejected, those with an accuracy first.
    assert names[:4] == ["bias", "head", "recalibrate", "norm"]


def test_no_control_codes(samples: dict[str, Recommendation]) -> None:
    for printer in PRINTERS.values():
        output = shown(printer, samples["hostile"], 80)
        assert "\x1b" not in output
        assert "\u202e" not in output
        assert "[bold]" in output  # rich's own markup is text here


def test_colour_changes_no_text(samples: dict[str, Recommendation]) -> None:
    file = io.StringIO()
    colourful = Console(file=file, width=80, force_terminal=True, color_system="truecolor")
    print_recommendation(samples["with_data"], colourful)
    assert "\x1b[" in file.getvalue()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())
    lines = "".join(f"{line.rstrip()}\n" for line in plain.splitlines())
    assert lines == shown(print_recommendation, samples["with_data"], 80)


def test_profile_names_both_counts(samples: dict[str, Recommendation]) -> None:
    output = shown(print_profile, samples["profile"], 120)
    assert "full: 1.67 GFLOP per sample in convolution and linear layers" in output
    assert "619 MFLOP; fvcore's count of multiply-adds, doubled: 628 MFLOP" in output


def test_console_defaults_to_stdout(
    samples: dict[str, Recommendation], capsys: pytest.CaptureFixture[str]
) -> None:
    print_recommendation(samples["without_data"])
    out, err = capsys.readouterr()
    assert "Use head" in out
    assert not err


def test_all_has_every_candidate_on_one_line_at_80_columns(samples: dict[str, Recommendation]) -> None:
    output = shown(everything, samples["many"], 80)
    table = output[output.index("Candidates") : output.index("- over RAM")].splitlines()
    assert sum(line.startswith(("> ", "  ", "x ")) for line in table) == 1 + len(samples["many"].evaluations)


def test_all_says_which_limits_shut_out_how_many(samples: dict[str, Recommendation]) -> None:
    output = shown(everything, samples["nothing_fits"], 140)
    assert "over RAM: 10 candidates, the nearest of them head: peak memory 90 MB" in output


def test_data_that_is_code_is_named_again_for_apply(samples: dict[str, Recommendation]) -> None:
    advice = samples["with_data"]
    assert advice.data is not None
    assert "--data" not in shlex.join(next_steps(advice, "advice.json")[0].words)
    of_code = replace(advice, data=replace(advice.data, source="photos.py:build"))
    assert shlex.join(next_steps(of_code, "advice.json")[0].words).endswith("--data photos.py:build")
