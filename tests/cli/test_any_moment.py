"""Ctrl-C, or an end by force, at any moment of a run, and data that changes meanwhile.

Nothing is half-written, nothing stays behind, nothing that was finished is lost.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pty")

from advisor.store import Store
from tests.processes import FORKS, Terminal, descendants, is_running, run_command, start_command, wait_until

pytestmark = pytest.mark.skipif(not FORKS, reason="reads /proc")

MOMENTS = int(os.environ.get("MOMENTS", "6"))
ASKED = ("--input-size", "1x8x8", "--methods", "head,norm,lora", "--ranks", "2", "--ram", "3MB")
ASKED = (*ASKED, "--epochs", "1", "--probe-time", "1h")
COSTING, PROBING = "Costing every candidate", "Probing on your data"
SOON = 10  # seconds of a processor from the cause to the end: how busy the machine is doesn't matter


def asked(out, executor):
    out.mkdir(exist_ok=True)
    files = ("--json", out / "o.json", "--report", out / "r.html", "--store", out / "store.sqlite")
    return ("recommend", "model.pt", "--data", "new-data.npz", *ASKED, "--executor", executor, *files)


@pytest.fixture(scope="module")
def moments(folder, tmp_path_factory):
    """When to interfere, in seconds, spread over a run as it is here and now, and with which executor.

    Workers are processes, and have files, that could stay behind.
    """
    lasts, randomness = {}, random.Random(0)
    for executor in ("here", "local:1"):
        begun = time.monotonic()
        done = run_command(*asked(tmp_path_factory.mktemp("whole"), executor), cwd=folder, timeout=900)
        assert done.returncode == 0, done.stderr
        lasts[executor] = time.monotonic() - begun
    each = zip(range(MOMENTS), cycle(lasts), strict=False)
    return [(lasts[how] * (number + randomness.random()) / MOMENTS, how) for number, how in each]


def check_store(path):
    """It can be read, whole."""
    if path.exists():
        with Store(path) as store:
            list(store)
            assert not store.trouble


def left_over(out, temporary, processes):
    """What lies there besides answers and the store, which have to be whole."""
    if (out / "o.json").exists():
        json.loads((out / "o.json").read_text())
    if (out / "r.html").exists():
        assert (out / "r.html").read_text().rstrip().endswith("</html>")
    check_store(out / "store.sqlite")
    strange = {each.name for each in out.iterdir() if not each.name.startswith("store.sqlite")}
    answers = {"o.json", "r.html"}
    former = {f"{each}~" for each in answers}  # of a run that was killed once it had answered
    found = {*strange - answers - former, *(each.name for each in temporary.iterdir())}
    shared = [each.name for each in Path("/dev/shm").iterdir()]  # where worker processes share memory
    return {
        *found,
        *(name for name in shared if any(f"-{each}-" in name.replace("_", "-") for each in processes)),
    }


def keys_in(path):
    """Of all results that a store holds."""
    if not path.exists():
        return set()
    with Store(path) as store:
        return {(result.kind, json.dumps(result.key, sort_keys=True)) for result in store}


@pytest.fixture
def temporary(tmp_path):
    (tmp_path / "temporary").mkdir()
    return tmp_path / "temporary"


@pytest.mark.long
def test_ctrl_c_at_any_moment(folder, tmp_path, temporary, moments, figure):
    found, answers = [], 0
    for number, (moment, executor) in enumerate(moments):
        out = tmp_path / str(number)
        running = Terminal(*asked(out, executor), cwd=folder, TMPDIR=str(temporary))
        try:
            time.sleep(moment)
            begun = {running.process.pid, *descendants(running.process.pid)}
            running.press_ctrl_c()
            code = running.ended(600)
        finally:
            running.close()
        if code not in (0, 130):
            found.append(f"exit code {code}")
        if (code == 0) != (out / "o.json").exists():
            found.append(f"exit code {code}, and " + ("no answer" if code == 0 else "an answer"))
        answers += code == 0
        if "Traceback" in running.seen or "unexpected" in running.seen:
            found.append(running.seen[-500:])
        if not wait_until(lambda own=begun: not any(map(is_running, own)), 60):
            found.append("a process outlives it")
        if left := left_over(out, temporary, begun):
            found.append(f"left {left}")
    assert found == []
    figure(
        "faults: Ctrl-C at any moment: of runs with a fault",
        len(found),
        0,
        of=f"{MOMENTS}, of which {answers} answered from what they knew",
    )


@pytest.mark.long
def test_killed_at_any_moment(folder, tmp_path, temporary, moments, figure):
    """What a killed run leaves behind, the next one removes."""
    found, left, out = [], 0, tmp_path / "killed"
    for moment, executor in moments:
        shutil.rmtree(out, ignore_errors=True)
        running = start_command(
            *asked(out, executor),
            cwd=folder,
            env={"TMPDIR": str(temporary)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(moment)
        begun = {running.pid, *descendants(running.pid)}
        running.kill()
        running.wait()
        if not wait_until(lambda own=begun: not any(map(is_running, own)), 60):
            found.append("a process outlives it")
        left += bool(left_over(out, temporary, begun))
        kept = keys_in(out / "store.sqlite")
        done = run_command(*asked(out, executor), cwd=folder, env={"TMPDIR": str(temporary)}, timeout=900)
        if done.returncode != 0:
            found.append(done.stderr[-500:])
        if there := left_over(out, temporary, begun):
            found.append(f"left {there}")
        if not kept <= keys_in(out / "store.sqlite"):
            found.append("a result is lost")
    assert found == []
    figure(
        "faults: killed at any moment, and begun anew: of runs with a fault",
        len(found),
        0,
        of=f"{MOMENTS}, of which {left} left something for the next to remove",
    )


@pytest.fixture(scope="module")
def surveyed(folder, tmp_path_factory):
    """A folder of images, and a store that knows that all can be read: the next run decodes them late."""
    there = tmp_path_factory.mktemp("surveyed")
    randomness = np.random.default_rng(0)
    for number in range(120):
        home = there / "photos" / str(number % 10)
        home.mkdir(parents=True, exist_ok=True)
        pixels = (randomness.random((8, 8)) * 80 + 15 * (number % 10)).astype(np.uint8)
        Image.fromarray(pixels).save(home / f"{number}.png")
    costs = ("--input-size", "1x8x8", "--methods", "head", "--no-probe", "--no-verify")
    photos = ("--data", there / "photos", "--store", there / "store.sqlite")
    done = run_command("recommend", "model.pt", *costs, *photos, cwd=folder)
    assert done.returncode == 0, done.stderr
    return there


@pytest.fixture
def there(surveyed, tmp_path):
    """The same in a folder of the test's own."""
    return shutil.copytree(surveyed, tmp_path / "surveyed")


