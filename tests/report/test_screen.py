"""The answer on one screen: what stands there, and that it fits."""

from __future__ import annotations

import io
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from advisor.records import Budget, Forecast, Recommendation, Runtime, Target
from advisor.report import dumps, loads, print_recommendation, redacted, render_html
from advisor.report.screen import LINES, screen
from advisor.report.text_tables import render_csv

REPORTS = Path(__file__).parents[2] / "reports"
SAVED = "advice.json"


def lines_of(recommendation: Recommendation, width: int, saved: str | None = SAVED) -> list[str]:
    return [line.plain for line in screen(recommendation, width, saved)]


def rows(lines: list[str]) -> list[str]:
    """The lines of the table of candidates."""
    start = next(number for number, line in enumerate(lines) if line.strip().startswith("candidate"))
    end = next((n for n, line in enumerate(lines) if n > start and line[:2] not in ("> ", "  ", "x ")), None)
    return [line for line in lines[start + 1 : end] if line and not line.startswith("  and ")]


@pytest.mark.parametrize("width", [60, 80, 100, 140])
@pytest.mark.parametrize("saved", [SAVED, None, f"/somewhere/{'far-away/' * 20}advice.json"])
def test_it_fits_on_one_screen_and_nothing_wraps(
    sample: Recommendation, width: int, saved: str | None
) -> None:
    lines = lines_of(sample, width, saved)
    assert len(lines) <= LINES == 24
    assert max(map(cell_len, lines)) <= width
    file = io.StringIO()
    print_recommendation(sample, Console(file=file, width=width), saved=saved)
    assert file.getvalue().splitlines() == lines


@pytest.mark.parametrize("name", ["demo-new-classes", "resnet20-cifar10-noise"])
@pytest.mark.parametrize("width", [80, 140])
def test_real_answers_fit_and_no_name_is_cut(name: str, width: int) -> None:
    lines = lines_of(Recommendation.load(REPORTS / f"{name}.json"), width)
    assert len(lines) <= LINES
    assert max(map(cell_len, lines)) <= width
    assert len(rows(lines)) == 5
    assert not any("..." in row for row in rows(lines))


def test_the_order_is_answer_budgets_best_why_not_warnings_next(samples: dict[str, Recommendation]) -> None:
    text = "\n".join(lines_of(samples["with_data"], 80))
    parts = ("Use norm", "peak memory", "> norm", "Why not full", "! ", "Next: ")
    found = [text.index(part) for part in parts]
    assert found == sorted(found)


def test_what_is_lost_stands_below_what_is_won(samples: dict[str, Recommendation]) -> None:
    first, won, lost, *_ = lines_of(samples["remembered"], 80)
    assert first == "Use norm: norm, learning rate 0.01"
    assert won == "  accuracy  23.5 -> 71.3 % (69.3-73.3), +47.8 points, 2,000 held out"
    assert lost == "  old data  95.6 -> 79.1 % (77.1-81.1), \N{MINUS SIGN}16.5 points"


def test_the_interval_stays_where_the_line_is_long(samples: dict[str, Recommendation]) -> None:
    base = samples["with_data"]
    assert base.data
    found = replace(base, data=replace(base.data, folds=4))
    short, long = (
        next(line for line in lines_of(found, width) if "accuracy " in line) for width in (80, 140)
    )
    assert re.search(r"\(\d+\.\d-\d+\.\d\).*, 2,000 in 4 folds", short)
    assert long.endswith("each of 2,000 held out once in 4 folds")


def test_on_what_and_where_probes_trained_is_told(samples: dict[str, Recommendation]) -> None:
    plain = samples["with_data"]
    assert plain.data is not None
    told = "on random crops and mirror images, on cuda:0 (NVIDIA H200, bfloat16)"
    data = replace(plain.data, augment="standard", device="cuda:0 (NVIDIA H200, bfloat16)")
    on_a_gpu = replace(plain, data=data)
    assert f"  probes    {told}" in lines_of(on_a_gpu, 100)
    assert told in render_html(on_a_gpu)
    assert loads(dumps(on_a_gpu)) == on_a_gpu
    assert not any("probes    " in line for line in lines_of(plain, 100))


