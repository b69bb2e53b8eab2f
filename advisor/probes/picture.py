"""One picture of all candidates: what is known of some tells what the others would come to.

The logit of an accuracy is taken for a sum of effects: of the method, of how much of the network is
trained, of the statistics, the head, the learning rate, the length of the training, and of the training
itself; some of them are others where the classes are new to the network. What effects there are on average,
and how far tasks differ in them, is the prior, which a study writes (measurements/prior.py): one for small
pictures, one for images of the size that networks have learned at. The probes at hand make it theirs
(Bayesian linear regression, Bishop 2006, 3.3, with a Gaussian prior for each group of effects).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from advisor.methods import get_method, learning_rates
from advisor.records import SMALL_BATCH, Z95, Candidate, Estimate, Features
from advisor.training.loop import head_of

_PRIOR = Path(__file__).parent / "prior.json"
_STEP = math.log(5)  # between two learning rates of a grid, about
_WORSE = 0.8  # in log odds below the best: how much further is all one
_FURTHER = 2.0  # times as far again an interval reaches below all that is told apart
_SMALL_IMAGES = 96  # pixels: below it
World = Literal["small images", "images"]
WORLDS: tuple[World, ...] = get_args(World)
_LENGTHS = 4  # doublings: a sixteenth of a whole fine-tune lies at -1
_IMAGES, _MORE = 400, 3  # and doublings: 50 images lie at -1, 3,200 at 1, and nothing further
Effect = tuple[str, str]  # a group, and what it is in it


@dataclass(frozen=True, slots=True)
class Point:
    """A training, whole or in part, with one of its heads."""

    training: Candidate
    rate: float | None = None  # None: nothing is trained
    share: float = 1.0  # of a whole fine-tune's updates
    head: Features | None = None  # the solved one; None: as it was trained


@dataclass(frozen=True, slots=True)
class Conditions:
    """What holds for all trainings of a task."""

    blocks: int  # of the network
    batch_size: int  # images in an update
    new_head: bool = False  # the network knows none of the classes
    side: int = 224  # of the images, in pixels
    images: int = 400  # that train

    @property
    def world(self) -> World:
        """Far below the size that networks have learned at, what is trained is worth something else."""
        return "images" if self.side >= _SMALL_IMAGES else "small images"


@dataclass(frozen=True, slots=True)
class Prior:
    """What effects are expected, and how far tasks lie apart in them."""

    means: Mapping[Effect, float]  # 0 for what is not in it
    spreads: Mapping[str, float]  # of each group's effects: standard deviations
    noise: float  # of one training, with its own order of batches: standard deviation
    shared: float  # of a sample's variance, the part that all answers to the same images have in common
    smoothed: float  # of the rest, what is left of it when answers count for as much as they are clear

    @property
    def sampled(self) -> float:
        """Of a plain answer's sampling variance, what a smoothed one's is."""
        return self.shared + (1 - self.shared) * self.smoothed

    @classmethod
    def from_plain(cls, found: Mapping[str, Any]) -> Prior:
        """From what `measurements/prior.py` writes."""
        means = {(group, name): v for group, named in found["means"].items() for name, v in named.items()}
        return cls(means, found["spreads"], found["noise"], found["shared"], found["smoothed"])


@cache
def shipped_prior(world: World) -> Prior:
    """Of the tasks that the study has seen."""
    return Prior.from_plain(json.loads(_PRIOR.read_text())[world])


def effects(point: Point, under: Conditions) -> dict[Effect, float]:
    """What makes up the point's accuracy, each with its weight."""
    training, method = point.training, get_method(point.training.method)
    scope = under.blocks if method.only_head or training.levers.scope is None else training.levers.scope
    depth = scope / max(under.blocks, 1) - 1
    head = point.head or head_of(training) or "trained"
    own = training.levers.statistics
    small = "/small" if under.batch_size < SMALL_BATCH else ""
    policy = (method.statistics if own == "own" else own) + small
    classes = "new" if under.new_head else "known"
    more = math.log2(max(under.images, 1) / _IMAGES) / _MORE
    more = max(-1.0, min(more, 1.0))
    # What is trained matters less where the head is solved for it: effects of their own, of another size.
    kind = "trained" if head == "trained" else "solved"
    # A head that is solved begins with what the network was before, and gains as that is trained: for longer,
    # and more of it.
    trained_for = math.sqrt(point.share) * scope / max(under.blocks, 1) if point.rate is not None else 0.0
    gained = 1.0 if kind == "trained" else trained_for
    length = raised = risked = 0.0
    if point.rate is not None:
        length = math.log2(point.share) / _LENGTHS
        steps = math.log(point.rate / learning_rates(training)[0]) / _STEP
        # What the lowest rate comes to is much the same everywhere, what the highest ruins is not.
        raised, risked = min(steps, 1.0), max(steps - 1.0, 0.0)
    found = {
        ("task", ""): 1.0,
        ("statistics", policy): 1.0,
        ("statistics by classes", f"{policy} {classes}"): 1.0,
        ("head", head): 1.0,
        ("head by classes", f"{head} {classes}"): 1.0,
        ("head by images", head): more,  # few leave much open of a head with thousands of features
    }
    by_kind = {
        ("method", method.name): gained,
        ("statistics by method", f"{method.name} {policy}"): gained,
        ("depth", "linear"): depth * gained,
        ("depth", "squared"): depth**2 * gained,
        ("depth by method", method.name): depth * gained,
        ("depth by classes", classes): depth * gained,
        ("rate raised", ""): raised * gained,
        ("rate raised by method", method.name): raised * gained,
        # Frozen statistics hold nothing back: what too large a rate does to them, batches' own forgive.
        ("rate raised by statistics", policy): raised * gained,
        ("rate risked", ""): risked,
        ("rate risked by method", method.name): risked,
        ("rate risked by statistics", policy): risked,
        ("training", training.id): gained,
        ("training by rate raised", training.id): raised * gained,
        ("training by rate risked", training.id): risked,
    }
    if kind == "trained":
        by_kind |= {
            ("length", "linear"): length,
            ("length", "squared"): length**2,
            ("length by method", method.name): length,
            ("length by rate", "raised"): length * raised,
            ("length by rate", "risked"): length * risked,
            ("length by depth", ""): length * depth,
            ("training by length", training.id): length,
        }
    else:
        by_kind |= {
            ("gain", ""): gained,
            ("gain by classes", classes): gained,
            ("gain by head", head): gained,
            ("gain by statistics", policy): gained,
            ("gain by statistics and classes", f"{policy} {classes}"): gained,
            ("training by head", f"{training.id} {head}"): gained,
        }
    found |= {(f"{group}, {kind} head", name): weight for (group, name), weight in by_kind.items()}
    for name, value in training.setting:
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            found["setting", f"{method.name} {name}"] = math.log2(value) * gained
    return {effect: weight for effect, weight in found.items() if weight}


