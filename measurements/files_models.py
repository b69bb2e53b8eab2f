"""Study: what becomes of model files as people's own scripts write them.

    python -m measurements.files_models           # about 3 minutes
    python -m measurements.files_models --only ema  # those whose names hold the word

Each file is written as such a script would, and read with the function that every command uses. One that is
valid must give the outputs of the network that it was written from; one that can't be opened must be refused
for the right reason. Writes results/files_models.json and the table in README.md.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import pickle
import statistics
import sys
import tempfile
import time
import types
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

from advisor.errors import ModelError
from advisor.models import load_model
from advisor.models.layers import logits
from measurements.tables import README, table, write_tables

RESULTS = Path(__file__).parent / "results" / "files_models.json"
SIDE = 64  # pixels of the images that outputs are compared on
CLOSE = 1e-4  # of the largest output

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A file, and what must become of it."""

    group: str
    name: str
    write: Callable[[Path], Any]  # to that path; gives another path where it wrote elsewhere
    model: nn.Module | None = None  # whose outputs it must give
    refused: str = ""  # words of the right reason, where it can't be opened
    says: str = ""  # words that must be told of it
    arch: str | None = None
    side: int = SIDE
    channels: int = 3


def net(name: str, classes: int = 7, **options: Any) -> nn.Module:
    """One of torchvision's networks, with random weights and statistics."""
    torch.manual_seed(len(name))
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    model = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    return shaken(model)


