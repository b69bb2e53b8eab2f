"""What a bundle was promised is enough, epoch after epoch, where small images leave it little room."""

from __future__ import annotations

import sys

import pytest

from measurements.resident import bundles, outcome, photos

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


def test_it_is_enough_update_after_update(tmp_path, figure):
    refused, done, data = [], 0, photos(tmp_path / "photos")
    for name, side, candidates in CASES:
        for candidate, _ in bundles(name, side, BATCH, candidates, data, tmp_path, EPOCHS):
            found = outcome(sys.executable, tmp_path, data)
            done += 1
            if "failure" in found:
                refused.append(f"{name} {candidate.id}: {found['failure']}")
    told = f"{done}, of {EPOCHS} epochs each"
    figure("bundles on small images: refused under what they were promised", len(refused), 0, of=told)
    assert not refused
