"""What options mean, and what is told of them before anything heavy is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from advisor.cli import options
from advisor.data import load_data
from advisor.errors import AdvisorError, DataError, InputError, ModelError
from advisor.models import load_model
from advisor.records import Recommendation
from tests.cli.test_cli import one_line


@pytest.mark.parametrize(
    "arguments",
    [
        ("recommend", "none.pt"),
        ("recommend", "no/such/folder/model"),
        ("recommend", "torchvision:resnet18", "--data", "none.npz"),
        ("recommend", "torchvision:resnet18", "--data", "digits", "--retain", "none"),
        ("recommend", "torchvision:resnet18", "--data", "digits", "--unlabelled", "none"),
        ("profile", "none.pt"),
        ("report", "none.json"),
        ("apply", "none.pt", "advice.json", "--output", "out"),
        ("apply", "torchvision:resnet18", "none.json", "--output", "out"),
        ("apply", "torchvision:resnet18", "./advice", "--output", "out", "--data", "none"),
    ],
    ids=" ".join,
)
def test_a_missing_file_is_told_before_anything_heavy_is_imported(tmp_path, arguments):
    code = (
        "import sys\nfrom advisor.cli import main\n"
        f"try:\n    main({list(arguments)!r})\n"
        "except SystemExit as done:\n"
        "    heavy = {'torch', 'torchvision', 'sklearn', 'scipy', 'PIL', 'fvcore'} & set(sys.modules)\n"
        "    sys.exit(' '.join(heavy) or done.code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    missing = next(text for text in (*arguments, "") if text.startswith("no"))
    assert missing in one_line(done.stderr)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("none.pt", "give a file, torchvision:NAME"),
        ("modle.pt", "did you mean model.pt?"),
        ("./modle.pt", "did you mean"),
        ("modle.onnx", "did you mean model.pt?"),
        ("resnet18", "write torchvision:resnet18"),
        ("reznet18", "did you mean torchvision:resnet18?"),
        ("torchvision:mobilnet_v2", "did you mean mobilenet_v2 or"),
        ("torchvision:", "does not exist"),
        *((text, "does not exist") for text in ("a/b", "C:\\model", "model.pt:x y", "a\0b", "b\x1b[31m")),
    ],
)
def test_of_a_missing_model_the_same_is_said_as_when_it_is_loaded(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pt").touch()
    with pytest.raises(ModelError) as loading:
        load_model(text)
    with pytest.raises(ModelError) as checking:
        options.check_model(text)
    assert said in str(checking.value)
    if not text.startswith("."):
        assert str(checking.value) == str(loading.value)


@pytest.mark.parametrize("text", ["none.npz", "", "a\0b", "~nobody-of-that-name/x", "x" * 5000])
def test_of_missing_data_the_same_is_said_as_when_it_is_loaded(text):
    with pytest.raises(DataError) as loading:
        load_data(text, (3, 8, 8))
    with pytest.raises(DataError) as checking:
        options.check_data(text)
    assert str(checking.value) == str(loading.value)


@pytest.mark.parametrize(
    ("text", "said"), [("none.json", "give a file written with --json"), ("advise.json", "mean advice.json?")]
)
def test_of_a_missing_report_the_same_is_said_as_when_it_is_read(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "advice.json").touch()
    with pytest.raises(InputError) as reading:
        Recommendation.load(text)
    with pytest.raises(InputError) as checking:
        options.check_report(text)
    assert str(checking.value) == str(reading.value)
    assert said in str(checking.value)


@pytest.mark.parametrize("text", ["torchvision:resnet18", "timm:x", "a.b:make"])
def test_what_may_be_a_name_is_left_to_the_loader(text):
    options.check_model(text)


def test_a_file_of_any_name_is_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd name: v1.pt").touch()
    options.check_model("odd name: v1.pt")


@pytest.mark.parametrize(
    ("text", "said"),
    [("a,a,b", "'a' more than once"), ("a, b ,b,a", "'a', 'b' more than once"), ("a,,b", "empty name")],
)
def test_class_names_that_repeat_or_are_missing_are_an_error(text, said):
    with pytest.raises(InputError, match="--classes") as caught:
        options.parse_class_names(text)
    assert said in str(caught.value)


def test_class_names():
    assert options.parse_class_names("cat, dog") == ("cat", "dog")
    assert options.parse_class_names(None) is None


def test_methods_may_repeat():
    assert options.parse_methods("lora,head,lora") == ("lora", "head")


@pytest.mark.parametrize("text", ["0", "0s", "0.0m", "00", "-0s"])
def test_no_time_for_probes_is_another_option(text):
    with pytest.raises(AdvisorError, match="--no-probe"):
        options.parse_probe_time(text)


def test_time_for_probes():
    assert options.parse_probe_time("10s") == 10
    with pytest.raises(AdvisorError, match="no unit"):
        options.parse_probe_time("10")
