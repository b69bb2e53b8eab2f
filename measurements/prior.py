"""Study: what the race expects of candidates that it hasn't tried, and how well that holds elsewhere.

    python -m measurements.prior           # minutes; reads results/curves.json, results/photos.json
    python -m measurements.prior --quick   # fewer points, printed, nothing written

Fits how far effects on accuracy differ between tasks (maximum marginal likelihood) and what they are on
average, and writes advisor/probes/prior.json. Then each task is left out in turn, with all others on the same
photos: with what the rest teaches, and what short probes of it tell, all its trainings are predicted. Writes
results/prior.json, and the table in README.md. The study of photos asks for advice likewise: of a task, with
what those on other photos teach.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import advisor.probes.picture as picturing
from advisor.methods import middle_rate
from advisor.probes.picture import (
    WORLDS,
    Conditions,
    Point,
    Prior,
    Seen,
    World,
    effects,
    floored,
    logit,
    pictured,
    sampling_variance,
    tabled,
)
from advisor.probes.train import without_head
from advisor.records import Candidate
from advisor.training.loop import head_of
from measurements.curves import JUDGING, SEEN, SHARES
from measurements.curves import RESULTS as CURVES
from measurements.curves import TASKS as CURVE_TASKS
from measurements.photo_tasks import PHOTO_FOLDERS
from measurements.tables import README, table, write_tables
from measurements.truth import say

PRIOR = Path(picturing.__file__).parent / "prior.json"
RESULTS = Path(__file__).parent / "results" / "prior.json"
PHOTOS = RESULTS.with_name("photos.json")
SMOOTHING = RESULTS.with_name("smoothing.json")
_USUAL, _PULL = 0.15, 0.5  # a standard deviation in log odds, and how much says that it is so
_ANY_TASK = 2.0  # standard deviation in log odds: users' tasks lie further apart than the study's
_POINTS = 200  # of each task, drawn at random: what a fit takes grows with their cube
STEPS = 60  # of the fit
# What is the same for all of a task: there tasks lie apart in the effect itself, if they do.
_OF_TASKS = ("by classes", "and classes", "by images")
_PROBED = ((8, 0), (4, 1), (1, 2))  # so many trainings for a sixteenth, a quarter, all of the updates


@dataclass(frozen=True, slots=True)
class Row:
    """A point of a task, and what it came to on the images that an advisor sees, and on others."""

    point: Point
    seen: float | None  # None: not told apart
    true: float


@dataclass(frozen=True, slots=True)
class Task:
    name: str
    under: Conditions
    rows: tuple[Row, ...]
    judged_on: int = JUDGING - SEEN

    @property
    def images(self) -> str:
        """What the task has in common with others on the same photos; its own name where there are none."""
        _, of, *_ = self.name.split(", ")
        return of if of in PHOTO_FOLDERS else self.name

    @property
    def is_seen(self) -> bool:
        """Whether it is known what an advisor would have seen of it."""
        return all(row.seen is not None for row in self.rows)


def tasks_of(curves: Mapping[str, Any], photos: Mapping[str, Any]) -> list[Task]:
    """From the two studies."""
    sides = {task.name: task.side for task in CURVE_TASKS}
    found = [
        Task(name, _conditions(task, sides[name]), tuple(_rows(task["rows"])))
        for name, task in curves["tasks"].items()
    ]
    return found + [
        Task(name, _conditions(task, photos["size"]["side"]), tuple(_ends(task["truth"])), task["judged_on"])
        for name, task in photos.get("tasks", {}).items()
        if "truth" in task
    ]


def committed() -> list[Task]:
    """All that the results hold."""
    photos = json.loads(PHOTOS.read_text()) if PHOTOS.exists() else {}
    return tasks_of(json.loads(CURVES.read_text()), photos)


def _conditions(task: Mapping[str, Any], side: int) -> Conditions:
    images = task["images"] if "images" in task else task["given"]
    return Conditions(task["blocks"], task["batch"], task["new_head"], side, images)


def without(tasks: Sequence[Task], images: str) -> list[Task]:
    """Those on other photos."""
    return [task for task in tasks if task.images != images]


def _ends(rows: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Of trainings that were judged at their ends alone."""
    for row in rows:
        candidate = Candidate.parse(row["candidate"])
        training, head = without_head(candidate), head_of(candidate)
        head = None if head == head_of(training) else head
        for rate, true in (row["by_rate"] or {None: row["accuracy"]}).items():
            yield Row(Point(training, None if rate is None else float(rate), 1.0, head), None, true)


def _rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for row in rows:
        training, shares = Candidate.parse(row["training"]), SHARES if row["rate"] else (1.0,)
        for share, *both in zip(shares, row["seen"], row["true"], strict=True):
            for head, seen, true in zip(row["heads"], *both, strict=False):
                yield Row(Point(training, row["rate"], share, head), seen, true)


