"""Loading what users have, and refusing what must not run."""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import functools
import inspect
import os
import pickle
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from advisor.errors import ModelError
from advisor.models import load_model
from advisor.models.architectures import named_architecture
from advisor.models.fingerprint import model_fingerprint
from advisor.models.pickles import ModulePartial, allowed_classes


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


def test_random_weights_are_the_same_each_time():
    """What is trained on them is of use later; nobody else's random numbers change."""
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = torch.rand(1)
        torch.manual_seed(seed)
        drawn.append(model_fingerprint(load_model("torchvision:resnet18").module))
        assert torch.rand(1) == expected
    assert drawn[0] == drawn[1]


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


def allowed():
    """All that a file may name."""
    assert not allowed_classes("os")
    return {**allowed_classes("torch"), **allowed_classes("torchvision")}


def test_the_allow_list_holds_layers_only():
    for kind in allowed().values():
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
    with pytest.raises(ModelError, match="a program that takes more or other than images"):
        load_model(str(tmp_path / "graph.pt2"))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty"),
        (b"hello, I am a text file", "text file"),
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
    for arch in ("resnet18", "torchvision:resnet18"):
        with pytest.raises(ModelError, match="weights don't fit"):
            load_model(str(tmp_path / "s.pt"), arch=arch)
    with pytest.raises(ModelError, match=r"'resnet81'; did you mean resnet18"):
        load_model(str(tmp_path / "s.pt"), arch="resnet81")


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


def refusal(path, **options):
    """The one line that the file is refused with."""
    with pytest.raises(ModelError) as error:
        load_model(str(path), **options)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))
    return str(error.value)


class Call:
    """Calls anything with anything when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Settings:
    """A run's settings, as training scripts keep them beside the weights."""

    def __init__(self):
        self.rate = 0.1


@pytest.mark.parametrize("legacy", [False, True])
def test_foreign_settings_beside_the_weights_are_skipped(tmp_path, legacy):
    model = stock()
    content = {
        "model": model.state_dict(),
        "args": Settings(),
        "where": Path("/runs"),
        "best": np.float64(0.5),
        "classes": list("abcdefg"),
    }
    torch.save(content, tmp_path / "c.pt", _use_new_zipfile_serialization=not legacy)
    loaded = load_model(str(tmp_path / "c.pt"))
    assert same_outputs(loaded, model)
    assert loaded.class_names == tuple("abcdefg")


def test_a_module_with_a_foreign_part_is_not_loaded_without_it(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2))
    model.settings = {"deep": [Settings()]}
    torch.save({"model": model}, tmp_path / "m.pt")
    assert re.search(r"needs the classes \S*\.Settings, .*--trust", refusal(tmp_path / "m.pt"))
    torch.save({"model": Own(), "statistics": {"mean": torch.zeros(3)}}, tmp_path / "m.pt")
    assert re.search(r"needs the classes \S*\.Own, ", refusal(tmp_path / "m.pt"))


