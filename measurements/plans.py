"""Random per-layer plans, and their simulation: what `costs.Estimator` is held against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from advisor import methods as registry
from advisor.costs import Estimator
from advisor.costs.recorder import layer_holding
from advisor.methods import get_method
from advisor.methods.base import merge_attached, plain_optimizer, train_only
from advisor.records import Candidate


class _Planned:
    """A method that does in each layer what the plan says."""

    name, learns_classes, learning_rates = "planned", True, (1e-3,)
    optimizer = staticmethod(plain_optimizer)
    merge = staticmethod(merge_attached)

    def __init__(self, plan: NDArray[np.int64], options: Sequence[Candidate]) -> None:
        self._plan, self._options = plan, options

    def attach(self, model, census, setting):  # type: ignore[no-untyped-def]
        trained = []
        listed = census.types()
        for number, option in enumerate(self._options, 1):
            choices = zip(census.layers, self._plan, strict=True)
            chosen = {layer.name: layer for layer, choice in choices if choice == number}
            part = replace(census, layers=tuple(chosen.values()))
            attached = get_method(option.method).attach(model, part, dict(option.setting))
            trained += [p for name, p in attached.parameters.items() if layer_holding(name, listed) in chosen]
        return train_only(model, trained, "updated", setting)


@contextmanager
def planned(plan: NDArray[np.int64], options: Sequence[Candidate]) -> Iterator[Candidate]:
    """While it lasts, a candidate that does what the plan says."""
    method: Any = _Planned(plan, options)
    registry._registry[method.name] = method
    try:
        yield Candidate(method.name)
    finally:
        del registry._registry[method.name]


def random_plans(estimator: Estimator, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """From hardly anything trained to everything, starting anywhere: (count, layers)."""
    layers, options = estimator.trains.shape
    plans = []
    for _ in range(count):
        plan = np.where(rng.random(layers) < rng.random(), rng.integers(0, options, layers), 0)
        plan[: rng.integers(0, layers)] = 0
        plans.append(plan)
    return np.stack(plans)