def test_a_limit_has_a_bar_and_what_has_none_has_not(samples: dict[str, Recommendation]) -> None:
    lines = lines_of(samples["with_data"], 80)
    (memory,) = (line for line in lines if line.startswith("peak memory"))
    assert re.search(r"638 MB of 640 MB +100 %  #{14}  run within it$", memory)
    (flops,) = (line for line in lines if line.startswith("FLOPs per update"))
    assert flops.endswith("9.86 GFLOP  fewest within 0.5 points of the best")
    (accuracy,) = (line for line in lines if line.startswith("accuracy"))
    assert "at least 50.0 %" in accuracy


def test_a_limit_on_time_stands_beside_the_time(samples: dict[str, Recommendation]) -> None:
    base = samples["with_data"]
    limited = replace(base, budget=replace(base.budget, step_seconds=0.5))
    (time,) = (line for line in lines_of(limited, 80) if line.startswith("time per update"))
    assert "412 ms  of 500 ms on this machine" in time
    assert not any(" of 500 ms" in line for line in lines_of(base, 80))


def test_the_run_is_told_in_the_terms_of_the_users_limit(samples: dict[str, Recommendation]) -> None:
    for everything in (False, True):
        file = io.StringIO()
        console = Console(file=file, width=140)
        print_recommendation(samples["with_data"], console, everything=everything)
        assert "950 MB" not in file.getvalue()  # what the process was held to
    assert "ran, given 640 MB for the update: 634 MB at its peak" in file.getvalue()


@pytest.mark.parametrize(
    ("ram", "counted", "told"),
    [
        (None, 0, "638 MB for the update; the runtime 190 MB more: 828 MB in all"),
        (900, 0, "638 MB for the update; the runtime 190 MB more: 828 of 900 MB"),
        (2000, 0, "638 MB for the update; the runtime 190 MB more: 828 MB of 2.00 GB"),
        (640, 0, "the update fits --ram 640 MB; with the runtime it takes 828 MB"),
        (600, 0, "the update exceeds --ram 600 MB; with the runtime it takes 828 MB"),
        (900, 190, "638 MB for the update and 190 MB for the runtime: 828 of 900 MB"),
    ],
)
def test_the_whole_memory_is_said_first(
    samples: dict[str, Recommendation], ram: int | None, counted: int, told: str
) -> None:
    budget = Budget(ram_bytes=ram and ram * 10**6, runtime_overhead_bytes=counted * 10**6)
    lines = lines_of(replace(samples["with_data"], budget=budget), 80)
    assert f"  memory    {told}" in lines[:5]


def test_on_a_target_every_candidate_has_its_predicted_time(samples: dict[str, Recommendation]) -> None:
    base = samples["with_data"]
    timed = tuple(replace(e, forecast=Forecast(0.5, 600.0, 2.5, 3000.0)) for e in base.evaluations)
    target = Target("pi4", "Linux aarch64", 4, "2.10.0")
    found = replace(base, evaluations=timed, target=target)
    lines = lines_of(found, 80)
    assert "time per update      500 ms  on pi4 (predicted); 10.0 min in all" in lines
    assert "energy               2.50 J  on pi4 (predicted); 3.00 kJ in all" in lines
    assert all("500 ms" in row for row in rows(lines))
    limited = replace(found, budget=replace(base.budget, step_seconds=1.0, total_seconds=1200.0))
    (time,) = (line for line in lines_of(limited, 80) if line.startswith("time per update"))
    assert "of 1.00 s on pi4; 10.0 min of 20.0 min in all" in time
    page = render_html(found).replace("\N{NO-BREAK SPACE}", " ")
    assert "500 ms on pi4 (predicted)" in page
    assert page.count("10.0 min in all</small>") == len(timed)
    assert page.count("2.50 J, 3.00 kJ in all</small>") == len(timed)
    assert loads(dumps(found)) == found
    assert "pi4" not in dumps(redacted(found))
    assert render_csv(found).splitlines()[1].split(",")[-5:-1] == ["0.5", "600.0", "2.5", "3000.0"]


def test_a_targets_runtime_is_told_by_its_name(samples: dict[str, Recommendation]) -> None:
    found = replace(samples["without_data"], runtime=Runtime(190_000_000, "pi4"), budget=Budget())
    assert any("the runtime 190 MB more on pi4" in line for line in lines_of(found, 80))
    assert not any("for the update" in line for line in lines_of(replace(found, runtime=None), 80))