def shaken(model: nn.Module) -> nn.Module:
    """With statistics that are not those of a new network: else leaving them out would go unseen."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return model.eval()


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def saved(content: Any, **options: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path, **options)


def with_part(model: nn.Module, name: str, part: nn.Module) -> nn.Module:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, part)
    return model.eval()


# Prefixes, and what stands beside the weights


def prefixes() -> list[Case]:
    cases = []
    for prefix in (
        "module.",
        "model.",
        "net.",
        "backbone.",
        "model.module.",
        "encoder.model.",
        "_orig_mod.",
        "base_model.",
        "student.",
    ):
        model = net("resnet18")
        cases.append(
            Case("prefix", prefix, saved({"state_dict": prefixed(model.state_dict(), prefix)}), model)
        )
    model, other = net("mobilenet_v2"), net("mobilenet_v2")
    for one, two in (("ema_model.", "model."), ("model_ema.module.", "model."), ("teacher.", "student.")):
        state = prefixed(model.state_dict(), one) | prefixed(nn.init.ones_(torch.zeros(1)) and {}, two)
        changed = {
            name: value + (value.is_floating_point() and 0.1) for name, value in other.state_dict().items()
        }
        state = prefixed(changed, two) | prefixed(model.state_dict(), one)
        cases.append(Case("several copies", f"{one} {two}", saved(state), model, says="copies"))
    small, large = net("resnet18"), net("resnet34", 7)
    state = prefixed(small.state_dict(), "student.") | prefixed(large.state_dict(), "teacher.")
    cases.append(Case("several copies", "distillation", saved({"state_dict": state}), small))
    model = net("shufflenet_v2_x0_5")
    beside = {"loss_fn.weight": torch.ones(7), "val_acc.tp": torch.zeros(7), "train_f1.fn": torch.zeros(7)}
    state = prefixed(model.state_dict(), "model.") | beside
    lightning = {"state_dict": state, "epoch": 3, "pytorch-lightning_version": "2.0", "optimizer_states": []}
    cases.append(Case("beside", "lightning with loss and metrics", saved(lightning), model, says="left out"))
    model = net("resnet18")
    counted = dict(model.state_dict())
    for name, _ in model.named_modules():
        counted[f"{name}.total_ops".lstrip(".")] = torch.zeros(1)
        counted[f"{name}.total_params".lstrip(".")] = torch.zeros(1)
    cases.append(Case("beside", "thop's counters", saved(counted), model))
    normalised = prefixed(model.state_dict(), "1.") | {
        "0.mean": torch.tensor([0.4, 0.4, 0.4]).view(1, 3, 1, 1),
        "0.std": torch.tensor([0.2, 0.2, 0.2]).view(1, 3, 1, 1),
    }
    cases.append(Case("beside", "a normalising layer", saved(normalised), model))
    arcface = {"model": {**headless("resnet18").state_dict()}, "epoch": 2}
    arcface["model"]["arcface.weight"] = torch.zeros(100, 512)
    cases.append(Case("headless", "an embedding with ArcFace", saved(arcface), headless("resnet18")))
    return cases


def headless(name: str) -> nn.Module:
    model = net(name)
    part = "fc" if hasattr(model, "fc") else "classifier"
    return with_part(model, part, nn.Identity())


# Heads, stems, widths


def heads() -> list[Case]:
    def changed(name: str, part: str, head: nn.Module) -> nn.Module:
        return with_part(net(name), part, head)

    models = {
        "fc: Linear without bias": changed("resnet18", "fc", nn.Linear(512, 5, bias=False)),
        "fc: Dropout, Linear": changed("resnet18", "fc", nn.Sequential(nn.Dropout(), nn.Linear(512, 5))),
        "fc: Linear, ReLU, Dropout, Linear": changed(
            "resnet50", "fc", nn.Sequential(nn.Linear(2048, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 5))
        ),
        "fc: Linear, BatchNorm, ReLU, Linear": changed(
            "resnet18",
            "fc",
            nn.Sequential(nn.Linear(512, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 5)),
        ),
        "classifier: one Linear": changed("mobilenet_v2", "classifier", nn.Linear(1280, 5)),
        "classifier.1: Sequential": changed(
            "efficientnet_b0",
            "classifier.1",
            nn.Sequential(nn.Linear(1280, 32), nn.ReLU(), nn.Linear(32, 5)),
        ),
        "classifier.3 of mobilenet_v3": changed("mobilenet_v3_small", "classifier.3", nn.Linear(1024, 3)),
        "classifier.6 of vgg": changed("vgg11_bn", "classifier.6", nn.Linear(4096, 3)),
        "classifier.1 of squeezenet": changed("squeezenet1_1", "classifier.1", nn.Conv2d(512, 3, 1)),
        "classifier of densenet": changed("densenet121", "classifier", nn.Linear(1024, 3)),
        "classifier.2 of convnext": changed("convnext_tiny", "classifier.2", nn.Linear(768, 3)),
        "named Sequential": changed(
            "resnet18",
            "fc",
            nn.Sequential(OrderedDict(drop=nn.Dropout(), out=nn.Linear(512, 4))),
        ),
    }
    cases = [Case("head", name, saved(model.state_dict()), model) for name, model in models.items()]
    outside = nn.Sequential(OrderedDict(backbone=headless("resnet18"), fc=nn.Linear(512, 4)))
    cases.append(Case("head", "backbone and fc beside it", saved(outside.state_dict()), outside.eval()))
    features = net("mobilenet_v2").features
    own = nn.Sequential(
        OrderedDict(
            features=features, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(1280, 4)
        )
    ).eval()
    state = {name.replace("features.", "backbone."): value for name, value in own.state_dict().items()}
    cases.append(Case("head", "features as backbone, head beside", saved(state), own))
    body = nn.Sequential(*list(net("resnet18").children())[:-1])
    numbered = nn.Sequential(OrderedDict(encoder=body, flat=nn.Flatten(), head=nn.Linear(512, 4))).eval()
    cases.append(Case("head", "resnet's children by number", saved(numbered.state_dict()), numbered))
    for name in ("resnet18", "mobilenet_v2", "efficientnet_b0", "densenet121"):
        model = headless(name)
        cases.append(Case("headless", name, saved(model.state_dict()), model, says="no classifier"))
    model = net("googlenet", aux_logits=True)
    cases.append(
        Case("head", "googlenet with auxiliary heads", saved(model.state_dict()), model, says="auxiliary")
    )
    return cases


def stems() -> list[Case]:
    grey = with_part(net("resnet18"), "conv1", nn.Conv2d(1, 64, 7, 2, 3, bias=False))
    four = with_part(net("mobilenet_v2"), "features.0.0", nn.Conv2d(4, 32, 3, 2, 1, bias=False))
    cifar = with_part(net("resnet18"), "conv1", nn.Conv2d(3, 64, 3, 1, 1, bias=False))
    cifar = with_part(cifar, "maxpool", nn.Identity())
    both = with_part(
        with_part(net("resnet34"), "conv1", nn.Conv2d(1, 64, 3, 1, 1, bias=False)), "maxpool", nn.Identity()
    )
    vit = net("vit_b_32", image_size=96)
    return [
        Case("stem", "grey", saved(grey.state_dict()), grey, channels=1),
        Case("stem", "four channels", saved(four.state_dict()), four, channels=4),
        Case("stem", "3x3 for small images", saved(cifar.state_dict()), cifar, side=32, says="stride 1"),
        Case("stem", "3x3 and grey", saved(both.state_dict()), both, side=32, channels=1, says="stride 1"),
        Case("stem", "a ViT for 96 pixels", saved(vit.state_dict()), vit, side=96),
    ]


def widths() -> list[Case]:
    models = torchvision.models
    resnet = models.ResNet(models.resnet.Bottleneck, [1, 2, 1, 1], 7, groups=8, width_per_group=8)
    made = {
        "mobilenet_v2 x0.35": models.mobilenet_v2(num_classes=7, width_mult=0.35),
        "mobilenet_v2 x1.4": models.mobilenet_v2(num_classes=7, width_mult=1.4),
        "mobilenet_v3_small x0.5": models.mobilenet_v3_small(num_classes=7, width_mult=0.5),
        "mobilenet_v3_large x0.75": models.mobilenet_v3_large(num_classes=7, width_mult=0.75),
        "mnasnet x0.35": models.MNASNet(0.35, num_classes=7),
        "shufflenet x0.25": models.ShuffleNetV2([4, 8, 4], [24, 24, 48, 96, 512], 7),
        "a thin resnext": resnet,
        "resnet of 1, 1, 1, 1 blocks": models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], 7),
        "a small densenet": models.DenseNet(12, (2, 4, 4, 2), 24, num_classes=7),
    }
    conf = models.efficientnet._efficientnet_conf("efficientnet_b0", width_mult=0.5, depth_mult=0.8)
    made["efficientnet x0.5"] = models.EfficientNet(conf[0], 0.2, num_classes=7, last_channel=640)
    return [Case("width", name, saved(shaken(model).state_dict()), model) for name, model in made.items()]


# Settings objects beside the weights


class Config(dict):
    """As EasyDict: attributes are entries."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Names(list):
    """A list's subclass."""


