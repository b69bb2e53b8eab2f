"""Model files as people's scripts write them: settings, old versions, other formats, what a file says."""

from __future__ import annotations

import argparse
import json
import re
import types
import zipfile
from collections import Counter, defaultdict

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from advisor.errors import ModelError
from advisor.models import load_model
from advisor.models.heads import empty_head, probabilities, with_head
from advisor.models.said import what_is_said


def net(classes=5):
    return torchvision.models.squeezenet1_1(weights=None, num_classes=classes).eval()


def opens(path, model, size=(3, 64, 64), **options):
    loaded = load_model(str(path), **options)
    x = torch.randn(1, *size)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), model(x))
    return loaded


class Attributes(dict):
    """As EasyDict and yacs: a dict's subclass."""

    def __getattr__(self, name):
        return self[name]


class Settings:
    """A user's own."""

    def __init__(self, **values):
        self.__dict__.update(values)


class Series(list):
    """A list's subclass."""


def histories():
    found = defaultdict(list)
    found["loss"].append(0.3)
    return found


@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(arch="squeezenet1_1", img_size=96),
        types.SimpleNamespace(lr=0.1),
        Settings(inner=Settings(lr=0.1)),
        Attributes(lr=0.1, inner=Attributes(a=1)),
        Series([1, 2]),
        histories(),
        Counter("aab"),
        {"nested": [Attributes(x={1, 2})]},
        Settings,
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("form", [{}, {"pickle_protocol": 4}, {"_use_new_zipfile_serialization": False}])
def test_settings_beside_the_weights_are_inert(tmp_path, beside, form):
    model = net()
    torch.save({"model": model.state_dict(), "args": beside}, tmp_path / "c.pt", **form)
    opens(tmp_path / "c.pt", model)


def test_tied_half_and_sliced_tensors_survive_the_inert_reading(tmp_path):
    rows = torch.arange(12.0).view(3, 4)
    state = {"a.weight": rows, "b.weight": rows[1:, ::2], "c.weight": rows.half(), "d.bias": torch.zeros(0)}
    torch.save({"model": state, "args": Settings()}, tmp_path / "c.pt")
    from advisor.models.formats import read
    from advisor.models.weights import find_weights

    ((_, found),) = find_weights(read(tmp_path / "c.pt", trust=False).value)
    assert all(
        torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in state.items()
    )
    assert found["a.weight"].untyped_storage().data_ptr() == found["b.weight"].untyped_storage().data_ptr()


class Evil:
    """Asks to call something."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("call", [(print, "ran"), (Settings,), (getattr, "a", "upper")], ids=str)
def test_functions_that_are_no_known_attack_are_not_called_either(tmp_path, call, capsys):
    model = net()
    torch.save(
        {"model": model.state_dict(), "x": Evil(*call), "y": Settings(z=Evil(*call))}, tmp_path / "c.pt"
    )
    opens(tmp_path / "c.pt", model)
    assert capsys.readouterr().out == ""


def test_a_state_for_a_class_does_not_change_it(tmp_path):
    # BUILD on a name itself, rather than on what it makes: it must reach no real class.
    torch.save({"x": Settings()}, tmp_path / "c.pt")
    with zipfile.ZipFile(tmp_path / "c.pt") as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in records if name.endswith("data.pkl"))
    records[name] = (
        b"\x80\x02ctorch.nn.modules.linear\nLinear\n}X\x07\x00\x00\x00forwardK\x01sb}(X\x01\x00\x00\x00aca\nb\nu0."
    )
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        for each, value in records.items():
            archive.writestr(each, value)
    with pytest.raises(ModelError):
        load_model(str(tmp_path / "c.pt"))
    assert nn.Linear.forward != 1


def renamed(path, old, new):
    """The file as it was written when a class had another name."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in records.items():
            archive.writestr(name, value.replace(old, new) if name.endswith("data.pkl") else value)


def test_whole_modules_of_classes_that_are_gone_are_made_anew(tmp_path):
    model = torchvision.models.mobilenet_v2(weights=None, num_classes=3, width_mult=0.25).eval()
    torch.save(nn.DataParallel(model), tmp_path / "m.pt")
    old = b"torchvision.ops.misc\nConv2dNormActivation\n"
    renamed(tmp_path / "m.pt", old, b"torchvision.models.mobilenet\nConvBNReLU\n")
    loaded = opens(tmp_path / "m.pt", model)
    assert "MobileNetV2 is made anew, with its weights" in loaded.assumed[0]


