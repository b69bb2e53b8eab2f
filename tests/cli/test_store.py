"""`--store` and `peft-advisor store`, as users run them."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from advisor.store import Store, default_path
from tests.cli.printed import PRINTED

QUICK = (
    "--input-size",
    "1x8x8",
    "--methods",
    "head,norm",
    "--probe-time",
    "10m",
    "--epochs",
    "1",
    "--no-verify",
)
QUICKEST = (*QUICK, "--methods", "head")  # where it only matters that something is probed


@pytest.fixture(scope="module")
def few(folder):
    """As many images as need no cross-validation: path."""
    with np.load(folder / "new-data.npz") as data:
        np.savez(folder / "few.npz", images=data["images"][:320], labels=data["labels"][:320])
    return folder / "few.npz"


@pytest.fixture
def store(tmp_path):
    """A store with three results."""
    path = tmp_path / "store.sqlite"
    with Store(path) as opened:
        opened.put("probe", {"model": "a" * 64, "data": "b" * 64, "trial": 1}, {"correct": "01"})
        opened.put("probe", {"model": "a" * 64, "data": "b" * 64, "trial": 2}, {"correct": "00"})
        opened.put("timing", {"model": "a" * 64}, {"update_seconds": 0.1})
    return path


def one_error(result):
    code, out, err = result
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("peft-advisor: error: ")
    assert "unexpected" not in line
    return line


def test_what_was_probed_is_not_probed_again(run, folder, few, tmp_path):
    asked = ("recommend", folder / "model.pt", "--data", few, *QUICK)
    store = tmp_path / "new" / "store"
    code, _, _ = run(*asked, "--store", store, "--json", tmp_path / "first.json")
    assert code == 0
    code, out, _ = run(*asked, "--store", store, "--all", "--json", tmp_path / "again.json")
    assert code == 0
    first, again = (json.loads((tmp_path / name).read_text()) for name in ("first.json", "again.json"))
    probes = first["data"]["probes_run"]
    assert probes > 0
    assert (first["data"]["probes_recalled"], again["data"]["probes_recalled"]) == (0, probes)
    assert again["data"]["probes_run"] == 0
    assert first["candidates"] == again["candidates"]
    assert f"Probes: {probes} from the store, 0 run now" in out

    content = store.read_bytes()
    code, out, _ = run(*asked, "--no-store", "--methods", "head", "--all")
    assert code == 0
    assert "from the store" not in out
    assert store.read_bytes() == content


def test_by_default_it_is_in_the_users_cache_and_not_made_in_vain(run, folder, few, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "cache"))
    asked = ("recommend", folder / "model.pt", *QUICKEST)
    assert run(*asked, "--data", few, "--no-store")[0] == 0
    assert run(*asked, "--data", few, "--epochs", "0")[0] == 2
    assert not default_path().exists()
    assert run(*asked, "--data", few)[0] == 0
    assert tmp_path in default_path().parents
    code, out, _ = run("store", "show")
    assert code == 0
    assert str(default_path()) in out
    assert "probe: " in out


def test_profile_prices_once(run, folder, tmp_path):
    asked = ("profile", folder / "model.pt", "--input-size", "1x8x8", "--json", "-")
    asked = (*asked, "--store", tmp_path / "store")
    first, kept = json.loads(run(*asked)[1]), _costs(tmp_path / "store")
    assert len(kept) >= len(first["candidates"]) > 10
    again = json.loads(run(*asked)[1])
    assert again["candidates"] == first["candidates"]
    assert _costs(tmp_path / "store") == kept


def _costs(path):
    with Store(path) as opened:
        return [result for result in opened if result.kind == "cost"]


def test_a_default_store_that_cannot_be_used_is_no_obstacle(run, folder, few, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "file"))
    code, _, err = run("recommend", folder / "model.pt", "--data", few, *QUICKEST)
    assert code == 0
    assert "warning: nothing is remembered" in err


def test_one_that_was_asked_for_and_cannot_be_used_is_an_error(run, folder, few, tmp_path):
    asked = ("recommend", folder / "model.pt", "--data", few, *QUICK)
    assert "--no-store" in one_error(run(*asked, "--store", tmp_path))
    assert "exclude" in one_error(run(*asked, "--store", "s", "--no-store"))
    assert "--epochs 0" in one_error(run(*asked, "--epochs", "0"))


def test_a_damaged_one_is_set_aside_and_said(run, folder, few, store):
    store.write_bytes(b"garbage " * 1000)
    code, _, err = run("recommend", folder / "model.pt", "--data", few, *QUICKEST, "--store", store)
    assert code == 0
    assert "set aside" in err
    code, out, _ = run("store", "show", "--store", store)
    assert code == 0
    assert "probe: " in out
    assert "was set aside: " in out


def test_show(run, store):
    code, out, _ = run("store", "show", "--store", store)
    assert code == 0
    assert f"{store}: 3 results" in out
    assert "schema version 1" in out
    assert "  probe: 2\n  timing: 1\n" in out
    assert "model aaaaaaaa on data bbbbbbbb: 2" in out


def test_show_tells_scripts_the_same(run, store):
    code, out, _ = run("store", "show", "--store", store, "--format", "json")
    found = json.loads(out)
    PRINTED.validate(found)
    assert (code, found["results"], found["kinds"]) == (0, 3, {"probe": 2, "timing": 1})
    assert found["probes"] == [{"model": "a" * 64, "data": "b" * 64, "results": 2}]
    assert found["bytes"] >= store.stat().st_size
    assert "  \n" not in run("store", "show", "--store", store, "--format", "markdown")[1]
    assert "use terminal, json or markdown" in one_error(
        run("store", "show", "--store", store, "--format", "csv")
    )
    none = json.loads(run("store", "show", "--store", store.parent / "none", "--format", "json")[1])
    PRINTED.validate(none)
    assert (none["exists"], none["results"], none["newest"]) == (False, 0, None)


def test_show_makes_nothing(run, tmp_path):
    code, out, _ = run("store", "show", "--store", tmp_path / "none" / "store")
    assert code == 0
    assert "nothing is stored yet" in out
    assert list(tmp_path.iterdir()) == []


def test_export(run, store, tmp_path):
    code, out, _ = run("store", "export", "--store", store)
    assert code == 0
    found = [json.loads(line) for line in out.splitlines()]
    assert [one["kind"] for one in found] == ["probe", "probe", "timing"]
    assert found[1]["key"]["trial"] == 2
    assert found[1]["value"] == {"correct": "00"}
    code, nothing, _ = run("store", "export", tmp_path / "out.jsonl", "--store", store)
    assert (code, nothing) == (0, "")
    assert (tmp_path / "out.jsonl").read_text() == out
    assert "does not exist" in one_error(run("store", "export", "no/such/file", "--store", store))
    assert "no store" in one_error(run("store", "export", "--store", tmp_path / "none"))


def test_clear_asks_before_it_forgets(run, store, monkeypatch):
    assert "--yes" in one_error(run("store", "clear", "--store", store))
    terminal = io.StringIO("n\n")
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", terminal)
    code, out, err = run("store", "clear", "--store", store)
    assert (code, out.strip()) == (1, "")
    assert "Forget 3 results" in err
    code, out, _ = run("store", "show", "--store", store)
    assert "3 results" in out
    code, out, _ = run("store", "clear", "--store", store, "--yes")
    assert (code, out) == (0, f"{store}: 3 results forgotten\n")
    code, out, _ = run("store", "show", "--store", store)
    assert "0 results" in out


def test_clear_of_nothing(run, tmp_path):
    code, out, _ = run("store", "clear", "--yes", "--store", tmp_path / "none")
    assert code == 0
    assert "nothing is stored" in out