@dataclass(frozen=True, slots=True)
class Seen:
    """What a probe found."""

    point: Point
    accuracy: float  # a smoothed one, as the prior has it
    samples: int  # that it was judged on: the first so many of the same


class Picture:
    """What is expected of some points, once others of them were seen; in log odds."""

    def __init__(self, points: Sequence[Point], under: Conditions, prior: Prior) -> None:
        """`points`: all that will ever be seen or asked for."""
        import numpy as np

        self.points, self.prior = tuple(points), prior
        self.rows = {point: row for row, point in enumerate(self.points)}
        columns, weights = tabled([effects(point, under) for point in self.points])
        self._expected = weights @ np.array([prior.means.get(effect, 0.0) for effect in columns])
        self._scaled = weights * np.array([prior.spreads[group] for group, _ in columns])
        self._variances = np.sum(self._scaled**2, 1)
        self._with: dict[int, Any] = {}  # covariances of one point with all, before anything was seen

    def rows_of(
        self, training: Candidate, rate: float | None, share: float, heads: Sequence[Features]
    ) -> tuple[int, ...]:
        """Of the points that one training shows: as it was trained, and with each of these heads."""
        return tuple(self.rows[Point(training, rate, share, head)] for head in (None, *heads))

    def given(self, seen: Sequence[Seen]) -> Belief:
        """What is believed of all points then."""
        import numpy as np
        from scipy.linalg import solve_triangular

        rows = np.array([self.rows[each.point] for each in seen], dtype=np.int64)
        samples = np.array([each.samples for each in seen], dtype=float)
        variances = np.array([sampling_variance(s.accuracy, s.samples) for s in seen])
        answers = floored(np.array([logit(s.accuracy, s.samples) for s in seen]))
        judged = _Judged(rows, samples, samples * variances)
        covariances = np.reshape([self._covariances(row) for row in rows.tolist()], (-1, len(self.points)))
        factor = np.linalg.cholesky(covariances[:, rows] + _noise(judged, judged, self.prior))
        told = solve_triangular(factor, covariances, lower=True).T
        gaps = solve_triangular(factor, answers - self._expected[rows], lower=True)
        return Belief(
            means=self._expected + told @ gaps,
            variances=np.maximum(self._variances - np.sum(told**2, 1), 0.0),
            prior=self.prior,
            floor=float(answers.max()) - _WORSE if len(seen) else -math.inf,
            _scaled=self._scaled,
            _told=told,
            _factor=factor,
            _judged=judged,
        )

    def _covariances(self, row: int) -> Any:
        if row not in self._with:
            self._with[row] = self._scaled @ self._scaled[row]
        return self._with[row]