class Settings:
    """A user's own."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


def settings() -> list[Case]:
    model = net("squeezenet1_1")
    values = {"lr": 0.1, "model": "squeezenet1_1", "img_size": 64, "out": Path("runs")}
    lists: defaultdict[str, list[float]] = defaultdict(list)
    lists["loss"] += [0.3, 0.2]
    objects: dict[str, Any] = {
        "argparse.Namespace": argparse.Namespace(**values),
        "SimpleNamespace": types.SimpleNamespace(**values),
        "own class": Settings(**values),
        "EasyDict": Config(values),
        "defaultdict": lists,
        "Counter": Counter("abc"),
        "list subclass": Names(["a", "b"]),
        "dict subclass in a dict": {"args": {"inner": Config(values)}},
        "partial": functools.partial(Settings, lr=0.1),
        "enum-like class": Settings,
    }
    try:
        from yacs.config import CfgNode

        objects["yacs"] = CfgNode({"MODEL": {"NAME": "squeezenet1_1"}, "SIZE": 64})
    except ImportError:
        pass
    try:
        from omegaconf import OmegaConf

        objects["OmegaConf"] = OmegaConf.create({"model": {"name": "squeezenet1_1"}, "sizes": [1, 2]})
    except ImportError:
        pass
    cases = [
        Case("settings", name, saved({"model": model.state_dict(), "args": value}), model)
        for name, value in objects.items()
    ]
    protocol = saved({"state_dict": model.state_dict(), "args": Config(values)}, pickle_protocol=4)
    cases.append(Case("settings", "pickle protocol 4", protocol, model))
    legacy = saved({"net": model.state_dict(), "cfg": Config(values)}, _use_new_zipfile_serialization=False)
    cases.append(Case("settings", "torch.save's older format", legacy, model))
    whole = Config(state_dict=Config(model.state_dict()), epoch=3)
    cases.append(Case("settings", "all in dict subclasses", saved(whole), model))
    return cases


# Whole modules


class Net(nn.Module):
    """A user's own class."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)


