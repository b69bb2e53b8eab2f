"""Loading what users have, and refusing what must not run."""

from __future__ import annotations

import argparse
import functools
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from advisor.errors import ModelError
from advisor.models import load_model
from advisor.models.load import ModulePartial, _allowed_classes


def stock(name="squeezenet1_1", classes=7):
    return torchvision.models.get_model(name, weights=None, num_classes=classes)


def same_outputs(loaded, model, size=(3, 64, 64)):
    x = torch.randn(1, *size)
    with torch.no_grad():
        return torch.equal(loaded.module(x), model.eval()(x))


class Touch:
    """Runs a command when it is unpickled, in the way that attacks do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Own(nn.Module):
    """A user's own class."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(x.mean((2, 3)))


def test_a_whole_pickled_model(tmp_path):
    model = stock()
    torch.save(model, tmp_path / "m.pt")
    loaded = load_model(str(tmp_path / "m.pt"))
    assert loaded.name == "squeezenet1_1"
    assert loaded.input_size == (3, 224, 224)
    assert loaded.has_trained_weights
    assert not loaded.module.training
    assert same_outputs(loaded, model)


def test_a_model_of_torchs_own_modules_needs_no_trust(tmp_path):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    torch.save(model, tmp_path / "m.pt")
    loaded = load_model(str(tmp_path / "m.pt"))
    assert loaded.input_size is None
    assert same_outputs(loaded, model, (1, 8, 8))


@pytest.mark.parametrize("wrapped", ["plain", "state_dict", "model", "model_state_dict", "net", "model_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_state_dicts_however_they_are_kept(tmp_path, wrapped, prefix):
    model = stock()
    state = {prefix + name: value for name, value in model.state_dict().items()}
    content = state if wrapped == "plain" else {wrapped: state, "epoch": 3, "best": 0.5}
    torch.save(content, tmp_path / "c.th")
    loaded = load_model(str(tmp_path / "c.th"))
    assert loaded.name == "squeezenet1_1"
    assert same_outputs(loaded, model)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "efficientnet_b0", "mnasnet0_5"],
)
def test_the_architecture_is_found_and_its_class_count_adapted(tmp_path, name):
    model = stock(name, classes=11)
    torch.save(model.state_dict(), tmp_path / "s.pt")
    loaded = load_model(str(tmp_path / "s.pt"))
    assert loaded.name == name
    assert same_outputs(loaded, model)


def test_safetensors_and_half_precision(tmp_path):
    model = stock()
    save_file(
        {name: value.half() for name, value in model.state_dict().items()},
        tmp_path / "w.safetensors",
    )
    loaded = load_model(str(tmp_path / "w.safetensors"))
    assert loaded.name == "squeezenet1_1"
    assert all(parameter.dtype == torch.float32 for parameter in loaded.module.parameters())


def test_data_parallel_is_unwrapped(tmp_path):
    torch.save(nn.DataParallel(stock()), tmp_path / "m.pt")
    assert type(load_model(str(tmp_path / "m.pt")).module) is torchvision.models.SqueezeNet


def test_class_names_in_the_checkpoint(tmp_path):
    names = list("abcdefg")
    mapping = {name: index for index, name in enumerate(names)}
    for kept in (
        {"classes": names},
        {"class_to_idx": mapping},
        {"idx_to_class": dict(enumerate(names))},
    ):
        torch.save({"state_dict": stock().state_dict(), **kept}, tmp_path / "c.pt")
        assert load_model(str(tmp_path / "c.pt")).class_names == tuple(names)


def test_what_training_scripts_keep_beside_the_weights(tmp_path):
    beside = {"args": argparse.Namespace(lr=0.1, out=Path("runs")), "best": np.float64(0.5), "seen": {1, 2}}
    torch.save({"state_dict": stock().state_dict(), **beside}, tmp_path / "c.pt")
    assert load_model(str(tmp_path / "c.pt")).name == "squeezenet1_1"


def test_named_architectures():
    loaded = load_model("torchvision:resnet18")
    assert (loaded.name, loaded.input_size, loaded.has_trained_weights) == (
        "resnet18",
        (3, 224, 224),
        False,
    )
    with pytest.raises(ModelError, match="resnet18"):
        load_model("torchvision:resnet81")


def test_timm_models():
    pytest.importorskip("timm")
    loaded = load_model("timm:mobilenetv3_small_050")
    assert loaded.input_size == (3, 224, 224)


def test_timm_missing_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"peft-advisor\[timm\]"):
        load_model("timm:resnet18")


