"""Completion: what may stand at the cursor, and that a real bash puts it there."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from advisor.cli import app
from advisor.cli.completion import completions

pty = pytest.importorskip("pty")
HOME = Path(__file__).parents[2]
ROOT = typer.main.get_command(app)


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("rec", ["recommend"]),
        ("-q prof", ["profile"]),
        ("store ", ["show", "export", "clear"]),
        ("recommend m.pt --meth", ["--methods"]),
        ("recommend --he", ["--help"]),
        ("recommend m.pt --methods lo", ["loha", "lokr", "lora"]),
        ("recommend m.pt --methods lora,lo", ["lora,loha", "lora,lokr"]),
        ("recommend --methods=no", ["--methods=norm"]),
        ("recommend m.pt --rehearse gau", ["gaussian-noise", "gaussian-blur"]),
        ("recommend m.pt --rehearse fog:", [f"fog:{severity}" for severity in range(1, 6)]),
        ("recommend m.pt --scenario s", ["shift"]),
        ("demo --scenario ", ["shift", "new-classes"]),
        ("recommend m.pt --optimizer ad", ["adam", "adamw"]),
        ("recommend m.pt --executor lo", ["local", "local:"]),
        ("recommend m.pt --data dig", ["digits"]),
        ("profile m.pt --by ", ["method", "layer-type"]),
        ("profile --trust torchvision:mobilenet_v2", ["torchvision:mobilenet_v2"]),
        ("profile t", ["torchvision:", "timm:", "there/", "trained.pt"]),
        ("profile mod", []),  # files: the shell's own completion
        ("profile m.pt ", []),
        ("apply m.pt adv", []),
        ("methods lora do", ["dora"]),
        ("recommend m.pt --ram ", []),
        ("frobnicate --x", []),
    ],
)  # fmt: skip
def test_what_may_stand_there(tmp_path, monkeypatch, typed, found):
    monkeypatch.chdir(tmp_path)
    for name in ("trained.pt", "text.txt", "model.pt"):
        (tmp_path / name).touch()
    (tmp_path / "there").mkdir()
    *words, unfinished = typed.split(" ")
    assert completions(ROOT, words, unfinished) == found


class Bash:
    """An interactive bash with the completion loaded, that knows the command."""

    def __init__(self, folder):
        command = folder / "peft-advisor"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m advisor "$@"\n')
        command.chmod(0o755)
        self._master, slave = pty.openpty()
        environment = {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(HOME), "PS1": "$ "}
        self.process = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-i"],
            cwd=folder,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=os.environ | environment | {"TERM": "dumb", "HOME": str(folder), "INPUTRC": "/dev/null"},
        )
        os.close(slave)
        self.run("bind 'set enable-bracketed-paste off'")
        self.run('source <(peft-advisor --show-completion); echo "load"ed', until="loaded")

    def run(self, line, until="$ "):
        os.write(self._master, f"{line}\n".encode())
        return self._read(until)

    def completed(self, typed):
        """The line after a press of the Tab key."""
        # What stands in the line then is printed: between Ctrl-A and Ctrl-E it becomes an argument of printf.
        os.write(self._master, f"{typed}\t".encode())
        os.write(self._master, b'\x01printf \'<%s>\\n\' "\x05"; echo "do"ne\n')
        seen = self._read("done\r\n")
        return seen.rpartition("\n<")[2].partition(">")[0]

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def _read(self, until):
        seen, end = "", time.monotonic() + 30
        while until not in seen:
            assert time.monotonic() < end, seen
            if select.select([self._master], [], [], 0.1)[0]:
                seen += os.read(self._master, 65536).decode(errors="replace")
        return seen


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    folder = tmp_path_factory.mktemp("bash")
    (folder / "model one.pt").touch()
    (folder / "other.pt").touch()
    shell = Bash(folder)
    yield shell
    shell.close()


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("peft-advisor recom", "peft-advisor recommend "),
        ("peft-advisor recommend m --opti", "peft-advisor recommend m --optimizer "),
        ("peft-advisor recommend m --methods lora,no", "peft-advisor recommend m --methods lora,norm "),
        ("peft-advisor demo --scenario new", "peft-advisor demo --scenario new-classes "),
        ("peft-advisor recommend m --optimizer=mom", "peft-advisor recommend m --optimizer=momentum "),
        ("peft-advisor profile torchv", "peft-advisor profile torchvision:"),
        ("peft-advisor profile torchvision:mobilenet_v2", "peft-advisor profile torchvision:mobilenet_v2 "),
        ("peft-advisor profile torchvision:mobi", "peft-advisor profile torchvision:mobilenet_v"),
        ("peft-advisor profile oth", "peft-advisor profile other.pt "),
        ("peft-advisor profile mod", "peft-advisor profile model\\ one.pt "),
    ],
)  # fmt: skip
def test_in_bash(bash, typed, line):
    assert bash.completed(typed) == line


def test_it_needs_no_torch_and_says_nothing_else(tmp_path):
    line = "peft-advisor profile torchvision:mobilenet_v2"
    code = (
        "import sys\nfrom advisor.cli import main\n"
        "try:\n    main([])\n"
        "except SystemExit as done:\n"
        "    heavy = {'torch', 'torchvision', 'numpy', 'rich', 'pydantic'} & set(sys.modules)\n"
        "    sys.exit(' '.join(heavy) or done.code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"_PEFT_ADVISOR_COMPLETE": "bash", "COMP_LINE": line, "COMP_POINT": str(len(line))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "torchvision:mobilenet_v2\n", "")


def test_install(tell, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".bashrc").write_text("alias x=y")
    for _ in range(2):
        code, out, err = tell("--install-completion")
        assert (code, err) == (0, "")
    first, source, *more = (tmp_path / ".bashrc").read_text().splitlines()
    assert (first, more) == ("alias x=y", [])
    script = source.removeprefix("source ")
    assert script in out
    assert Path(script).read_text() == tell("--show-completion")[1]
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


def test_install_where_it_cannot(tell, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    code, _, err = tell("--install-completion")
    assert code == 2
    assert "--show-completion" in err
