"""What the package reads, as it is when nothing is wrong with it: each function writes one into a folder."""

from __future__ import annotations

import io
import json
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from safetensors.torch import save as safetensors
from torch import nn

SIDE = 16


@cache
def network():
    """A small one that anything can be done with."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 2)).eval()


@cache
def known_network():
    """One that is recognised by its weights."""
    torch.manual_seed(0)
    return torchvision.models.squeezenet1_1(weights=None, num_classes=5).eval()


def saved(content, **how):
    """As the bytes of a file of torch.save."""
    file = io.BytesIO()
    torch.save(content, file, **how)
    return file.getvalue()


def scripted():
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(network()), file)
    return file.getvalue()


def exported():
    file = io.BytesIO()
    torch.export.save(torch.export.export(network(), (torch.zeros(2, 3, SIDE, SIDE),)), file)
    return file.getvalue()


# What makes each format of a model.
MODELS = {
    "module.pt": lambda: saved(network()),
    "state.pt": lambda: saved({"model": known_network().state_dict(), "epoch": 3}),
    "small.pt": lambda: saved(network().state_dict()),
    "older.pth": lambda: saved(network().state_dict(), _use_new_zipfile_serialization=False),
    "protocol4.pt": lambda: saved({"model": network().state_dict(), "beside": {1, 2}}, pickle_protocol=4),
    "weights.safetensors": lambda: safetensors(network().state_dict(), {"architecture": "squeezenet1_1"}),
    "script.pt": scripted,
    "program.pt2": exported,
}


@cache
def model(name):
    """A file's bytes."""
    return MODELS[name]()


def picture(side=24, seed=0, kind="PNG", mode="RGB", **how):
    """An image file's bytes."""
    noise = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, kind, **how)
    return file.getvalue()


# Of each format of an image.
PICTURES = {
    "a.png": {},
    "palette.png": {"mode": "P"},
    "grey.png": {"mode": "LA"},
    "a.jpg": {"kind": "JPEG"},
    "progressive.jpg": {"kind": "JPEG", "progressive": True},
    "a.webp": {"kind": "WEBP"},
    "a.gif": {"kind": "GIF"},
    "a.bmp": {"kind": "BMP"},
    "a.tif": {"kind": "TIFF"},
    "lzw.tif": {"kind": "TIFF", "compression": "tiff_lzw"},
    "a.ppm": {"kind": "PPM"},
}


def image_folder(folder: Path, count=40):
    """Two classes; fewer than 5 % of the images may be replaced by what can't be read."""
    for number in range(count):
        path = folder / f"{'ab'[number % 2]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(seed=number))
    return folder


@cache
def arrays():
    """An .npz."""
    randomness = np.random.default_rng(0)
    file = io.BytesIO()
    np.savez(
        file,
        images=randomness.integers(0, 255, (40, 12, 12, 3), np.uint8),
        labels=np.arange(40) % 2,
        class_names=np.array(["a", "b"]),
    )
    return file.getvalue()


@cache
def table():
    """Parquet of image files and classes, as datasets keeps them."""
    import pyarrow
    from pyarrow import parquet

    images = [{"bytes": picture(seed=number), "path": None} for number in range(40)]
    kinds = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    columns = pyarrow.table({"image": images, "label": [number % 2 for number in range(40)]})
    said = {b"huggingface": json.dumps({"info": {"features": kinds}}).encode()}
    file = io.BytesIO()
    parquet.write_table(columns.replace_schema_metadata(said), file)
    return file.getvalue()


@cache
def answer():
    """The text of a report's JSON."""
    import advisor

    found = advisor.recommend(network(), input_size=(3, SIDE, SIDE), methods=["head", "norm"], verify=False)
    from advisor.report.formats import dumps

    return dumps(found)


@cache
def baseline():
    """The text of a baseline."""
    from advisor.check.baseline import dumps
    from tests.check.records import snapshot

    return dumps({"net": {"board": snapshot()}, "other": {"board": snapshot(recommended=None)}})


@cache
def store():
    """A store's file, with some results."""
    import tempfile

    from advisor.store import Store

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.sqlite"
        with Store(path) as made:
            for number in range(20):
                made.put("probe", {"number": number}, {"accuracy": number / 20, "more": "x" * 200})
        return path.read_bytes()


@cache
def adapter():
    """The bytes of a recipe and of its adapter."""
    import copy
    import tempfile

    from advisor.delivery.adapters import Recipe, save_adapter
    from advisor.models import take_census
    from advisor.records import Candidate, Levers
    from advisor.training.update import begin

    base = network()
    census = take_census(base, (3, SIDE, SIDE))
    candidate = Candidate.of("lora", {"rank": 2}, Levers())
    trainable, _ = begin(copy.deepcopy(base), census, candidate, 1e-2)
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(folder, trainable, Recipe.of(base, candidate, census))
        return Path(folder, "recipe.json").read_bytes(), Path(folder, "adapter.safetensors").read_bytes()