def vanish(photos):
    shutil.rmtree(photos)


def change(photos):
    """Some images, to others that can be read as well."""
    for each in photos.glob("*/?0.png"):
        Image.fromarray(np.full((8, 8), 7, np.uint8)).save(each)


def cut_short(photos):
    for each in photos.glob("*/?0.png"):
        each.write_bytes(each.read_bytes()[:40])


def processor_seconds(process_id):
    """That it took so far; None where it has ended."""
    try:
        fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def end_of(running, within=300):
    """How it ended, what it said last, and how much of a processor that took."""
    begun = last = processor_seconds(running.pid) or 0.0

    def ended():
        nonlocal last
        last = processor_seconds(running.pid) or last
        return running.poll() is not None

    assert wait_until(ended, within)
    with running:
        return running.returncode, running.stderr.read(), last - begun


def start_on_photos(folder, there):
    asked = ("recommend", "model.pt", "--data", there / "photos", *ASKED, "--no-verify")
    files = ("--store", there / "store.sqlite", "--json", there / "o.json")
    return start_command(*asked, *files, cwd=folder, stdout=subprocess.DEVNULL)


def wait_for(running, text):
    said = ""
    while text not in said:
        line = running.stderr.readline()
        assert line, said
        said += line


@pytest.mark.parametrize(
    ("harm", "how"),
    [
        (vanish, "changed since this run began and can't be read: No such file or directory; start it again"),
        (change, "changed since this run began; start it again"),
    ],
)
def test_data_that_is_not_what_it_was_ends_the_run_with_a_line(folder, there, harm, how):
    before = {each.name for each in folder.iterdir()}
    running = start_on_photos(folder, there)
    wait_for(running, COSTING)
    harm(there / "photos")
    code, said, seconds = end_of(running)
    assert code == 2, said
    assert "Traceback" not in said
    (error,) = [line for line in said.splitlines() if "error: " in line]
    assert how in error
    assert seconds < SOON
    assert not (there / "o.json").exists()
    assert {each.name for each in folder.iterdir()} == before
    assert any(kind == "cost" for kind, _ in keys_in(there / "store.sqlite"))  # the next run finds them there
    check_store(there / "store.sqlite")


@pytest.mark.long
def test_data_that_is_not_what_it_was_at_any_moment(folder, there, tmp_path, moments, figure):
    found, ends, slowest = [], 0, 0.0
    for number, ((moment, _), harm) in enumerate(
        zip(moments, cycle((vanish, change, cut_short)), strict=False)
    ):
        each = shutil.copytree(there, tmp_path / str(number))
        running = start_on_photos(folder, each)
        time.sleep(moment / 2)  # most of what a run does later has no more to do with files
        harm(each / "photos")
        code, said, seconds = end_of(running, 900)
        errors = [line for line in said.splitlines() if "error: " in line]
        if "Traceback" in said or "unexpected" in said or code not in (0, 2) or len(errors) != (code == 2):
            found.append(f"exit code {code}: {said[-500:]}")
        if (code == 0) != (each / "o.json").exists():
            found.append(f"exit code {code}, and " + ("no answer" if code == 0 else "an answer"))
        if code == 2:
            ends, slowest = ends + 1, max(slowest, seconds)
        check_store(each / "store.sqlite")
    assert found == []
    assert slowest < SOON
    told = f"{MOMENTS}, of which {ends} ended with a line, within {slowest:.0f} s of a processor"
    figure(
        "faults: data that changes or vanishes at any moment: of runs with a fault", len(found), 0, of=told
    )
