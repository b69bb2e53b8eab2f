"""Names told without importing what they name are those that it has; what was meant is found."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest
import torchvision

from advisor import names
from advisor.data.corruptions import KINDS
from advisor.errors import InputError
from advisor.methods import methods
from advisor.records import Optimizer


def test_they_are_the_ones_that_there_are():
    models = torchvision.models
    assert set(names.torchvision_models()) == set(models.list_models(module=models))
    assert set(names.method_names()) == {*methods()}
    assert names.CORRUPTIONS == KINDS
    assert get_args(Optimizer) == names.OPTIMIZERS


def test_those_of_timm():
    timm = pytest.importorskip("timm")
    assert set(names.timm_models()) == set(timm.list_models())


def test_nothing_is_imported_for_them():
    code = (
        "import sys\nfrom advisor import names\n"
        "names.method_names(), names.torchvision_models(), names.timm_models()\n"
        "sys.exit(' '.join({'torch', 'torchvision', 'timm', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("typed", "known", "meant"),
    [
        ("lorra", names.method_names(), "lora"),
        ("Lite_Residual", names.method_names(), "lite-residual"),
        ("full-finetune", names.method_names(), "full"),
        ("gausian-noise", names.CORRUPTIONS, "gaussian-noise"),
        ("pixel", names.CORRUPTIONS, "pixelate"),
        ("adma", names.OPTIMIZERS, "adam"),
        ("shfit", names.SCENARIOS, "shift"),
        ("layertype", ("method", "layer-type"), "layer-type"),
        ("--flops", ("--groups", "--flops-budget", "--help"), "--flops-budget"),
        ("mobilnet_v2", names.torchvision_models(), "mobilenet_v2"),
        ("zzz", names.method_names(), None),
        ("a", names.method_names(), None),
        ("", names.method_names(), None),
    ],
)
def test_what_was_meant(typed, known, meant):
    assert names.near(typed, known) == ([] if meant is None else [meant])
    assert names.did_you_mean(typed, known) == ("" if meant is None else f"; did you mean {meant}?")


def test_one_of_several_words():
    assert names.one_of("--optimizer", " SGD ", names.OPTIMIZERS) == "sgd"
    with pytest.raises(
        InputError, match=r"^--optimizer 'adma' is not known; did you mean adam\? It takes adam"
    ):
        names.one_of("--optimizer", "adma", names.OPTIMIZERS)
    with pytest.raises(InputError, match=r"'lion' is not known; use adam, adamw, momentum or sgd$"):
        names.one_of("--optimizer", "lion", names.OPTIMIZERS)


def test_files_beside_a_missing_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model.pt", "mode\x1b[31m.npz", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "images").mkdir()
    assert names.near_files("modle.pt", (".pt",)) == ["model.pt"]
    assert names.near_files("./modle.pt", (".pt",)) == ["./model.pt"]
    assert names.near_files(str(tmp_path / "model.pth"), (".pt",)) == [str(tmp_path / "model.pt")]
    assert names.near_files("none.pt", (".pt",)) == []
    assert names.near_files("note.pt", (".pt",)) == []
    assert names.near_files("nowhere/model.pt", (".pt",)) == []
    assert names.missing_data("imags") == "data 'imags': no such file or folder; did you mean images?"
    assert "\x1b" not in names.missing_data("modes.npz")
