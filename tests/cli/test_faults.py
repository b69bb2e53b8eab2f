"""What may happen to a run that nobody looks at: interrupted, killed, starved of disk, robbed of its data."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from advisor.store import Store
from tests.processes import ROOT, descendants, is_running, start_command, wait_until

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc"),
]
TIMES = 12  # each fault, at other moments
ASKED = ("--input-size", "1x8x8", "--methods", "head,norm,lora", "--ranks", "2", "--ram", "3MB")
ASKED = (*ASKED, "--epochs", "2", "--probe-time", "20s")


@pytest.fixture
def begin(folder, tmp_path):
    """Begins `recommend`, with outputs, a store and temporary files in a folder of its own."""
    started = []

    def go(data="new-data.npz", executor="here"):
        for name in ("out", "tmp"):
            (tmp_path / name).mkdir(exist_ok=True)
        out = tmp_path / "out"
        outputs = ("--json", out / "o.json", "--report", out / "r.html", "--store", tmp_path / "store.sqlite")
        asked = ("recommend", folder / "model.pt", "--data", data, *ASKED, "--executor", executor, *outputs)
        env = {"TMPDIR": str(tmp_path / "tmp"), "JOBLIB_TEMP_FOLDER": str(tmp_path / "tmp")}
        started.append(start_command(*asked, cwd=folder, env=env, fresh=True))
        return started[-1]

    yield go
    for each in started:
        each.kill()
        each.communicate()


def lasts(begin):
    """Seconds that a run takes when it is left alone, and its processes."""
    begun = time.monotonic()
    assert begin().wait(300) == 0
    return time.monotonic() - begun


def wrong_with(folder, said=""):
    """What a run has left that it must not, in words."""
    out = folder / "out"
    found = [f"{each.name} is left" for each in out.iterdir() if each.name not in ("o.json", "r.html")]
    found += [f"{each.name} is left" for each in (folder / "tmp").iterdir()]
    if (out / "o.json").exists():
        json.loads((out / "o.json").read_text())
    if (out / "r.html").exists() and not (out / "r.html").read_text().rstrip().endswith("</html>"):
        found.append("half a report")
    with Store(folder / "store.sqlite") as store:
        list(store)
        found += [store.trouble] if store.trouble else []
    if "Traceback" in said or "unexpected" in said:
        found.append(said[-300:])
    return found


def cleared(folder):
    """For the next time: nothing but what is remembered."""
    for name in ("out", "tmp"):
        shutil.rmtree(folder / name)


@pytest.mark.parametrize("how", ["Ctrl-C", "termination", "kill"])
def test_ended_at_any_moment(begin, tmp_path, how, figure):
    number = {"Ctrl-C": signal.SIGINT, "termination": signal.SIGTERM, "kill": signal.SIGKILL}[how]
    seconds, randomness, wrong = lasts(begin), random.Random(how), []
    for time_of in range(TIMES):
        cleared(tmp_path)
        process = begin(executor=("here", "local:2")[time_of % 2])
        time.sleep(randomness.uniform(0, seconds))
        begun = descendants(process.pid)
        process.send_signal(number)
        said = process.communicate(timeout=120)[1]
        if not wait_until(lambda begun=begun: not any(map(is_running, begun)), 20):
            wrong.append("a process is left")
        if how == "kill":  # nobody is there to take temporary files away
            shutil.rmtree(tmp_path / "tmp")
            (tmp_path / "tmp").mkdir()
        elif process.returncode not in (0, 130, -number):
            wrong.append(f"exit code {process.returncode}: {said[-300:]}")
        wrong += wrong_with(tmp_path, said)
    assert wrong == []
    figure(f"faults: {how} at any moment: left or lost something", len(wrong), 0, of=TIMES)


def test_workers_that_are_killed(begin, tmp_path, figure):
    randomness, wrong, killed = random.Random(0), [], 0
    for _ in range(TIMES // 2):
        process = begin(executor="local:2")
        (tmp_path / "store.sqlite").unlink(missing_ok=True)

        def workers(process=process):
            named = ((each, Path(f"/proc/{each}/cmdline")) for each in descendants(process.pid))
            return [each for each, file in named if file.exists() and b"LokyProcess" in file.read_bytes()]

        if wait_until(workers, 60):
            time.sleep(randomness.uniform(0, 2))
            for each in workers()[:1]:
                os.kill(each, signal.SIGKILL)
                killed += 1
        said = process.communicate(timeout=180)[1]
        if process.returncode != 0 or not (tmp_path / "out" / "o.json").exists():
            wrong.append(f"exit code {process.returncode}: {said[-300:]}")
        wrong += wrong_with(tmp_path, said)
        cleared(tmp_path)
    assert wrong == []
    figure("faults: a worker killed: no advice, or something left", len(wrong), 0, of=killed)


@pytest.fixture
def folder_of_images(tmp_path):
    randomness = np.random.default_rng(0)
    for number in range(300):
        path = tmp_path / f"images/{'abcdefghij'[number % 10]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(randomness.integers(0, 255, (8, 8), np.uint8)).save(path)
    return tmp_path / "images"


@pytest.mark.parametrize("how", ["vanishes", "changes"])
def test_data_that_goes(begin, tmp_path, folder_of_images, how, figure):
    kept, randomness, wrong = tmp_path / "kept", random.Random(how), []
    folder_of_images.rename(kept)
    for _ in range(TIMES // 2):
        shutil.copytree(kept, folder_of_images)
        process = begin(data=folder_of_images)
        time.sleep(randomness.uniform(2, 15))
        for path in folder_of_images.glob("*/*"):
            path.unlink() if how == "vanishes" else path.write_bytes(path.read_bytes()[:50])
        said = process.communicate(timeout=180)[1]
        if process.returncode not in (0, 1) and "error: " not in said:
            wrong.append(f"exit code {process.returncode}: {said[-300:]}")
        wrong += wrong_with(tmp_path, said)
        shutil.rmtree(folder_of_images)
        cleared(tmp_path)
    assert wrong == []
    figure(f"faults: data that {how} during the run: crashed or left something", len(wrong), 0, of=TIMES // 2)


# In a mount namespace of its own: a small file system, on which the rest happens.
_SMALL = """
import json, os, subprocess, sys
folder, size, mode, command = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
if mode == "ro":
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
done = subprocess.run([sys.executable, "-m", "advisor", *command], capture_output=True, text=True)
left = {}
for parent, _, names in os.walk(folder):
    for name in names:
        with open(os.path.join(parent, name), "rb") as file:
            left[os.path.relpath(os.path.join(parent, name), folder)] = file.read().decode("latin1")
