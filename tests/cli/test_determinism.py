"""The same question is answered alike, byte by byte but for times; by others, with the same choice.

Threads round differently, and what a kernel works in follows from their number; two workers try two
candidates before either's accuracy is known. So figures may differ there, but not what is advised.
"""

from __future__ import annotations

import json

import pytest

from tests.processes import run_command

pytestmark = pytest.mark.long
ASKED = ("--input-size", "1x8x8", "--methods", "recalibrate,head,norm,lora", "--ranks", "2", "--epochs", "1")
# With ample time no plan depends on the clock.
ASKED = (
    *ASKED,
    "--probe-time",
    "1h",
    "--ram",
    "3MB",
    "--flops-budget",
    "--no-verify",
    "--no-store",
    "--seed",
    "3",
)
TIMED = ("seconds", "joules", "created", "command")
ALIKE = {"again": {}, "with another hash seed": {"env": {"PYTHONHASHSEED": "7"}}}
OTHERS = {
    "with two threads": {"env": {"OMP_NUM_THREADS": "2"}},
    "with two workers": {"more": ("--executor", "local:2")},
}


def without_times(value):
    """The same without what a clock or the way of asking decides."""
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if not key.endswith(TIMED)}
    return [*map(without_times, value)] if isinstance(value, list) else value


def differences(one, other, place=""):
    """Where two documents differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys())
        return [each for key in keys for each in differences(one.get(key), other.get(key), f"{place}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [each for at, pair in pairs for each in differences(*pair, f"{place}[{at}]")]
    return [] if one == other and type(one) is type(other) else [f"{place}: {one!r} / {other!r}"]


@pytest.fixture(scope="module")
def answered(folder, tmp_path_factory):
    """The text of an answer."""
    out = tmp_path_factory.mktemp("out")

    def ask(name, more=(), env=None):
        path = out / f"{name}.json"
        asked = ("recommend", "model.pt", "--data", "new-data.npz", *ASKED, *more, "--json", path)
        assert run_command(*asked, cwd=folder, env=env, timeout=600).returncode == 0
        found = without_times(json.loads(path.read_text()))
        return {key: value for key, value in found.items() if key != "provenance"}

    return ask


@pytest.fixture(scope="module")
def first(answered):
    return answered("first")


@pytest.mark.parametrize("way", ALIKE)
def test_the_same_answer(answered, first, way, figure):
    found = differences(first, answered(way, **ALIKE[way]))
    figure(f"determinism, {way}: values that differ", len(found), 0, of="all of an answer but times")


@pytest.mark.parametrize("way", OTHERS)
def test_the_same_choice(answered, first, way, figure):
    found = differences(choice(first), choice(answered(way, **OTHERS[way])))
    figure(f"determinism, {way}: choices that differ", len(found), 0, of=f"1, {first['recommended']}")


def choice(answer):
    """What is advised, and with which learning rate."""
    chosen = next(each for each in answer["candidates"] if each["id"] == answer["recommended"])
    return {"outcome": answer["outcome"], "id": chosen["id"], "rate": chosen["accuracy"]["learning_rate"]}
