"""JSON: there and back, as the schema says, and one line for anything that isn't ours."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from advisor import report
from advisor.errors import InputError
from advisor.records import (
    LIMITS,
    Accuracy,
    Budget,
    Candidate,
    Cost,
    Evaluation,
    Flops,
    LayerTypeCost,
    Levers,
    Measurement,
    Memory,
    Recommendation,
    Violation,
)

SCHEMA = json.loads((Path(report.__file__).parent / "schema.json").read_text(encoding="utf-8"))

counts = st.integers(0, 2**53)
# Python's own JSON keeps lone surrogates, which paths may hold.
texts = st.text(st.characters(), max_size=12)
fractions = st.floats(0, 1)
numbers = st.floats(-1e18, 1e18)
flops = st.builds(Flops, counts, counts, counts, counts)
costs = st.builds(
    Cost,
    counts,
    counts,
    flops,
    st.builds(Memory, counts, counts, counts, counts, counts, counts, counts),
    st.dictionaries(texts, st.builds(LayerTypeCost, counts, flops, counts), max_size=3),
    st.sampled_from(("estimated", "simulated", "measured")),
    st.lists(texts, max_size=2).map(tuple),
    numbers,
    st.lists(texts, max_size=2).map(tuple),
)
candidates = st.builds(
    Candidate.of,
    texts,
    st.dictionaries(texts, st.one_of(st.integers(-9, 9), numbers, st.booleans(), texts), max_size=3),
    st.builds(Levers, st.sampled_from(("adam", "sgd"))),
)
accuracies = st.builds(
    Accuracy,
    fractions,
    fractions,
    fractions,
    counts,
    learning_rate=st.none() | numbers,
    updates=counts,
    finalist=st.booleans(),
)
measurements = st.builds(
    Measurement,
    counts,
    counts,
    counts,
    numbers,
    counts,
    st.none() | counts,
    st.booleans(),
    texts,
    update_seconds_lower_quartile=st.none() | numbers,
    update_seconds_upper_quartile=st.none() | numbers,
    update_joules=st.none() | numbers,
    device=texts,
)
violations = st.builds(
    Violation,
    st.sampled_from(("ram", "flops", "storage", "min_accuracy", "execution")),
    numbers,
    numbers,
    texts,
)
evaluations = st.builds(
    Evaluation,
    candidates,
    costs,
    st.none() | measurements,
    st.none() | accuracies,
    texts,
    st.lists(violations, max_size=2).map(tuple),
)
budgets = st.builds(
    Budget,
    st.none() | counts,
    st.none() | counts,
    st.none() | counts,
    st.none() | fractions,
    tolerance=fractions,
    runtime_overhead_bytes=counts,
    prefer=st.sampled_from(("ram", "flops", "storage", "time")),
    step_seconds=st.none() | numbers,
    max_trainable=st.none() | counts,
    max_overhead=st.none() | fractions,
    warn=st.lists(st.sampled_from(LIMITS), unique=True).map(tuple),
)


def test_round_trip(sample: Recommendation) -> None:
    assert report.loads(report.dumps(sample)) == sample


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(evaluations, max_size=3, unique_by=lambda item: item.candidate.id).map(tuple),
    budgets,
    texts,
)
def test_any_record_comes_back(found: tuple[Evaluation, ...], budget: Budget, text: str) -> None:
    from advisor.records import ModelSummary

    given = Recommendation(
        model=ModelSummary(text, text, 0, 0, {}, 0, None, None),
        budget=budget,
        batch_size=8,
        input_size=(3, 32, 32),
        evaluations=found,
        recommended=found[0].candidate.id if found else None,
        answer=text,
        not_applicable={text: text},
        provenance={"seed": 0, "versions": {text: text}},
    )
    assert report.loads(report.dumps(given)) == given


def test_held_out_results_are_read_back(samples: dict[str, Recommendation]) -> None:
    base = samples["with_data"]
    first = base.evaluations[1]
    assert first.accuracy is not None
    with_samples = replace(first, accuracy=replace(first.accuracy, correct=bytes(range(3)) * 500, seeds=2))
    told = replace(base, evaluations=(base.evaluations[0], with_samples, *base.evaluations[2:]))
    text = report.dumps(told)
    assert report.loads(text) == told
    assert len(text) - len(report.dumps(base)) < 100  # deflated


@pytest.mark.parametrize(
    "written", ["not base64!", "AAAA", base64.b64encode(zlib.compress(bytes(2**25))).decode()]
)
def test_held_out_results_that_are_none_are_refused(written: str, samples: dict[str, Recommendation]) -> None:
    document = report.to_json(samples["with_data"])
    document["candidates"][1]["accuracy"]["correct"] = written
    with pytest.raises(InputError, match="correct should be deflated bytes in base64"):
        report.from_json(document)


def test_matches_the_documented_schema(sample: Recommendation) -> None:
    document = json.loads(report.dumps(sample))
    jsonschema.Draft202012Validator(SCHEMA).validate(document)


def test_every_written_key_is_documented(sample: Recommendation) -> None:
    jsonschema.Draft202012Validator(_closed(SCHEMA)).validate(json.loads(report.dumps(sample)))


def test_schema_refuses_what_scripts_rely_on_missing(samples: dict[str, Recommendation]) -> None:
    document = report.to_json(samples["with_data"])
    del document["candidates"][0]["cost"]["update_flops"]["total"]
    with pytest.raises(jsonschema.ValidationError, match="'total' is a required property"):
        jsonschema.Draft202012Validator(SCHEMA).validate(document)


def test_shape_that_scripts_rely_on(samples: dict[str, Recommendation]) -> None:
    document = report.to_json(samples["with_data"])
    assert document["schema_version"] == 1
    assert document["recommended"] == "norm"
    assert document["model"]["layer_types"]["depthwise"] == {
        "count": 17,
        "parameters": 64_224,
        "forward_flops": 41_370_112,
    }
    lora = next(item for item in document["candidates"] if item["id"] == "lora-rank=4")
    assert (lora["method"], lora["setting"], lora["levers"]) == (
        "lora",
        {"rank": 4},
        {
            "optimizer": "adam",
            "scope": None,
            "micro_batch": None,
            "checkpoint": False,
            "update": "end",
            "cached_prefix": "no",
            "fuse": False,
            "statistics": "own",
            "head": "trained",
        },
    )
    assert lora["fits"] is False
    assert lora["violations"][0]["limit"] == "ram"
    cost = lora["cost"]
    assert cost["peak_memory_bytes"] == sum(cost["memory"].values())
    phases = cost["update_flops"]
    assert phases["total"] == sum(value for phase, value in phases.items() if phase != "total")
    by_type = cost["by_layer_type"].values()
    assert sum(item["update_flops"]["total"] for item in by_type) == phases["total"]


def test_unknown_keys_and_missing_defaults_are_fine(samples: dict[str, Recommendation]) -> None:
    document = report.to_json(samples["with_data"])
    document["added_later"] = {"anything": 1}
    del document["warnings"]
    assert report.from_json(document) == replace(samples["with_data"], warnings=())


def _drop(*path: str | int) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return change


def _put(value: Any, *path: str | int) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("schema_version"), "it has no schema_version"),
        (_put(2, "schema_version"), "schema_version is 2, but this release reads 1"),
        (_put(True, "schema_version"), "schema_version is True"),
        (_drop("model"), "model is missing"),
        (_drop("candidates"), "candidates is missing"),
        (_drop("candidates", 0, "cost"), r"candidates\[0\].cost is missing"),
        (
            _drop("candidates", 0, "cost", "update_flops"),
            r"candidates\[0\].cost.update_flops is missing",
        ),
        (
            _drop("candidates", 0, "method"),
            r"candidates\[0\].method should be a string but is None",
        ),
        (_put([], "model"), r"model should be an object but is \[\]"),
        (_put("8", "batch_size"), "batch_size should be an integer but is '8'"),
        (_put(True, "batch_size"), "batch_size should be an integer but is True"),
        (_put(2**70, "batch_size"), "an integer below 2"),
        (_put([1, "x"], "input_size"), r"input_size\[1\] should be an integer"),
        (_put(float("nan"), "budget", "tolerance"), "budget.tolerance should be a finite number"),
        (_put("lots", "budget", "tolerance"), "budget.tolerance should be a number"),
        (
            _put([1], "candidates", 0, "setting", "rank"),
            "should be a number, a string or a boolean",
        ),
        (
            _put("guessed", "candidates", 0, "cost", "fidelity"),
            "one of estimated, simulated, measured",
        ),
        (_put([1], "candidates", 0, "cost", "fidelity"), "one of estimated, simulated, measured"),
        (
            _put("nobody", "recommended"),
            "recommended names 'nobody', which is not among the candidates",
        ),
        (_put(["nobody"], "front"), "front names 'nobody'"),
        (lambda document: document["candidates"].append(document["candidates"][0]), "one id twice"),
    ],
)
def test_refuses_other_documents(
    samples: dict[str, Recommendation], change: Callable[[dict[str, Any]], None], message: str
) -> None:
    document = deepcopy(report.to_json(samples["with_data"]))
    change(document)
    with pytest.raises(InputError, match=message) as caught:
        report.from_json(document)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "x" * 10_000, "[" * 100_000, '{"a": NaN}'])
def test_refuses_other_text(text: str) -> None:
    with pytest.raises(InputError, match="not a saved recommendation") as caught:
        report.loads(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_no_nan_is_written(samples: dict[str, Recommendation]) -> None:
    broken = replace(samples["empty"], budget=Budget(tolerance=float("nan")))
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.dumps(broken)


def test_files_round_trip(samples: dict[str, Recommendation], tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    report.write_json(samples["hostile"], path)
    assert Recommendation.load(path) == samples["hostile"]
    assert [item.name for item in tmp_path.iterdir()] == ["out.json"]


def test_stdout(samples: dict[str, Recommendation], capsys: pytest.CaptureFixture[str]) -> None:
    report.write_json(samples["many"], "-")
    assert report.loads(capsys.readouterr().out) == samples["many"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read .No such file"),
        (b"\xff\xfe\x00", "is not text"),
        (b"{}", "no schema_version"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "in.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        Recommendation.load(path)
    assert str(path) in str(caught.value)


def _closed(schema: Any) -> Any:
    """The schema with every object closed to keys that it does not name."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed
