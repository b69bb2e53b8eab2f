"""What commands write: refused before the work, written as far as possible after it, nothing lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from advisor.cli import outputs
from advisor.errors import InputError
from advisor.system.files import check_writable, write_whole
from tests.cli.test_cli import one_line

ASKED = ("recommend", "model.pt", "--input-size", "1x8x8", "--methods", "head", "--no-probe", "--no-verify")
NOWHERE = "/proc/nowhere"  # the kernel lets nobody write there, not even root


@pytest.mark.parametrize(
    "arguments",
    [
        (*ASKED, "--report", f"{NOWHERE}.html"),
        (*ASKED, "--json", f"{NOWHERE}.json"),
        (*ASKED, "--json", "folder"),
        (*ASKED, "--json", "new-data.npz/o.json"),
        (*ASKED, "--json", "taken.json"),
        (*ASKED, "--json", "a\0b"),
        (*ASKED, "--json", "same", "--report", "./same"),
        (*ASKED, "--json", "-", "--report", "-"),
        ("profile", "model.pt", "--input-size", "1x8x8", "--json", f"{NOWHERE}.json"),
        ("report", "advice.json", "--report", f"{NOWHERE}.html"),
        ("doctor", "--json", f"{NOWHERE}.json"),
        ("demo", "--folder", NOWHERE),
        ("demo", "--folder", "model.pt"),
        ("apply", "model.pt", "advice.json", "--output", NOWHERE),
        ("store", "export", f"{NOWHERE}.jsonl", "--store", "store"),
    ],
    ids=lambda arguments: " ".join(map(repr, [arguments[0], *arguments[-4:]])),
)
def test_what_cannot_be_written_is_found_before_the_work(run, arguments):
    for folder in ("folder", "taken.json~"):
        Path(folder).mkdir(exist_ok=True)
    Path("taken.json").touch()
    if not Path("advice.json").exists():
        assert run(*ASKED, "--json", "advice.json")[0] == 0
    code, stdout, err = run(*arguments)
    assert code == 2
    assert not stdout
    one_line(err)
    assert "Loading" not in err
    assert "Training" not in err


@pytest.mark.parametrize("lost", ["--json", "--report"])
def test_what_fails_at_the_end_takes_nothing_else_with_it(run, tmp_path, monkeypatch, lost):
    names = {"--json": tmp_path / "o.json", "--report": tmp_path / "r.html"}

    def full(path, content, **options):
        if path == str(names[lost]):
            raise InputError(f"{path}: can't be written (No space left on device)")
        return write_whole(path, content, **options)

    monkeypatch.setattr(outputs, "write_whole", full)
    code, stdout, err = run(*ASKED, *(part for pair in names.items() for part in pair))
    assert code == 2
    assert "No space left" in one_line(err)
    assert stdout.startswith("Use head")
    assert {path.name for path in tmp_path.iterdir()} == {"o.json", "r.html"} - {names[lost].name}


def test_a_page_that_cannot_be_made_takes_nothing_else_with_it(run, tmp_path, monkeypatch):
    def broken(recommendation):
        raise KeyError("a template of another release")

    monkeypatch.setattr("advisor.report.render_html", broken)
    code, stdout, err = run(*ASKED, "--json", tmp_path / "o.json", "--report", tmp_path / "r.html")
    assert code == 2
    assert "KeyError" in err
    assert stdout.startswith("Use head")
    assert json.loads((tmp_path / "o.json").read_text())["recommended"] == "head"


def test_what_was_there_is_kept_and_said(run, tmp_path):
    paths = {"--json": tmp_path / "o.json", "--report": tmp_path / "r.html"}
    asked = (*ASKED, *(part for pair in paths.items() for part in pair))
    assert "is there already" not in run(*asked)[2]
    assert paths["--report"].read_text().startswith("<!doctype html>")
    for path in paths.values():
        path.write_text("something precious")
    code, _, err = run(*asked)  # the same command again is no trouble
    assert code == 0
    for path in paths.values():
        assert f"{path} is there already; if it changes, it is kept as {path.name}~" in err
        assert err.index(str(path)) < err.index("Loading")
    assert {(tmp_path / f"{path.name}~").read_text() for path in paths.values()} == {"something precious"}
    assert json.loads(paths["--json"].read_text())["recommended"] == "head"

    code, _, err = run("report", paths["--json"], "--report", tmp_path / "r.html")
    assert code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"o.json", "o.json~", "r.html", "r.html~"}


def test_what_stays_as_it_is_needs_no_copy(tmp_path):
    for _ in range(2):
        write_whole(tmp_path / "file", "the same", keep_old=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_of_a_link_the_file_is_kept(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", "new", keep_old=True)
    assert (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "real~").read_text() == "old"


def test_devices_are_written_to_as_they_are():
    check_writable("/dev/null")
    write_whole("/dev/null", "text", keep_old=True)
    assert not Path("/dev/null~").exists()


def test_checking_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_applied_again_what_was_trained_otherwise_is_kept(run, tmp_path):
    assert run(*ASKED, "--data", "new-data.npz", "--json", tmp_path / "advice.json")[0] == 0
    asked = ("apply", "model.pt", tmp_path / "advice.json", "--output", tmp_path / "tuned", "--learning-rate")
    code, _, err = run(*asked, "0.001", "--epochs", 1)
    assert code == 0, err
    assert "earlier run" not in err
    first = (tmp_path / "tuned" / "recipe.json").read_bytes()
    code, _, err = run(*asked, "0.001", "--epochs", 1)
    assert code == 0
    assert not list((tmp_path / "tuned").glob("*~"))
    code, _, err = run(*asked, "0.01", "--epochs", 1, "--restart")
    assert code == 0
    assert err.index("earlier run") < err.index("Loading")
    assert (tmp_path / "tuned" / "recipe.json~").read_bytes() == first
    assert (tmp_path / "tuned" / "adapter.safetensors~").exists()


def test_what_apply_cannot_write_takes_nothing_else_with_it(run, tmp_path, monkeypatch):
    assert run(*ASKED, "--data", "new-data.npz", "--json", tmp_path / "advice.json")[0] == 0
    asked = ("apply", "model.pt", tmp_path / "advice.json", "--output", tmp_path / "tuned", "--epochs", 1)
    asked = (*asked, "--learning-rate", "0.01")

    def full(folder, *_):
        raise InputError(f"{folder}/adapter.safetensors: can't be written (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr("advisor.delivery.folder.save_adapter", full)
        code, stdout, err = run(*asked)
    assert code == 2
    assert "No space left" in one_line(err)
    assert "held-out images" in stdout.splitlines()[-1]
    assert (tmp_path / "tuned" / "merged.pt").exists()
    code, stdout, err = run(*asked)
    assert code == 0
    assert "Epoch" not in err  # nothing is trained again
    assert (tmp_path / "tuned" / "adapter.safetensors").exists()


def test_the_demo_keeps_a_model_that_is_not_its_own(run, tmp_path, monkeypatch):
    monkeypatch.setattr("advisor.cli.demo.subprocess.run", lambda *_, **__: type("", (), {"returncode": 0}))
    monkeypatch.setattr("advisor.demo._EPOCHS", 2)  # whatever its network has learned
    (tmp_path / "model.pt").write_text("something precious")
    code, _, err = run("demo", "--folder", tmp_path)
    assert code == 0
    assert "model.pt is there already" in err
    assert (tmp_path / "model.pt~").read_text() == "something precious"
    code, _, _ = run("demo", "--folder", tmp_path)
    assert (tmp_path / "model.pt~").read_text() == "something precious"  # what it made is the same again
