"""`[tool.peft-advisor]`: what may stand there, which place wins, and what is said of the rest."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.check.configuration import find_file, one_model, parse_configuration, read_configuration
from advisor.check.configure import with_model
from advisor.errors import InputError

WHOLE = """
[project]
name = "camera"

[tool.peft-advisor]
baseline = "ci/costs.json"
fail-on-increase = "2.5%"
time-limit = "90s"
ram = "64MB"
batch-size = 4
methods = ["norm", "lora"]

[tool.peft-advisor.models.classifier]
model = "nets:build"
input-size = "3x96x96"
batch-size = 16

[tool.peft-advisor.models.classifier.targets.phone]
ram = "48MB"
flops-budget = "2GFLOPs"

[tool.peft-advisor.models.classifier.targets.camera]
storage = "1MB"
batch-size = 2
candidate = "lora-rank=4@last-3"

[tool.peft-advisor.models."second one"]
model = "weights/second.pt"
arch = "torchvision:resnet18"
ranks = [8, 2]
flops-budget = true
"""


def parsed(text, **given):
    return parse_configuration(text, Path("/somewhere/pyproject.toml"), given)


def test_the_narrower_place_wins():
    found = parsed(WHOLE)
    phone, camera, second = found.targets
    assert (phone.model, phone.name, phone.source) == ("classifier", "phone", "nets:build")
    assert (phone.budget.ram_bytes, phone.budget.flops, phone.batch_size) == (48_000_000, 2_000_000_000, 16)
    assert phone.methods == ("norm", "lora")
    assert phone.input_size == (3, 96, 96)
    assert (camera.budget.ram_bytes, camera.budget.storage_bytes, camera.batch_size) == (64_000_000, 10**6, 2)
    assert camera.candidate == "lora-rank=4@last-3"
    assert phone.candidate is None
    assert (second.name, second.arch, second.ranks) == ("default", "torchvision:resnet18", (2, 8))
    assert second.budget.fewest_flops
    assert second.batch_size == 4
    assert (found.fail_on_increase, found.time_limit) == (0.025, 90.0)
    assert found.baseline_path == Path("/somewhere/ci/costs.json")


def test_the_command_line_wins_over_the_file():
    found = parsed(WHOLE, ram="1MB", **{"fail-on-increase": "7%", "batch-size": 1})
    assert {target.budget.ram_bytes for target in found.targets} == {1_000_000}
    assert {target.batch_size for target in found.targets} == {1}
    assert found.fail_on_increase == 0.07


def test_where_each_model_is_named_is_known():
    lines = WHOLE.splitlines()
    assert {name: lines[line - 1] for name, line in parsed(WHOLE).lines.items()} == {
        "classifier": "[tool.peft-advisor.models.classifier]",
        "second one": '[tool.peft-advisor.models."second one"]',
    }


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("torchvision:mobilenet_v2", "mobilenet_v2"),
        ("nets:build", "build"),
        ("weights/cam.v2.pt", "cam.v2"),
        ("./model.safetensors", "model"),
    ],
)
def test_one_model_needs_no_table_of_its_own(model, name):
    (target,) = parsed(f'[tool.peft-advisor]\nmodel = "{model}"\nram = "8MB"\n').targets
    assert (target.model, target.name, target.source) == (name, "default", model)


def test_one_of_several_is_chosen():
    found = parsed(WHOLE)
    assert [target.name for target in found.only("second one").targets] == ["default"]
    assert not found.only("second one").is_whole
    assert found.only(None) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[project]\nname = 'x'", "has no [tool.peft-advisor] table"),
        ("[tool.peft-advisor", "is not valid TOML"),
        ("[tool]\npeft-advisor = 3", "tool.peft-advisor is no table"),
        ("[tool.peft-advisor]\nram = '1MB'", "names no model"),
        ("[tool.peft-advisor]\nmodels = 3", "models should be a table"),
        ("[tool.peft-advisor.models]\na = 'nets:build'", "models.a should be a table"),
        ("[tool.peft-advisor.models.a]\nram = '1MB'", "models.a.model is missing"),
        ("[tool.peft-advisor]\nmodel='a:b'\n[tool.peft-advisor.models.c]\nmodel='a:b'", "not both"),
        (
            "[tool.peft-advisor]\ntrust=true\n[tool.peft-advisor.models.c]\nmodel='a:b'",
            "put them into its table",
        ),
        ("[tool.peft-advisor]\nmodle = 'a:b'", "modle is unknown; did you mean model?"),
        ("[tool.peft-advisor.models.a]\nmodel='a:b'\nflops_budget='1MFLOP'", "did you mean flops-budget?"),
        ("[tool.peft-advisor.models.a]\nmodel='a:b'\nxyzzy=1", "xyzzy is unknown; it may hold ram"),
        (
            "[tool.peft-advisor.models.a]\nmodel='a:b'\n[tool.peft-advisor.models.a.targets.t]\nmodel='c:d'",
            "models.a.targets.t.model is unknown",
        ),
        ("[tool.peft-advisor]\nmodel='a:b'\nram=64", "ram should be text"),
        ("[tool.peft-advisor]\nmodel='a:b'\nram='64'", "no unit"),
        ("[tool.peft-advisor]\nmodel='a:b'\nflops-budget=3", "flops-budget should be"),
        ("[tool.peft-advisor]\nmodel='a:b'\nflops-budget='2GFLOPS'", "is a rate"),
        ("[tool.peft-advisor]\nmodel='a:b'\nbatch-size='8'", "batch-size should be a whole number"),
        ("[tool.peft-advisor]\nmodel='a:b'\nbatch-size=true", "batch-size should be a whole number"),
        ("[tool.peft-advisor]\nmodel='a:b'\nranks=[0]", "ranks should be positive"),
        ("[tool.peft-advisor]\nmodel='a:b'\nranks=['a']", "ranks should be a list of whole numbers"),
        ("[tool.peft-advisor]\nmodel='a:b'\nmethods=[]", "names no method"),
        ("[tool.peft-advisor]\nmodel='a:b'\nmethods=[1]", "methods should be a list of names"),
        ("[tool.peft-advisor]\nmodel='a:b'\ntrust='yes'", "trust should be true or false"),
        ("[tool.peft-advisor]\nmodel='a:b'\noptimizer='adma'", "optimizer 'adma' is not known"),
        ("[tool.peft-advisor]\nmodel='a:b'\ninput-size='224'", "write channels x height x width"),
        ("[tool.peft-advisor]\nmodel='a:b'\ncandidate='lora-rank=4@fast'", "'fast' is no lever"),
        ("[tool.peft-advisor]\nmodel='a:b'\nfail-on-increase='5'", "write it like '5%'"),
        ("[tool.peft-advisor]\nmodel='a:b'\nfail-on-increase=5", "write it like '5%'"),
        ("[tool.peft-advisor]\nmodel='a:b'\ntime-limit='5'", "use ms, s, m or h"),
        ("[tool.peft-advisor]\nmodel='a:b'\nbaseline=''", "baseline should be text"),
    ],
)
def test_what_can_not_stand_there_is_one_line(text, words):
    with pytest.raises(InputError) as error:
        parsed(text)
    message = str(error.value)
    assert words in message
    assert message.startswith("/somewhere/pyproject.toml")
    assert "\n" not in message


def test_the_nearest_file_with_our_table_is_found(tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text(WHOLE)
    (tmp_path / "a" / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    assert find_file(inner) == tmp_path / "pyproject.toml"
    assert read_configuration(find_file(inner)).folder == tmp_path
    (tmp_path / "pyproject.toml").unlink()
    assert find_file(inner) is None


def test_a_model_that_no_file_names_is_told_likewise(tmp_path):
    found = one_model("nets:build", {"ram": "2MB", "input-size": "3x8x8"}, tmp_path)
    (target,) = found.targets
    assert (target.source, target.budget.ram_bytes, target.input_size) == ("nets:build", 2_000_000, (3, 8, 8))
    assert not found.is_whole
    with pytest.raises(InputError, match="no unit"):
        one_model("nets:build", {"ram": "2"}, tmp_path)


TEXT = st.text(min_size=1, max_size=20).filter(str.strip)


@given(TEXT, TEXT, st.sampled_from(["", "[project]\nname = 'x'", "# only a comment", "[tool.ruff]\n"]))
def test_what_is_written_is_read_again_and_nothing_else_changes(name, model, text):
    values = {"model": model, "ranks": (2, 4), "trust": True, "batch-size": 3, "ram": "2MB"}
    written = with_model(text, name, "the target", values)
    assert written.startswith(text)
    (target,) = parse_configuration(written, Path("pyproject.toml")).targets
    assert (target.model, target.name, target.source) == (name, "the target", model)
    assert (target.ranks, target.trust, target.batch_size) == ((2, 4), True, 3)
    assert tomllib.loads(written)["tool"]["peft-advisor"]["models"][name]["targets"]["the target"] == {
        "ram": "2MB"
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tool.peft-advisor.models.a]\nmodel = 'b:c'\n", "configured already"),
        ("[tool.peft-advisor]\nmodel = 'b:c'\n", "a table of its own first"),
        ("tool = {ruff = {}}\n", "can't be added"),
        ("not toml\n", "not valid TOML"),
    ],
)
def test_where_there_is_no_place_for_it_nothing_is_written(text, words):
    with pytest.raises(InputError, match=words):
        with_model(text, "a", None, {"model": "nets:build"})
