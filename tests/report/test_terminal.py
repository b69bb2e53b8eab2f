"""Terminal output against golden files, and what holds for all of them.

`OVERWRITE_GOLDEN=1 pytest tests/report` writes them anew; look at what changed.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from advisor.records import Estimate, Recommendation
from advisor.report import print_profile, print_recommendation
from advisor.report.view import full_name

GOLDEN = Path(__file__).parent / "golden"
PRINTERS: dict[str, Callable[..., None]] = {
    "recommend": print_recommendation,
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
@pytest.mark.parametrize("kind", PRINTERS)
def test_nothing_is_cut(sample: Recommendation, kind: str, width: int) -> None:
    output = shown(PRINTERS[kind], sample, width)
    assert "\u2026" not in output
    assert max(map(len, output.splitlines())) <= width
    assert "1 multiply-add = 2 FLOPs" in output
    assert "MB = 10^6 bytes" in output
    words = output.split()
    for evaluation in sample.evaluations:
        assert set(full_name(evaluation.candidate).split()) <= set(words)


def test_answer_stands_first(samples: dict[str, Recommendation]) -> None:
    output = shown(print_recommendation, samples["with_data"], 120)
    assert output.splitlines()[1].startswith("\u2502 Train norm: 71.3 % accuracy")


def test_order_of_candidates(samples: dict[str, Recommendation]) -> None:
    output = shown(print_recommendation, samples["next_chosen"], 120)
    table = output[output.index("Candidates") : output.index("What would")]
    names = re.findall(r"^([a-z]+)", table, flags=re.M)[1:]
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
    assert "Without data the cheapest" in out
    assert not err


def test_what_was_not_tried_has_a_predicted_accuracy_and_is_marked(
    samples: dict[str, Recommendation],
) -> None:
    found = samples["with_data"]
    estimate, why = Estimate(0.713, 0.6, 0.8), "not probed: too little time"
    evaluations = tuple(
        replace(e, accuracy=None, predicted=estimate, probe_failure=why) if e.candidate.id == "head" else e
        for e in found.evaluations
    )
    output = shown(print_recommendation, replace(found, evaluations=evaluations), 120)
    assert "~71.3 % (60.0-80.0)" in output
    assert "~ not tried: predicted" in output
    assert "too little time" not in output
