"""`peft-advisor doctor`: what is told, and what is a problem."""

from __future__ import annotations

import json
import sqlite3

import pytest

from advisor import doctor
from advisor.store import Store, default_path
from tests.cli.printed import PRINTED


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The store's folder, which is not there yet."""
    folder = tmp_path / "cache"
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(folder))
    return folder


@pytest.fixture
def lacking(monkeypatch):
    """Have a package be missing, or of another version."""
    real, other = doctor.version, {}

    def version(package):
        if other.get(package, "") is None:
            raise doctor.PackageNotFoundError(package)
        return other.get(package) or real(package)

    monkeypatch.setattr(doctor, "version", version)
    return other


def test_all_is_there(tell, cache):
    code, out, err = tell("doctor")
    assert (code, err) == (0, "")
    assert out.startswith("All that is needed is there.\n")
    for word in ("python ", "peft-advisor ", "torch ", "torchvision ", "core", "free of", "memory limit"):
        assert word in out
    assert "nothing yet" in out
    assert not cache.exists()  # looking makes nothing


def test_what_is_optional_is_no_problem(tell, lacking):
    lacking["timm"] = None
    code, out, _ = tell("doctor")
    assert code == 0
    assert "gives networks by name, timm:NAME" in " ".join(out.split())
    assert "pip install 'peft-advisor[timm]'" in " ".join(out.split())


def test_json_alone(tell):
    with Store(default_path()) as store:
        store.put("probe", {"model": "a"}, {"correct": "01"})
    code, out, err = tell("doctor", "--json", "-")
    assert (code, err) == (0, "")
    found = json.loads(out)
    PRINTED.validate(found)
    assert found["problems"] == []
    assert found["store"]["results"] == 1
    assert found["store"]["size_bytes"] > 0
    (cpu, *_) = found["devices"]
    assert cpu["kind"] == "cpu"
    assert 0 < cpu["available_bytes"] <= cpu["memory_bytes"]
    assert isinstance(found["memory_limit_works"], bool)
    assert {package["name"] for package in found["optional"]} == {
        "timm",
        "distributed",
        "ray",
        "nvidia-ml-py",
    }


def test_as_json_and_as_markdown(tell, lacking):
    lacking["scikit-learn"] = None
    code, out, err = tell("doctor", "--format", "json")
    assert (code, err) == (1, "")
    assert json.loads(out)["problems"] == json.loads(tell("doctor", "--json", "-")[1])["problems"] != []
    code, out, _ = tell("doctor", "--format", "markdown")
    assert code == 1
    assert out.startswith("## Problems\n\n- scikit-learn is not installed: pip install")
    assert "\n## Versions\n\n- python: " in out
    assert "use terminal, json or markdown" in tell("doctor", "--format", "csv")[2]


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (None, "scikit-learn is not installed: pip install 'scikit-learn>="),
        ("0.24.2", "scikit-learn 0.24.2 is too old"),
    ],
)
def test_what_is_needed_comes_first_with_its_mend(tell, lacking, version, said):
    lacking["scikit-learn"] = version
    code, out, _ = tell("doctor")
    assert code == 1
    first, problem, *_ = out.splitlines()
    assert first == "Problems"
    assert said in problem
    assert "All that is needed" not in out
    code, out, _ = tell("doctor", "--json", "-")
    assert code == 1
    assert json.loads(out)["problems"][0]["mend"].startswith("pip install")


def test_a_torchvision_that_does_not_go_with_torch(tell, monkeypatch):
    def broken():
        raise doctor.ModelError("torchvision 0.1 doesn't go with torch 2.10: install both anew")

    monkeypatch.setattr("advisor.models.architectures.import_torchvision", broken)
    code, out, _ = tell("doctor")
    assert code == 1
    assert "doesn't go with torch" in out
    assert "cores" in out  # the rest is told all the same


def test_a_store_that_cannot_be_read(tell):
    default_path().parent.mkdir(parents=True)
    default_path().write_bytes(b"garbage " * 1000)
    code, out, _ = tell("doctor")
    assert code == 1
    assert "can't be read" in out
    assert default_path().read_bytes() == b"garbage " * 1000


def test_a_cache_that_is_a_file(tell, cache):
    cache.touch()
    code, out, _ = tell("doctor")
    assert code == 1
    assert "--no-store" in " ".join(out.split())


def test_another_programs_database(tell):
    default_path().parent.mkdir(parents=True)
    with sqlite3.connect(default_path()) as database:
        database.execute("CREATE TABLE other (x)")
    assert tell("doctor")[0] == 1


def test_versions_are_compared_as_numbers():
    assert doctor._numbers("2.10.1+cpu") > doctor._numbers("2.9")
    assert doctor._numbers("0.1.5.post20221221") >= doctor._numbers("0.1.5")


def test_where_the_kernel_does_not_enforce_the_limit(tell, monkeypatch):
    monkeypatch.setattr(doctor, "_TRY_THE_CAP", "raise SystemExit(1)")
    code, out, _ = tell("doctor")
    assert code == 0
    assert "doesn't work here" in out