def test_attributes_that_came_later_get_their_defaults(tmp_path):
    model = torchvision.models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=3).eval()
    model.extra = nn.Sequential(nn.GELU(), nn.BatchNorm2d(2))
    torch.save(model, tmp_path / "new.pt")
    for layer in model.modules():
        for name in ("padding_mode", "approximate", "_is_full_backward_hook"):
            layer.__dict__.pop(name, None)
        layer._buffers.pop("num_batches_tracked", None)
    torch.save(model, tmp_path / "m.pt")
    loaded = load_model(str(tmp_path / "m.pt"))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), load_model(str(tmp_path / "new.pt")).module(x))
    assert loaded.module.extra[0].approximate == "none"
    loaded.module.train()(x.repeat(2, 1, 1, 1))


def test_a_class_of_the_script_itself_is_read_with_arch(tmp_path, monkeypatch):
    torch.save({"model": Settings()}, tmp_path / "s.pt")
    code = "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, num_classes=2):\n"
    code += "        super().__init__()\n        self.out = nn.Linear(12, num_classes)\n"
    code += "    def forward(self, x):\n        return self.out(x.flatten(1))\n"
    (tmp_path / "script_net.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    import script_net

    model = script_net.Net(4)
    torch.save(model, tmp_path / "m.pt")
    renamed(tmp_path / "m.pt", b"cscript_net\nNet\n", b"c__main__\nNet\n")
    with pytest.raises(ModelError, match=r"needs the classes __main__\.Net, .*--arch FILE\.py:Net") as error:
        load_model(str(tmp_path / "m.pt"))
    assert "--trust" not in str(error.value)
    opens(tmp_path / "m.pt", model, (3, 2, 2), arch=f"{tmp_path}/script_net.py:Net")


# What a file says of itself


@pytest.mark.parametrize(
    ("holder", "networks", "size", "mean"),
    [
        ({"args": argparse.Namespace(model="resnet18", img_size=96)}, ("resnet18",), (96, 96), ()),
        ({"hyper_parameters": {"backbone": "torchvision.models.resnet34"}}, ("resnet34",), (), ()),
        ({"cfg": {"DATA": {"mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]}}}, (), (), (0.485,)),
        ({"architectures": ["unknown"], "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, (), (), (0.5,)),
        ({"image_size": {"height": 64, "width": 48}}, (), (64, 48), ()),
        ({"input_size": [3, 32, 32], "mean": [0.1], "std": [0.0]}, (), (3, 32, 32), ()),
        ({"img_size": 10**9, "model": "nothing that is known", "mean": "0.5"}, (), (), ()),
    ],
)
def test_what_settings_say(holder, networks, size, mean):
    said = what_is_said(holder)
    assert (said.networks, said.size) == (networks, size)
    assert said.mean[:1] == pytest.approx(mean, abs=1e-3)


def test_size_mean_and_classes_from_a_checkpoint(tmp_path):
    names = ["ant", "bee", "cat", "dog", "eel"]
    settings = Settings(img_size=96, mean=[0.1, 0.2, 0.3], std=[0.5] * 3, id2label=dict(enumerate(names)))
    torch.save({"model": net().state_dict(), "config": settings}, tmp_path / "c.pt")
    loaded = load_model(str(tmp_path / "c.pt"))
    assert (loaded.input_size, loaded.size_is_default) == ((3, 96, 96), False)
    assert loaded.class_names == tuple(names)
    assert (loaded.images.mean, loaded.images.std, loaded.images.origin) == (
        (0.1, 0.2, 0.3),
        (0.5,) * 3,
        "the file",
    )
    assert "the input size is 3x96x96, as the file says" in loaded.assumed


# Formats and folders


def test_folders_with_weights_and_a_configuration(tmp_path):
    model = net()
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    said = {
        "architecture": "squeezenet1_1",
        "label_names": list("abcde"),
        "pretrained_cfg": {"input_size": [3, 64, 64]},
    }
    (folder / "config.json").write_text(json.dumps(said))
    loaded = opens(folder, model)
    assert (loaded.form, loaded.input_size, loaded.class_names) == (
        "safetensors",
        (3, 64, 64),
        tuple("abcde"),
    )


def test_weights_in_several_files(tmp_path):
    model = net()
    state = model.state_dict()
    where = {name: f"{number % 2}.safetensors" for number, name in enumerate(state)}
    for file in {*where.values()}:
        save_file({name: state[name] for name in state if where[name] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    opens(tmp_path, model)
    opens(index, model)
    (tmp_path / "1.safetensors").unlink()
    with pytest.raises(ModelError, match=r"asks for 1\.safetensors, which is not there"):
        load_model(str(index))
    index.write_text(json.dumps({"weight_map": {"a": "/etc/passwd"}}))
    with pytest.raises(ModelError, match="which is not there"):
        load_model(str(index))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint(tmp_path):
    import torch.distributed.checkpoint as dcp

    model = net()
    dcp.save({"model": model.state_dict(), "step": 3}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    opens(tmp_path / "dcp", model)
    (tmp_path / "dcp" / ".metadata").write_bytes(b"\x80\x04}.")
    with pytest.raises(ModelError, match="dcp_to_torch"):
        load_model(str(tmp_path / "dcp"))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_programs_give_the_weights_of_known_networks(tmp_path):
    model = net()
    torch.jit.script(model).save(str(tmp_path / "m.pt"))
    loaded = opens(tmp_path / "m.pt", model)
    assert "the file is TorchScript" in loaded.assumed[0]
    own = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    torch.jit.script(own).save(str(tmp_path / "own.pt"))
    with pytest.raises(ModelError, match=r"TorchScript, .* state dict, with --arch FILE\.py:FUNCTION"):
        load_model(str(tmp_path / "own.pt"))


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("m.pte", b"\x1c\0\0\0ET12" + bytes(64), "ExecuTorch"),
        ("m.engine", bytes(64), "TensorRT"),
        ("m.xml", b'<?xml version="1.0"?>\n<net name="Model0" version="11">', "OpenVINO"),
        ("m.mlmodel", b"\xff\x05" + bytes(64), "Core ML"),
    ],
)
def test_formats_of_other_runtimes_are_named_with_the_way_back(tmp_path, name, content, what):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"{what}.*; give the PyTorch model that it was made from"):
        load_model(str(tmp_path / name))


@pytest.mark.parametrize(
    ("files", "what"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], r"merge_and_unload\(\)"),
        (["recipe.json", "adapter.safetensors"], "load_adapter"),
        (["saved_model.pb"], "TensorFlow"),
        (["a.pt", "b.pt"], r"give the model file in it, such as a\.pt"),
    ],
)
def test_folders_of_other_kinds(tmp_path, files, what):
    for name in files:
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(ModelError, match=what):
        load_model(str(tmp_path))


# No plain classifiers


def test_auxiliary_heads_are_not_shipped(tmp_path):
    model = torchvision.models.googlenet(weights=None, num_classes=3, aux_logits=True, init_weights=False)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    loaded = opens(tmp_path / "m.pt", model.eval())
    assert sum(parameter.numel() for parameter in loaded.module.parameters()) < 6e6
    assert any("aux1, aux2 are left out" in words for words in loaded.assumed)
    assert torch.is_tensor(loaded.module.train()(torch.randn(2, 3, 64, 64)))


@pytest.mark.parametrize("whole", [True, False])
def test_a_network_without_a_classifier_is_told(tmp_path, whole):
    model = torchvision.models.resnet18(weights=None).eval()
    model.fc = nn.Identity()
    torch.save(model if whole else model.state_dict(), tmp_path / "m.pt")
    loaded = opens(tmp_path / "m.pt", model)
    assert loaded.headless == "fc"
    assert re.search("no classifier .*fc is missing", loaded.warnings[0])
    assert with_head(loaded.module, 512, (3, 64, 64))(torch.randn(2, 3, 64, 64)).shape == (2, 1)


def test_a_classifier_on_a_network_of_unknown_build():
    body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1))
    assert empty_head(body) == ""
    assert with_head(body, 4, (3, 8, 8))(torch.randn(2, 3, 8, 8)).shape == (2, 1)


def test_dropped_layers_inside_are_no_missing_classifier():
    assert empty_head(nn.Sequential(nn.Identity(), nn.Linear(3, 2))) == ""
    model = torchvision.models.resnet18(weights=None)
    model.maxpool = nn.Identity()
    assert empty_head(model) == ""


@pytest.mark.parametrize(
    ("last", "ends_in"),
    [(nn.Softmax(1), "softmax"), (nn.Sigmoid(), "sigmoid"), (nn.LogSoftmax(1), ""), (nn.Identity(), "")],
)
def test_outputs_that_are_probabilities(last, ends_in):
    assert probabilities(nn.Sequential(nn.Flatten(), nn.Linear(12, 3), last), (3, 2, 2)) == ends_in
