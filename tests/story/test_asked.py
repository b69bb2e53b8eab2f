"""What is asked from Python in keywords: as with objects, each one documented, one line where it is wrong."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

import advisor
from advisor.data import Normalisation
from advisor.data.sources import find
from advisor.errors import AdvisorError, InputError
from advisor.records import Budget
from advisor.solver import parse_budget
from advisor.story.asked import Asked, asked
from advisor.story.situation import Request

IMAGES = np.random.default_rng(0).integers(0, 256, (120, 8, 8, 3)).astype(np.uint8)
LABELS = np.arange(120) % 3


def test_keywords_are_every_field_and_each_is_documented() -> None:
    limits = set(inspect.signature(parse_budget).parameters) - {"tolerance_points"} | {"tolerance"}
    assert set(Asked.__annotations__) == limits | {field.name for field in fields(Request)}
    described = inspect.getdoc(advisor.recommend) or ""
    missing = [name for name in Asked.__annotations__ if f"\n    {name}: " not in described]
    assert missing == []


def test_limits_are_text_or_plain_numbers() -> None:
    budget, request = asked(None, None, {"ram": "512MB", "flops": "2GFLOPs", "tolerance": 1, "warn": "ram"})
    assert budget == Budget(512_000_000, 2_000_000_000, tolerance=0.01, warn=("ram",))
    assert request == Request()
    plain, _ = asked(
        None,
        None,
        {"ram": 1000, "storage": 10, "step_time": 0.05, "max_trainable": 7, "max_overhead": 2, "flops": 3e9},
    )
    assert (plain.ram_bytes, plain.storage_bytes, plain.step_seconds) == (1000, 10, 0.05)
    assert (plain.max_trainable, plain.max_overhead, plain.flops) == (7, 0.02, 3_000_000_000)


def test_all_else_becomes_the_request() -> None:
    _, request = asked(
        None,
        None,
        {
            "input_size": "3x8x8",
            "methods": "lora, norm",
            "ranks": [2, 4],
            "probe_seconds": "5m",
            "normalisation": ([0.5] * 3, [0.2] * 3),
            "store": "runs.db",
            "data": Path("images"),
        },
    )
    assert request == Request(
        input_size=(3, 8, 8),
        methods=("lora", "norm"),
        ranks=(2, 4),
        probe_seconds=300.0,
        normalisation=Normalisation((0.5,) * 3, (0.2,) * 3),
        store=Path("runs.db"),
        data="images",
    )


def test_objects_are_taken_as_they_are() -> None:
    budget, request = Budget(ram_bytes=1), Request(batch_size=3)
    assert asked(budget, request, {}) == (budget, request)
    assert asked(budget, None, {"batch_size": 2}) == (budget, Request(batch_size=2))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rams": "1MB"}, "no rams; did you mean ram"),
        ({"ram": "512"}, "MB"),
        ({"ram": [1]}, r"ram=\[1\] can't be used; give a text"),
        ({"batch_size": 0}, "batch_size=0 can't be used; give a whole number, 1 or more"),
        ({"batch_size": True}, "batch_size=True"),
        ({"methods": ["lorra"]}, "lora"),
        ({"ranks": "2,4"}, "ranks='2,4'"),
        ({"input_size": (3, 8)}, r"input_size=\(3, 8\) can't be used; give \(channels, height, width\)"),
        ({"optimizer": "adamm"}, "optimizer 'adamm' is not known"),
        ({"verify": "no"}, "verify='no' can't be used; give True or False"),
        ({"probe_seconds": -1}, "probe_seconds=-1"),
        ({"min_accuracy": "high"}, "--min-accuracy: 'high' is no share; write it like 0.8 or 80%"),
        ({"normalisation": 0.5}, "normalisation=0.5"),
        ({"executor": "cloud"}, "cloud"),
        ({"scenario": None}, "scenario=None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_used_is_one_clear_line(given: Any, told: str) -> None:
    with pytest.raises(InputError, match=told) as raised:
        asked(None, None, given)
    assert "\n" not in str(raised.value)


def test_a_keyword_beside_the_object_it_is_a_part_of_is_refused() -> None:
    with pytest.raises(InputError, match="ram is a part of the Budget"):
        asked(Budget(), None, {"ram": "1MB"})
    with pytest.raises(InputError, match="seed is a part of the Request"):
        asked(None, Request(), {"seed": 1})


@pytest.mark.parametrize(
    "given",
    [
        (IMAGES, LABELS),
        (torch.from_numpy(IMAGES.transpose(0, 3, 1, 2) / 255).float(), torch.from_numpy(LABELS)),
        (IMAGES, [("cat", "dog", "hen")[label] for label in LABELS]),
        TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS)),
        Subset(TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS)), range(60)),
        {"train": (IMAGES[:90], LABELS[:90]), "val": (IMAGES[90:], LABELS[90:])},
        {"train": TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS))},
    ],
    ids=["arrays", "tensors", "names", "dataset", "subset", "parts", "dict"],
)
def test_images_are_arrays_or_a_dataset(given: Any) -> None:
    found = find(given)
    assert len(found.class_names) == 3
    assert found.total in (60, 120)
    assert (found.held_out is not None) == (isinstance(given, dict) and "val" in given)


def test_images_that_are_none_are_refused_in_one_line() -> None:
    for given in (3, (IMAGES, LABELS[:5]), {"test": (IMAGES, LABELS)}):
        with pytest.raises(AdvisorError, match="given images"):
            find(given)


def test_a_recommendation_from_arrays_alone() -> None:
    bright = (IMAGES // 4 + 60 * LABELS[:, None, None, None]).astype(np.uint8)
    network = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
    )
    found = advisor.recommend(
        network,
        ram="50MB",
        data=(bright, LABELS),
        methods="head,norm",
        probe_seconds=5,
        epochs=2,
        augment="flip",
        verify=False,
    )
    assert found.budget.ram_bytes == 50_000_000
    assert found.data is not None
    assert (found.data.source, found.data.classes) == ("given images", 3)
    assert (found.data.augment, found.data.device) == ("flip", "cpu")
    assert (found.provenance["augment"], found.provenance["device"]) == ("flip", "cpu")
    assert found.input_size == (3, 8, 8)
    assert any(each.accuracy for each in found.evaluations)
