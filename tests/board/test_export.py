"""A bundle does what `apply` does, bit for bit, where there is torch and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from advisor import Budget, Request, load_adapter, recommend
from advisor.board.export import export
from advisor.costs import Simulator
from advisor.costs.process import GIVE_BACK
from advisor.delivery.apply import Application, apply_advice
from advisor.errors import InputError
from advisor.methods import registered
from advisor.methods.full import Full
from advisor.models import load_model, take_census
from advisor.records import Candidate, Evaluation
from tests.board.bare import run_bare

SIZE, LARGE, BATCH, EPOCHS = (1, 16, 16), (1, 64, 64), 16, 2
REQUEST = Request(batch_size=BATCH, methods=("head",), probe_seconds=None, verify=False, seed=3)
PLAN = "freeze:1-2,full+norm:3-6,lora2+norm:7-9,sparse0.25:10-12"
# Each method or lever that has code of its own in an update, most of them together with others.
CASES = [
    "full@momentum@per-parameter",
    "lora-rank=2@micro-4@checkpoint",
    "dora-rank=2@last-1@cached-disk",
    "norm@statistics-reestimated",
    "galore-rank=2@per-parameter",
    "sparse-fraction=0.25@last-1",
    "ssf@last-1@cached-ram@statistics-reestimated",
    "head",
    "ridge-features=all",
    "bias@head-ridge-all",
    "recalibrate",
    "tent@adamw",
    f"plan-layers={PLAN}",
]


# What of the photos is trained on; the others are trained on as they are.
AUGMENTED = {
    "dora-rank=2@last-1@cached-disk": "standard",
    "galore-rank=2@per-parameter": "flip",
    "ssf@last-1@cached-ram@statistics-reestimated": "flip",
    "head": "standard",
    "tent@adamw": "standard",
}
CUT = ["full@momentum@per-parameter", "dora-rank=2@last-1@cached-disk", "galore-rank=2@per-parameter"]


class Network(nn.Module):
    """With random numbers, a skip connection and a choice by mode: what a trace may miss."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(64, 10)

    def forward(self, x):
        x = self.stem(x)
        for number, block in enumerate(self.blocks):
            x = block(x, rate=0.1 * number)
        return self.head(self.drop(functional.adaptive_avg_pool2d(x, 2).flatten(1)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16)
        self.pointwise, self.last = nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)

    def forward(self, x, rate=None):
        y = self.last(self.pointwise(functional.relu(self.norm(self.depthwise(x)))))
        if rate and self.training:
            y = y * torch.floor(1 - rate + torch.rand([x.shape[0], 1, 1, 1])) / (1 - rate)
        return x + y


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network that knows digits, and photos of them."""
    folder = tmp_path_factory.mktemp("export")
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images[:75], digits.target, strict=False)):
        path = folder / "photos" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype(np.uint8)).resize((16, 16)).save(path)
    torch.manual_seed(0)
    model, images = Network(), torch.from_numpy(digits.images[120:760]).float()[:, None] / 8 - 1
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for batch in torch.arange(640).split(32):
        optimizer.zero_grad()
        found = model(functional.interpolate(images[batch], 16, mode="bilinear"))
        functional.cross_entropy(found, torch.from_numpy(digits.target[120:760])[batch]).backward()
        optimizer.step()
    torch.save(model.eval().state_dict(), folder / "model.pt")
    return folder


ARCH = "tests.board.test_export:Network"


@pytest.fixture(scope="module")
def advised(folder):
    """The advice, with any candidate."""
    request = replace(REQUEST, input_size=SIZE, data=str(folder / "photos"), arch=ARCH)
    advice = recommend(str(folder / "model.pt"), Budget(), request)
    base = load_model(str(folder / "model.pt"), arch=ARCH).module
    simulators = {
        size: Simulator(base, take_census(base, size), 53, workspace=False) for size in (SIZE, LARGE)
    }

    def of(candidate, size=SIZE):
        evaluation = Evaluation(
            Candidate.parse(candidate), simulators[size].cost(Candidate.parse(candidate), BATCH)
        )
        data = replace(advice.data, augment=AUGMENTED.get(candidate, "none"))
        return replace(advice, evaluations=(evaluation,), recommended=candidate, input_size=size, data=data)

    return of


def exported(folder, advice, output, **more):
    return export(str(folder / "model.pt"), advice, Application(output, epochs=EPOCHS, arch=ARCH, **more))


def altered(bundle, change):
    """The recipe of a bundle, changed in place."""
    recipe = json.loads((bundle / "recipe.json").read_text())
    change(recipe)
    (bundle / "recipe.json").write_text(json.dumps(recipe))


def kept(output):
    """How many held-out photos are right by the weights in the folder, as its recipe has it."""
    recipe = json.loads((output / "recipe.json").read_text())
    assert recipe["learning_rate"] != 20
    return round(recipe["accuracy"]["mean"] * recipe["accuracy"]["samples"])


@pytest.fixture(scope="module")
def runs(folder, advised, tmp_path_factory):
    """What came of each case, and of some more, all from one start of the bare interpreter."""
    there, photos = tmp_path_factory.mktemp("board"), str(folder / "photos")
    jobs, names = [], []

    def job(name, bundle, output, *arguments, cut_after=0):
        names.append(name)
        jobs.append((str(there / bundle), photos, str(there / output), arguments, cut_after))

    for number, case in enumerate(CASES):
        exported(folder, advised(case), there / f"b{number}")
        if case in CUT:  # in the midst of the second epoch
            job(f"{case}, cut", f"b{number}", f"o{number}", cut_after=5)
        job(case, f"b{number}", f"o{number}")
    job("better", "b0", "worse", "--epochs", "1")
    job("worse", "b0", "worse", "--learning-rate", "20", "--epochs", "1")
    lean = exported(folder, advised("full@micro-1@checkpoint@per-parameter", LARGE), there / "lean")
    assert lean.pass_size < 16
    job("lean", "lean", "lean-out", "--epochs", "1")
    shutil.copytree(there / "lean", there / "whole-batch")
    altered(there / "whole-batch", lambda recipe: recipe.update(candidate="full"))
    job("whole batch", "whole-batch", "whole-out", "--epochs", "1")
    job("whole batch, no limit", "whole-batch", "whole-out", "--epochs", "1", "--no-limit")
    shutil.copytree(there / "lean", there / "passes")
    altered(there / "passes", lambda recipe: recipe["board"].update(pass_size=64))
    job("large passes", "passes", "passes-out", "--epochs", "1")
    shutil.copytree(folder / "photos", there / "strange")
    (there / "strange" / "3").rename(there / "strange" / "three")
    photos = str(there / "strange")
    job("strange class", "lean", "strange-out")
    found = dict(zip(names, run_bare(jobs, there), strict=True))
    return there, found


@pytest.mark.parametrize("case", CASES)
def test_it_learns_as_apply_does_bit_for_bit_though_the_power_was_cut(folder, advised, runs, case, tmp_path):
    there, found = runs
    number = CASES.index(case)
    done = found[case]
    assert done["code"] == 0, done["err"]
    loaded = {name.partition(".")[0] for name in done["loaded"]}
    assert not loaded & {"numpy", "torchvision", "sklearn", "scipy", "fvcore", "safetensors"}
    assert not {"torch._dynamo", "torch._inductor"} & {*done["loaded"]}
    if f"{case}, cut" in found:
        assert found[f"{case}, cut"] == {"code": -9}
        assert done["out"].count("epoch ") == EPOCHS - 1  # the first was whole
    applied = apply_advice(
        str(folder / "model.pt"),
        advised(case),
        Application(tmp_path, epochs=EPOCHS, as_advised=True, arch=ARCH),
    )
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]
    history = json.loads((there / f"o{number}" / "history.json").read_text())
    assert history["losses"] == state["losses"]
    assert history["after"] == applied.accuracy.mean
    assert len(state["losses"]) == (0 if case in ("ridge-features=all", "recalibrate") else 3 * EPOCHS)
    base = load_model(str(folder / "model.pt"), arch=ARCH).module
    images = torch.randn(4, *SIZE, generator=torch.manual_seed(0))
    with torch.no_grad():
        assert torch.equal(
            load_adapter(base, there / f"o{number}")(images), load_adapter(base, tmp_path)(images)
        )


def test_plain_apply_learns_the_same_where_nothing_is_frozen_first(folder, advised, runs, tmp_path):
    there, _ = runs
    for case in ("full@momentum@per-parameter", "lora-rank=2@micro-4@checkpoint"):
        output = tmp_path / case
        apply_advice(str(folder / "model.pt"), advised(case), Application(output, epochs=EPOCHS, arch=ARCH))
        state = torch.load(output / "checkpoint.pt", weights_only=True)["state"]
        history = json.loads((there / f"o{CASES.index(case)}" / "history.json").read_text())
        assert history["losses"] == state["losses"]


def test_worse_weights_are_not_kept(folder, runs):
    there, found = runs
    worse = found["worse"]
    assert worse["code"] == 0, worse["err"]
    assert found["better"]["out"].endswith("adapter.safetensors is written\n")
    assert (
        worse["out"].splitlines()[-1].endswith(f" {kept(there / 'worse')} before: the old weights are kept")
    )
    load_adapter(load_model(str(folder / "model.pt"), arch=ARCH).module, there / "worse")


def test_it_takes_no_more_than_was_promised(runs):
    _, found = runs
    assert found["lean"]["code"] == 0, found["lean"]["err"]
    # The same bundle, but with a whole batch at once, or many images where no gradient is needed.
    for name in ("whole batch", "large passes"):
        assert found[name]["code"] == 2, name
        assert "MB that the advice promised are too little here; --no-limit" in found[name]["err"]
        assert found[name]["err"].count("\n") == 1
    assert found["whole batch, no limit"]["code"] == 0


def test_photos_of_no_class_are_one_line(runs):
    _, found = runs
    assert found["strange class"]["code"] == 2
    assert "three" in found["strange class"]["err"]
    assert found["strange class"]["err"].count("\n") == 1


def test_merged_weights_are_those_of_the_network(folder, runs):
    there, _ = runs
    base = load_model(str(folder / "model.pt"), arch=ARCH).module
    number = CASES.index("lora-rank=2@micro-4@checkpoint")
    images = torch.randn(4, *SIZE, generator=torch.manual_seed(0))
    with torch.no_grad():
        wanted = load_adapter(base, there / f"o{number}")(images)
        merged = load_model(str(there / f"o{number}" / "merged.safetensors"), arch=ARCH).module.eval()
        torch.testing.assert_close(merged(images), wanted, rtol=1e-4, atol=1e-4)


def test_what_is_not_ours_or_is_priced_only_is_refused(folder, advised, tmp_path):
    with pytest.raises(InputError, match=r"full@last-1@fused can't be exported: folded norms"):
        exported(folder, advised("full@last-1@fused"), tmp_path)

    class Another(Full):
        name, order = "another", 999

    with (
        registered(Another()),
        pytest.raises(InputError, match=r"another can't be exported: it is no method of ours"),
    ):
        exported(folder, advised("another"), tmp_path)
    assert not any(tmp_path.iterdir())
    (tmp_path / "advisor").mkdir()
    (tmp_path / "advisor" / "mine.py").touch()
    with pytest.raises(InputError, match=r"--output .* holds advisor/ and is no bundle"):
        exported(folder, advised("full"), tmp_path)
    assert (tmp_path / "advisor" / "mine.py").exists()


on_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="a file of Linux's tells what is held"
)


@on_linux
def test_what_a_head_s_solver_works_in_is_given_back():
    program = """
import torch
from advisor.costs.process import process_bytes, return_freed_memory
torch.set_num_threads(1)
matrix = torch.eye(256, dtype=torch.float64)
matrix @ matrix[:8].T  # code is loaded
return_freed_memory()
before = process_bytes("VmData")
torch.linalg.eigh(matrix + 1)
return_freed_memory()
print(process_bytes("VmData") - before)
"""
    told = os.environ | GIVE_BACK
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=told, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2**20


@on_linux
def test_its_process_starts_over_as_the_c_library_has_to_be_told(folder, advised, tmp_path):
    exported(folder, advised("head"), tmp_path / "bundle")
    tell = f"import json, os\nprint(json.dumps({{name: os.environ[name] for name in {list(GIVE_BACK)}}}))\n"
    (tmp_path / "bundle" / "network.py").write_text(tell + "raise SystemExit(3)\n")
    plain = {name: value for name, value in os.environ.items() if name not in GIVE_BACK}
    done = subprocess.run(
        [sys.executable, "-B", "bundle/finetune.py", str(folder / "photos")],
        cwd=tmp_path,
        env=plain | {"MALLOC_ARENA_MAX": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == GIVE_BACK | {"MALLOC_ARENA_MAX": "2"}
