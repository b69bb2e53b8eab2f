"""Temporary folders go: as they are done with, as their process ends, and where it was killed, soon after."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from advisor.system.files import replacing
from advisor.system.temporary import TemporaryFolder, remove_all, remove_left_behind
from tests.processes import ROOT

pytest.importorskip("fcntl")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Where temporary files go, meanwhile."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def killed(place):
    """A folder whose process was killed while it held it, with a file in it."""
    code = (
        "import os, signal, pathlib; from advisor.system.temporary import TemporaryFolder\n"
        "folder = TemporaryFolder(); pathlib.Path(folder.name, 'file').touch()\n"
        "print(folder.name, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    env = os.environ | {"TMPDIR": str(place), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    found = Path(done.stdout.strip())
    assert (found / "file").exists()
    return found


def test_it_goes_with_its_context(place):
    with TemporaryFolder() as name:
        assert Path(name).parent == place
        open_files = len([*Path("/dev/fd").iterdir()])
    assert not Path(name).exists()
    assert len([*Path("/dev/fd").iterdir()]) == open_files - 1


def test_what_a_killed_process_left_behind_goes_as_the_next_one_is_made(place):
    left = killed(place)
    with TemporaryFolder() as name:
        assert [each.name for each in place.iterdir()] == [Path(name).name]
    assert not left.exists()


def test_those_that_are_held_stay(place):
    with TemporaryFolder() as one, TemporaryFolder() as other:
        code = (
            "from pathlib import Path; from advisor.system.temporary import remove_left_behind; "
            "remove_left_behind(Path(sys.argv[1]))"
        )
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", f"import sys; {code}", place], env=env, check=True)
        assert {str(each) for each in place.iterdir()} == {one, other}


def test_nobody_elses_is_touched(place):
    for name in ("peft-advisory", "peft-adviso-x", "other"):
        (place / name).mkdir()
    (place / "peft-advisor-file").write_text("a file")
    (place / "peft-advisor-link").symlink_to(place / "other")
    before = set(place.iterdir())
    remove_left_behind(place)
    assert set(place.iterdir()) == before


def test_so_does_a_file_that_was_to_take_anothers_place(place):
    code = (
        "import os, signal, sys; from pathlib import Path; from advisor.system.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = place / "a report [1].json"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, path], env=env, check=False)
    (left,) = place.iterdir()
    assert left.read_text() == "half"
    another = place / f".{path.name}.notes"
    another.write_text("stays")
    with replacing(path) as temporary:
        temporary.write_text("whole")
        remove_left_behind(place, ".*.tmp")  # as another process would: it is held
    assert {each.name for each in place.iterdir()} == {path.name, another.name}


def test_all_go_where_a_process_is_about_to_end_at_once(place):
    folders = [TemporaryFolder(), TemporaryFolder(place)]
    remove_all()
    assert list(place.iterdir()) == []
    for each in folders:
        each.cleanup()  # once more does no harm
