"""`peft-advisor apply` as users run it: what it says and writes, and one clear line for every failure."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from advisor.cli import main
from advisor.report.text_tables import plain
from tests.cli.printed import PRINTED
from tests.cli.test_cli import one_line
from tests.processes import start_command


@pytest.fixture(scope="module")
def folder(folder):
    """A trained model, its changed situation, and the advice for it."""
    paths = (folder / "model.pt", "--data", folder / "new-data.npz", "--json", folder / "advice.json")
    quick = ("--input-size", "1x8x8", "--methods", "norm,lora", "--ranks", "2", "--probe-time", "2s")
    with pytest.raises(SystemExit) as done:
        main(["recommend", *map(str, paths), *quick, "--no-store", "--no-verify"])
    assert not done.value.code
    return folder


def test_it_trains_writes_and_tells(run, tmp_path):
    out = tmp_path / "made" / "here"
    code, stdout, err = run("apply", "model.pt", "advice.json", "--output", out, "--epochs", 2)
    assert code == 0, err
    assert err.count("Epoch ") == 2
    assert "Epoch 1 of 2: " in err
    told = json.loads(Path("advice.json").read_text())["warnings"]
    assert not [warning for warning in told if warning in err]
    recommended = json.loads(Path("advice.json").read_text())["recommended"]
    # A head that reads blocks can't be folded into the layers that are there.
    is_wide = any(part in recommended for part in ("ridge-all", "ridge-late", "=all", "=late"))
    assert (out / "merged.pt").is_file() is not is_wide
    for name in ("adapter.safetensors", "recipe.json", *([] if is_wide else ["merged.pt"])):
        assert f"{out / name}" in stdout
        assert (out / name).is_file()
    last = stdout.splitlines()[-1]
    assert "held-out images" in last
    assert "the probe predicted" in last
    assert "the model before had" in last
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["candidate"] == recommended

    code, again, err = run("apply", "model.pt", "advice.json", "--output", out, "--epochs", 2)
    assert (code, again) == (0, stdout)
    assert "Epoch" not in err

    again = ("apply", "model.pt", "advice.json", "--output", out, "--epochs", 2)
    code, printed, _ = run(*again, "--format", "json")
    document = json.loads(printed)
    PRINTED.validate(document)
    assert (code, document["command"], document["candidate"]) == (0, "apply", recommended)
    assert document["answer"] == last
    assert str(out / "recipe.json") in document["files"]
    assert document["accuracy"] == recipe["accuracy"]
    code, printed, _ = run(*again, "--format", "markdown")
    assert f"- **Wrote**: {plain(str(out / 'recipe.json'))}\n" in printed
    assert printed.endswith(f"- {plain(last)}\n")
    assert "use terminal, json or markdown" in one_line(run(*again, "--format", "html")[2])


def test_another_candidate_and_rate(run, tmp_path):
    arguments = ("--candidate", "lora-rank=2", "--learning-rate", "0.004", "--epochs", 1)
    code, stdout, err = run("apply", "model.pt", "advice.json", "--output", tmp_path, *arguments)
    assert code == 0, err
    assert "Trained: lora-2, learning rate 0.004" in stdout
    assert (tmp_path / "huggingface" / "adapter_config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model.pt", "missing.json"), "missing.json: can't be read"),
        (("model.pt", "new-data.npz"), "new-data.npz: "),
        (("model.pt", "foreign.json"), "not a saved recommendation"),
        (("missing.pt", "advice.json"), "missing.pt: does not exist"),
        (("model.pt", "advice.json", "--candidate", "lora"), "--candidate 'lora' is not in the report"),
        (("model.pt", "advice.json", "--epochs", "0"), "--epochs 0 must be at least 1"),
        (("model.pt", "advice.json", "--learning-rate", "0"), "--learning-rate 0.0 must be greater than 0"),
        (("model.pt", "advice.json", "--learning-rate", "nan"), "must be greater than 0"),
        (("model.pt", "advice.json", "--data", "missing"), "no such file or folder"),
        (("model.pt", "advice.json", "--output", "model.pt"), "--output model.pt: can't be written to"),
        (("model.pt", "advice.json", "--arch", "torchvision:resnet18"), "leave out --arch"),
    ],
)
def test_what_can_not_be_used_is_one_line(run, tmp_path, arguments, message):
    Path("foreign.json").write_text('{"a": 1}')
    code, stdout, err = run("apply", "--output", tmp_path / "out", *arguments)
    assert code == 2
    assert message in one_line(err)
    assert not stdout


@pytest.mark.parametrize(("more", "how"), [((), ""), (("--restart",), " without --restart")])
def test_an_interrupted_run_says_how_to_go_on(folder, tmp_path, more, how):
    out = tmp_path / "out"
    asked = ("apply", "model.pt", "advice.json", "--output", out, "--epochs", "500", *more)
    with start_command(*asked, cwd=folder, fresh=not more) as process:
        while not (out / "checkpoint.pt").exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"interrupted; the same command{how} goes on from the last whole epoch" in err
    assert "Traceback" not in err
    assert (out / "checkpoint.pt").is_file()


@pytest.fixture(scope="module")
def solved(folder, tmp_path_factory):
    """The folder of an adapter whose head was solved."""
    out = tmp_path_factory.mktemp("solved")
    data = ("--data", str(folder / "new-data.npz"))
    files = (str(folder / "model.pt"), str(folder / "ridge.json"))
    quick = ("--input-size", "1x8x8", "--methods", "ridge", "--no-probe", "--no-store", "--no-verify")
    for arguments in (
        ("recommend", files[0], *data, "--json", files[1], *quick),
        ("apply", *files, "--output", str(out), "--candidate", "ridge-features=last"),
    ):
        with pytest.raises(SystemExit) as done:
            main(list(arguments))
        assert not done.value.code
    return out


def more_images(where, name="an eleventh"):
    """One class more, of crosses."""
    images = np.zeros((20, 8, 8), np.uint8)
    images[:, range(8), range(8)] = images[:, range(8), range(7, -1, -1)] = 255
    images += np.random.default_rng(0).integers(0, 60, images.shape, np.uint8) // 2
    np.savez(where, images=images, labels=np.zeros(20, np.int64), class_names=np.array([name]))
    return where


def test_a_solved_head_grows(run, solved, tmp_path):
    before = {path: path.read_bytes() for path in solved.iterdir() if path.is_file()}
    new, out = more_images(tmp_path / "new.npz"), tmp_path / "out"
    asked = ("apply", "model.pt", solved, "--add", new, "--output", out)
    code, stdout, err = run(*asked)
    assert code == 0, err
    assert "Added:   20 images to" in stdout
    assert "20 of an eleventh (new)" in stdout
    assert "images, 11 classes" in stdout
    assert "Cost:    " in stdout
    assert f"{out / 'merged.pt'}" in stdout
    assert "100.0 % right of the 20 images added" in stdout.splitlines()[-1]
    assert {path: path.read_bytes() for path in solved.iterdir() if path.is_file()} == before

    code, again, err = run(*asked, "--format", "json")
    document = json.loads(again)
    PRINTED.validate(document)
    assert (code, document["images"], document["new_classes"]) == (0, {"an eleventh": 20}, ["an eleventh"])

    code, again, err = run(*asked)  # from the same sums: the same comes out, and nothing else is kept
    assert (code, again) == (0, stdout)
    assert "is kept beside the new as NAME~" in err
    assert not (out / "adapter.safetensors~").exists()

    code, stdout, err = run("apply", "model.pt", out, "--add", new, "--output", out)
    assert (code, stdout) == (2, "")
    assert "were added before" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("advice.json", "--add", "new.npz"), "advice.json: is no folder; with --add, give the folder that"),
        (("nowhere", "--add", "new.npz"), "nowhere: does not exist; with --add, give the folder"),
        ((".", "--add", "new.npz"), "recipe.json: can't be read"),
        (("SOLVED", "--add", "missing"), "no such file or folder"),
        (("SOLVED", "--add", "new.npz", "--data", "new-data.npz"), "--add trains nothing, so --data means"),
        (("SOLVED", "--add", "new.npz", "--restart"), "so --restart means nothing beside it; leave it out"),
        (("SOLVED", "--add", "new.npz", "--learning-rate", "1"), "so --learning-rate means nothing"),
    ],
)
def test_what_can_not_grow_is_one_line(run, solved, tmp_path, arguments, message):
    more_images(Path("new.npz"))
    given = [solved if argument == "SOLVED" else argument for argument in arguments]
    code, stdout, err = run("apply", "model.pt", *given, "--output", tmp_path / "out")
    assert code == 2
    assert message in one_line(err)
    assert not stdout
    assert not (tmp_path / "out").exists()


def test_export_writes_what_a_board_needs_and_tells(run, tmp_path):
    out = tmp_path / "made" / "bundle"
    code, stdout, err = run("export", "model.pt", "advice.json", "--output", out, "--candidate", "lora-2")
    assert code == 0, err
    assert f"Wrote:   {out}, " in stdout
    assert ": lora-2" in stdout
    assert "B besides what PyTorch itself takes there" in stdout
    assert stdout.splitlines()[-1] == f"Run it:  python {out / 'finetune.py'} PHOTOS/ --output tuned/"
    assert {path.name for path in out.iterdir()} == {
        *("advisor", "base.safetensors", "finetune.py", "network.py", "recipe.json"),
    }
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["candidate"] == "lora-rank=2"
    assert recipe["board"]["promised_bytes"] > 0
    again = ("export", "model.pt", "advice.json", "--output", out, "--candidate", "lora-2")
    document = json.loads(run(*again, "--format", "json")[1])
    PRINTED.validate(document)
    assert document["promised_bytes"] == recipe["board"]["promised_bytes"]
    assert stdout.endswith(f"{document['run']}\n")


def test_a_program_is_told_to_scripts(run, tmp_path):
    tuned, file = tmp_path / "tuned", tmp_path / "tuned.pt2"
    given = ("--output", tuned, "--candidate", "lora-2", "--epochs", 1)
    assert run("apply", "model.pt", "advice.json", *given)[0] == 0
    code, printed, err = run("export", "model.pt", tuned, "--as", "pt2", "--output", file, "--format", "json")
    assert code == 0, err
    document = json.loads(printed)
    PRINTED.validate(document)
    assert document["files"] == [str(file)]
    assert document["bytes"] == file.stat().st_size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model.pt", "missing.json"), "missing.json: can't be read"),
        (("model.pt", "advice.json", "--candidate", "lora"), "--candidate 'lora' is not in the report"),
        (("model.pt", "advice.json", "--epochs", "0"), "--epochs 0 must be at least 1"),
        (("model.pt", "advice.json", "--output", "model.pt"), "--output model.pt: can't be written to"),
        (("model.pt", "nowhere/", "--as", "pt2"), "nowhere/recipe.json: can't be read"),
        (("model.pt", "tuned/", "--as", "pt2", "--data", "digits"), "so --data would change nothing"),
        (
            ("model.pt", "tuned/", "--as", "onnx-int8", "--epochs", "3", "--candidate", "lora-2"),
            "so --candidate, --epochs would change nothing; leave them out",
        ),
        (("model.pt", "nowhere/", "--as", "onnx-int8"), "needs labelled images, to calibrate with"),
    ],
)
def test_what_can_not_be_exported_is_one_line(run, tmp_path, arguments, message):
    output = () if "--output" in arguments else ("--output", tmp_path / "bundle")
    code, out, err = run("export", *arguments, *output)
    assert (code, out) == (2, "")
    assert message in one_line(err)