@pytest.mark.parametrize("legacy", [False, True])
def test_the_message_names_every_class_asked_for(tmp_path, legacy):
    content = nn.Sequential(Own(), nn.Linear(2, 2))
    content.settings = Settings()
    torch.save(content, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    message = refusal(tmp_path / "m.pt")
    home = Own.__module__
    assert f"needs the classes {home}.Own, {home}.Settings, which" in message


@pytest.mark.parametrize(
    "attack",
    [
        Call(eval, "open({path!r}, 'w')"),
        Call(exec, "open({path!r}, 'w')"),
        Call(open, "{path}", "w"),
        Call(subprocess.getoutput, "touch {path}"),
        Call(torch.hub.load, "{path}", "model"),
        Call(shutil.copy, "/dev/null", "{path}"),
    ],
    ids=["eval", "exec", "open", "subprocess", "hub", "shutil"],
)
@pytest.mark.parametrize("place", ["alone", "beside weights", "inside a module"])
def test_functions_are_called_out_and_never_called(tmp_path, attack, place):
    sentinel = tmp_path / "ran"
    function, arguments = attack.call
    attack = Call(function, *(each.format(path=str(sentinel)) for each in arguments))
    model = stock()
    if place == "inside a module":
        model.extra = attack
    content = {"alone": attack, "beside weights": {"model": model.state_dict(), "x": attack}}.get(
        place, model
    )
    torch.save(content, tmp_path / "evil.pt")
    message = refusal(tmp_path / "evil.pt")
    assert not sentinel.exists()
    assert "asks to run" in message
    assert function.__name__ in message
    assert "--trust" not in message


def test_a_second_pickle_in_the_archive_is_not_run_either(tmp_path):
    sentinel = tmp_path / "ran"
    torch.save(Touch(sentinel), tmp_path / "evil.pt")
    torch.save({"w": torch.zeros(1)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "evil.pt") as evil:
        records = {name.partition("/")[2]: evil.read(name) for name in evil.namelist()}
    with zipfile.ZipFile(tmp_path / "good.pt") as good:
        harmless = {name.partition("/")[2]: good.read(name) for name in good.namelist()}
    with zipfile.ZipFile(tmp_path / "both.pt", "w") as both:
        for folder, members in (("evil", records), ("good", harmless)):
            for name, value in members.items():
                both.writestr(f"{folder}/{name}", value)
    refusal(tmp_path / "both.pt")
    assert not sentinel.exists()


def test_no_allowed_class_evaluates_text_or_opens_files():
    """A file may call these with any arguments: their code must not reach further than arithmetic."""
    forbidden = {"eval", "exec", "open", "__import__", "import_module", "system", "popen", "Popen"}
    forbidden |= {"load_library", "load_state_dict_from_url", "urlopen", "reduce_graph_module"}
    for kind in set(allowed().values()):
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                is_own_method = (
                    isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "self"
                )
                assert name not in forbidden or is_own_method, f"{kind} calls {name}"


def test_what_holds_programs_or_processes_is_not_allowed():
    from torchvision.models.feature_extraction import DualGraphModule

    refused = {
        torch.fx.GraphModule,
        DualGraphModule,
        torch.jit.ScriptModule,
        nn.parallel.DistributedDataParallel,
    }
    assert not refused & set(allowed().values())
    assert not [name for name in allowed() if "detection" in name or "quantization" in name]


@pytest.mark.parametrize(
    "name", ["vit_b_16", "swin_t", "googlenet", "regnet_y_400mf", "maxvit_t", "densenet121"]
)
def test_whole_torchvision_modules_need_nothing_that_is_not_allowed(tmp_path, name):
    # On the meta device regnet can't be built; the others go without memory there.
    with torch.device("meta") if name != "regnet_y_400mf" else contextlib.nullcontext():
        model = named_architecture(f"torchvision:{name}").build(None, None)
    torch.save(model, tmp_path / "m.pt")
    asked = torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "m.pt")
    assert set(asked) <= allowed().keys() | {"functools.partial"}


def test_a_partial_is_saved_again_as_the_plain_one(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2))
    model.norm_layer = functools.partial(nn.LayerNorm, eps=1e-6)
    torch.save(model, tmp_path / "m.pt")
    again = pickle.loads(pickle.dumps(load_model(str(tmp_path / "m.pt")).module.norm_layer))
    assert type(again) is functools.partial
    assert (again.func, again.keywords) == (nn.LayerNorm, {"eps": 1e-6})


