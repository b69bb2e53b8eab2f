"""`peft-advisor report`: of one answer in any format, of several in one page."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from advisor.report.formats import loads
from tests.cli.printed import PRINTED
from tests.cli.test_cli import one_line

REPORTS = Path(__file__).parents[2] / "reports"
ONE, OTHER = REPORTS / "demo-new-classes.json", REPORTS / "mobilenet_v2-512MB.json"


def test_several_are_compared_in_one_page(run, tmp_path):
    page = tmp_path / "both.html"
    code, out, _ = run("report", ONE, OTHER, "--report", page)
    assert (code, out) == (0, "")
    text = page.read_text()
    assert ONE.stem in text
    assert OTHER.stem in text
    assert "2 answers compared" in text


def test_several_are_compared_in_every_format(run):
    code, out, _ = run("report", ONE, OTHER)
    assert (code, ONE.stem in out, OTHER.stem in out) == (0, True, True)
    assert run("report", ONE, OTHER, "--format", "markdown")[1].startswith("# 2 answers compared")
    assert run("report", ONE, OTHER, "--format", "html")[1].startswith("<!doctype html>")
    rows = list(csv.DictReader(io.StringIO(run("report", ONE, OTHER, "--format", "csv")[1])))
    assert [row["network"] for row in rows] == [ONE.stem, OTHER.stem]
    document = json.loads(run("report", ONE, OTHER, "--format", "json")[1])
    PRINTED.validate(document)
    assert len(document["compared"]) == 2


@pytest.mark.parametrize("arguments", [(ONE, ONE), (ONE, ONE, "--report", "page.html")])
def test_what_cannot_be_compared_is_said_in_one_line(run, arguments):
    code, _, err = run("report", *arguments)
    assert code == 2
    assert one_line(err)


def test_formats(run):
    document = json.loads(ONE.read_text())
    assert loads(run("report", ONE, "--format", "json")[1]) == loads(ONE.read_text())
    candidates = document["candidates"]
    rows = list(csv.DictReader(io.StringIO(run("report", ONE, "--format", "csv")[1])))
    assert {row["id"] for row in rows} == {candidate["id"] for candidate in candidates}
    assert run("report", ONE, "--format", "markdown")[1].startswith("# Use ")
    assert run("report", ONE, "--format", "html")[1].startswith("<!doctype html>")


def test_redacted(run):
    _, out, _ = run("report", ONE, "--format", "json", "--redact")
    assert "demo/" in ONE.read_text()
    assert "demo/" not in out
    assert len(json.loads(out)["candidates"]) == len(json.loads(ONE.read_text())["candidates"])


@pytest.mark.parametrize(
    "command",
    [("recommend", "model.pt", "--no-verify"), ("profile", "model.pt")],
    ids=["recommend", "profile"],
)
def test_an_answer_is_printed_in_the_same_formats_as_a_saved_one(run, tmp_path, command):
    known = ("--input-size", "1x8x8", "--methods", "norm,head")
    saved = tmp_path / "saved.json"
    code, out, _ = run(*command, *known, "--format", "csv", "--json", saved)
    assert code == 0
    assert out == run("report", saved, "--format", "csv")[1]
    _, out, _ = run(*command, *known, "--format", "json")
    again = loads(out)
    assert again.evaluations == loads(saved.read_text()).evaluations
    assert run(*command, *known, "--format", "markdown")[1].startswith("# ")
    assert run(*command, *known, "--format", "html")[1].startswith("<!doctype html>")


@pytest.mark.parametrize(
    "arguments",
    [
        ("profile", "model.pt", "--json", "-", "--format", "csv"),
        ("profile", "model.pt", "--by", "layer-type", "--format", "csv"),
        ("report", ONE, "--report", "-", "--format", "csv"),
        ("report", ONE, OTHER, "--report", "-", "--format", "csv"),
    ],
)
def test_a_format_that_cannot_be_printed_is_said_in_one_line(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert one_line(err)
    assert "--format" in err
