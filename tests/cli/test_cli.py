"""The commands as users run them: results, exit codes, and one clear line for every failure."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from torch import nn

from advisor.cli import expand_bare_flops_budget
from advisor.data import loading as _loading  # noqa: F401 - imported early: the runs below fork nothing
from advisor.demo import make_situation
from advisor.units import format_percent
from tests.processes import run_command, start_command

QUICK = ("--input-size", "1x8x8", "--methods", "head,norm,lora", "--ranks", "2", "--probe-time", "2s")


def one_line(err):
    lines = [line for line in err.splitlines() if line.startswith("peft-advisor: error: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    assert "unexpected" not in lines[0]
    return lines[0]


def test_recommend_answers_runs_and_writes(run, tmp_path):
    report, out = tmp_path / "r.html", tmp_path / "o.json"
    code, stdout, _ = run(
        "recommend", "model.pt", "--data", "new-data.npz", "--ram", "3MB", "--flops-budget", *QUICK,
        "--report", report, "--json", out,
    )  # fmt: skip
    assert code == 0
    found = json.loads(out.read_text())
    assert found["schema_version"] == 1
    chosen = next(c for c in found["candidates"] if c["id"] == found["recommended"])
    assert chosen["fits"]
    assert chosen["measured"]["peak_memory_bytes"] <= 3_000_000
    assert chosen["accuracy"]["low"] <= chosen["accuracy"]["mean"] <= chosen["accuracy"]["high"]
    assert found["data"]["base_accuracy"]["mean"] < chosen["accuracy"]["mean"]
    assert found["answer"].split(",")[0] in stdout.replace("\n", " ")
    html = report.read_text()
    assert html.startswith("<!doctype html>")
    assert found["recommended"] in html or chosen["method"] in html

    code, again, _ = run("report", out, "--report", tmp_path / "again.html")
    assert code == 0
    assert chosen["method"] in again
    assert (tmp_path / "again.html").exists()


def test_a_model_that_does_well_as_it_is_is_left_alone(run, tmp_path):
    report, out = tmp_path / "r.html", tmp_path / "o.json"
    asked = ("--data", "old-data.npz", "--tolerance", "3", "--no-verify", "--report", report, "--json", out)
    code, stdout, err = run("recommend", "model.pt", *asked, *QUICK)
    found = json.loads(out.read_text())
    assert (code, found["recommended"], found["outcome"]) == (0, None, "leave")
    assert found["answer"].startswith("Leave the model as it is")
    assert "Leave the model as it is" in stdout
    assert "error" not in err
    assert "leave it as it is" in report.read_text()
    code, _, err = run("apply", "model.pt", out, "--output", tmp_path / "tuned")
    assert code == 2
    assert "recommends to leave the model as it is" in one_line(err)


def test_what_is_forgotten_is_told_and_a_floor_is_honoured(run, tmp_path):
    out = tmp_path / "o.json"
    data = ("--data", "new-data.npz", "--retain", "old-data.npz")
    asked = ("recommend", "model.pt", *data, *QUICK, "--no-verify", "--json", out)
    code, stdout, _ = run(*asked)
    assert code == 0
    assert "old data" in stdout
    found = json.loads(out.read_text())
    before = found["data"]["base_accuracy"]["retained"]["mean"]
    assert before > 0.9
    judged = [c["accuracy"]["retained"]["mean"] for c in found["candidates"] if c["accuracy"]]
    assert min(judged) < before
    assert f"({format_percent(before)} before)" in found["answer"]

    code, stdout, _ = run(*asked, "--min-retained", "1.0")
    assert code == 1
    assert "100.0 % is asked for" in json.loads(out.read_text())["answer"]
    rejected = [c for c in json.loads(out.read_text())["candidates"] if c["accuracy"]]
    assert rejected
    assert all(c["violations"][0]["limit"] == "min_retained" for c in rejected)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--min-retained", "0.9"), "--retain"),
        (("--data", "new-data.npz", "--retain", "old-data.npz", "--no-probe"), "--no-probe"),
        (("--data", "new-data.npz", "--retain", "nowhere.npz"), "nowhere.npz"),
    ],
)
def test_old_data_that_cannot_be_used(run, given, said):
    code, _, err = run("recommend", "model.pt", "--input-size", "1x8x8", *given)
    assert code == 2
    assert said in one_line(err)


def test_images_without_labels_serve_what_looks_at_none(run, tmp_path):
    out = tmp_path / "o.json"
    with np.load("new-data.npz") as data:
        np.savez(tmp_path / "few.npz", images=data["images"][:320], labels=data["labels"][:320])
        np.savez(tmp_path / "camera.npz", images=data["images"][320:])
    more = ("--unlabelled", tmp_path / "camera.npz")
    asked = ("recommend", "model.pt", "--data", tmp_path / "few.npz", *QUICK, "--methods", "recalibrate,norm")
    code, _, _ = run(*asked, *more, "--no-verify", "--json", out)
    assert code == 0
    code, everything, _ = run("report", out, "--all")
    assert code == 0
    assert "for methods that look at no labels" in " ".join(everything.split())
    found = json.loads(out.read_text())
    assert found["data"]["unlabelled_samples"] > 320
    applied = tmp_path / "applied"
    code, stdout, _ = run("apply", "model.pt", out, "--candidate", "recalibrate", "--output", applied)
    assert code == 0
    predicted = next(c for c in found["candidates"] if c["id"] == "recalibrate")["accuracy"]
    assert f"the probe predicted {100 * predicted['mean']:.1f} %" in stdout

    itself = ("--unlabelled", "new-data.npz")
    for given, said in (((*more, "--no-probe"), "--no-probe"), (itself, "the labelled data")):
        code, _, err = run("recommend", "model.pt", "--data", "new-data.npz", *QUICK, *given)
        assert code == 2
        assert said in one_line(err)


def test_files_are_written_though_nobody_reads_the_rest(folder, tmp_path):
    out, report = tmp_path / "o.json", tmp_path / "r.html"
    asked = (
        "recommend",
        "model.pt",
        "--no-probe",
        "--no-verify",
        "--input-size",
        "1x8x8",
        "--methods",
        "head",
    )
    with start_command(*asked, "--json", out, "--report", report, cwd=folder) as process:
        process.stdout.close()
        assert process.wait() == 0, process.stderr.read()
    assert json.loads(out.read_text())["recommended"] == "head"
    assert report.exists()


def test_recommend_new_classes_grows_the_head(run, tmp_path):
    make_situation(tmp_path, scenario="new-classes", seed=0)
    code, stdout, _ = run(
        "recommend", tmp_path / "model.pt", "--data", tmp_path / "new-data.npz", *QUICK,
        "--methods", "head,recalibrate", "--no-verify", "--json", "-",
    )  # fmt: skip
    assert code == 0
    found = json.loads(stdout)
    assert found["data"]["scenario"] == "new-classes"
    assert found["data"]["new_classes"] == 3
    assert found["model"]["classes"] == 10
    assert "never seen" in found["not_applicable"]["recalibrate"]
    # With its statistics re-estimated or not: the two are alike here, and held-out images decide.
    assert found["recommended"].split("@")[0] == "head"


def test_json_dash_prints_json_alone(run):
    code, stdout, _ = run("profile", "model.pt", "--input-size", "1x8x8", "--json", "-")
    assert code == 0
    found = json.loads(stdout)
    assert found["recommended"] is None
    assert {c["method"] for c in found["candidates"]} == {
        *("full", "head", "norm", "bias", "recalibrate", "tent", "lora", "dora", "loha", "lokr"),
        *("galore", "adapter", "ia3", "ssf", "lite-residual", "sparse", "ridge"),
    }


def test_profile_shows_every_method(run):
    code, stdout, _ = run("profile", "model.pt", "--input-size", "1x8x8", "--batch-size", "4")
    assert code == 0
    for name in ("full", "recalibrate", "galore", "depthwise", "fvcore"):
        assert name in stdout


def test_methods_are_listed(run):
    code, stdout, _ = run("methods")
    assert code == 0
    assert "arXiv 2106.09685" in stdout


def test_nothing_fits_is_exit_code_1_and_says_the_least(run, tmp_path):
    code, stdout, _ = run(
        "recommend",
        "model.pt",
        "--input-size",
        "1x8x8",
        "--no-probe",
        "--methods",
        "head,full",
        "--ram",
        "1kB",
        "--json",
        tmp_path / "o.json",
    )
    assert code == 1
    assert "Nothing fits: the least memory that any candidate needs" in stdout
    found = json.loads((tmp_path / "o.json").read_text())
    assert found["recommended"] is None
    assert all(not c["fits"] for c in found["candidates"])


def test_a_choice_that_does_not_survive_gives_way_to_the_next(run, monkeypatch):
    """The real child, with a lie about the first one's cap: it must fail there, and be reported."""
    from advisor.story import verification

    real, caps = verification.measure, []

    def tight_once(*args, allowed_bytes, **kwargs):
        caps.append(allowed_bytes)
        return real(*args, allowed_bytes=allowed_bytes // 50 if len(caps) == 1 else allowed_bytes, **kwargs)

    monkeypatch.setattr(verification, "measure", tight_once)
    code, stdout, _ = run(
        "recommend", "model.pt", "--input-size", "1x8x8", "--batch-size", "256", "--no-probe",
        "--methods", "full,norm", "--ram", "60MB", "--json", "-",
    )  # fmt: skip
    found = json.loads(stdout)
    assert code == 0
    assert len(caps) == 2
    failed = [c for c in found["candidates"] if any(v["limit"] == "execution" for v in c["violations"])]
    assert len(failed) == 1
    first = failed[0]
    assert not first["measured"]["survived"]
    assert "would have been chosen" in " ".join(found["warnings"])


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["none.pt"], "none.pt"),
        (["torchvision:mobilnet_v2"], "mobilenet_v2"),
        (["model.pt"], "--input-size"),
        (["model.pt", "--input-size", "3x8x8"], "1x8x8|channels|3x8x8"),
        (["model.pt", "--input-size", "8x8"], "3x224x224"),
        (["model.pt", "--ram", "512XB"], "512XB"),
        (["model.pt", "--ram", "0MB"], "greater than 0"),
        (["model.pt", "--ram=-5MB"], "greater than 0"),
        (["model.pt", "--ram", "512"], "no unit"),
        (["model.pt", "--flops-budget", "0GFLOPs"], "greater than 0"),
        (["model.pt", "--flops-budget", "-2GFLOPs"], "greater than 0"),
        (["model.pt", "--flops-budget", "2GFLOPS"], "rate"),
        (["model.pt", "--min-accuracy", "0"], "out of range"),
        (["model.pt", "--probe-time", "5"], "no unit"),
        (["model.pt", "--methods", "lorra"], "lora"),
        (["model.pt", "--ranks", "0"], "ranks"),
        (["model.pt", "--batch-size", "0"], "at least 1"),
        (["model.pt", "--scenario", "other"], "new-classes"),
        (["model.pt", "--optimizer", "lion"], "sgd"),
        (["model.pt", "--report", "no/such/folder/r.html"], "does not exist"),
        (["model.pt", "--input-size", "1x8x8", "--data", "none.npz"], "none.npz"),
        (["model.pt", "--input-size", "1x8x8", "--data", "one-class.npz"], "class"),
        (["model.pt", "--input-size", "1x8x8", "--data", "channels.npz"], "channels"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, folder, arguments, cause):
    np.savez(folder / "one-class.npz", images=np.zeros((9, 8, 8), np.uint8), labels=np.zeros(9, int))
    np.savez(folder / "channels.npz", images=np.zeros((40, 8, 8, 4), np.uint8), labels=np.arange(40) % 10)
    code, stdout, err = run("recommend", *arguments)
    assert code == 2
    assert stdout == ""
    import re

    assert re.search(cause, one_line(err))