def whole() -> list[Case]:
    def renamed(model: nn.Module, old: str, new: str) -> Callable[[Path], None]:
        """As a version wrote it in which the class had another name."""

        def write(path: Path) -> None:
            torch.save(model, path)
            with zipfile.ZipFile(path) as archive:
                records = {name: archive.read(name) for name in archive.namelist()}
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in records.items():
                    if name.endswith("data.pkl"):
                        content = content.replace(f"c{old}\n".encode(), f"c{new}\n".encode())  # noqa: PLW2901
                    archive.writestr(name, content)

        return write

    def without(model: nn.Module, *names: str) -> nn.Module:
        """As a version wrote it that did not know these attributes."""
        old = copy.deepcopy(model)
        for layer in old.modules():
            for name in names:
                vars(layer).pop(name, None)
                layer._buffers.pop(name, None)
        return old

    resnet, mobile, dense = net("resnet18"), net("mobilenet_v2"), net("densenet121")
    old_torch = (
        "padding_mode",
        "_reversed_padding_repeated_twice",
        "_non_persistent_buffers_set",
        "num_batches_tracked",
        "_is_full_backward_hook",
        "_backward_pre_hooks",
    )
    cases = [
        Case("whole module", "resnet18", saved(resnet), resnet),
        Case("whole module", "in DataParallel", saved({"model": nn.DataParallel(resnet)}), resnet),
        Case(
            "whole module",
            "in a checkpoint with args",
            saved({"model": resnet, "args": Settings(lr=1)}),
            resnet,
        ),
        Case(
            "whole module",
            "ConvBNReLU of torchvision 0.8",
            renamed(
                mobile,
                "torchvision.ops.misc\nConv2dNormActivation",
                "torchvision.models.mobilenet\nConvBNReLU",
            ),
            mobile,
        ),
        Case("whole module", "torch before 1.5", saved(without(resnet, *old_torch)), resnet),
        Case(
            "whole module",
            "densenet without memory_efficient",
            saved(without(dense, "memory_efficient")),
            dense,
        ),
        Case(
            "whole module",
            "own class",
            saved(Net()),
            refused=r"needs the classes \S*Net.*--arch FILE\.py:Net",
        ),
        Case(
            "whole module",
            "__main__.Net",
            renamed(Net(), f"{__name__}\nNet", "__main__\nNet"),
            refused=r"__main__\.Net.*put Net into a file",
        ),
    ]
    try:
        import timm

        model = shaken(timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=7))
        cases.append(Case("whole module", "timm's", saved(model), model))
    except ImportError:
        pass
    return cases


# Other libraries' networks, formats and folders


def libraries() -> list[Case]:
    try:
        import timm
    except ImportError:
        return []
    cases = []
    for name, classes in (
        ("resnet10t", 5),
        ("vit_tiny_patch16_224", 5),
        ("mobilenetv3_small_050", 9),
        ("efficientnet_lite0", 4),
        ("convnext_atto", 3),
    ):
        model = shaken(timm.create_model(name, pretrained=False, num_classes=classes))
        side = 224 if "vit" in name else SIDE
        if (
            name == "efficientnet_lite0"
        ):  # tf_efficientnet_lite0 pads in another way, and has the same weights
            cases.append(Case("timm", name, saved(model.state_dict()), refused="several networks.*tf_eff"))
        else:
            cases.append(Case("timm", name, saved(model.state_dict()), model, side=side))
        if name != "vit_tiny_patch16_224":
            prefixed_state = {
                "state_dict": prefixed(model.state_dict(), "model."),
                "args": Settings(model=name),
            }
            cases.append(Case("timm", f"{name} under model.", saved(prefixed_state), model))
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=5, img_size=96).eval()
    cases.append(Case("timm", "vit_tiny for 96 pixels", saved(vit.state_dict()), vit, side=96))
    bare = shaken(timm.create_model("resnet10t", pretrained=False, num_classes=0))
    cases.append(Case("headless", "timm's resnet10t", saved(bare.state_dict()), bare, says="no classifier"))

    def hub(folder: Path) -> None:
        folder.mkdir()
        save_file(bare_classes.state_dict(), folder / "model.safetensors")
        said = {"architecture": "resnet10t", "num_classes": 5, "label_names": list("abcde")}
        (folder / "config.json").write_text(json.dumps(said))

    bare_classes = shaken(timm.create_model("resnet10t", pretrained=False, num_classes=5))
    cases.append(Case("folder", "timm's hub folder", hub, bare_classes))
    return cases


