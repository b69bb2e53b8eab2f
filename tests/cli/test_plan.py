"""A per-layer plan on the command line: among the candidates where memory is short, and applied."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from advisor.methods.plan import read
from advisor.records import Candidate

ASK = ("recommend", "model.pt", "--data", "new-data.npz", "--input-size", "1x8x8", "--no-verify")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store") / "store.sqlite"


def test_where_memory_is_short_a_plan_is_tried_and_can_be_applied(run, tmp_path, store):
    ask = (*ASK, "--methods", "plan", "--ram", "600kB", "--probe-time", "3s", "--store", store)
    code, out, err = run(*ask, "--json", "advice.json")
    assert code == 0, err
    advice = json.loads(Path("advice.json").read_text())
    assert {each["method"] for each in advice["candidates"]} == {"plan"}
    for each in advice["candidates"]:
        candidate = Candidate.parse(each["id"])
        assert candidate.id == each["id"]
        assert read(each["setting"]["layers"])[-1].last == 23
        if each["fits"]:
            assert each["cost"]["peak_memory_bytes"] <= 600_000
    tried = [each for each in advice["candidates"] if each["accuracy"] is not None]
    assert tried
    assert all(0 < each["accuracy"]["mean"] <= 1 for each in tried)
    chosen = next(each for each in advice["candidates"] if each["id"] == advice["recommended"])
    assert "Use plan" in out
    assert chosen["setting"]["layers"] not in out  # nobody reads that in passing
    assert any(note.startswith("plan: ") and "in layers" in note for note in chosen["cost"]["notes"])

    code, out, err = run("apply", "model.pt", "advice.json", "--output", tmp_path, "--epochs", 1)
    assert code == 0, err
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert recipe["candidate"] == advice["recommended"]
    assert (tmp_path / "adapter.safetensors").is_file()


def test_asked_again_the_plan_is_read(run, store):
    ask = (*ASK, "--methods", "plan", "--ram", "600kB", "--no-probe", "--store", store)
    found = []
    for number in range(2):
        code, _, err = run(*ask, "--json", f"{number}.json")
        assert code == 0, err
        found.append([e["id"] for e in json.loads(Path(f"{number}.json").read_text())["candidates"]])
    assert found[0] == found[1] != []


def test_where_everything_fits_there_is_none(run):
    code, _, err = run(*ASK, "--methods", "norm,plan", "--no-probe", "--json", "roomy.json")
    assert code == 0, err
    advice = json.loads(Path("roomy.json").read_text())
    assert {each["method"] for each in advice["candidates"]} == {"norm"}
    code, _, err = run(
        *ASK, "--methods", "norm,plan", "--no-probe", "--json", "-", "--flops-budget", "5MFLOPs"
    )
    assert code == 0, err


def test_what_is_no_plan_is_one_line(run):
    code, _, err = run(
        "apply", "model.pt", "roomy.json", "--output", "x", "--candidate", "plan-layers=full:1-4"
    )
    assert code == 2
    assert len(err.strip().splitlines()) == 1, err