def test_the_best_five_have_a_line_each_and_the_rest_is_counted(samples: dict[str, Recommendation]) -> None:
    lines = lines_of(samples["many"], 80)
    best = rows(lines)
    assert len(best) == 5
    assert best[0].startswith("> ")
    fitting = sum(item.fits for item in samples["many"].evaluations)
    tail = f"  and {fitting - 5} more that fit, {40 - fitting} that don't: "
    assert f"{tail}peft-advisor report {SAVED} --all" in lines
    assert f"{tail}--all" in lines_of(samples["many"], 80, f"somewhere/else/{SAVED}")


def test_what_was_not_tried_is_marked_as_predicted(samples: dict[str, Recommendation]) -> None:
    lines = lines_of(samples["remembered"], 80)
    (head,) = (line for line in rows(lines) if line.startswith("  head"))
    assert "~61.2 %" in head
    assert any("~ not tried, predicted" in line for line in lines)
    assert not any("~" in line for line in lines_of(samples["with_data"], 80))


def test_the_obvious_methods_say_why_not(samples: dict[str, Recommendation]) -> None:
    lines = lines_of(samples["with_data"], 80)
    full, lora = (line for line in lines if line.startswith("Why not"))
    assert re.fullmatch(r"Why not full +peak memory 664 MB, 24 MB over the 640 MB allowed", full)
    assert lora.startswith("Why not lora-")
    chosen = replace(samples["with_data"], recommended="full")
    assert not any(line.startswith("Why not full") for line in lines_of(chosen, 80))


def test_where_nothing_fits_the_nearest_and_a_limit_that_would_do(samples: dict[str, Recommendation]) -> None:
    command = "peft-advisor recommend m.pt --ram 164MB"
    given = replace(samples["nothing_fits"], outcome="none", provenance={"command": command})
    lines = lines_of(given, 80)
    assert lines[0].startswith("Nothing fits 64.0 MB")
    assert rows(lines)[0].startswith("x head")  # the least memory of all
    assert "With --ram 191MB (27.0 MB more) the answer is recalibrate" in lines
    assert "Next: peft-advisor recommend m.pt --ram 191MB" in lines


def test_where_the_model_is_left_alone_nothing_is_to_be_carried_out(
    samples: dict[str, Recommendation],
) -> None:
    lines = lines_of(samples["left_alone"], 80)
    assert lines[0].startswith("Leave the model as it is: 71.0 %")
    assert not any("apply" in line or "Why not" in line for line in lines)


def test_warnings_come_by_weight_and_the_rest_is_counted(samples: dict[str, Recommendation]) -> None:
    told = [line for line in lines_of(samples["long_names"], 80) if line.startswith("! ")]
    assert told[0].startswith("! warning 0 of a kind")
    assert re.fullmatch(r"! warning \d+ of a kind.*; \d+ more warnings: --all", told[-1])


def test_names_use_the_width(samples: dict[str, Recommendation]) -> None:
    name = "adapter-parallel@micro-2@checkpoint@per-parameter"
    long = replace(samples["long_names"], runtime=None)
    assert any(name in row for row in rows(lines_of(long, 140)))
    narrow = rows(lines_of(long, 80))
    assert any(re.match(r"  adapter-.*\.\.\..*-parameter ", row) for row in narrow)


def test_commands_can_be_pasted_as_they_stand(samples: dict[str, Recommendation]) -> None:
    source = "/home/somebody/my models/it's a rather long path to/the-one-network-that-matters/model.pt"
    base = samples["with_data"]
    given = replace(base, model=replace(base.model, source=source))
    lines = lines_of(given, 80)
    start = next(number for number, line in enumerate(lines) if line.startswith("Next: "))
    end = next(n for n, line in enumerate(lines) if n > start and line.startswith("      peft-advisor"))
    command = "\n".join(lines[start:end]).removeprefix("Next: ")
    script = f'set -- {command}\nprintf "%s\\n" "$@"'
    words = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert words.splitlines() == ["peft-advisor", "apply", source, SAVED, "--output", "tuned/"]