def test_a_factory_and_a_state_dict_of_it(tmp_path, monkeypatch):
    (tmp_path / "their_net.py").write_text(
        "from torch import nn\n"
        "input_size = (1, 8, 8)\n"
        "def make(num_classes=3):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    loaded = load_model("their_net:make")
    assert loaded.input_size == (1, 8, 8)
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).state_dict(), tmp_path / "s.pt")
    assert load_model(str(tmp_path / "s.pt"), arch="their_net:make").module[1].out_features == 5
    with pytest.raises(ModelError, match="their_net:nothing"):
        load_model("their_net:nothing")
    with pytest.raises(ModelError, match="no_such_module"):
        load_model("no_such_module:make")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_code_in_a_pickle_is_never_run(tmp_path, legacy, nested):
    sentinel = tmp_path / "ran"
    attack = {"state_dict": {"weight": Touch(sentinel)}} if nested else Touch(sentinel)
    torch.save(attack, tmp_path / "evil.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ModelError) as error:
        load_model(str(tmp_path / "evil.pt"))
    assert not sentinel.exists()
    assert "system" in str(error.value)
    assert "--trust" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bare_pickle_is_never_run(tmp_path):
    sentinel = tmp_path / "ran"
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Touch(sentinel)))
    with pytest.raises(ModelError):
        load_model(str(tmp_path / "evil.pkl"))
    assert not sentinel.exists()


def test_a_partial_can_only_build_layers(tmp_path):
    good = nn.Sequential(nn.Linear(2, 2))
    good.norm_layer = functools.partial(nn.LayerNorm, eps=1e-6)
    torch.save(good, tmp_path / "good.pt")
    layer = load_model(str(tmp_path / "good.pt")).module.norm_layer(4)
    assert isinstance(layer, nn.LayerNorm)
    assert layer.eps == 1e-6
    sentinel = tmp_path / "ran"
    good.norm_layer = functools.partial(os.system, f"touch {sentinel}")
    torch.save(good, tmp_path / "evil.pt")
    with pytest.raises(ModelError):
        load_model(str(tmp_path / "evil.pt"))
    with pytest.raises(pickle.UnpicklingError):
        ModulePartial(print)
    assert not sentinel.exists()


def test_the_allow_list_holds_layers_only():
    for kind in _allowed_classes():
        assert issubclass(kind, nn.Module)
        assert not issubclass(kind, torch.fx.GraphModule | torch.jit.ScriptModule)
        assert kind.__module__.startswith(("torch.nn", "torchvision."))


def test_the_users_own_classes_are_named_and_need_trust(tmp_path):
    torch.save(Own(), tmp_path / "own.pt")
    with pytest.raises(ModelError, match=r"test_load\.Own.*--trust"):
        load_model(str(tmp_path / "own.pt"))
    assert type(load_model(str(tmp_path / "own.pt"), trust=True).module).__name__ == "Own"


def test_torchscript_and_export_are_recognised(tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"x")
        archive.writestr("m/constants.pkl", b"x")
        archive.writestr("m/code/__torch__.py", b"x")
    with pytest.raises(ModelError, match="TorchScript"):
        load_model(str(tmp_path / "script.pt"))
    program = torch.export.export(nn.Linear(3, 2), (torch.zeros(1, 3),))
    torch.export.save(program, tmp_path / "graph.pt2")
    with pytest.raises(ModelError, match=r"torch\.export"):
        load_model(str(tmp_path / "graph.pt2"))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty"),
        (b"hello, I am a text file", "damaged or no PyTorch checkpoint"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(64), "TensorFlow Lite"),
    ],
)
def test_other_files_are_named(tmp_path, content, what):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ModelError, match=what) as error:
        load_model(str(tmp_path / "x.pt"))
    assert "\n" not in str(error.value)


def test_a_truncated_checkpoint_is_damaged(tmp_path):
    torch.save(stock().state_dict(), tmp_path / "m.pt")
    whole = (tmp_path / "m.pt").read_bytes()
    (tmp_path / "m.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="damaged"):
        load_model(str(tmp_path / "m.pt"))


def test_missing_folder_and_unknown(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        load_model(str(tmp_path / "none.pt"))
    with pytest.raises(ModelError, match="folder"):
        load_model(str(tmp_path))
    torch.save({"a.weight": torch.zeros(3, 3), "b.weight": torch.zeros(2, 3)}, tmp_path / "s.pt")
    with pytest.raises(ModelError, match="--arch"):
        load_model(str(tmp_path / "s.pt"))
    with pytest.raises(ModelError, match="--arch"):
        load_model(str(tmp_path / "s.pt"), arch="resnet18")
    with pytest.raises(ModelError, match="weights don't fit"):
        load_model(str(tmp_path / "s.pt"), arch="torchvision:resnet18")


@pytest.mark.parametrize("content", [{"optimizer": {"lr": 1}}, [1, 2], "text", {"state_dict": {}}])
def test_checkpoints_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(ModelError, match="holds"):
        load_model(str(tmp_path / "c.pt"))


def test_quantised_weights_are_refused(tmp_path):
    state = {name: value.to(torch.int8) for name, value in stock().state_dict().items()}
    torch.save(state, tmp_path / "q.pt")
    with pytest.raises(ModelError, match="quantised"):
        load_model(str(tmp_path / "q.pt"))


def test_a_mismatched_torchvision_is_one_line(monkeypatch):
    from advisor.models import architectures

    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(architectures, "import_module", broken)
    with pytest.raises(ModelError, match="torchvision") as error:
        architectures.import_torchvision()
    assert "pip install" in str(error.value)
    assert "\n" not in str(error.value)