@dataclass(frozen=True, slots=True)
class _Judged:
    """What was, or will be, answered on images."""

    rows: Any  # (A,) of the points
    samples: Any  # (A,) images: the first so many of the same
    spreads: Any  # (A,) variance of the answer to a single image


def _noise(some: _Judged, others: _Judged, prior: Prior) -> Any:
    """Covariances of answers around what they are of: (some, others).

    Each was judged on the first so many images, so two share as many as the one judged on fewer. What is hard
    about an image is so for all; the rest, and the luck of a training, only the same training shares: in so
    far as it was judged on the same images, by the same networks.
    """
    import numpy as np

    most = np.maximum.outer(some.samples, others.samples)
    is_same = np.equal.outer(some.rows, others.rows)
    sampled = np.sqrt(np.outer(some.spreads, others.spreads)) / most
    luck = prior.noise**2 * np.minimum.outer(some.samples, others.samples) / most
    return np.where(is_same, prior.sampled * sampled + luck, prior.shared * sampled)


@dataclass(frozen=True, slots=True)
class Belief:
    """Of P points what is known of each, and how an answer would change that."""

    means: Any  # (P,)
    variances: Any  # (P,), of what can be known of them
    prior: Prior
    floor: float  # below it nothing was told apart
    _scaled: Any  # (P, effects)
    _told: Any  # (P, what was seen)
    _factor: Any  # (what was seen, what was seen), of the answers' covariances
    _judged: _Judged

    def moves(self, points: Sequence[int], asked: Sequence[tuple[int, int]]) -> Any:
        """How far an answer that is a standard deviation off would move the means: (points, asked).

        Args:
            asked: the point that is answered, and on how many images.
        """
        import numpy as np
        from scipy.linalg import solve_triangular

        rows = np.array([row for row, _ in asked], dtype=np.int64)
        samples = np.array([count for _, count in asked], dtype=float)
        variances = [sampling_variance(expit(self.means[row]), count) for row, count in asked]
        new = _Judged(rows, samples, samples * np.array(variances))
        told = self._told[rows].T + solve_triangular(
            self._factor, _noise(self._judged, new, self.prior), lower=True
        )
        covariances = self._scaled[list(points)] @ self._scaled[rows].T - self._told[list(points)] @ told
        known = self._told[rows] ** 2  # of each point's variance, what is no longer open
        noise = self.prior.sampled * np.array(variances) + self.prior.noise**2
        before = self.variances[rows] + known.sum(1) + noise
        return covariances / np.sqrt(np.maximum(before - np.sum(told**2, 0), 1e-12))

    def estimate(self, row: int) -> Estimate:
        """What it would come to, on any images like those that judged, with a 95 % interval."""
        mean = float(self.means[row])
        away = Z95 * math.sqrt(self.variances[row] + self.prior.noise**2)
        low = mean - away
        if row not in self._judged.rows:  # what was not seen and is that bad may fail altogether
            low -= _FURTHER * max(min(mean, self.floor) - low, 0.0)
        return Estimate(expit(mean), expit(low), expit(mean + away))


def pictured(
    seen: Sequence[Seen], wanted: Sequence[Point], under: Conditions, prior: Prior
) -> list[Estimate]:
    """What each of the wanted would come to, on images like those that judged, with 95 % intervals.

    Raises:
        ValueError: nothing was seen.
    """
    if not seen:
        raise ValueError("without a probe nothing is known of the task")
    points = dict.fromkeys([*(each.point for each in seen), *wanted])
    picture = Picture(list(points), under, prior)
    belief = picture.given(seen)
    return [belief.estimate(picture.rows[point]) for point in wanted]


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


def accuracy_of(log_odds: float, samples: int) -> float:
    """What `logit` makes these log odds of."""
    return (expit(log_odds) * (samples + 1) - 0.5) / samples


def expit(log_odds: float) -> float:
    """The share that has these log odds."""
    return 1 / (1 + math.exp(-log_odds))


def floored(answers: Any) -> Any:
    """Log odds, none further below the best than is worth telling: a cliff says nothing of the slope."""
    return answers.clip(min=answers.max() - _WORSE) if len(answers) else answers


def sampling_variance(accuracy: float, samples: int) -> float:
    """Of `logit`, by the delta method."""
    right = (accuracy * samples + 0.5) / (samples + 1)
    return 1 / (samples * right * (1 - right))


def whole(training: Candidate, head: Features | None = None) -> list[Point]:
    """The training to its end, at each of its learning rates."""
    return [Point(training, rate, 1.0, head) for rate in learning_rates(training) or (None,)]