def test_for_the_best_five_words_that_the_name_says_and_the_second_command_give_way(
    samples: dict[str, Recommendation],
) -> None:
    tight = samples["remembered"]
    far = f"/home/somebody/{'far-away/' * 5}advice.json"
    roomy, narrow = lines_of(tight, 140), lines_of(tight, 80, far)
    assert roomy[0] == "Use norm: norm, learning rate 0.01"
    assert narrow[0] == "Use norm, learning rate 0.01"
    assert narrow[-1] == "      peft-advisor export MODEL OUT.json --output bundle/"
    assert far in "".join(narrow)


def test_an_answer_that_is_in_no_file_is_saved_first(samples: dict[str, Recommendation]) -> None:
    given = replace(
        samples["with_data"], provenance={"command": "PEFT_ADVISOR_ARCH='a b' peft-advisor recommend m.pt"}
    )
    lines = lines_of(given, 80, saved=None)
    assert lines[-2:] == [
        "Next: PEFT_ADVISOR_ARCH='a b' peft-advisor recommend m.pt --json advice.json",
        "      peft-advisor apply torchvision:mobilenet_v2 advice.json --output tuned/",
    ]
    assert not any(line.startswith("Next") for line in lines_of(replace(given, provenance={}), 80, None))


@pytest.mark.parametrize("command", ["rm -rf /", "LD_PRELOAD=x peft-advisor recommend", "it's", ""])
def test_no_command_but_ours_is_handed_on(samples: dict[str, Recommendation], command: str) -> None:
    given = replace(samples["without_data"], provenance={"command": command})
    assert not any(line.startswith("Next") for line in lines_of(given, 80, None))


def test_without_data_the_next_command_gives_some(samples: dict[str, Recommendation]) -> None:
    lines = lines_of(samples["without_data"], 80)
    assert "  accuracy  unknown, as no data was given: of all that fit, the fewest FLOPs" in lines[:3]
    assert "Next: peft-advisor recommend torchvision:mobilenet_v2 --data IMAGES/" in lines


def test_the_next_command_sets_the_limit_that_would_do(samples: dict[str, Recommendation]) -> None:
    relaxation = replace(samples["nothing_fits"].relaxations[0], limits={"ram": 91_100_000.0})
    given = replace(
        samples["nothing_fits"],
        budget=Budget(ram_bytes=64_000_000),
        relaxations=(relaxation,),
        provenance={"command": "peft-advisor recommend m.pt"},
    )
    assert "Next: peft-advisor recommend m.pt --ram 91.1MB" in lines_of(given, 80)


@pytest.mark.parametrize("width", [80, 140])
def test_how_much_was_tried_is_told_whatever_else_is_warned_of(
    samples: dict[str, Recommendation], width: int
) -> None:
    base = samples["with_data"]
    left = next(item for item in base.evaluations if item.fits and item.candidate.id != base.recommended)
    others = tuple(replace(item, accuracy=None) if item is left else item for item in base.evaluations)
    warnings = tuple(f"trouble number {n}, which takes a line of its own" for n in range(9))
    lines = lines_of(replace(base, evaluations=others, warnings=warnings), width)
    told = [line for line in lines if line.startswith("! ")]
    assert told[0] == f"! {warnings[0]}"
    assert "candidates were tried, none of " in told[1]
    assert told[-1].endswith("more warnings: --all")
    assert len(lines) <= LINES


def test_a_limit_broken_many_times_over_keeps_its_columns(samples: dict[str, Recommendation]) -> None:
    base = samples["with_data"]
    tight = replace(base, budget=replace(base.budget, ram_bytes=1000))
    (line,) = (line for line in lines_of(tight, 80) if line.startswith("peak memory"))
    assert " of 1.00 kB > 9 x  ####" in line


def test_what_a_cheaper_choice_loses_keeps_its_remedy(samples: dict[str, Recommendation]) -> None:
    (line,) = (line for line in lines_of(samples["zeros"], 80) if "points below" in line)
    assert line.endswith("points below the best that fits; --tolerance 0 takes it")
    (line,) = (line for line in lines_of(samples["zeros"], 120) if "points below" in line)
    assert line.endswith("points below the best that fits, full; --tolerance 0 takes it")
