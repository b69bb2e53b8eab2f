"""A model's import may print, fail, hang or end its process: the check survives it, and names the model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from advisor.check import baseline
from advisor.check.configuration import Configuration, Target
from advisor.check.run import Priced, _with_a_core_to_spare, check, price_all, to_keep
from tests.check.records import snapshot
from tests.processes import is_running, wait_until

GOOD = """
from torch import nn
print("hello from the model")

def build():
    front = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    return nn.Sequential(front, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
"""
BAD = """
import os, subprocess, sys, time
MODE = os.environ["MODE"]
if MODE == "raises":
    raise RuntimeError("no weights here")
if MODE == "exits":
    sys.exit(3)
if MODE == "ends":
    print("about to end", flush=True)
    os._exit(0)
if MODE == "dies":
    os.kill(os.getpid(), 11)
if MODE == "asks":
    input("which weights?")
sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open("sleeper.pid", "w").write(str(sleeper.pid))
time.sleep(600)
"""


def configuration(folder, *sources, time_limit=300.0):
    targets = tuple(
        Target(name, "default", source, input_size=(3, 16, 16), methods=("head", "bias"))
        for name, source in sources
    )
    return Configuration(targets, folder, time_limit=time_limit)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("raises", "no weights here"),
        ("exits", "SystemExit: 3"),
        ("ends", "it ended the process that loaded it; the last that it printed: about to end"),
        ("dies", "was killed by SIGSEGV"),
        ("asks", "EOFError"),
        ("hangs", "it takes longer than 6.00 s to load and price"),
    ],
)
def test_a_model_that_misbehaves_is_a_result(tmp_path, monkeypatch, mode, words):
    (tmp_path / "bad_net.py").write_text(BAD)
    monkeypatch.setenv("MODE", mode)
    limit = 6.0 if mode == "hangs" else 300.0
    wanted = configuration(tmp_path, ("bad", "bad_net:build"), time_limit=limit)
    priced = price_all(wanted, {})
    assert priced[0].checked is None
    assert words in priced[0].failure
    assert "\n" not in priced[0].failure
    report = check(wanted, priced, None)
    assert report.exit_code == 2
    assert report.targets[0].findings[0].rule == "model-failed"
    if mode == "hangs":
        sleeper = int((tmp_path / "sleeper.pid").read_text())
        assert wait_until(lambda: not is_running(sleeper), 10)


def test_others_are_checked_all_the_same_and_prints_stay_apart(tmp_path, monkeypatch, capfd):
    (tmp_path / "bad_net.py").write_text(BAD)
    (tmp_path / "good_net.py").write_text(GOOD)
    monkeypatch.setenv("MODE", "raises")
    wanted = configuration(tmp_path, ("bad", "bad_net:build"), ("good", "good_net:build"))
    began = []
    bad, good = price_all(wanted, {}, to_keep=True, began=began.append)
    assert sorted(began) == ["bad", "good"]
    assert bad.checked is None
    assert good.checked.fits
    assert "hello from the model" in good.printed
    assert "hello" not in "".join(capfd.readouterr())
    # the baseline gets what is known, and what it had of the other stays
    kept = to_keep([bad, good], {"bad": {"default": snapshot()}}, whole=False)
    assert kept == {"bad": {"default": snapshot()}, "good": {"default": good.checked.snapshot}}
    assert list(to_keep([good], {"gone": {"default": snapshot()}}, whole=True)) == ["good"]
    # threads that the surroundings ask for change no byte
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    (again,) = price_all(configuration(tmp_path, ("good", "good_net:build")), {}, to_keep=True)
    first, second = (baseline.dumps({"a": {"b": each.checked.snapshot}}) for each in (good, again))
    assert first == second


def test_a_failure_outweighs_what_only_failed_the_check(tmp_path):
    wanted = configuration(tmp_path, ("a", "a:b"), ("c", "c:d"))
    priced = [Priced(wanted.targets[0], None, "it hangs"), Priced(wanted.targets[1], None, "it hangs")]
    assert check(wanted, priced, {}).exit_code == 2
    assert os.path.relpath(wanted.baseline_path, tmp_path) == "peft-advisor-baseline.json"


def test_the_configuration_is_told_from_the_checkouts_root(tmp_path, monkeypatch):
    folder = tmp_path / "part"
    folder.mkdir()
    wanted = Configuration((), folder, folder / "pyproject.toml")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    assert check(wanted, [], None).configuration == "pyproject.toml"
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    assert check(wanted, [], None).configuration == str(Path("part", "pyproject.toml"))
    monkeypatch.setenv("GITHUB_WORKSPACE", "/elsewhere")
    monkeypatch.chdir("/")
    assert check(wanted, [], None).configuration == str(folder / "pyproject.toml")[1:]


@pytest.mark.parametrize(
    ("models", "cores", "helped"),
    [
        ("a", 2, "a"),
        ("ab", 2, ""),
        ("abc", 2, "c"),
        ("abcd", 2, ""),
        ("ab", 4, "ab"),
        ("abcde", 4, "e"),
        ("a", 1, ""),
    ],
)
def test_those_that_leave_cores_idle_are_helped(models, cores, helped):
    assert _with_a_core_to_spare(list(models), cores) == set(helped)