def test_unreadable_images_are_named(run, folder):
    for name in ("a", "b"):
        (folder / "images" / name).mkdir(parents=True, exist_ok=True)
        for index in range(4):
            (folder / "images" / name / f"{index}.png").write_bytes(b"not an image")
    code, _, err = run("recommend", "model.pt", "--input-size", "1x8x8", "--data", "images")
    assert code == 2
    assert ".png" in one_line(err)


def test_losses_that_become_nan_are_one_line(run, folder, tmp_path):
    model = torch.load(folder / "model.pt", weights_only=False)
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    torch.save(model, tmp_path / "nan.pt")
    code, stdout, err = run("recommend", tmp_path / "nan.pt", "--data", "new-data.npz", *QUICK, "--no-verify")
    assert code == 2
    assert stdout == ""
    assert "NaN" in one_line(err)


def test_a_pickle_that_executes_is_refused_by_the_command(run, folder, tmp_path):
    class Touch:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"state_dict": Touch()}, tmp_path / "evil.pt")
    code, _, err = run("recommend", tmp_path / "evil.pt", "--input-size", "1x8x8")
    assert code == 2
    assert "system" in one_line(err)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_classifier_is_refused(run, tmp_path):
    torch.save(nn.Sequential(nn.Conv2d(1, 4, 3)), tmp_path / "features.pt")
    code, _, err = run("profile", tmp_path / "features.pt", "--input-size", "1x8x8")
    assert code == 2
    assert "not a classifier" in one_line(err)


