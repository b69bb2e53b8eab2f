"""--trust: the file's code runs, but without secrets, the network, or all the memory and time there is."""

from __future__ import annotations

import json
import os
import socket
import sys

import pytest
import torch

pytest.importorskip("pty")

from tests.cli.test_cli import one_line
from tests.processes import ROOT, Terminal, run_command

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="confined by Linux alone")

# A network that looks round in each forward pass, and pickles that do as they are read.
CODE = """
import json, os, socket, time
import torch
from torch import nn


def look():
    seen = {"secrets": [name for name in os.environ if os.environ[name] == "canary"]}
    for process in os.listdir("/proc"):
        try:
            with open(f"/proc/{process}/environ", "rb") as file:
                if b"=canary\\0" in file.read():
                    seen["secrets"].append(process)
        except OSError:
            pass
    try:
        socket.create_connection(("127.0.0.1", int(os.environ["PEFT_ADVISOR_TEST_PORT"])), 5)
        seen["reached"] = True
    except OSError as error:
        seen["reached"] = str(error)
    with open("seen.json", "a") as file:
        file.write(json.dumps(seen) + "\\n")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def forward(self, images):
        look()
        return self.head(self.norm(self.convolution(images)).relu().mean((2, 3)))


class Does:
    def __init__(self, function, *arguments):
        self.does = function, arguments

    def __reduce__(self):
        return self.does


def take():
    while True:
        held.append(torch.ones(2**27))


held = []
"""
SEEN = json.dumps({"secrets": [], "reached": "[Errno 13] Permission denied"})
ASKED = ("--trust", "--input-size", "1x8x8", "--methods", "head")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A folder with such files, and the code that they need."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "their_code.py").write_text(CODE)
    sys.path.insert(0, str(folder))
    try:
        import their_code
    finally:
        sys.path.remove(str(folder))
    import time

    torch.save(their_code.Net(), folder / "net.pt")
    torch.save(their_code.Does(time.sleep, 1000.0), folder / "sleeps.pt")
    torch.save(their_code.Does(their_code.take), folder / "takes.pt")
    return folder


@pytest.fixture
def server():
    """Its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def looked(folder):
    """What the code saw, each time that it ran."""
    path = folder / "seen.json"
    seen = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    return seen


def test_its_code_sees_no_secret_and_reaches_nobody(theirs, tmp_path, server):
    env = {"MY_SECRET": "canary", "CANARY": "canary", "PEFT_ADVISOR_TEST_PORT": str(server)}
    asked = ("recommend", "net.pt", *ASKED, "--ram", "3MB", "--no-store", "--json", "-")
    done = run_command(*asked, cwd=theirs, env=env)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["recommended"] is not None
    (told,) = [line for line in done.stderr.splitlines() if "--trust" in line]
    assert "no secrets of the environment, network or other processes" in told
    assert "can't limit" not in told
    seen = looked(theirs)
    assert len(seen) > 3  # it was run: as it was looked at, as costs were counted, as the choice was
    assert {json.dumps(each) for each in seen} == {SEEN}


def test_nor_does_it_where_a_configuration_trusts_it(theirs, tmp_path, server):
    (tmp_path / "pyproject.toml").write_text(
        f"[tool.peft-advisor]\nmodel = '{theirs}/net.pt'\ntrust = true\ninput-size = '1x8x8'\n"
        "methods = ['head']\nram = '3MB'\n"
    )
    path = f"{ROOT}{os.pathsep}{theirs}"
    env = {"GITHUB_TOKEN": "canary", "PEFT_ADVISOR_TEST_PORT": str(server), "PYTHONPATH": path}
    done = run_command("check", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert {json.dumps(each) for each in looked(tmp_path)} == {SEEN}


def test_in_a_check_what_takes_too_long_is_ended(theirs, tmp_path):
    asked = ("check", theirs / "sleeps.pt", *ASKED, "--ram", "3MB", "--time-limit", "8s")
    done = run_command(*asked, cwd=tmp_path)
    assert done.returncode == 2
    assert "the file's code ran for over 8.00 s and was ended; find what it waits for" in done.stderr


@pytest.mark.parametrize(
    ("file", "limit", "said"),
    [
        (
            "sleeps.pt",
            ("--trust-time", "7s"),
            "ran for over 7.00 s and was ended; give --trust-time if it needs",
        ),
        ("takes.pt", ("--trust-memory", "1.5GB"), "its code asks for more memory than there is for it"),
    ],
)
def test_it_neither_hangs_nor_takes_all_memory(theirs, file, limit, said):
    done = run_command("profile", file, *ASKED, *limit, cwd=theirs, env={"PEFT_ADVISOR_QUIET": "1"})
    assert done.returncode == 2
    assert said in one_line(done.stderr)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--executor", "dask://there:1"), "denies the file's code the network, which --executor dask"),
        (("--trust-memory", "5MB"), "--trust-memory is 5.00 MB; with --trust the command needs 1.00 GB"),
        (("--trust-time", "soon"), "soon"),
    ],
)
def test_limits_that_make_no_sense(tell, more, said):
    code, _, err = tell("recommend", "torchvision:squeezenet1_1", "--trust", "--ram", "1GB", *more)
    assert code == 2
    assert said in one_line(err)


def test_ctrl_c_is_answered_there_as_elsewhere(folder, tmp_path):
    asked = ("recommend", "model.pt", "--data", "new-data.npz", *ASKED, "--ram", "3MB", "--no-store")
    asked = (*asked, "--epochs", "200", "--probe-time", "10m", "--json", tmp_path / "o.json")
    running = Terminal(*asked, cwd=folder)
    try:
        running.wait_for("Probing on your data")
        running.press_ctrl_c()
        assert running.ended() == 0, running.seen[-2000:]
    finally:
        running.close()
    found = json.loads((tmp_path / "o.json").read_text())
    assert any("interrupted" in warning for warning in found["warnings"])
