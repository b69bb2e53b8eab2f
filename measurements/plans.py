"""Random per-layer plans, and their simulation: what `costs.Estimator` is held against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from advisor.costs import Estimator
from advisor.costs.recorder import layer_holding
from advisor.methods import Method, get_method, registered
from advisor.parts.attachment import Attachment
from advisor.records import Candidate


class _Planned(Method):
    """A method that does in each layer what the plan says."""

    name, learning_rates = "planned", (1e-3,)

    def __init__(self, plan: NDArray[np.int64], options: Sequence[Candidate]) -> None:
        self._plan, self._options = plan, options

    def train(self, to: Attachment) -> Iterator[nn.Parameter]:
        listed = to.census.types()
        for number, option in enumerate(self._options, 1):
            choices = zip(to.census.layers, self._plan, strict=True)
            chosen = {layer.name: layer for layer, choice in choices if choice == number}
            part = replace(to.census, layers=tuple(chosen.values()))
            attached = get_method(option.method).attach(to.model, part, dict(option.setting))
            named = attached.parameters.items()
            yield from (p for name, p in named if layer_holding(name, listed) in chosen)


@contextmanager
def planned(plan: NDArray[np.int64], options: Sequence[Candidate]) -> Iterator[Candidate]:
    """While it lasts, a candidate that does what the plan says."""
    with registered(_Planned(plan, options)) as method:
        yield Candidate(method.name)


def random_plans(estimator: Estimator, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """From hardly anything trained to everything, starting anywhere: (count, layers)."""
    layers, options = estimator.trains.shape
    plans = []
    for _ in range(count):
        plan = np.where(rng.random(layers) < rng.random(), rng.integers(0, options, layers), 0)
        plan[: rng.integers(0, layers)] = 0
        plans.append(plan)
    return np.stack(plans)
