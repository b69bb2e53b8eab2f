"""The committed file: what is written is read again, the same content is the same text, and it reads well."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.check import baseline
from advisor.check.records import Figures, LayerFigures, Snapshot
from advisor.errors import InputError
from advisor.records import Budget
from tests.check.records import ELSEWHERE, HERE, LAYERS, snapshot

COUNTS = st.integers(0, 2**62)
NAMES = st.text(max_size=12)
SNAPSHOTS = st.builds(
    Snapshot,
    budget=st.builds(Budget, ram_bytes=st.none() | COUNTS, prefer=st.sampled_from(("ram", "flops"))),
    options=st.dictionaries(NAMES, NAMES, max_size=3),
    recommended=st.sampled_from([None, "norm", "lora-rank=4@last-3@micro-1"]),
    figures=st.none() | st.builds(Figures, COUNTS, COUNTS, COUNTS, COUNTS),
    layers=st.dictionaries(
        NAMES,
        st.builds(LayerFigures, NAMES, st.tuples(COUNTS.map(lambda n: n % 10**9)), COUNTS, COUNTS, COUNTS),
    ),
    machine_peak_bytes=st.dictionaries(NAMES, COUNTS, max_size=2),
    of_tensors=st.sampled_from([None, "norm"]),
)


@given(st.dictionaries(NAMES, st.dictionaries(NAMES, SNAPSHOTS, max_size=2), max_size=2))
def test_what_is_written_is_read_again(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("baseline") / "baseline.json"
    path.write_text(baseline.dumps(content), encoding="utf-8")
    assert baseline.read(path) == content
    assert baseline.is_baseline(path)
    assert baseline.dumps(baseline.read(path)) == path.read_text(encoding="utf-8")


def test_the_order_in_which_things_were_found_changes_no_line():
    one = {"a": {"phone": snapshot(), "camera": snapshot()}, "b": {"default": snapshot()}}
    other = {"b": {"default": snapshot()}, "a": {"camera": snapshot(), "phone": snapshot()}}
    assert baseline.dumps(one) == baseline.dumps(other)


def test_a_layer_is_a_line_and_only_what_changed_is_another_one():
    before = baseline.dumps({"a": {"default": snapshot()}}).splitlines()
    wider = LAYERS | {"features.0": LayerFigures("standard", (32, 3, 3, 3), 864, 2_000_000, 1_200_000)}
    after = baseline.dumps({"a": {"default": snapshot(layers=wider)}}).splitlines()
    (changed,) = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert changed[0].strip() == '"features.0": ["standard", "16x3x3x3", 432, 1000000, 600000],'
    assert changed[1].strip() == '"features.0": ["standard", "32x3x3x3", 864, 2000000, 1200000],'


def test_what_other_machines_take_is_kept_while_nothing_else_changes():
    before = snapshot(machine_peak_bytes={ELSEWHERE: 1_200_000, HERE: 1_050_000})
    assert baseline.renewed(before, snapshot()).machine_peak_bytes == {ELSEWHERE: 1_200_000, HERE: 1_100_000}
    assert baseline.renewed(before, snapshot(recommended="bias")).machine_peak_bytes == {HERE: 1_100_000}
    assert baseline.renewed(None, snapshot()) == snapshot()


def damaged(**changes):
    document = json.loads(baseline.dumps({"a": {"default": snapshot()}}))
    document["models"]["a"]["default"].update(changes)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "has no peft_advisor_baseline"),
        ('{"peft_advisor_baseline": 2}', "this release reads 1"),
        ('{"peft_advisor_baseline": true}', "this release reads 1"),
        ('{"peft_advisor_baseline": 1}', "models should be an object"),
        ('{"peft_advisor_baseline": 1, "models": {"a": 3}}', "models.a should be an object"),
        (damaged(figures={"peak_bytes": "much"}), "models.a.default.figures.trainable_parameters is missing"),
        (damaged(recommended="norm@fast"), "'fast' is no lever"),
        (damaged(layers={"x": [1]}), "layers.x should be a list of 5"),
        (damaged(layers={"x": ["norm", "16y", 1, 1, 1]}), "'16y' is no shape"),
        (damaged(layer_columns=[]), "layer_columns should be layer_type, shape"),
        (damaged(machine_peak_bytes={"x": 1.5}), "should be an integer"),
    ],
)
def test_what_is_no_baseline_is_refused_with_the_mend(tmp_path, text, words):
    path = tmp_path / "baseline.json"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        baseline.read(path)
    assert words in str(error.value)
    assert "check --update" in str(error.value)
    assert "\n" not in str(error.value)


def test_none_there_is_none(tmp_path):
    assert baseline.read(tmp_path / "baseline.json") is None
    assert not baseline.is_baseline(tmp_path / "baseline.json")
