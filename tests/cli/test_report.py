"""`peft-advisor report`: of one answer in any format, of several in one page."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from advisor.report.formats import loads
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


@pytest.mark.parametrize("arguments", [(ONE, OTHER), (ONE, ONE, "--report", "page.html")])
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
