"""Study: how much less chance moves an accuracy whose answers count for as much as they are clear.

    python -m measurements.smoothing --data PHOTOS   # an hour, resumable; --data as for measurements.photos

Trainings of photo tasks that are not reported are judged on many images. Then on a few of these, drawn again
and again: how far is what lies between two trainings from what lies between them on all the others, by right
answers, and by smoothed ones (`Metric.smoothed`)? Writes results/smoothing.json, whose `smoothed` goes into
the picture's prior, and the table in README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advisor.methods import learning_rates
from advisor.probes.judging import ACCURACY
from advisor.probes.picture import logit
from advisor.store import Store, default_path
from measurements.photo_tasks import PhotoSize, Prepared
from measurements.photos import TASKS, TEACHING
from measurements.tables import README, table, write_tables
from measurements.truth import say

RESULTS = Path(__file__).parent / "results" / "smoothing.json"
STUDIED = ("lite0, cifar/test", "mobilenet, cifar/test")
_GOOD = 0.07  # below the best: others are soon told apart
_IMAGES = (75, 150, 300)
_DRAWS = 300


def margins_of(task: Prepared, store: Store) -> np.ndarray[Any, Any]:
    """Of each training, at each rate, with each head: (A, judging images)."""
    found = []
    for training in (each(len(task.census.blocks)) for each in TEACHING):
        for rate in learning_rates(training):
            trial = task.trial(training, rate, 0, heads=True)

            def judged(trial: Any = trial) -> dict[str, Any]:
                probe = task.trainer.probe(trial)
                say(f"  {trial.candidate.id} at {trial.learning_rate:g}: {probe.seconds:.0f} s")
                return {"margins": [of.hex() for of in (probe.margins, *(s.margins for s in probe.solved))]}

            kept = store.remembered("margins", task.trial_key(trial), judged)
            found += [np.frombuffer(bytes.fromhex(of), np.float32) for of in kept["margins"]]
    return np.array([each for each in found if len(each)])


def errors(margins: np.ndarray[Any, Any]) -> list[dict[str, float]]:
    """By how many images judge: how far differences between trainings are off, in percentage points."""
    random, right = np.random.default_rng(0), (margins > 0).mean(1)
    margins = margins[right > right.max() - _GOOD]
    level = float((margins > 0).mean())

    def apart(log_odds: list[float]) -> Any:
        return (np.array(log_odds) - statistics.fmean(log_odds)) * 100 * level * (1 - level)

    def told(margins: np.ndarray[Any, Any]) -> Any:
        return apart([logit(float((of > 0).mean()), len(of)) for of in margins])

    def smoothed(margins: np.ndarray[Any, Any]) -> Any:
        return apart([logit(ACCURACY.smoothed(of.tobytes()), len(of)) for of in margins])

    found = []
    for images in _IMAGES:
        off: dict[str, list[float]] = {"plain": [], "smoothed": []}
        for _ in range(_DRAWS):
            order = random.permutation(margins.shape[1])
            few, true = margins[:, order[:images]], told(margins[:, order[images:]])
            for name, of in (("plain", told(few)), ("smoothed", smoothed(few))):
                off[name].append(float(np.mean((of - true) ** 2)))
        rms = {name: math.sqrt(statistics.fmean(each)) for name, each in off.items()}
        of = {"trainings": len(margins), "right": level, "images": images, "of": margins.shape[1]}
        found.append(of | rms)
    return found


def _left(of: dict[str, float]) -> float:
    """Of the variance by right answers, what is left by smoothed ones; without that of the many images."""
    many = of["images"] / of["of"]
    return ((of["smoothed"] / of["plain"]) ** 2 - many) / (1 - many)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of cifar/test/")
    parser.add_argument(
        "--kept", type=Path, default=default_path().parent / "smoothing", help="finished work"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.kept.mkdir(parents=True, exist_ok=True)
    found = {}
    with Store(given.kept / "smoothing.sqlite") as store:
        for task in TASKS:
            if task.name in STUDIED:
                say(task.name)
                prepared = Prepared(task, PhotoSize(), given.data, given.kept, store)
                found[task.name] = errors(margins_of(prepared, store))
    summary = {"smoothed": round(statistics.fmean(map(_left, chain(*found.values()))), 2)}
    RESULTS.write_text(json.dumps(summary | {"tasks": found}, indent=1) + "\n")
    rows = [
        (
            name,
            of["trainings"],
            f"{100 * of['right']:.0f}",
            of["images"],
            f"{of['plain']:.2f}",
            f"{of['smoothed']:.2f}",
        )
        for name, rows in found.items()
        for of in rows
    ]
    heads = ("task", "trainings", "% right", "judged on", "off by, points", "smoothed")
    write_tables(README, {"smoothing": table(heads, rows)})
    say(f"{summary}")


if __name__ == "__main__":
    main()
