"""Finding the network that a state dict belongs to, and building it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch
import torchvision
from torch import nn

from advisor.errors import ModelError
from advisor.models import architectures
from advisor.models.architectures import (
    build_with_weights,
    describe_difference,
    identify,
    named_architecture,
    stock_architecture,
    unprefixed,
)


def shapes_only(name, **options):
    """A state dict that takes no memory: identification looks at names and shapes alone."""
    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None, **options).state_dict()


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "wide_resnet50_2",
        "resnext50_32x4d",
        "vgg11_bn",
        "densenet121",
        "efficientnet_b2",
        "shufflenet_v2_x1_5",
        "swin_v2_t",
        "vit_b_32",
    ],
)
def test_a_network_is_told_from_its_relatives(name):
    assert identify(shapes_only(name, num_classes=5)).name == name


def test_every_classification_model_has_names_and_shapes_of_its_own():
    signatures = {}
    for name in architectures.torchvision_names():
        signature = frozenset(architectures._torchvision_shapes(name, ()).items())
        assert signature not in signatures, f"{name} and {signatures[signature]}"
        signatures[signature] = name
    assert len(signatures) > 70


def test_identification_is_quick_and_leaves_the_random_numbers_alone():
    state = shapes_only("mobilenet_v3_small")
    architectures._torchvision_shapes.cache_clear()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    start = time.perf_counter()
    identify(state)
    assert time.perf_counter() - start < 15
    assert torch.equal(torch.rand(3), expected)


def test_counters_of_old_checkpoints_may_be_missing():
    state = torchvision.models.squeezenet1_1(num_classes=3).state_dict()
    assert identify(state).name == "squeezenet1_1"
    resnet = shapes_only("resnet18")
    old = {name: value for name, value in resnet.items() if "num_batches" not in name}
    assert identify(old).name == "resnet18"


@pytest.mark.parametrize("auxiliary", [True, False])
def test_googlenet_with_and_without_auxiliary_heads(auxiliary):
    model = torchvision.models.googlenet(
        weights=None, num_classes=6, aux_logits=auxiliary, init_weights=False
    )
    built = build_with_weights(identify(model.state_dict()), model.state_dict())
    assert built.fc.out_features == 6
    assert (built.aux1 is not None) == auxiliary


def test_heads_of_different_sizes_are_each_adapted():
    model = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False)
    model.fc = nn.Linear(1024, 4)  # as most people adapt it: the auxiliary heads keep their thousand
    built = build_with_weights(identify(model.state_dict()), model.state_dict())
    assert (built.fc.out_features, built.aux1.fc2.out_features) == (4, 1000)


def test_a_vision_transformer_of_another_image_size():
    state = shapes_only("vit_b_32", image_size=96, num_classes=4)
    architecture = identify(state)
    with torch.device("meta"):
        module = architecture.build(4, {name: tuple(value.shape) for name, value in state.items()})
    assert architecture.input_size(module) == (3, 96, 96)


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


def test_a_near_miss_names_the_closest_network_and_the_difference():
    state = shapes_only("resnet18")
    state["conv1.weight"] = torch.empty(64, 1, 7, 7, device="meta")
    with pytest.raises(
        ModelError, match=r"torchvision:resnet18, but conv1\.weight is 64x1x7x7 instead of 64x3x7x7"
    ):
        identify(state)


def test_a_difference_names_three_of_each_kind():
    wanted = {f"w{i}": (2,) for i in range(5)} | {"same": (1,), "other": (3, 3)}
    found = {"same": (1,), "other": (3, 4), "extra": ()}
    assert describe_difference(found, wanted) == (
        "missing w0, w1, w2 and 2 more; unexpected extra; other is 3x4 instead of 3x3"
    )
    assert describe_difference(wanted, wanted) == ""


@pytest.mark.parametrize(
    ("names", "last"),
    [
        (["module.a", "module.b"], ["a", "b"]),
        (["model._orig_mod.a", "model._orig_mod.b"], ["a", "b"]),
        (["module.model.a", "n_averaged", "module.model.b"], ["a", "b"]),
        (["model.a", "head.b"], ["model.a", "head.b"]),
        (["stage._orig_mod.a", "b"], ["stage.a", "b"]),
    ],
)
def test_prefixes_go_only_where_every_name_carries_them(names, last):
    *_, stripped = unprefixed(dict.fromkeys(names, 0))
    assert list(stripped) == last


def test_a_network_whose_own_names_start_with_model(tmp_path, monkeypatch):
    (tmp_path / "wrapped_net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.model = nn.Linear(3, 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    state = {"module.model.weight": torch.ones(4, 3), "module.model.bias": torch.ones(4)}
    built = build_with_weights(named_architecture("wrapped_net:Net"), state)
    assert torch.equal(built.model.weight, state["module.model.weight"])


def test_mnasnet_keeps_its_stem():
    # It would rebuild its stem for a state dict that doesn't tell its version, as safetensors can't.
    model = torchvision.models.mnasnet0_5(num_classes=3)
    state = dict(model.state_dict())
    built = build_with_weights(identify(state), state)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(built.eval()(x), model.eval()(x))


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
def test_a_ready_module_is_as_good_as_a_factory():
    assert isinstance(named_architecture("their_factories:ready").build(None, None), nn.Linear)


@pytest.mark.parametrize("text", ["timm:hf-hub:someone/model", "timm:local-dir:/tmp"])
def test_timms_remote_names_are_unknown(text):
    pytest.importorskip("timm")
    with pytest.raises(ModelError, match="timm has no model"):
        named_architecture(text)


def test_a_timm_network_is_found_where_torchvision_has_none():
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", pretrained=False, num_classes=4)
    built = build_with_weights(identify(model.state_dict()), model.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(built.eval()(x), model.eval()(x))


def test_networks_that_the_weights_cant_tell_apart_are_listed():
    timm = pytest.importorskip("timm")
    state = timm.create_model("xcit_nano_12_p8_224", pretrained=False).state_dict()
    with pytest.raises(ModelError, match=r"--arch: timm:xcit_nano_12_p8_224, timm:xcit_nano_12_p8_384"):
        identify(state)


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
