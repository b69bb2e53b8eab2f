"""Every registered method with every lever and every optimizer, from the registry and not from a list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from advisor.methods import get_method, methods
from advisor.models.layers import take_census
from advisor.records import Candidate, Levers

SIZE = (3, 12, 12)
BATCH = 6
OPTIMIZERS = ("adam", "adamw", "momentum", "sgd")
LEVERS = (
    Levers(),
    Levers(scope=1),
    Levers(micro_batch=2),
    Levers(checkpoint=True),
    Levers(update="per-parameter"),
    Levers(scope=1, cached_prefix="ram"),
    Levers(scope=1, cached_prefix="disk", update="per-parameter", micro_batch=3),
    Levers(scope=1, fuse=True),
    Levers(statistics="frozen"),
    Levers(statistics="updated"),
    Levers(statistics="reestimated"),
    Levers(head="ridge-last", scope=2, micro_batch=3),
    Levers(head="ridge-all", statistics="frozen", update="per-parameter"),
    Levers(scope=2, micro_batch=3, checkpoint=True, update="per-parameter", statistics="frozen"),
)
# What a method has no use for, and says so: the reason is part of what is tested.
REFUSED = {("galore", "sgd"): "keeps no state that could be projected"}


def network() -> nn.Sequential:
    """Four blocks; every kind of convolution, wide enough that each method finds something to adapt."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU6()),
        nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, groups=2), nn.BatchNorm2d(32), nn.SiLU()),
        nn.Sequential(nn.Conv2d(32, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)),
    )


def every_candidate() -> Iterator[Candidate]:
    """Each setting of each method as it is, and the middle one with each lever and optimizer."""
    census = take_census(network(), SIZE)
    for name, method in methods().items():
        settings = method.settings(census, (2, 4))
        assert settings, f"the network has nothing for {name}: give it a layer"
        plain = Candidate.of(name, settings[len(settings) // 2], Levers())
        yield from (Candidate.of(name, setting, Levers()) for setting in settings)
        if not method.learning_rates:  # nothing is trained, so no lever but the batch's size means anything
            yield replace(plain, levers=Levers(micro_batch=2))
            continue
        for levers in LEVERS:
            if method.needs_data and levers.scope is not None:
                continue  # it says itself which layers are trained
            scope = 0 if method.only_head and levers.scope else levers.scope
            yield from (
                replace(plain, levers=replace(levers, scope=scope, optimizer=optimizer))
                for optimizer in OPTIMIZERS
            )


CANDIDATES = list({candidate.id: candidate for candidate in every_candidate()}.values())
RUNNABLE = [c for c in CANDIDATES if (c.method, c.levers.optimizer) not in REFUSED]


def test_what_is_refused_exists():
    for name, optimizer in REFUSED:
        get_method(name)
        assert optimizer in OPTIMIZERS