def test_no_output_is_left_half_written(run, tmp_path):
    code, _, _ = run("recommend", "none.pt", "--report", tmp_path / "r.html", "--json", tmp_path / "o.json")
    assert code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["--flops-budget"], ["--flops-budget=fewest"]),
        (["--flops-budget", "--ram", "1MB"], ["--flops-budget=fewest", "--ram", "1MB"]),
        (["--flops-budget", "2GFLOPs"], ["--flops-budget", "2GFLOPs"]),
        (["--flops-budget", "model.pt"], ["--flops-budget=fewest", "model.pt"]),
        (["--flops-budget", "-1GFLOPs"], ["--flops-budget", "-1GFLOPs"]),
        (["--flops-budget=3GFLOPs"], ["--flops-budget=3GFLOPs"]),
    ],
)
def test_a_bare_flops_budget(typed, meant):
    assert expand_bare_flops_budget(typed) == meant


def test_the_module_is_the_command(tmp_path):
    done = run_command("--help", cwd=tmp_path, fresh=True)
    assert done.returncode == 0
    assert "recommend" in done.stdout


def test_what_a_terminal_would_obey_is_not_said(tell):
    code, out, err = tell("profile", "a\n\x1b[31mb\x9b.pt")
    assert (code, out) == (2, "")
    assert r"a\n\x1b[31mb\x9b.pt: does not exist" in err
    assert err.count("\n") == 1
