"""Networks on boards: each pair has its answer, and what can't be asked of one stops no other."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from advisor.compare import compare
from advisor.errors import InputError
from advisor.records import Budget
from advisor.story.situation import Request
from tests.device import profiles


def save(path, width):
    torch.manual_seed(width)
    features = [nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    torch.save(nn.Sequential(*features, nn.Flatten(), nn.Linear(width, 2)), path)
    return str(path)


@pytest.fixture
def networks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return [save(tmp_path / f"{name}.pt", width) for name, width in (("small", 4), ("wide", 64))]


@pytest.fixture
def targets(tmp_path):
    """One on which everything takes a tenth of the time, and one with a large runtime."""
    slow, quick, full = profiles.profile(), profiles.profile(), profiles.profile(runtime_bytes=10**9)
    for operator in quick["operators"]:
        operator |= {"seconds_per_call": 1e-7, "seconds_per_flop": 1e-10}
    made = {"slow": slow, "quick": quick, "full": full}
    for name, document in made.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    return {name: str(tmp_path / f"{name}.json") for name in made}


ASKED = Request(input_size=(3, 12, 12), batch_size=4, methods=("head", "norm"))


def test_each_network_has_its_answer_on_each_board(networks, targets):
    given = [targets["slow"], targets["quick"]]
    found = compare(networks, given, Budget(ram_bytes=150_050_000), ASKED)
    told = {(pair.board, pair.name): pair.recommendation for pair in found}
    assert list(told) == [(b, n) for b in ("slow", "quick") for n in ("small", "wide")]
    small, quicker = told["slow", "small"], told["quick", "small"]
    assert small.recommended == quicker.recommended
    pairs = zip(small.evaluations, quicker.evaluations, strict=True)
    ratio = [a.update_seconds / b.update_seconds for a, b in pairs]
    assert ratio == pytest.approx([10.0] * len(ratio))
    # 50 kB are left besides the runtime: the wide network's updates need more.
    assert told["slow", "wide"].outcome == "none"
    assert not any(pair.is_best for pair in found)  # networks can't be told apart by their costs


def test_a_network_or_board_without_an_answer_is_told_beside_the_others(networks, targets, tmp_path):
    (tmp_path / "broken.pt").write_bytes(b"no network")
    found = compare(
        [networks[0], str(tmp_path / "broken.pt")], [targets["slow"], targets["full"]],
        *(Budget(ram_bytes=200_000_000), ASKED),
    )  # fmt: skip
    told = {(pair.board, pair.name): pair for pair in found}
    assert told["slow", "small"].recommendation.recommended
    assert "broken.pt" in told["slow", "broken"].trouble
    assert "more than --ram" in told["full", "small"].trouble
    with pytest.raises(InputError, match="more than --ram"):
        compare(networks, [targets["full"]], Budget(ram_bytes=200_000_000), ASKED)


def test_with_data_only_the_best_few_are_raced(networks, tmp_path):
    """Of classes that only differ in colour, told by one bright channel, both networks learn something."""
    random = np.random.default_rng(0)
    labels = np.arange(60) % 2
    images = random.integers(0, 120, (60, 12, 12, 3), dtype=np.uint8)
    images[labels == 1, ..., 0] += 100
    np.savez(tmp_path / "colours.npz", images=images, labels=labels)
    request = Request(
        input_size=(3, 12, 12),
        methods=("head", "ridge"),
        data=str(tmp_path / "colours.npz"),
        probe_seconds=5.0,
        epochs=1,
    )
    found = compare(networks, [], Budget(), request, best=1)
    raced, other = found
    choice = raced.recommendation.evaluation(raced.recommendation.recommended)
    assert choice.accuracy.mean > 0.8
    assert choice.measured is not None  # what is raced is run, too
    assert (raced.is_best, raced.solved) == (True, None)
    assert all(each.accuracy is None for each in other.recommendation.evaluations)
    assert other.solved.mean > 0.8
