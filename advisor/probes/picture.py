"""One picture of all candidates: what is known of some tells what the others would come to.

The logit of an accuracy is taken for a sum of effects: of the method, of how much of the network is
trained, of the statistics, the head, the learning rate, the length of the training, and of the training
itself. What effects there are on average, and how far tasks differ in them, is the prior, a file that a
study writes (measurements/prior.py); the probes at hand make it theirs (Bayesian linear regression, Bishop
2006, 3.3, with a Gaussian prior for each group of effects).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from advisor.methods import get_method, learning_rates
from advisor.probes.promotion import middle_rate
from advisor.probes.train import head_of
from advisor.records import SMALL_BATCH, Candidate, Estimate, Features

_Z95 = 1.959964  # the normal distribution's 97.5 % quantile
_PRIOR = Path(__file__).parent / "prior.json"
_STEP = math.log(5)  # between two learning rates of a grid, about
_LENGTHS = 4  # doublings: a sixteenth of a whole fine-tune lies at -1
Effect = tuple[str, str]  # a group, and what it is in it


@dataclass(frozen=True, slots=True)
class Point:
    """A training, whole or in part, with one of its heads."""

    training: Candidate
    rate: float | None = None  # None: nothing is trained
    share: float = 1.0  # of a whole fine-tune's updates
    head: Features | None = None  # the solved one; None: as it was trained


@dataclass(frozen=True, slots=True)
class Prior:
    """What effects are expected, and how far tasks lie apart in them."""

    means: Mapping[Effect, float]  # 0 for what is not in it
    spreads: Mapping[str, float]  # of each group's effects: standard deviations
    noise: float  # of one training, with its own order of batches: standard deviation
    shared: float  # of a sample's variance, the part that all answers to the same images have in common

    @classmethod
    def from_plain(cls, found: Mapping[str, Any]) -> Prior:
        """From what `measurements/prior.py` writes."""
        means = {(group, name): v for group, named in found["means"].items() for name, v in named.items()}
        return cls(means, found["spreads"], found["noise"], found["shared"])


@cache
def shipped_prior() -> Prior:
    """Of the tasks that the study has seen."""
    return Prior.from_plain(json.loads(_PRIOR.read_text()))


def effects(point: Point, blocks: int, batch_size: int) -> dict[Effect, float]:
    """What makes up the point's accuracy, each with its weight.

    Args:
        blocks: of the network.
        batch_size: images in an update.
    """
    training, method = point.training, get_method(point.training.method)
    scope = blocks if method.only_head or training.levers.scope is None else training.levers.scope
    depth = scope / max(blocks, 1) - 1
    head = point.head or head_of(training) or "trained"
    length = step = 0.0
    if point.rate is not None:
        length = math.log2(point.share) / _LENGTHS
        step = math.log(point.rate / middle_rate(training)) / _STEP
    own = training.levers.statistics
    policy = (method.statistics if own == "own" else own) + ("/small" if batch_size < SMALL_BATCH else "")
    found = {
        ("task", ""): 1.0,
        ("method", method.name): 1.0,
        ("statistics", policy): 1.0,
        ("head", head): 1.0,
        ("depth", "linear"): depth,
        ("depth", "squared"): depth**2,
        ("depth by method", method.name): depth,
        ("rate", "linear"): step,
        ("rate", "squared"): step**2,
        ("rate by method", method.name): step,
        ("length", "linear"): length,
        ("length", "squared"): length**2,
        ("length by method", method.name): length,
        ("length by head", head): length,
        ("length by rate", ""): length * step,
        ("length by depth", ""): length * depth,
        ("statistics by method", f"{method.name} {policy}"): 1.0,
        ("head by method", f"{method.name} {head}"): 1.0,
        ("training", training.id): 1.0,
        ("training by length", training.id): length,
        ("training by rate", training.id): step,
        ("training by head", f"{training.id} {head}"): 1.0,
    }
    for name, value in training.setting:
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            found["setting", f"{method.name} {name}"] = math.log2(value)
    return {effect: weight for effect, weight in found.items() if weight}


@dataclass(frozen=True, slots=True)
class Seen:
    """What a probe found."""

    point: Point
    accuracy: float
    samples: int  # that it was judged on, the same for all


def pictured(
    seen: Sequence[Seen], wanted: Sequence[Point], blocks: int, batch_size: int, prior: Prior
) -> list[Estimate]:
    """What each of the wanted would come to, on images like those that judged, with 95 % intervals.

    Raises:
        ValueError: nothing was seen.
    """
    import numpy as np

    if not seen:
        raise ValueError("without a probe nothing is known of the task")
    rows = [effects(point, blocks, batch_size) for point in [*(s.point for s in seen), *wanted]]
    columns, weights = tabled(rows)
    expected = weights @ np.array([prior.means.get(effect, 0.0) for effect in columns])
    scaled = weights * np.array([prior.spreads[group] for group, _ in columns])
    known, asked = scaled[: len(seen)], scaled[len(seen) :]
    answers = np.array([logit(s.accuracy, s.samples) for s in seen])
    variances = np.array([sampling_variance(s.accuracy, s.samples) for s in seen])
    noise = (1 - prior.shared) * variances + prior.noise**2
    covariance = known @ known.T + np.diag(noise)
    gain = np.linalg.solve(covariance, known @ asked.T).T
    means = expected[len(seen) :] + gain @ (answers - expected[: len(seen)])
    spread = np.sum(asked**2, 1) - np.sum(gain * (asked @ known.T), 1)
    # What the images that judged have in common is nothing that all these answers could tell.
    spread = spread + prior.noise**2 + prior.shared * float(np.median(variances))
    reach = _Z95 * np.sqrt(np.maximum(spread, 0))
    return [
        Estimate(*(_expit(value) for value in (mean, mean - away, mean + away)))
        for mean, away in zip(means.tolist(), reach.tolist(), strict=True)
    ]


def tabled(rows: Sequence[Mapping[Effect, float]]) -> tuple[list[Effect], Any]:
    """All effects that there are, and the weight of each (a column) in each of the rows: an array."""
    import numpy as np

    columns = {effect: number for number, effect in enumerate(dict.fromkeys(e for row in rows for e in row))}
    weights = np.zeros((len(rows), len(columns)))
    for number, row in enumerate(rows):
        for effect, weight in row.items():
            weights[number, columns[effect]] = weight
    return list(columns), weights


def logit(accuracy: float, samples: int) -> float:
    """Log odds; half an image right or wrong keeps them finite."""
    right = (accuracy * samples + 0.5) / (samples + 1)
    return math.log(right / (1 - right))


def sampling_variance(accuracy: float, samples: int) -> float:
    """Of `logit`, by the delta method."""
    right = (accuracy * samples + 0.5) / (samples + 1)
    return 1 / (samples * right * (1 - right))


def whole(training: Candidate, head: Features | None = None) -> list[Point]:
    """The training to its end, at each of its learning rates."""
    return [Point(training, rate, 1.0, head) for rate in learning_rates(training) or (None,)]


def _expit(value: float) -> float:
    return 1 / (1 + math.exp(-value))
