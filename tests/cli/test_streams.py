"""stdout carries the result alone, whoever else prints, and in whatever encoding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT, run_command

TALKATIVE = """
import atexit, ctypes, os, sys
from torch import nn

print("printed on import")
sys.__stdout__.write("written to the original stream ")
atexit.register(print, "printed at the end")
atexit.register(os.write, 1, b"written at the end")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))

    def forward(self, x):
        print("printed in the forward pass")
        os.write(1, b"written to the descriptor\\n")
        ctypes.CDLL(None).printf(b"printed by C\\n")
        os.system("echo printed by another program")
        return self.layers(x)
"""
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


@pytest.mark.parametrize("name", ["profile", "recommend"])
def test_json_is_alone_whatever_a_model_prints(tmp_path, name):
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    asked = (name, "talkative:Net", "--input-size", "1x8x8", "--methods", "head", "--json", "-")
    done = run_command(*asked, cwd=tmp_path, text=False, fresh=name == "profile")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["candidates"][0]["method"] == "head"
    for said in (
        b"printed on import",
        b"original stream",
        b"forward pass",
        b"descriptor",
        b"by C",
        b"program",
    ):
        assert said in done.stderr
    assert b"printed at the end" in done.stderr


def test_a_page_on_stdout_is_alone(run):
    asked = ("recommend", "model.pt", "--input-size", "1x8x8", "--methods", "head", "--no-verify")
    code, stdout, _ = run(*asked, "--report", "-")
    assert code == 0
    assert stdout.startswith("<!doctype html>")
    assert stdout.rstrip().endswith("</html>")


def test_stdout_is_as_before_afterwards(run):
    asked = ("profile", "model.pt", "--input-size", "1x8x8", "--methods", "head")
    for _ in range(2):
        code, stdout, _ = run(*asked)
        assert code == 0
        assert "Base model" in stdout


@pytest.mark.parametrize("closed", ["1>&-", "2>&-"])
def test_a_closed_stream_is_no_obstacle(folder, tmp_path, closed):
    asked = ("recommend", "model.pt", "--input-size", "1x8x8", "--methods", "head", "--no-verify", "--json")
    line = " ".join([sys.executable, "-m", "advisor", *asked, str(tmp_path / "o.json"), closed])
    done = subprocess.run(
        line,
        shell=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
    )
    assert json.loads((tmp_path / "o.json").read_text())["recommended"] == "head", done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("methods",),
        ("--help",),
        ("recommend", "--help"),
        ("recommend", "model.pt", "--input-size", "1x8x8", "--methods", "ia3", "--no-verify"),
        ("recommend", "mod\u00e8le.pt"),
    ],
    ids=" ".join,
)
def test_every_command_prints_in_an_ascii_locale(folder, arguments):
    done = run_command(*arguments, cwd=folder, env=ASCII, text=False)
    assert done.returncode == (2 if "mod" in arguments[-1] and len(arguments) == 2 else 0), done.stderr
    assert b"unexpected" not in done.stderr
    assert b"Traceback" not in done.stderr
    (done.stdout + done.stderr).decode("ascii")
    if arguments == ("methods",):
        assert b"LoRA" in done.stdout or b"lora" in done.stdout


def test_a_path_that_is_no_text_is_printed(folder, tmp_path):
    out = os.fsencode(tmp_path) + b"/\xff.html"
    asked = ("recommend", "model.pt", "--input-size", "1x8x8", "--methods", "head", "--no-verify", "--report")
    done = run_command(*asked, out, cwd=folder, env={"PYTHONUTF8": "1"})
    assert done.returncode == 0, done.stderr
    assert Path(os.fsdecode(out)).exists()
