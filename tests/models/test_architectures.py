"""Finding the network that a state dict belongs to, and building it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torchvision
from torch import nn

from advisor.errors import ModelError
from advisor.models import architectures
from advisor.models.architectures import (
    describe_difference,
    named_architecture,
    stock_architecture,
)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet18", 224),
        ("inception_v3", 299),
        ("efficientnet_b3", 300),
        ("vit_b_16", 224),
        ("maxvit_t", 224),
    ],
)
def test_the_input_size_of_each(name, side):
    architecture = named_architecture(f"torchvision:{name}")
    with torch.device("meta"):
        module = architecture.build(2, None)
    assert architecture.input_size(module) == (3, side, side)


def test_the_stem_tells_the_channels():
    model = torchvision.models.resnet18(weights=None)
    model.conv1 = nn.Conv2d(1, 64, 7)
    assert architectures.stock_input_size(model) == (1, 224, 224)


def test_an_existing_module_is_recognised():
    with torch.device("meta"):
        assert stock_architecture(torchvision.models.resnet34(num_classes=3)).name == "resnet34"
    assert stock_architecture(nn.Linear(2, 2)) is None


def test_a_difference_names_three_of_each_kind():
    wanted = {f"w{i}": (2,) for i in range(5)} | {"same": (1,), "other": (3, 3)}
    found = {"same": (1,), "other": (3, 4), "extra": ()}
    assert describe_difference(found, wanted) == (
        "missing w0, w1, w2 and 2 more; unexpected extra; other is 3x4 instead of 3x3"
    )
    assert describe_difference(wanted, wanted) == ""


FACTORIES = """
from torch import nn
calls = []
def fine():
    print("hello")
    return nn.Linear(2, 2)
def fails():
    raise ValueError("first line\\nsecond line")
def leaves():
    raise SystemExit(3)
def number():
    return 7
ready = nn.Linear(2, 2)
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "their_factories.py").write_text(FACTORIES)
    (tmp_path / "their_broken.py").write_text("import nothing_of_that_name\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.mark.usefixtures("factories")
def test_a_factorys_prints_stay_off_stdout(capsys):
    named_architecture("their_factories:fine").build(None, None)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "hello" in printed.err


@pytest.mark.usefixtures("factories")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("their_factories:fails", r"calling it failed: ValueError: first line$"),
        ("their_factories:leaves", r"calling it failed: SystemExit"),
        ("their_factories:number", r"must return a torch\.nn\.Module, but returned int"),
        ("their_factories:fime", r"did you mean fine"),
        ("their_broken:make", r"nothing_of_that_name"),
    ],
)
def test_factories_that_fail(text, message):
    with pytest.raises(ModelError, match=message):
        named_architecture(text).build(None, None)


@pytest.mark.usefixtures("factories")
def test_a_file_is_as_good_as_a_module(tmp_path):
    (tmp_path / "beside.py").write_text("COUNT = 4\n")
    (tmp_path / "net_in_file.py").write_text(
        "from torch import nn\nfrom beside import COUNT\n"
        "class Net(nn.Linear):\n    def __init__(self, n_classes):\n"
        "        super().__init__(COUNT, n_classes)\n"
        "def wants(width, depth=3):\n    pass\n"
    )
    built = named_architecture(f"{tmp_path}/net_in_file.py:Net").build(5, None)
    assert (built.in_features, built.out_features) == (4, 5)
    for text, message in (
        ("net_in_fils.py:Net", "there is no file .*did you mean net_in_file.py"),
        ("net_in_file.py:Nett", "did you mean Net"),
        ("net_in_file.py:wants", "calling it needs width; write a function without arguments"),
    ):
        with pytest.raises(ModelError, match=message):
            named_architecture(f"{tmp_path}/{text}").build(None, None)


def test_bare_names_are_networks_where_they_are_asked_for():
    assert named_architecture("resnet18") is None
    assert named_architecture("resnet18", bare=True).name == "resnet18"
    with pytest.raises(ModelError, match=r"no network is called 'resnet81'; did you mean resnet18"):
        named_architecture("resnet81", bare=True)


def test_a_file_named_as_a_module_is_told_as_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_nets.py").write_text("class Net: ...")
    with pytest.raises(ModelError, match=r"did you mean own_nets.py:Net\?"):
        named_architecture("own_nets.Net", bare=True)


@pytest.mark.usefixtures("factories")
def test_a_ready_module_is_as_good_as_a_factory():
    assert isinstance(named_architecture("their_factories:ready").build(None, None), nn.Linear)


@pytest.mark.parametrize("text", ["timm:hf-hub:someone/model", "timm:local-dir:/tmp"])
def test_timms_remote_names_are_unknown(text):
    pytest.importorskip("timm")
    with pytest.raises(ModelError, match="timm has no model"):
        named_architecture(text)


@pytest.mark.parametrize("missing", [False, True])
def test_a_torchvision_that_doesnt_go_with_torch(tmp_path, missing):
    """A package that fails as torchvision does beside a CPU-only torch, with the same metadata."""
    package = tmp_path / "torchvision"
    package.mkdir()
    name = "torchvision" if missing else "operator torchvision::nms does not exist"
    raised = f"ModuleNotFoundError({name!r}, name={name!r})" if missing else f"RuntimeError({name!r})"
    (package / "__init__.py").write_text(f"raise {raised}\n")
    about = tmp_path / "torchvision-0.25.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.25.0+cu130\nRequires-Dist: torch==2.10.0\n"
    )
    script = (
        "from advisor.models import load_model\n"
        "try:\n"
        "    load_model('torchvision:resnet18')\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("ModelError")
    if missing:
        assert "pip install torchvision" in lines[0]
    else:
        assert "torchvision 0.25.0+cu130 can't run beside torch" in lines[0]
        assert "--force-reinstall torch==2.10.0 torchvision==0.25.0" in lines[0]