def fitted(tasks: Sequence[Task], steps: int = STEPS) -> dict[World, Prior]:
    """What the tasks have in common, and how far they lie apart: in each world.

    An effect's average is that of all tasks, and what a world has of its own beside it. How far tasks lie
    apart is each world's own, too: photos at the size that networks have learned at lie closer together than
    small pictures, of which some ruin whatever is trained.
    """
    told = _Told(tasks)
    spreads = told.usual()
    optimizer = torch.optim.Adam(spreads, lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        told.loss(spreads).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        spreads.between[:, told.groups.index("task")] = math.log(_ANY_TASK)
        return told.priors(spreads)


class _Spreads(NamedTuple):
    """Logarithms of standard deviations; of W worlds and G groups of effects."""

    between: torch.Tensor  # (W, G) the tasks of a world
    averages: torch.Tensor  # (2, G) what is so on average: in all worlds, and in one beside that
    noises: torch.Tensor  # (W,) of one training


class _Told:
    """What all tasks came to, with the effects that made it up."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        drawn = [(task, row) for task in tasks for row in _drawn(task, _POINTS)]
        self._counts = [min(len(task.rows), _POINTS) for task in tasks]
        columns, weights = tabled([effects(row.point, task.under) for task, row in drawn])
        self.columns, self.weights = columns, torch.from_numpy(weights)
        self.groups = list(dict.fromkeys(group for group, _ in columns))
        self._group_of = torch.tensor([self.groups.index(group) for group, _ in columns])
        # An effect of one training alone is none of another task's.
        self._is_common = torch.tensor([not group.startswith("training") for group, _ in columns])
        self._is_between = torch.tensor([not any(of in group for of in _OF_TASKS) for group, _ in columns])
        self._world_of = torch.tensor([WORLDS.index(task.under.world) for task, _ in drawn])
        self.shared = shared_part(tasks)
        sampled = [(1 - self.shared) * sampling_variance(row.true, task.judged_on) for task, row in drawn]
        self._sampled = torch.tensor(sampled, dtype=torch.float64)
        logits = [
            floored(np.array([logit(row.true, task.judged_on) for of, row in drawn if of is task]))
            for task in tasks
        ]
        self._answers = torch.from_numpy(np.concatenate(logits))

    def usual(self) -> _Spreads:
        """What a fit begins with."""
        shapes = (len(WORLDS), len(self.groups)), (2, len(self.groups)), (len(WORLDS),)
        usual = (torch.full(shape, math.log(_USUAL), dtype=torch.float64) for shape in shapes)
        return _Spreads(*(each.requires_grad_() for each in usual))

    def loss(self, spreads: _Spreads) -> torch.Tensor:
        """Minus the log likelihood, and a weak pull.

        That keeps what the tasks say nothing of from running away, and one world beside the other.
        """
        factor = torch.linalg.cholesky(self._covariance(spreads))
        whitened = torch.linalg.solve_triangular(factor, self._answers[:, None], upper=False)
        of_worlds = spreads.between.mean(0)
        pulled = [spreads.between - of_worlds]
        pulled += [each - math.log(_USUAL) for each in (of_worlds, spreads.averages, spreads.noises)]
        pull = torch.stack([each.square().sum() for each in pulled]).sum()
        return 0.5 * whitened.square().sum() + factor.diagonal().log().sum() + _PULL * pull

    def _covariance(self, spreads: _Spreads) -> torch.Tensor:
        """Of all answers."""
        within = self.weights * self._between(spreads)[self._world_of]
        of_tasks = [rows @ rows.T for rows in within.split(self._counts)]
        # Columns of zeros take time, too.
        of_all, beside = ((self.weights * each)[:, self._is_common] for each in self._averages(spreads))
        same_world = self._world_of[:, None] == self._world_of
        noise = self._sampled + spreads.noises.exp()[self._world_of] ** 2
        return (
            torch.block_diag(*of_tasks) + of_all @ of_all.T + (beside @ beside.T) * same_world + noise.diag()
        )

    def _between(self, spreads: _Spreads) -> torch.Tensor:
        """Standard deviations of each effect between the tasks of each world."""
        return spreads.between.exp()[:, self._group_of] * self._is_between

    def _averages(self, spreads: _Spreads) -> torch.Tensor:
        """Standard deviations of each effect's average: in all worlds, and in one beside that."""
        return spreads.averages.exp()[:, self._group_of] * self._is_common

    def priors(self, spreads: _Spreads) -> dict[World, Prior]:
        """What is known of each effect, and what is left open."""
        inverse = torch.linalg.inv(self._covariance(spreads))
        of_all, beside = self._averages(spreads) ** 2
        found: dict[World, Prior] = {}
        for at, world in enumerate(WORLDS):
            covariances = self.weights * (of_all + beside * (self._world_of == at)[:, None])
            means = covariances.T @ (inverse @ self._answers)
            left = of_all + beside - ((inverse @ covariances) * covariances).sum(0)
            variances = self._between(spreads)[at] ** 2 + left
            found[world] = self._prior(means, variances, float(spreads.noises[at].exp()))
        return found

    def _prior(self, means: torch.Tensor, variances: torch.Tensor, noise: float) -> Prior:
        of_group = [variances[self._group_of == at].mean() for at in range(len(self.groups))]
        return Prior(
            {
                (group, name): round(float(mean), 4)
                for (group, name), mean, is_common in zip(self.columns, means, self._is_common, strict=True)
                if is_common
            },
            {group: round(math.sqrt(float(of)), 4) for group, of in zip(self.groups, of_group, strict=True)},
            round(noise, 4),
            round(self.shared, 4),
            json.loads(SMOOTHING.read_text())["smoothed"],
        )


def shared_part(tasks: Sequence[Task]) -> float:
    """Of the variance of a sample's answers, what all trainings that are judged on it have in common."""
    ratios = []
    for task in tasks:
        both = [(r.seen, r.true) for r in task.rows if r.seen is not None]
        if not both:
            continue
        apart = statistics.pvariance(logit(seen, SEEN) - logit(true, task.judged_on) for seen, true in both)
        alone = statistics.fmean(
            sampling_variance(seen, SEEN) + sampling_variance(true, task.judged_on) for seen, true in both
        )
        ratios.append(apart / alone)
    return max(1 - statistics.fmean(ratios), 0.0)


def _drawn(task: Task, count: int) -> list[Row]:
    order = np.random.default_rng(0).permutation(len(task.rows))[:count]
    return [task.rows[at] for at in order]


def probed(task: Task, seed: int) -> list[Row]:
    """What might have been probed: what needs no training, some trainings for a while, one to its end."""
    trainings = list(dict.fromkeys(row.point.training for row in task.rows if row.point.rate))
    order = [trainings[at] for at in np.random.default_rng(seed).permutation(len(trainings))]
    lengths = {
        training: [SHARES[part] for count, part in _PROBED if at < count] for at, training in enumerate(order)
    }
    return [
        row
        for row in task.rows
        if row.point.rate is None
        or (
            row.point.rate == middle_rate(row.point.training)
            and row.point.share in lengths[row.point.training]
        )
    ]


def held_out(task: Task, prior: Prior, seeds: int) -> dict[str, float]:
    """How the rest of the task is predicted from what was probed."""
    covered, errors, ranks = [], [], []
    for seed in range(seeds):
        known = probed(task, seed)
        rest = [row for row in task.rows if row.point.share == 1 and row not in known]
        seen = [Seen(row.point, row.seen, SEEN) for row in known if row.seen is not None]
        found = pictured(seen, [row.point for row in rest], task.under, replace(prior, smoothed=1.0))
        # The truth was judged on a sample, too.
        covered += [(f.low <= row.true <= f.high) for f, row in zip(found, rest, strict=True)]
        errors += [abs(f.mean - row.true) for f, row in zip(found, rest, strict=True)]
        ranks.append(_rank_correlation([f.mean for f in found], [row.true for row in rest]))
    return {
        "coverage": statistics.fmean(covered),
        "mean_error": 100 * statistics.fmean(errors),
        "rank_correlation": statistics.fmean(ranks),
    }


def _rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(one, other).statistic)