def test_wrappers_and_half_precision_of_whole_modules(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    torch.save({"ema": nn.DataParallel(copy.deepcopy(model).half()), "model": None}, tmp_path / "m.pt")
    loaded = load_model(str(tmp_path / "m.pt"))
    assert type(loaded.module) is nn.Sequential
    assert {value.dtype for value in loaded.module.state_dict().values()} == {torch.float32, torch.int64}


def test_the_average_of_the_weights_is_what_is_evaluated(tmp_path):
    plain, average = stock(), stock()
    torch.save({"ema": average.state_dict(), "model": plain.state_dict()}, tmp_path / "c.pt")
    loaded = load_model(str(tmp_path / "c.pt"))
    assert same_outputs(loaded, average)
    assert "the average of the weights under ema is taken, not model" in loaded.assumed
    torch.save({"ema": {"decay": torch.tensor(0.9)}, "model": plain.state_dict()}, tmp_path / "c.pt")
    assert same_outputs(load_model(str(tmp_path / "c.pt")), plain)
    averaged = torch.optim.swa_utils.AveragedModel(average)
    torch.save({"model_ema": averaged.state_dict(), "epoch": 1}, tmp_path / "c.pt")
    assert same_outputs(load_model(str(tmp_path / "c.pt")), average)


def test_several_models_in_one_file_are_not_guessed_at(tmp_path):
    state = nn.Linear(2, 2).state_dict()
    torch.save({"generator": state, "discriminator": state}, tmp_path / "c.pt")
    assert "several models (generator, discriminator)" in refusal(tmp_path / "c.pt")


def test_an_optimizers_checkpoint(tmp_path):
    optimizer = torch.optim.Adam(nn.Linear(2, 2).parameters())
    for content in (optimizer.state_dict(), {"optimizer": optimizer.state_dict(), "epoch": 2}):
        torch.save(content, tmp_path / "o.pt")
        assert "optimizer's state" in refusal(tmp_path / "o.pt")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (torch.eye(4).to_sparse(), "sparse"),
        (torch.zeros(2, 2, dtype=torch.complex64), "complex"),
        (torch.zeros(1).expand(10**6, 10**6), "more values than are stored"),
        (torch.empty(2, 2, device="meta"), "no values"),
        (torch.zeros(2, 2, dtype=torch.int8), "quantised"),
    ],
    ids=["sparse", "complex", "expanded", "meta", "int8"],
)
def test_tensors_that_cant_be_trained(tmp_path, value, problem):
    torch.save({"a.weight": value, "b.weight": torch.zeros(2, 2)}, tmp_path / "s.pt")
    assert re.search(rf"a\.weight .*{problem}", refusal(tmp_path / "s.pt"))
    if problem != "sparse":  # its printing aside, a module can't hold one
        model = nn.Sequential(nn.Linear(2, 2))
        model.register_buffer("odd", value)
        torch.save(model, tmp_path / "m.pt")
        assert re.search(rf"odd .*{problem}", refusal(tmp_path / "m.pt"))


@pytest.mark.parametrize("whole", [True, False])
def test_weights_that_are_not_numbers(tmp_path, whole):
    model = torchvision.models.resnet18(weights=None)
    model.layer1[0].bn1.running_var[3] = float("nan")
    torch.save(model if whole else model.state_dict(), tmp_path / "m.pt")
    said = refusal(tmp_path / "m.pt")
    assert "its entry layer1.0.bn1.running_var holds NaN in 1 of 64 places" in said
    assert "earlier checkpoint" in said


def test_whole_numbers_where_weights_belong(tmp_path):
    state = {name: value.to(torch.int64) for name, value in stock().state_dict().items()}
    torch.save(state, tmp_path / "s.pt")
    assert "quantised" in refusal(tmp_path / "s.pt")


def test_names_out_of_a_file_cant_break_the_line(tmp_path):
    torch.save({"a\n\x1b[31mb": 1, "c" * 500: 2}, tmp_path / "c.pt")
    message = refusal(tmp_path / "c.pt")
    assert "\x1b" not in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"GGUF" + bytes(64), "GGUF"),
        (b"\x08\x0a\x12\x07pytorch\x1a\x032.9" + bytes(64), "ONNX"),
        (b"\x1f\x8b\x08" + bytes(64), "gzip"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("Gewichte f\u00fcr alle".encode() * 60, "text file"),
        (bytes(range(1, 256)) * 4, "no known format"),
        (b"PK\x03\x04" + bytes(64), "damaged"),
        (b"\x80\x02}q\x00.", "plain pickle"),
        (b"\x80\x02", "damaged"),
        (b"\x80", "damaged"),
        (b"P", "text file"),
    ],
)
def test_more_files_of_other_kinds(tmp_path, content, what):
    (tmp_path / "x.pt").write_bytes(content)
    assert what in refusal(tmp_path / "x.pt")


def test_python_code_is_told_how_it_is_named(tmp_path):
    (tmp_path / "net.py").write_text("def net(): ...")
    assert f"is Python code; give {tmp_path / 'net.py'}:FUNCTION" in refusal(tmp_path / "net.py")