print(json.dumps([done.returncode, done.stderr, left]))
"""


def on_a_small_disk(folder, size, mode, *command, cwd):
    """The exit code, what it said, and what there is then: content by name."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("needs a mount namespace")
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", _SMALL, folder, size, mode, *map(str, command)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": tempfile.gettempdir()},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("mode", ["full", "ro"])
@pytest.mark.parametrize("size", ["16k", "64k", "256k", "1m"])
def test_disk_full_or_read_only(folder, tmp_path, size, mode, figure):
    disk = tmp_path / "disk"
    disk.mkdir()
    outputs = ("--json", disk / "o.json", "--report", disk / "r.html", "--store", disk / "store.sqlite")
    command = ("recommend", "model.pt", "--data", "new-data.npz", *ASKED, *outputs)
    code, said, left = on_a_small_disk(disk, size, mode, *command, cwd=folder)
    assert code in (0, 1, 2)
    assert "Traceback" not in said
    assert "unexpected" not in said
    assert code == 0 or "error: " in said
    strange = [name for name in left if not name.startswith(("o.json", "r.html", "store.sqlite"))]
    assert strange == []
    if "o.json" in left:
        json.loads(left["o.json"])
    if "r.html" in left:
        assert left["r.html"].rstrip().endswith("</html>")
    figure(
        f"faults: disk {'read-only' if mode == 'ro' else 'full'}, {size}: half-written files",
        0,
        0,
        of=len(left),
    )
