"""Study: how much accuracy is lost by following the advice on real networks and photos.

    python -m measurements.photos --data PHOTOS           # hours, resumable; --only truth, --only advice
    python -m measurements.photos --data PHOTOS --quick   # one small task, < 5 minutes

A task is a network with ImageNet weights and photos. Its truth: every candidate of a stated set, trained to
the end at each of its learning rates, and judged on photos that trained nothing, with its own head and with
heads solved in closed form. Then the advisor, which has seen none of it, gets the network, the photos and a
budget, and its pick is trained to the end as it advised: regret is the best feasible candidate's accuracy
less the pick's. What it expects of candidates beforehand, only tasks on other photos have taught (prior.py).
Each finished task is written into results/photos.json at once, the tables into README.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch

from advisor.costs import keep_freed_memory
from advisor.probes.picture import shipped_prior
from advisor.records import Candidate, Levers
from advisor.store import default_path
from measurements.advice import Training, read, study, tables
from measurements.photo_tasks import PhotoSize, Prepared, Task
from measurements.prior import committed, fitted, without
from measurements.tables import README, write_tables

RESULTS = Path(__file__).parent / "results" / "photos.json"
TASKS = (
    Task("lite0", "clothing", given=500),
    Task("lite0", "clothing", epochs=20),
    Task("lite0", "grocery", given=600),
    Task("lite0", "clothing", given=500, shift="motion-blur:4"),
    Task("mobilenet", "clothing", given=500),
    Task("mobilenet", "grocery", given=600),
    Task("lite0", "grocery", reported=False),
    # What small pictures, enlarged, teach of networks that learned at this size.
    Task("lite0", "cifar/test", given=300, reported=False),
    Task("mobilenet", "cifar/test", given=300, reported=False),
    Task("lite0", "cifar/test", epochs=20, reported=False),
)
QUICK_TASK = Task("lite0", "clothing", given=60, epochs=1)
QUICK = PhotoSize(
    side=96,
    judging=100,
    seeds=1,
    budgets=("loose",),
    probe_seconds=10.0,
    methods=("full", "head", "ridge"),
)
FROZEN = Levers(statistics="frozen")  # those of batches of eight hurt
# What whoever has no advisor tries; each with its own head, and with those that can be solved for it.
TRAININGS: tuple[Training, ...] = (
    lambda blocks: Candidate.of("ridge", {"features": "last"}, Levers()),
    lambda blocks: Candidate.of("ridge", {"features": "last"}, Levers(statistics="reestimated")),
    lambda blocks: Candidate("head"),
    lambda blocks: Candidate("full", levers=replace(FROZEN, scope=blocks // 2)),
    lambda blocks: Candidate.of("lora", {"rank": 8}, replace(FROZEN, scope=blocks // 2)),
    lambda blocks: Candidate("norm", levers=FROZEN),
    lambda blocks: Candidate("full", levers=FROZEN),
    lambda blocks: Candidate("full"),
    lambda blocks: Candidate("ssf", levers=FROZEN),
    lambda blocks: Candidate.of("lora", {"rank": 8}, FROZEN),
    lambda blocks: Candidate.of("galore", {"rank": 4}, FROZEN),
)
# Of tasks that are not reported, besides: what it gains to train little of a large network.
TEACHING: tuple[Training, ...] = (
    lambda blocks: Candidate("full", levers=replace(FROZEN, scope=3)),
    lambda blocks: Candidate.of("lora", {"rank": 8}, replace(FROZEN, scope=3)),
    lambda blocks: Candidate("ia3", levers=replace(FROZEN, scope=blocks // 2)),
    lambda blocks: Candidate.of("lite-residual", {"reduction": 4}, Levers(scope=blocks // 2)),
    lambda blocks: Candidate.of("dora", {"rank": 8}, replace(FROZEN, scope=blocks // 2)),
    lambda blocks: Candidate("norm", levers=replace(FROZEN, scope=blocks // 2)),
    lambda blocks: Candidate("ssf", levers=replace(FROZEN, scope=blocks // 2)),
    lambda blocks: Candidate.of("galore", {"rank": 8}, replace(FROZEN, scope=blocks // 2)),
    lambda blocks: Candidate.of(
        "adapter", {"kind": "conv", "reduction": 8}, replace(FROZEN, scope=blocks // 2)
    ),
    lambda blocks: Candidate.of("adapter", {"kind": "parallel"}, replace(FROZEN, scope=blocks // 2)),
)
QUICK_TRAININGS = tuple(TRAININGS[number] for number in (0, 2, 7))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="the folder of clothing/, grocery/, cifar/test/"
    )
    parser.add_argument("--quick", action="store_true", help="one small task, printed, nothing written")
    parser.add_argument("--only", choices=("truth", "advice"), help="advice: of tasks whose truth is known")
    parser.add_argument("--task", default="", help="only those whose names hold this")
    parser.add_argument(
        "--kept", type=Path, default=default_path().parent / "photos", help="where finished work is kept"
    )
    given = parser.parse_args()
    keep_freed_memory()
    if given.quick:  # updates so small gain nothing by a second thread, which others may hold up
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) if given.quick else given.kept
        kept.mkdir(parents=True, exist_ok=True)
        results = kept / RESULTS.name if given.quick else RESULTS
        tasks = (QUICK_TASK,) if given.quick else TASKS
        size, trainings = (QUICK, QUICK_TRAININGS) if given.quick else (PhotoSize(), TRAININGS)
        prepared = {task.name: partial(Prepared, task, size, given.data, kept) for task in tasks}
        photos_of = {task.name: task.photos for task in tasks}
        priors = cache(lambda photos: fitted(without(committed(), photos)).__getitem__)
        study(
            *(prepared, trainings, kept, results),
            holding=given.task,
            only=given.only,
            teaching=TEACHING,
            prior_of=(lambda _: shipped_prior) if given.quick else (lambda name: priors(photos_of[name])),
        )
        found = read(results)
    texts = tables("photos", found["tasks"], found["summary"])
    print("\n\n".join(texts.values()))
    print("\n" + json.dumps({name: value for name, value in found["summary"].items() if name != "rules"}))
    if not given.quick:
        write_tables(README, texts)


if __name__ == "__main__":
    main()
