"""The store: what was put is there, whoever else writes, whenever a run is killed; damage is set aside."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.errors import InputError
from advisor.store import SCHEMA_VERSION, Store, default_path, set_aside_files

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.dictionaries(st.text(max_size=8), PLAIN, max_size=4)
KINDS = st.sampled_from(["probe", "timing", "plan"])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.sqlite"


def filled(path, count=200):
    """A store that was used and closed: everything is in the one file."""
    with Store(path) as store:
        for number in range(count):
            store.put("probe", {"number": number}, {"found": "x" * 100, "number": number})


def numbers(store, count=200):
    """Of the results that are still there, none of which may differ from what was put."""
    found = {number: store.get("probe", {"number": number}) for number in range(count)}
    kept = {number: value for number, value in found.items() if value is not None}
    assert all(value == {"found": "x" * 100, "number": number} for number, value in kept.items())
    return set(kept)


def processes(code, *arguments, count=1):
    """Python processes that run the code at the same time."""
    command = [
        sys.executable,
        "-c",
        f"import sys\nfrom pathlib import Path\nfrom advisor.store import Store\n{code}",
    ]
    return [
        subprocess.Popen(
            [*command, *map(str, arguments), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(KINDS, KEYS, KEYS), max_size=6))
def test_what_was_put_last_is_there_after_the_file_was_closed(entries):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "store")
        expected = {}
        with Store(path) as store:
            for kind, key, value in entries:
                store.put(kind, key, value)
                expected[kind, json.dumps(key, sort_keys=True)] = value
        with Store(path) as store:
            for (kind, key), value in expected.items():
                assert store.get(kind, json.loads(key)) == value
                assert store.get("another", json.loads(key)) is None
            listed = {(found.kind, json.dumps(found.key, sort_keys=True)): found.value for found in store}
            assert listed == expected
            assert store.clear() == len(expected)
            assert list(store) == []
            assert not store.trouble


def test_the_order_of_a_keys_parts_does_not_matter(path):
    with Store(path) as store:
        store.put("probe", {"a": 1, "b": {"c": 2, "d": 3}}, {"found": 1})
        assert store.get("probe", {"b": {"d": 3, "c": 2}, "a": 1}) == {"found": 1}
        assert store.get("probe", {"a": 1, "b": {"c": 3, "d": 2}}) is None


def test_results_are_told_oldest_first(path):
    with Store(path) as store:
        before = time.time()
        for number in range(5):
            store.put("probe", {"number": number}, {})
        assert [found.key["number"] for found in store] == [0, 1, 2, 3, 4]
        assert all(before <= found.created <= time.time() for found in store)


def test_without_a_file_it_remembers_for_this_run_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store(None)
    store.put("probe", {}, {"found": 1})
    assert store.get("probe", {}) == {"found": 1}
    assert Store(None).get("probe", {}) is None
    assert list(tmp_path.iterdir()) == []


def test_processes_that_write_at_once_lose_nothing(path):
    """All make the file, too: none is there at first."""
    code = """
sys.stdin.readline()
with Store(Path(sys.argv[1])) as store:
    for number in range(100):
        store.put("probe", {"process": sys.argv[2], "number": number}, {"number": number})
        assert store.get("probe", {"process": sys.argv[2], "number": number}) == {"number": number}
assert not store.trouble, store.trouble
"""
    writers = processes(code, path, count=4)
    for writer in writers:
        _, err = writer.communicate("go\n")
        assert writer.returncode == 0, err
    assert len(list(Store(path))) == 400


def test_processes_that_find_it_damaged_at_once_share_the_new_one(path):
    filled(path)
    path.write_bytes(b"garbage " * 1000)
    code = """
print("ready", flush=True)
sys.stdin.readline()
with Store(Path(sys.argv[1])) as store:
    for number in range(50):
        store.put("probe", {"process": sys.argv[2], "number": number}, {"number": number})
print(store.set_aside is not None)
"""
    writers = processes(code, path, count=4)
    for writer in writers:
        writer.stdout.readline()
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    moved = []
    for writer in writers:
        out, err = writer.communicate()
        assert writer.returncode == 0, err
        moved.append(out.strip() == "True")
    assert moved.count(True) == 1
    assert len(set_aside_files(path)) == 1
    assert len(list(Store(path))) == 200


def test_every_put_that_returned_outlives_a_kill(path):
    code = """
store = Store(Path(sys.argv[1]))
number = 0
while True:
    store.put("probe", {"number": number}, {"found": "x" * 100, "number": number})
    print(number, flush=True)
    number += 1
