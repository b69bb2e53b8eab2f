"""Ctrl-C in a real terminal: it reaches every process in the foreground, and the answer is given."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("pty")

from tests.processes import Terminal, descendants, is_running, wait_until

# Long probes: none of these would end by itself in time.
ASKED = ("recommend", "model.pt", "--data", "new-data.npz", "--input-size", "1x8x8")
ASKED = (*ASKED, "--methods", "head,norm", "--ram", "3MB", "--no-store", "--epochs", "200", "--probe-time")
PROBING, VERIFYING = "Probing on your data", "Running the choice"


@pytest.fixture
def terminal(folder):
    started = []

    def start(*arguments, **how):
        started.append(Terminal(*arguments, cwd=folder, **how))
        return started[-1]

    yield start
    for each in started:
        each.close()


def answered(terminal, out):
    assert terminal.ended() == 0, terminal.seen[-2000:]
    assert "Traceback" not in terminal.seen
    assert "error:" not in terminal.seen
    found = json.loads((out / "o.json").read_text())
    assert found["recommended"] is not None
    assert (out / "r.html").read_text().startswith("<!doctype html>")
    assert "Next: peft-advisor apply" in terminal.seen
    return found


def is_deaf_worker(process_id):
    """Whether it runs probes, and never sees a Ctrl-C, however early that comes."""
    process = Path(f"/proc/{process_id}")
    blocked = (process / "status").read_text().partition("SigBlk:")[2].split()[0]
    return b"LokyProcess" in (process / "cmdline").read_bytes() and bool(
        int(blocked, 16) & 1 << signal.SIGINT - 1
    )


def outputs(out):
    return ("--json", out / "o.json", "--report", out / "r.html")


@pytest.mark.parametrize("executor", ["here", "local:2"])
def test_during_probes(terminal, tmp_path, executor):
    running = terminal(*ASKED, "10m", "--executor", executor, *outputs(tmp_path))
    running.wait_for(PROBING)
    time.sleep(2)
    workers = 2 if executor == "local:2" else 0

    def are_there():
        return sum(map(is_deaf_worker, descendants(running.process.pid))) == workers

    assert wait_until(are_there, 30)
    begun = descendants(running.process.pid)
    running.press_ctrl_c()
    found = answered(running, tmp_path)
    assert any("interrupted" in warning for warning in found["warnings"])
    chosen = next(c for c in found["candidates"] if c["id"] == found["recommended"])
    assert chosen["measured"]["survived"]  # it is still run before it is recommended
    assert wait_until(lambda: not any(map(is_running, begun)), 10)


def test_during_verification(terminal, tmp_path):
    running = terminal(*ASKED, "1s", *outputs(tmp_path))
    running.wait_for(VERIFYING)
    running.press_ctrl_c()
    found = answered(running, tmp_path)
    chosen = next(c for c in found["candidates"] if c["id"] == found["recommended"])
    assert chosen["measured"] is None
    (warning,) = [warning for warning in found["warnings"] if "was not run" in warning]
    assert "interrupted" in warning


def test_a_second_one_ends_at_once(terminal, tmp_path):
    running = terminal(*ASKED, "10m", *outputs(tmp_path))
    running.wait_for(PROBING)
    time.sleep(1)
    running.press_ctrl_c()
    running.wait_for("once more ends at once")
    running.press_ctrl_c()
    assert running.ended(20) == 130
    assert "Traceback" not in running.seen
    assert not list(tmp_path.iterdir())
    assert running.seen.rindex("\x1b[?25h") > running.seen.rindex("\x1b[?25l")  # the cursor is back


def test_before_anything_is_priced_it_ends_the_run(terminal, tmp_path):
    running = terminal(*ASKED, "10m", *outputs(tmp_path), fresh=True)
    running.wait_for("Loading")
    running.press_ctrl_c()
    assert running.ended() == 130
    assert "Traceback" not in running.seen
    assert not list(tmp_path.iterdir())


def test_while_candidates_are_priced_it_ends_the_run(terminal, folder, tmp_path):
    before = set(folder.iterdir())
    running = terminal(*ASKED, "10m", *outputs(tmp_path))
    running.wait_for("Costing every candidate")
    running.press_ctrl_c()
    assert running.ended() == 130
    assert "Traceback" not in running.seen
    assert not list(tmp_path.iterdir())
    assert set(folder.iterdir()) == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_no_process_outlives_one_that_is_killed(terminal, tmp_path):
    running = terminal(*ASKED, "10m", "--executor", "local:1", fresh=True)  # all children are its own
    running.wait_for(PROBING)
    own = running.process.pid
    assert wait_until(lambda: len(descendants(own)) >= 2, 60)  # a worker, and the waiting child
    time.sleep(3)  # they have begun
    begun = descendants(own)
    os.kill(own, signal.SIGKILL)
    assert wait_until(lambda: not any(map(is_running, begun)), 20)
