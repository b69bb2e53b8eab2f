"""What is typed goes before the environment, and that before `[tool.peft-advisor]` of pyproject.toml."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import typer

from advisor.cli import app, main, options, profile
from advisor.cli.defaults import from_file

FILE = """
[tool.peft-advisor]
ram = "64MB"
batch-size = 4
methods = ["norm", "head"]
flops-budget = true

[tool.peft-advisor.profile]
batch-size = 2
by = "layer-type"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text(FILE)
    inner = tmp_path / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)
    return tmp_path


def found(name, folder):
    return from_file(name, typer.main.get_command(app).commands[name], folder)


def test_limits_hold_for_all_and_a_commands_own_table_wins(folder):
    assert found("profile", folder) == {"batch_size": "2", "methods": "norm,head", "by": "layer-type"}
    recommend = found("recommend", folder)
    assert (recommend["ram"], recommend["batch_size"]) == ("64MB", "4")
    assert recommend["flops_budget"] == options.FEWEST
    assert found("methods", folder) == {}


def test_the_nearest_of_the_three_wins(folder, monkeypatch, capsys):
    """Up to where the model would be loaded: it isn't there, and the line before says what was taken."""

    def told(*more):
        with pytest.raises(SystemExit) as done:
            main(["profile", "no-such.pt", *more])
        assert done.value.code == 2
        return capsys.readouterr().err

    assert "from pyproject.toml: --batch-size 2, --methods norm,head, --by layer-type" in told()
    monkeypatch.setenv("PEFT_ADVISOR_BATCH_SIZE", "16")
    assert "from pyproject.toml: --methods norm,head, --by layer-type" in told()
    assert "from pyproject.toml: --by layer-type" in told("--methods", "bias")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[tool.peft-advisor.profile]\nbatchsize = 2",
            "profile.batchsize can't be set there; did you mean batch-size?",
        ),
        ("[tool.peft-advisor.profile]\ntrust = true", "profile.trust can't be set there; it has to be typed"),
        ("[tool.peft-advisor.profile]\njson = 'out.json'", "it has to be typed"),
        ("[tool.peft-advisor]\nprofile = 3", "profile should be a table"),
        ("[tool.peft-advisor]\nram = ", "is not valid TOML"),
    ],
)
def test_what_can_not_be_set_is_one_line_with_the_file(folder, text, words, capsys):
    (folder / "pyproject.toml").write_text(text)
    with pytest.raises(SystemExit) as done:
        main(["profile", "no-such.pt"])
    assert done.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert str(folder / "pyproject.toml") in line


def test_commands_that_take_nothing_from_it_run_whatever_it_holds(folder, capsys):
    (folder / "pyproject.toml").write_text("[tool.peft-advisor]\nprofile = 3")
    with pytest.raises(SystemExit) as done:
        main(["methods", "lora"])
    assert not done.value.code
    assert "lora" in capsys.readouterr().out


def test_a_file_without_our_table_costs_no_import(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    monkeypatch.setitem(
        __import__("sys").modules, "advisor.check.configuration", None
    )  # an import would fail
    assert from_file("profile", SimpleNamespace(params=[]), tmp_path) == {}
    assert profile.command