"""
    randomness = random.Random(0)
    for _ in range(4):
        (writer,) = processes(code, path)
        writer.stdout.readline()
        time.sleep(randomness.uniform(0, 0.1))
        writer.send_signal(signal.SIGKILL)
        last = int(["0", *writer.communicate()[0].split()][-1])
        with Store(path) as store:
            assert numbers(store, last + 1) == set(range(last + 1))
            assert not store.trouble
            store.clear()


def garbage(content):
    return b"garbage " * 500


def truncated(content):
    return content[: len(content) * 2 // 3 // 4096 * 4096]


def cut_short(content):
    return content[:50]


@pytest.mark.parametrize("damage", [garbage, truncated, cut_short])
def test_a_file_that_cannot_be_read_is_set_aside(path, damage):
    filled(path)
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with Store(path) as store:
        numbers(store)
        store.put("probe", {"new": 1}, {"found": 1})
        assert store.get("probe", {"new": 1}) == {"found": 1}
        assert store.set_aside is not None
        assert store.set_aside.read_bytes() == damaged
        assert str(store.set_aside) in store.trouble
        assert set_aside_files(path) == [store.set_aside]
    with Store(path) as store:
        assert store.get("probe", {"new": 1}) == {"found": 1}
        assert not store.trouble


@pytest.mark.parametrize("seed", range(6))
def test_a_page_overwritten_in_the_middle_never_gives_a_wrong_result(path, seed):
    filled(path)
    randomness = random.Random(seed)
    content = bytearray(path.read_bytes())
    page = randomness.randrange(1, len(content) // 4096) * 4096
    content[page : page + 4096] = randomness.randbytes(4096) if seed % 2 else bytes(4096)
    path.write_bytes(content)
    with Store(path) as store:
        numbers(store)  # what is there is what was put
        list(store)
        for number in range(200):
            store.put("probe", {"number": number}, {"found": "x" * 100, "number": number})
        assert numbers(store) == set(range(200))


def test_changed_bytes_inside_a_value_are_noticed(path):
    filled(path, 3)
    content = path.read_bytes()
    assert content.count(b'"number": 1}') >= 2  # the key's and the value's
    path.write_bytes(content.replace(b"xxxxx", b"xxxyx"))
    with Store(path) as store:
        assert numbers(store, 3) == set()
        assert list(store) == []


def test_a_file_in_which_what_is_put_gets_lost_is_set_aside(path):
    with Store(path) as store:
        for number in range(12):
            store.put("probe", {"number": number}, {"found": number})
    content = bytearray(path.read_bytes())
    page = content[4096 : 2 * 4096]  # the table's only one, with where its rows begin
    count = int.from_bytes(page[3:5])
    for cell in range(count):
        at = int.from_bytes(page[8 + 2 * cell : 10 + 2 * cell])
        # The next one is put behind them, and sought before.
        content[4096 + at + 2] = 0 if cell == count - 1 else 100
    path.write_bytes(content)
    with Store(path) as store:
        store.put("probe", {"a": 1}, {"b": 2})
        assert store.get("probe", {"a": 1}) == {"b": 2}
        assert str(store.set_aside) in store.trouble


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 0])
def test_another_schema_is_set_aside(path, version):
    filled(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {version}")
    with Store(path) as store:
        assert store.set_aside is not None
        assert list(store) == []


def test_another_programs_database_is_left_alone(path):
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE theirs (id)")
    content = path.read_bytes()
    with pytest.raises(InputError, match="another program"):
        Store(path)
    assert path.read_bytes() == content


def test_a_file_that_never_was_a_store_is_refused_and_stays(path):
    path.write_bytes(b"a model, say")
    with pytest.raises(InputError, match="no store"):
        Store(path)
    assert path.read_bytes() == b"a model, say"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_damaged_file_that_another_run_has_open_stays(path, monkeypatch):
    monkeypatch.setattr("advisor.store._ALONE_SECONDS", 0.1)
    filled(path)
    with Store(path):
        damaged = bytearray(path.read_bytes())
        damaged[4096:] = bytes(len(damaged) - 4096)
        path.write_bytes(damaged)
        with Store(path) as store:
            assert "another run has it open" in store.trouble
            store.put("probe", {}, {"found": 1})
            assert store.get("probe", {}) == {"found": 1}
    assert set_aside_files(path) == []
    with Store(path) as store:
        assert set_aside_files(path) == [store.set_aside]


def test_one_that_gets_damaged_while_it_is_open_never_ends_a_run(path):
    filled(path)
    with Store(path) as store:
        damaged = path.read_bytes()
        path.write_bytes(b"garbage " * (len(damaged) // 8))
        for number in range(200):
            store.put("probe", {"number": number}, {"found": "x" * 100, "number": number})
            store.get("probe", {"number": number})
        list(store)
        store.clear()


def test_one_whose_folder_is_removed_while_it_is_open_never_ends_a_run(tmp_path):
    path = tmp_path / "cache" / "store"
    path.parent.mkdir()
    with Store(path) as store:
        store.put("probe", {"number": 1}, {"found": 1})
        for file in path.parent.iterdir():
            file.unlink()
        path.parent.rmdir()
        for number in range(50):
            store.put("probe", {"number": number}, {"found": number})
            store.get("probe", {"number": number})
        list(store)
    with Store(tmp_path / "another") as store:
        assert list(store) == []


def test_a_path_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "store"):
        with pytest.raises(InputError, match="--no-store") as refused:
            Store(path)
        assert "\n" not in str(refused.value)


@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root may write everywhere")
def test_so_is_one_in_a_folder_that_is_read_only(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o500)
    with pytest.raises(InputError, match="--no-store"):
        Store(folder / "store")


def test_a_full_or_locked_store_does_not_end_a_run(path, monkeypatch):
    monkeypatch.setattr("advisor.store._BUSY_SECONDS", 0.1)
    with Store(path) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        store.put("probe", {}, {"found": 1})
        assert "locked" in store.trouble
        other.execute("ROLLBACK")
        assert store.get("probe", {}) is None
        store.put("probe", {}, {"found": 1})
        assert store.get("probe", {}) == {"found": 1}


def test_what_is_put_after_it_was_closed_is_an_error_of_the_caller(path):
    store = Store(path)
    store.close()
    with pytest.raises(sqlite3.ProgrammingError):
        store.put("probe", {}, {})
    assert set_aside_files(path) == []


def test_the_default_path_is_in_the_platforms_folder_for_caches(monkeypatch, tmp_path):
    assert default_path().name == "store.sqlite"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "peft-advisor" / "store.sqlite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_path() == Path.home() / ".cache" / "peft-advisor" / "store.sqlite"
