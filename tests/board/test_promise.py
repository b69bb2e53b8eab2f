"""What a bundle was promised is enough, epoch after epoch, where small images leave it little room."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from advisor.advise import recommend, simulator_for
from advisor.board.export import export
from advisor.delivery.apply import Application
from advisor.records import Budget, Candidate, Evaluation
from advisor.situation import Request, prepare

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's"),
]
EPOCHS, BATCH = 6, 4
# (network, side of the images, candidates): of many small tensors, which leave gaps in the heap
CASES = (
    ("mobilenet_v2", 32, ("full", "lora-rank=4", "norm@statistics-frozen")),
    ("densenet121", 64, ("full", "dora-rank=2", "ssf@last-2")),
    ("resnet50", 64, ("full",)),
)


@pytest.fixture
def photos(tmp_path):
    random = np.random.default_rng(0)
    for number in range(60):
        path = tmp_path / "photos" / f"class{number % 4}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def test_it_is_enough_update_after_update(photos, tmp_path, figure):
    refused, done = [], 0
    for name, side, candidates in CASES:
        request = Request(
            data=str(photos),
            input_size=(3, side, side),
            batch_size=BATCH,
            methods=("head",),
            probe_seconds=None,
            verify=False,
        )
        model = f"torchvision:{name}"
        advice = recommend(model, Budget(), request)
        simulator = simulator_for(prepare(model, request, lambda *_: None))
        for text in candidates:
            evaluation = Evaluation(Candidate.parse(text), simulator.cost(Candidate.parse(text), BATCH))
            bundle = tmp_path / f"{name}-{text}"
            told = replace(advice, evaluations=(evaluation,), recommended=text)
            export(model, told, Application(bundle, epochs=EPOCHS))
            command = [sys.executable, str(bundle / "finetune.py"), str(photos)]
            ran = subprocess.run(
                [*command, "--output", str(bundle / "tuned")], capture_output=True, text=True, check=False
            )
            done += 1
            if ran.returncode:
                refused.append(f"{name} {text}: {ran.stderr}")
    told = f"{done}, of {EPOCHS} epochs each"
    figure("bundles on small images: refused under what they were promised", len(refused), 0, of=told)
    assert not refused