def test_archives_of_other_kinds(tmp_path):
    np.savez(tmp_path / "data.npz", images=np.zeros(3))
    assert "--data" in refusal(tmp_path / "data.npz")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("model.pth", b"x")
    assert "zip archive" in refusal(tmp_path / "a.zip")
    torch.save({"w.weight": torch.zeros(10**5)}, tmp_path / "m.pt")
    with (
        zipfile.ZipFile(tmp_path / "m.pt") as plain,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    assert "compressed" in refusal(tmp_path / "small.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_every_truncation_is_one_line(tmp_path, legacy):
    torch.save(nn.Sequential(nn.Linear(4, 4)), tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    whole = (tmp_path / "m.pt").read_bytes()
    for length in range(3, len(whole), max(1, len(whole) // 60)):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        refusal(tmp_path / "cut.pt")


def test_a_truncated_safetensors_file(tmp_path):
    save_file({"w": torch.zeros(64)}, tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:100])
    assert "damaged" in refusal(tmp_path / "cut.safetensors")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_module_is_loaded_or_refused_in_one_line(tmp_path, data):
    """Whatever bytes of the pickle change: a module or a ModelError, never another exception."""
    torch.save(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)), tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.pt") as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in records if name.endswith("data.pkl"))
    changed = bytearray(records[name])
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    records[name] = bytes(changed)
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        for each, value in records.items():
            archive.writestr(each, value)
    message = ""
    try:
        assert isinstance(load_model(str(tmp_path / "x.pt")).module, nn.Module)
    except ModelError as error:
        message = str(error)
    assert "\n" not in message


def test_modules_that_are_not_intact(tmp_path):
    hollow = nn.Linear.__new__(nn.Linear)  # nothing inside, not even a list of parameters
    torch.save(hollow, tmp_path / "m.pt")
    assert "not intact" in refusal(tmp_path / "m.pt")


def test_trusted_files_whose_class_is_gone(tmp_path, monkeypatch):
    (tmp_path / "their_gone.py").write_text("from torch import nn\nclass Net(nn.Module):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    import their_gone

    torch.save(their_gone.Net(), tmp_path / "m.pt")
    assert type(load_model(str(tmp_path / "m.pt"), trust=True).module) is their_gone.Net
    monkeypatch.delitem(sys.modules, "their_gone")
    (tmp_path / "their_gone.py").unlink()
    assert "their_gone" in refusal(tmp_path / "m.pt", trust=True)
    assert "their_gone.Net" in refusal(tmp_path / "m.pt")


def test_an_architecture_where_none_is_wanted(tmp_path):
    torch.save(stock(), tmp_path / "m.pt")
    assert "leave out --arch" in refusal(tmp_path / "m.pt", arch="torchvision:squeezenet1_1")
    with pytest.raises(ModelError, match="leave out --arch"):
        load_model("torchvision:squeezenet1_1", arch="torchvision:resnet18")


def test_class_names_that_cant_be_right_are_left_out(tmp_path):
    state = stock().state_dict()
    for wrong in (
        {"classes": ["a", "b"]},
        {"classes": 7},
        {"classes": list(range(7))},
        {"names": {0: "a", 5: "b"}},
    ):
        torch.save({"model": state, **wrong}, tmp_path / "c.pt")
        assert load_model(str(tmp_path / "c.pt")).class_names is None
    torch.save({"model": state, "names": {str(i): f"a\x1b{i}" for i in range(7)}}, tmp_path / "c.pt")
    assert load_model(str(tmp_path / "c.pt")).class_names == tuple(f"a{i}" for i in range(7))


def test_a_network_named_without_its_library():
    assert "torchvision:resnet18" in refusal("resnet18")


def test_odd_places(tmp_path):
    assert "such as m.pt" in refusal(folder_with(tmp_path / "folder", "m.pt"))
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")
    (tmp_path / "dangling.pt").symlink_to(tmp_path / "nowhere")
    assert "not a regular file" in refusal(tmp_path / "dangling.pt")
    with pytest.raises(ModelError, match="does not exist"):
        load_model("a\0b")


def folder_with(folder, name):
    folder.mkdir()
    (folder / name).write_bytes(b"")
    return folder


def test_a_factory_that_loads_its_weights_is_not_said_to_have_random_ones(tmp_path, monkeypatch):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "weights.pt")
    (tmp_path / "made_here.py").write_text(
        "import torch\n"
        "def fresh():\n"
        "    return torch.nn.Linear(3, 2)\n"
        "def trained():\n"
        "    model = fresh()\n"
        f"    model.load_state_dict(torch.load({str(tmp_path / 'weights.pt')!r}))\n"
        "    return model\n"
        "def lazy():\n"
        "    return torch.nn.LazyLinear(2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    names = ("fresh", "trained", "lazy")
    found = {name: load_model(f"made_here:{name}").has_trained_weights for name in names}
    assert found == {"fresh": False, "trained": True, "lazy": False}