def formats() -> list[Case]:
    model = net("squeezenet1_1")
    state = model.state_dict()

    def sharded(folder: Path) -> None:
        folder.mkdir()
        names = list(state)
        halves = {"one.safetensors": names[:20], "two.safetensors": names[20:]}
        for file, held in halves.items():
            save_file({name: state[name] for name in held}, folder / file)
        where = {name: file for file, held in halves.items() for name in held}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))

    def folder_of_one(folder: Path) -> None:
        folder.mkdir()
        torch.save(state, folder / "best.pth")

    def distributed(folder: Path) -> None:
        import torch.distributed.checkpoint as dcp

        dcp.save({"model": state}, checkpoint_id=folder, no_dist=True)

    def exported(path: Path) -> Path:
        torch.export.save(torch.export.export(model, (torch.zeros(1, 3, 64, 64),)), path.with_suffix(".pt2"))
        return path.with_suffix(".pt2")

    def content(data: bytes, suffix: str = ".pt") -> Callable[[Path], Path]:
        def write(path: Path) -> Path:
            path.with_suffix(suffix).write_bytes(data)
            return path.with_suffix(suffix)

        return write

    def scripted(own: nn.Module) -> Callable[[Path], None]:
        return lambda path: torch.jit.script(own).save(str(path))

    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    valid = [
        ("safetensors", lambda path: save_file(state, path)),
        ("half precision", saved({name: value.half() for name, value in state.items()})),
        ("sharded safetensors", sharded),
        ("a folder with one model", folder_of_one),
        ("TorchScript of a known network", scripted(model)),
        ("torch.export of a known network", exported),
    ]
    cases = [Case("format", name, write, model) for name, write in valid[:1] + valid[2:]]
    half = copy.deepcopy(model).half().float()
    cases.append(Case("format", "half precision", valid[1][1], half))
    cases += [
        Case("format", "torch.distributed", distributed, model, refused=""),
        Case("format", "TorchScript of an own network", scripted(own), refused="TorchScript.*state dict"),
        Case("format", "ONNX", content(b"\x08\x08\x12\x07pytorch", ".onnx"), refused="ONNX.*PyTorch"),
        Case("format", "TensorFlow Lite", content(b"\x1c\0\0\0TFL3", ".tflite"), refused="TensorFlow Lite"),
        Case("format", "ExecuTorch", content(b"\x1c\0\0\0ET12" + bytes(50), ".pte"), refused="ExecuTorch"),
        Case(
            "format",
            "OpenVINO",
            content(b'<?xml version="1.0"?>\n<net name="m">', ".xml"),
            refused="OpenVINO",
        ),
        Case(
            "format", "Core ML", content(b"\x08\x05\x12\x00" + bytes(50), ".mlmodel"), refused="Core ML|ONNX"
        ),
        Case("format", "TensorRT", content(b"ftrt" + bytes(50), ".engine"), refused="TensorRT"),
        Case("format", "Keras", content(b"\x89HDF\r\n\x1a\n" + bytes(50), ".h5"), refused="Keras"),
    ]
    return cases


def hugging_face() -> list[Case]:
    """Folders of transformers and of PEFT."""
    import peft
    import transformers

    common = {"num_labels": 5, "image_size": SIDE}
    built = [
        transformers.ViTForImageClassification(
            transformers.ViTConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, **common)
        ),
        transformers.ResNetForImageClassification(
            transformers.ResNetConfig(depths=[1, 1], hidden_sizes=[16, 32], embedding_size=8, num_labels=5)
        ),
        transformers.ConvNextForImageClassification(
            transformers.ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 16, 32], **common)
        ),
        transformers.MobileNetV2ForImageClassification(
            transformers.MobileNetV2Config(depth_multiplier=0.35, **common)
        ),
    ]
    cases = [Case("transformers", type(model).__name__, model.save_pretrained, model) for model in built]
    headless = transformers.ResNetModel(built[1].config)
    cases.append(Case("transformers", "ResNetModel", headless.save_pretrained, refused="no scores"))

    def adapted(config: Any, named: str | None) -> tuple[nn.Module, Callable[[Path], None]]:
        base = net("squeezenet1_1")
        state = copy.deepcopy(base.state_dict())
        model = peft.get_peft_model(base, config)
        for weight in model.parameters():
            if weight.requires_grad:
                nn.init.normal_(weight, std=0.05)

        def write(folder: Path) -> None:
            model.peft_config["default"].base_model_name_or_path = named
            model.save_pretrained(folder)
            torch.save(state, folder.parent / "base.pt")

        return model, write

    layers = ["expand1x1", "squeeze"]
    for name, config in (
        ("LoRA", peft.LoraConfig(r=4, target_modules=layers, modules_to_save=["classifier.1"])),
        ("DoRA", peft.LoraConfig(r=4, target_modules=layers, use_dora=True)),
        ("LoHa", peft.LoHaConfig(r=4, target_modules=layers)),
        ("(IA)3", peft.IA3Config(target_modules=layers, feedforward_modules=[])),
    ):
        model, write = adapted(config, "../base.pt")
        cases.append(Case("PEFT", f"{name} on a file", write, model, says="merged"))
    lora = peft.LoraConfig(r=4, target_modules=layers)
    for named, why in ((None, "doesn't say which"), ("somebody/network", "not here")):
        _, write = adapted(lora, named)
        cases.append(Case("PEFT", f"LoRA on {named}", write, refused=why))
    return cases