def as_plain(prior: Prior) -> dict[str, Any]:
    means: dict[str, dict[str, float]] = {}
    for (group, name), value in prior.means.items():
        means.setdefault(group, {})[name] = value
    same = {"noise": prior.noise, "shared": prior.shared, "smoothed": prior.smoothed}
    return {"means": means, "spreads": dict(prior.spreads)} | same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, printed, nothing written")
    given = parser.parse_args()
    tasks, steps = committed(), 5 if given.quick else STEPS
    found = {}
    for task in tasks:
        if not task.is_seen:
            continue
        prior = fitted(without(tasks, task.images), steps)[task.under.world]
        found[task.name] = held_out(task, prior, seeds=5)
        say(f"{task.name}: {found[task.name]}")
    summary = {
        name: statistics.fmean(task[name] for task in found.values()) for name in next(iter(found.values()))
    }
    say(f"all: {summary}")
    if given.quick:
        return
    priors = {world: as_plain(prior) for world, prior in fitted(tasks, steps).items()}
    PRIOR.write_text(json.dumps(priors, indent=1) + "\n")
    RESULTS.write_text(json.dumps({"tasks": found, "summary": summary}, indent=1) + "\n")
    rows = [
        (name, *(f"{value:.2f}" for value in task.values()))
        for name, task in (*found.items(), ("all", summary))
    ]
    heads = ("left out", "intervals that hold", "mean error, points", "rank correlation")
    write_tables(README, {"prior": table(heads, rows)})


if __name__ == "__main__":
    main()
