"""`peft-advisor apply` as users run it: what it says and writes, and one clear line for every failure."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from advisor.cli import main
from tests.cli.test_cli import one_line
from tests.processes import start_command


@pytest.fixture(scope="module")
def folder(folder):
    """A trained model, its changed situation, and the advice for it."""
    paths = (folder / "model.pt", "--data", folder / "new-data.npz", "--json", folder / "advice.json")
    quick = ("--input-size", "1x8x8", "--methods", "norm,lora", "--ranks", "2", "--probe-time", "4s")
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
    is_wide = recommended.endswith(("ridge-all", "=late", "=all"))
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


def test_another_candidate_and_rate(run, tmp_path):
    arguments = ("--candidate", "lora-rank=2", "--learning-rate", "0.004", "--epochs", 1)
    code, stdout, err = run("apply", "model.pt", "advice.json", "--output", tmp_path, *arguments)
    assert code == 0, err
    assert "Trained: lora-rank=2, learning rate 0.004" in stdout
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