def programs() -> list[Case]:
    """Of torch.export, of networks that no library has."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(
                nn.Conv2d(3, 12, 3, stride=2, bias=False), nn.BatchNorm2d(12), nn.SiLU()
            )
            self.deep = nn.Conv2d(12, 12, 3, padding=1, groups=12)
            self.attention = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True)
            self.head = nn.Linear(12, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = nn.functional.avg_pool2d(self.deep(self.stem(x)), 6)
            return self.head(self.attention(x.flatten(2).transpose(1, 2)).mean(1))

    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = Own()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.own(x - x.mean())

    def exported(model: nn.Module, batch: int, is_of_any_batch: bool) -> Callable[[Path], Path]:
        def write(path: Path) -> Path:
            shapes = ({0: torch.export.Dim("batch")},) if is_of_any_batch else None
            images = torch.zeros(batch, 3, SIDE, SIDE)
            program = torch.export.export(model.eval(), (images,), dynamic_shapes=shapes)
            torch.export.save(program, path.with_suffix(".pt2"))
            return path.with_suffix(".pt2")

        return write

    own = shaken(Own())
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    told = "the file's own steps"
    return [
        Case("program", "of any batch", exported(own, 2, True), own, says=told),
        Case("program", "of a batch of 1, plain", exported(plain, 1, False), plain, says=told),
        Case("program", "that mixes a batch", exported(Mixing(), 2, False), refused="batches of exactly 2"),
    ]


def other_kinds() -> list[Case]:
    def by_names(*names: str) -> Callable[[Path], None]:
        return saved({name: torch.zeros(2, 2) for name in names})

    segmentation = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        num_classes=3, weights_backbone=None
    )
    deeplab = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(
        num_classes=3, weights_backbone=None
    )
    detection = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights_backbone=None)
    rcnn = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_fpn(weights_backbone=None)
    pruned = net("squeezenet1_1")
    for _, layer in pruned.named_modules():
        if isinstance(layer, nn.Conv2d):
            prune.l1_unstructured(layer, "weight", 0.3)
    plain = net("squeezenet1_1")
    weights = {
        n.replace("weight_orig", "weight"): v for n, v in pruned.state_dict().items() if "mask" not in n
    }
    masks = {n.removesuffix("_mask"): v for n, v in pruned.state_dict().items() if "mask" in n}
    plain.load_state_dict({n: v * masks.get(n, 1) for n, v in weights.items()})
    spectral = net("resnet18")
    for layer in spectral.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.utils.parametrizations.spectral_norm(layer)
    orthogonal = with_part(net("resnet18"), "fc", nn.utils.parametrizations.orthogonal(nn.Linear(512, 5)))
    fused = torchvision.models.quantization.mobilenet_v2(weights=None, num_classes=5, quantize=False).train()
    fused.fuse_model(is_qat=True)
    fused.qconfig = torch.ao.quantization.get_default_qat_qconfig("qnnpack")
    torch.ao.quantization.prepare_qat(fused, inplace=True)
    fused.apply(torch.ao.quantization.disable_fake_quant)
    normed = with_part(net("resnet18"), "fc", nn.utils.parametrizations.weight_norm(nn.Linear(512, 5)))
    old = with_part(net("resnet18"), "fc", nn.Linear(512, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with_part(old, "fc", nn.utils.weight_norm(nn.Linear(512, 5)))
    quantised = torch.ao.quantization.quantize_dynamic(net("resnet18"), {nn.Linear}, torch.qint8)
    aware = dict(plain.state_dict()) | {"features.0.activation_post_process.scale": torch.ones(1)}
    lora = {
        "base_model.model.fc.lora_A.weight": torch.zeros(4, 512),
        "base_model.model.fc.lora_B.weight": torch.zeros(7, 4),
    }
    return [
        Case("other kind", "segmentation, LRASPP", saved(segmentation.state_dict()), refused="segmentation"),
        Case("other kind", "segmentation, DeepLab", saved(deeplab.state_dict()), refused="segmentation"),
        Case("other kind", "detection, SSD", saved(detection.state_dict()), refused="detection"),
        Case("other kind", "detection, Faster R-CNN", saved(rcnn.state_dict()), refused="detection"),
        Case(
            "other kind", "U-Net", by_names("inc.double_conv.0.weight", "up1.conv.0.weight"), refused="U-Net"
        ),
        Case(
            "other kind",
            "language model",
            by_names("model.layers.0.self_attn.q_proj.weight", "lm_head.weight"),
            refused="language",
        ),
        Case("other kind", "LoRA alone", saved(lora), refused="adapters alone.*merge_and_unload"),
        Case("kept in parts", "pruned", saved(pruned.state_dict()), plain, says="pruned"),
        Case("kept in parts", "weight norm", saved(normed.state_dict()), normed, says="weight norm"),
        Case("kept in parts", "older weight norm", saved(old.state_dict()), old, says="weight norm"),
        Case("kept in parts", "observers of quantisation", saved(aware), plain, says="quantisation"),
        Case("kept in parts", "fused for it", saved(shaken(fused).state_dict()), fused, says="quantisation"),
        Case("kept in parts", "spectral norm", saved(spectral.state_dict()), spectral, says="spectral norm"),
        Case(
            "kept in parts",
            "orthogonal",
            saved(orthogonal.state_dict()),
            refused="remove_parametrizations",
        ),
        Case("other kind", "quantised", saved(quantised.state_dict()), refused="quantised"),
    ]


def unlike() -> list[Case]:
    """Networks that look like known ones, but compute something else: they must not be taken for these."""
    attention = net("resnet18")
    attention.layer1[0].add_module("se", nn.Linear(64, 64))
    twin = nn.Sequential(OrderedDict(rgb=net("resnet18"), depth=net("resnet18"), fc=nn.Linear(14, 2)))
    neck = nn.Sequential(
        OrderedDict(backbone=headless("resnet18"), neck=nn.LSTM(512, 64), fc=nn.Linear(64, 2))
    )
    deep = net("resnet18")
    deep.conv1 = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 3))
    small = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))

    class Evil:
        def __reduce__(self) -> Any:
            return print, ("ran",)

    class Worse:
        def __reduce__(self) -> Any:
            import os

            return os.system, ("true",)

    return [
        Case(
            "unlike", "with attention inside", saved(attention.state_dict()), refused="closest.*layer1.0.se"
        ),
        Case("unlike", "two backbones", saved(twin.state_dict()), refused="depth|rgb|fc"),
        Case("unlike", "with an LSTM", saved(neck.state_dict()), refused="neck"),
        Case("unlike", "a deep stem", saved(deep.state_dict()), refused="closest.*conv1"),
        Case("unlike", "an own small network", saved(small.state_dict()), refused="fit no .*--arch"),
        Case("attack", "os.system", saved({"model": Worse()}), refused="asks to run.*system"),
        Case(
            "attack",
            "beside weights",
            saved({"model": small.state_dict(), "x": Worse()}),
            refused="asks to run",
        ),
        Case(
            "attack",
            "a builtin, never called",
            saved({"x": Evil()}),
            refused="holds no weights|needs the classes",
        ),
        Case(
            "attack",
            "a plain pickle",
            lambda path: path.write_bytes(pickle.dumps({"x": Worse()})),
            refused="asks to run",
        ),
    ]


def with_arch() -> list[Case]:
    code = "from torch import nn\nclass Own(nn.Module):\n    def __init__(self, {count}=3):\n"
    code += "        super().__init__()\n"
    code += "        self.flat = nn.Flatten()\n        self.out = nn.Linear(3 * 64 * 64, {count})\n"
    code += "    def forward(self, x):\n        return self.out(self.flat(x))\n"
    own = nn.Sequential(OrderedDict(flat=nn.Flatten(), out=nn.Linear(3 * 64 * 64, 5))).eval()
    cases = []
    for count in ("num_classes", "n_classes"):
        home = Path(tempfile.mkdtemp()) / f"own_with_{count}.py"
        home.write_text(code.format(count=count))
        state = prefixed(own.state_dict(), "module.")
        cases.append(Case("--arch", f"file.py:Net, {count}", saved(state), own, arch=f"{home}:Own"))
    model = net("resnet18")
    cases.append(Case("--arch", "a bare name", saved(model.state_dict()), model, arch="resnet18"))
    refused = "did you mean resnet18"
    cases.append(
        Case("--arch", "a mistyped name", saved(model.state_dict()), arch="resnet81", refused=refused)
    )
    return cases


def all_cases(part: str = "") -> list[Case]:
    torch.manual_seed(0)
    makers = (
        prefixes,
        heads,
        stems,
        widths,
        settings,
        whole,
        libraries,
        formats,
        hugging_face,
        programs,
        other_kinds,
        unlike,
        with_arch,
    )
    return [case for make in makers if part in make.__name__ for case in make()]


def tried(case: Case, folder: Path) -> dict[str, Any]:
    """What became of the file."""
    path = folder / "model.pt"
    path = case.write(path) if isinstance(path, Path) and case.write is not None else path
    path = path if isinstance(path, Path) else folder / "model.pt"
    begun = time.perf_counter()
    result: dict[str, Any] = {"group": case.group, "name": case.name, "valid": case.model is not None}
    try:
        loaded = load_model(str(path), arch=case.arch)
    except ModelError as error:
        result["seconds"] = time.perf_counter() - begun
        said = str(error)
        import re

        right = bool(case.refused) and re.search(case.refused, said) and "\n" not in said
        outcome = (
            "refused with the right reason"
            if right
            else "refused, but valid"
            if case.model
            else "wrong reason"
        )
        return result | {"outcome": outcome, "said": said.replace(str(folder), "")}
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return result | {"outcome": "internal error", "said": repr(error)[:300], "seconds": 0.0}
    result["seconds"] = time.perf_counter() - begun
    said = "; ".join((*loaded.assumed, *loaded.warnings)).replace(str(folder), "")
    result |= {"network": loaded.name, "said": said}
    if case.model is None:
        return result | {"outcome": "wrong: opened"}
    image = torch.rand(2, case.channels, case.side, case.side)
    try:
        with torch.no_grad():
            expected, got = logits(case.model.eval()(image)), logits(loaded.module(image))
    except Exception as error:  # noqa: BLE001 - a network that doesn't run was not opened
        return result | {"outcome": "wrong: does not run", "said": repr(error)[:300]}
    same = expected.shape == got.shape and (expected - got).abs().max() <= CLOSE * expected.abs().max()
    if not same:
        return result | {"outcome": "wrong: other outputs"}
    import re

    told = not case.says or re.search(case.says, said)
    return result | {"outcome": "right" if told else "wrong: not told"}


def main() -> None:
    """Run the study and write what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="")
    parser.add_argument("--part", default="", help="one of the functions that make files")
    given = parser.parse_args()
    only, part = given.only, given.part
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = []
    for case in all_cases(part):
        if only in f"{case.group}: {case.name}":
            with tempfile.TemporaryDirectory() as name:
                results.append(tried(case, Path(name)))
            sys.stderr.write("{outcome:30} {seconds:5.2f} s  {group}: {name}  {said}\n".format(**results[-1]))
    right = ("right", "refused with the right reason")
    groups = list(dict.fromkeys(result["group"] for result in results))
    rows = []
    for group in (*groups, "all"):
        mine = [result for result in results if group in (result["group"], "all")]
        outcomes = Counter(result["outcome"] for result in mine)
        wrong = sum(count for outcome, count in outcomes.items() if outcome not in right)
        seconds = statistics.median(result["seconds"] for result in mine)
        rows.append([group, len(mine), *(outcomes[outcome] for outcome in right), wrong, f"{seconds:.2f}"])
    head = ["files", "number", "opened, right", "refused, right reason", "anything else", "seconds, median"]
    print(table(head, rows))
    if not only and not part:
        outcomes = Counter(result["outcome"] for result in results)
        versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
        document = {"outcomes": outcomes, "files": results, "versions": versions}
        RESULTS.write_text(json.dumps(document, indent=2) + "\n")
        write_tables(README, {"files_models": table(head, rows)})


if __name__ == "__main__":
    main()
