"""What every command has: its help, one line where it is called wrongly, the environment, -q and -v."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from torch import nn

from advisor.cli import app, commands
from tests.cli.printed import PRINTED
from tests.cli.test_cli import one_line
from tests.processes import run_command

ROOT = typer.main.get_command(app)
GROUPED = [(group, name) for group in ("store", "device") for name in ROOT.commands[group].commands]
COMMANDS = [(name,) for name in ROOT.commands] + GROUPED


@pytest.fixture
def network(tmp_path, monkeypatch):
    """A network of 14 parameters, in the current folder."""
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(1, 2)), "model.pt")
    return ("model.pt", "--input-size", "1x3x3", "--methods", "head")


# Help


@pytest.mark.parametrize("name", [(), *COMMANDS], ids=" ".join)
def test_help_has_examples_groups_and_fits(tell, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = tell(*name, "--help")
    assert (code, err) == (0, "")
    assert tell(*name, "-h") == (code, out, err)
    assert out.startswith(f"Usage: {' '.join(('peft-advisor', *name))} [OPTIONS]")
    for option in ("-q, --quiet", "-v, --verbose", "-h, --help"):
        assert option in out
    if name not in (("store",), ("device",)):
        examples = out.partition("\nExamples:\n")[2].partition("\n\n")[0].splitlines()
        assert examples
        assert all(line.startswith(f"  {' '.join(('peft-advisor', *name))}") for line in examples)
        assert max(map(len, examples)) <= 100
    rest = [line for line in out.splitlines() if not line.startswith("  peft-advisor")]
    assert max(map(len, rest)) <= 80


def test_options_stand_in_groups(tell):
    _, out, _ = tell("recommend", "--help")
    groups = re.findall(r"^(\w[\w ]*):$", out, re.MULTILINE)
    assert groups == ["Arguments", "Model", "Data", "Limits", "Search", "Output", "Other", "Examples"]
    assert out.index("\nLimits:") < out.index("--ram SIZE") < out.index("\nSearch:")
    assert "such as PEFT_ADVISOR_" in out
    assert "Exit codes: 0 advice given" in " ".join(out.split())


def test_every_option_of_a_group_is_one_somewhere_or_to_come():
    grouped = [name for names in commands.GROUPS.values() for name in names]
    assert len(grouped) == len(set(grouped))


def test_no_command_is_help(tell):
    code, out, err = tell()
    assert (code, out) == (2, "")
    assert "Commands:" in err


def test_version(tell):
    for option in ("--version", "-V"):
        code, out, err = tell(option)
        assert (code, err) == (0, "")
        assert re.fullmatch(r"peft-advisor \d+\.\d+\.\d+\n", out)


@pytest.mark.parametrize(
    "arguments", ["--version", "recommend -h", "profile m --by x", "methods lorra", "profile x"]
)
def test_what_needs_no_torch_is_told_without_it(arguments):
    code = (
        "import sys\nfrom advisor.cli import main\n"
        f"try:\n    main({arguments.split()!r})\n"
        "except SystemExit:\n"
        "    heavy = {'torch', 'torchvision', 'numpy', 'rich', 'pydantic'} & set(sys.modules)\n"
        "    sys.exit(' '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Wrong command lines


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("reccomend m.pt", "there is no command reccomend; did you mean recommend? See peft-advisor --help"),
        ("frobnicate", "there is no command frobnicate; see peft-advisor --help"),
        ("--versoin", "there is no option --versoin; did you mean --version? See"),
        ("-q", "give a command: recommend, profile,"),
        ("store shwo", "there is no command shwo; did you mean show? See peft-advisor store --help"),
        ("recommend", "MODEL is missing; see peft-advisor recommend --help"),
        ("apply m.pt", "REPORT.json is missing"),
        ("apply m.pt advice.json", "--output is missing"),
        ("recommend m.pt --optimzer adam", "no option --optimzer; did you mean --optimizer?"),
        ("recommend m.pt --optimzer=adam", "no option --optimzer; did you mean --optimizer?"),
        ("recommend m.pt -methods lora", "no option -methods; did you mean --methods?"),
        ("profile m.pt --ram 1MB", "has no option --ram, but recommend, compare, check, init and diff have"),
        ("profile m.pt --methods", "--methods needs a value; see peft-advisor profile --help"),
        ("profile m.pt --trust=1", "--trust takes no value"),
        ("profile m.pt --batch-size many", "--batch-size 'many' is not a whole number"),
        ("recommend m.pt --tolerance much", "--tolerance 'much' is not a number"),
        ("profile m.pt --by layertype", "--by 'layertype' is not known; did you mean layer-type? It takes"),
        ("demo --scenario newclasses", "--scenario 'newclasses' is not known; did you mean new-classes?"),
        ("profile a.pt b.pt", "b.pt is too much: profile takes MODEL; see peft-advisor profile --help"),
        ("profile \x1b[31m.pt --\x1b[31m", "there is no option"),
        ("methods lorra", "unknown method 'lorra'; did you mean lora?"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_one_line(tell, arguments, said):
    code, out, err = tell(*arguments.split())
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert said in one_line(err)
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--optimizer adma", "did you mean adam?"),
        ("--scenario shfit", "did you mean shift?"),
        ("--methods lorra", "did you mean lora?"),
        ("--rehearse gausian-noise --data digits", "did you mean gaussian-noise?"),
        ("--executor locl", "did you mean local?"),
        ("--augment flop", "did you mean flip?"),
    ],
)
def test_a_mistyped_value_has_a_suggestion(tell, network, arguments, said):
    code, out, err = tell("recommend", "model.pt", *arguments.split())
    assert (code, out) == (2, "")
    assert said in one_line(err)


# The environment


def test_every_option_has_a_variable_and_no_two_the_same():
    inner = (*ROOT.commands["store"].commands.values(), *ROOT.commands["device"].commands.values())
    for command in (*ROOT.commands.values(), *inner):
        if hasattr(command, "commands"):
            continue
        options = [param for param in command.params if param.param_type_name == "option"]
        variables = [param.envvar for param in options]
        assert len(set(variables)) == len(variables)
        assert all(re.fullmatch(r"PEFT_ADVISOR_[A-Z_]+", name) for name in variables)
    assert commands.variable_of(ROOT.commands["recommend"].params[5]) == "PEFT_ADVISOR_STORAGE"


def test_the_environment_counts_and_is_told(tell, network, monkeypatch):
    monkeypatch.setenv("PEFT_ADVISOR_BATCH_SIZE", "3")
    monkeypatch.setenv("PEFT_ADVISOR_METHODS", "nonsense")  # typed ones go first
    monkeypatch.setenv("PEFT_ADVISOR_TRUST", "0")
    monkeypatch.setenv("PEFT_ADVISOR_VERSION", "7.0")  # of no option that gives something
    monkeypatch.setattr("sys.argv", ["peft-advisor", "profile", "it"])
    code, out, err = tell("profile", *network, "--json", "-")
    assert code == 0
    found = json.loads(out)
    assert found["batch_size"] == 3
    assert found["provenance"]["command"].startswith(
        "PEFT_ADVISOR_BATCH_SIZE=3 PEFT_ADVISOR_TRUST=0 peft-advisor "
    )
    assert "peft-advisor: from the environment: PEFT_ADVISOR_BATCH_SIZE=3 PEFT_ADVISOR_TRUST=0\n" in err
    _, out, err = tell("profile", *network, "--json", "-", "--batch-size", "5")
    assert json.loads(out)["batch_size"] == 5
    assert "BATCH_SIZE" not in err


def test_a_mistyped_variable_is_told(tell, network, monkeypatch):
    monkeypatch.setenv("PEFT_ADVISOR_METHDOS", "lora")
    monkeypatch.setenv("PEFT_ADVISOR_VERSION", "7.0")
    monkeypatch.setenv("PEFT_ADVISOR_RAM", "1MB")  # of another command
    _, _, err = tell("profile", *network)
    assert "PEFT_ADVISOR_METHDOS sets no option; did you mean PEFT_ADVISOR_METHODS?" in err
    assert err.count("PEFT_ADVISOR") == 2


@pytest.mark.parametrize("value", ["", "fewest"])
def test_a_bare_flops_budget_of_the_environment(tell, network, monkeypatch, value):
    monkeypatch.setenv("PEFT_ADVISOR_FLOPS_BUDGET", value)
    code, out, _ = tell("recommend", *network, "--no-verify", "--json", "-")
    assert code == 0
    assert json.loads(out)["budget"]["fewest_flops"] is True


def test_defaults_from_elsewhere_count_the_least(monkeypatch):
    given = {"profile": {"batch_size": 2, "ranks": "4", "by": "layer-type"}}
    monkeypatch.setenv("PEFT_ADVISOR_RANKS", "8")

    def values(*arguments):
        with ROOT.make_context("peft-advisor", ["profile", "m.pt", *arguments], default_map=given) as context:
            name, command, rest = ROOT.resolve_command(context, ["profile", "m.pt", *arguments])
            return command.make_context(name, rest, parent=context).params

    found = values("--by", "method")
    assert (found["batch_size"], found["ranks"], found["by"], found["optimizer"]) == (
        2,
        "8",
        "method",
        "adam",
    )


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("BATCH_SIZE", "many", "--batch-size 'many' is not a whole number (from PEFT_ADVISOR_BATCH_SIZE)"),
        ("TRUST", "perhaps", "--trust 'perhaps' is not yes or no: write 1 or 0 (from PEFT_ADVISOR_TRUST)"),
        ("BY", "metod", "--by 'metod' is not known; did you mean method?"),
    ],
)
def test_what_the_environment_has_wrong_is_told_with_its_name(tell, monkeypatch, variable, value, said):
    monkeypatch.setenv(f"PEFT_ADVISOR_{variable}", value)
    code, _, err = tell("profile", "model.pt")
    assert code == 2
    assert said in one_line(err)
    assert f"PEFT_ADVISOR_{variable}" in err


# Quiet and verbose


@pytest.mark.parametrize("line", ["-q profile {}", "profile -q {}", "profile {} --quiet", "-q profile {} -q"])
def test_quiet_says_the_result_alone(tell, network, line):
    Path("o.json").write_text("{}")
    before, after = line.split("{}")
    code, out, err = tell(*before.split(), *network, "--json", "o.json", *after.split())
    assert (code, err) == (0, "")
    assert "Base model by layer type" in out


def test_quiet_still_says_errors(tell):
    code, out, err = tell("-q", "profile", "none.pt")
    assert (code, out) == (2, "")
    assert "does not exist" in one_line(err)


@pytest.mark.parametrize("line", ["-v profile {}", "profile {} --verbose"])
def test_verbose_says_each_step(tell, network, line):
    before, after = line.split("{}")
    code, out, err = tell(*before.split(), *network, *after.split())
    assert code == 0
    assert re.search(r"^priced head: [\d.]+ kB, 438 FLOP per update$", err, re.MULTILINE)
    assert re.search(r"^Loading took [\d.]+ m?s$", err, re.MULTILINE)
    assert re.search(r"^Costing every candidate took [\d.]+ m?s$", err, re.MULTILINE)
    assert "priced" not in out
    assert "priced" not in tell("profile", *network)[2]  # nothing stays


def test_verbose_shows_the_traceback_of_what_was_a_line(tell, network, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("advisor.advise.prepare", broken)
    code, _, err = tell("profile", *network)
    assert code == 2
    assert "--verbose shows" in err
    assert "Traceback" not in err
    code, _, err = tell("profile", *network, "-v")
    assert code == 2
    assert "Traceback" in err


def test_both_are_too_much_unless_one_is_the_environments(tell, network, monkeypatch):
    code, _, err = tell("-q", "profile", *network, "-v")
    assert code == 2
    assert "exclude each other" in one_line(err)
    monkeypatch.setenv("PEFT_ADVISOR_QUIET", "1")
    assert tell("profile", *network)[2] == ""
    assert "priced head" in tell("profile", *network, "-v")[2]


# Figures, and how they are shown


def test_figures_of_a_small_network_have_their_own_unit(tell, network):
    _, out, _ = tell("profile", *network, "--batch-size", "1")
    assert "Forward pass of one sample: 22 FLOP; fvcore's count of multiply-adds, doubled:" in out
    assert "0 MFLOP" not in out
    _, out, _ = tell("recommend", *network, "--no-verify", "--report", "-")
    assert "0 MFLOP" not in re.sub(r"[1-9.]\d* MFLOP", "", out)
    assert " 22 FLOP" in out


def test_methods_by_name(tell):
    code, out, err = tell("methods", "dora", "lora")
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if not line.startswith(" ")] == ["dora", "lora"]
    assert "Depthwise kernels are trained themselves" in out  # more than where all are listed
    assert "learning rates of its probes: 0.0005, 0.002, 0.01" in out
    assert "learning rates" not in tell("methods")[1]


def test_methods_in_every_format(tell):
    document = json.loads(tell("methods", "--format", "json")[1])
    known = {each["name"]: each for each in document["methods"]}
    PRINTED.validate(document)
    assert known["lora"]["peft_type"] == "LORA"
    assert known["dora"]["learning_rates"] == [0.0005, 0.002, 0.01]
    rows = list(csv.DictReader(io.StringIO(tell("methods", "--format", "csv")[1])))
    assert [row["name"] for row in rows] == [*known]
    assert [row["formula"] for row in rows] == [each["formula"] for each in known.values()]
    lines = tell("methods", "head", "--format", "markdown")[1].splitlines()
    assert lines[0] == "| method | what is trained | formula | source |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| head"]
    assert "use terminal, json, markdown or csv" in tell("methods", "--format", "html")[2]


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_colour_in_a_pipe_only_where_it_is_forced_and_nothing_moves(
    network, tmp_path, monkeypatch, environment, coloured
):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    asked = ("recommend", *network, "--methods", "head", "--no-verify")
    done = run_command(*asked, cwd=tmp_path, env={"TERM": "xterm"} | environment)
    assert done.returncode == 0, done.stderr
    assert ("\x1b[1;32m" in done.stdout) == coloured  # the answer, in green
    assert "\x1b" not in done.stderr
    if not environment:
        assert "\x1b" not in done.stdout
