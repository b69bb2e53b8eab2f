"""Study: what augmentation is worth in short fine-tunes on few images.

    python -m measurements.augment --data CIFAR --models CHECKPOINTS --photos PHOTOS   # half an hour
    python -m measurements.augment --data CIFAR --models CHECKPOINTS --quick   # one small task, < 2 minutes

Candidates are trained on images as they are, on their mirror images, too, and on random crops (`--augment`),
for a short and for a long time, at their middle learning rate, and judged on images that trained nothing:
with their own heads, and with heads solved in closed form on images as they are. Where the front is frozen,
each image has but a few views, as it is cached. Finished work is kept, so it
can be interrupted. Writes results/augment.json and the tables in README.md.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch

from advisor.costs import keep_freed_memory
from advisor.methods import learning_rates, middle_rate
from advisor.parts.closed_form import solvable
from advisor.probes import Trainer, Trial, executor_for, training_of
from advisor.probes.train import Probe
from advisor.records import Augment, Candidate, Levers
from advisor.store import Store
from measurements import photo_tasks, regret
from measurements.tables import README, table, write_tables
from measurements.truth import cifar_parser, found_of_tasks, share, trained

RESULTS = Path(__file__).parent / "results" / "augment.json"
KINDS: tuple[Augment, ...] = get_args(Augment)
FROZEN = Levers(statistics="frozen")  # those of small batches hurt
# What is trained, in a network of so many blocks.
TRAININGS: tuple[Callable[[int], Candidate], ...] = (
    lambda blocks: Candidate("full", levers=FROZEN),
    lambda blocks: Candidate("full", levers=replace(FROZEN, scope=blocks // 2)),
    lambda blocks: Candidate.of("lora", {"rank": 8}, FROZEN),
    lambda blocks: Candidate("norm", levers=FROZEN),
)


@dataclass(frozen=True, slots=True)
class Task:
    network: str
    situation: str  # as the study of regret names them; "clothing": photos
    images: int  # to train on
    epochs: tuple[int, int]  # a short and a long training
    batch: int
    side: int = 32

    @property
    def is_of_photos(self) -> bool:
        return self.situation in photo_tasks.PHOTO_FOLDERS

    @property
    def name(self) -> str:
        return f"{self.network}, {self.situation}, {self.images} images"


TASKS = (
    Task("lite0", "clothing", 100, (4, 12), 8, 128),
    Task("resnet20", "jpeg", 200, (3, 10), 16),
    Task("lite0", "clothing", 200, (3, 9), 8, 128),
    Task("resnet20", "5+5", 200, (3, 10), 16),
)
QUICK_TASK = Task("resnet20", "jpeg", 50, (1, 2), 16)
JUDGING = 600


def prepared(task: Task, given: argparse.Namespace, kept: Path, store: Store) -> Any:
    """The task as the other studies have it."""
    if task.is_of_photos:
        of = photo_tasks.Task(task.network, task.situation, given=task.images, epochs=task.epochs[1])
        size = photo_tasks.PhotoSize(side=task.side, judging=JUDGING, batch=task.batch)
        return photo_tasks.Prepared(of, size, given.photos, kept, store)
    similar = regret.Task(task.network, task.situation, reported=False)
    sized = regret.CifarSize(images=task.images, tests=JUDGING, batch=task.batch, epochs=task.epochs[1])
    return regret.Prepared(similar, sized, given.data, given.models, kept, store)


def rows_of(task: Task, of: Any) -> list[dict[str, Any]]:
    """A row for each training, augmentation and length: what it comes to with each of its heads."""
    heads, rows = solvable(of.census), []
    each = max(len(of.dataset.train) // task.batch, 1)
    for kind in KINDS:
        trainer = Trainer(of.trainer.model, of.census, replace(of.dataset, augment=kind), task.batch)
        with executor_for("here", trainer) as executor:
            for training in TRAININGS:
                candidate = training_of(training(len(of.census.blocks)), of.census)
                assert learning_rates(candidate)
                trials = [
                    Trial(candidate, middle_rate(candidate), epochs * each, JUDGING, 0, heads)
                    for epochs in task.epochs
                ]

                def key(trial: Trial, kind: Augment = kind) -> dict[str, Any]:
                    told = {"candidate": trial.candidate.id, "updates": trial.updates, "augment": kind}
                    return {"study": "augment", "task": task.name, "batch": task.batch} | told

                found = trained(trials, executor, of.store, key, _record)
                rows += [
                    {"candidate": candidate.id, "augment": kind, "epochs": epochs, **found[trial]["right"]}
                    for epochs, trial in zip(task.epochs, trials, strict=True)
                ]
    return rows


def _record(probe: Probe) -> dict[str, Any]:
    """The share that is right, by head."""
    answers = [probe.correct or b"", *(each.correct for each in probe.solved)]
    names = ["own", *probe.trial.heads]
    right = {name: round(share(one), 4) for name, one in zip(names, answers, strict=False)}
    return {"right": right, "accuracy": max(right.values()), "failure": probe.failure}


def tables(tasks: dict[str, Any]) -> dict[str, str]:
    """Percent right, the mean over what is trained; and points gained over images as they are."""
    by_task = []
    for name, task in tasks.items():
        for epochs in dict.fromkeys(row["epochs"] for row in task["rows"]):
            rows = [row for row in task["rows"] if row["epochs"] == epochs]
            cells = [_mean(rows, kind, head) for head in _HEADS for kind in KINDS]
            by_task.append((name, epochs, *(f"{100 * cell:.1f}" for cell in cells)))
    heads = [f"{kind}, {said} head" for said in _HEADS.values() for kind in KINDS]
    every = [row | {"place": place} for task in tasks.values() for place, row in _placed(task["rows"])]
    by_training = []
    for number, training in enumerate(("full", "full, last half", "lora-8", "norm")):
        for place, length in enumerate(("short", "long")):
            rows = [row for row in every if row["place"] == (number, place)]
            by_training.append((training, length, *_gains(rows)))
    for place, length in enumerate(("short", "long")):
        rows = [row for row in every if row["place"][1] == place]
        by_training.append(("all", length, *_gains(rows)))
    gains = [f"{kind}, {said} head" for said in _HEADS.values() for kind in KINDS[1:]]
    return {
        "augment": table(("task", "epochs", *heads), by_task),
        "augment_gains": table(("trained", "length", *gains), by_training),
    }


_HEADS = {"own": "own", "all": "ridge"}  # the one that was trained; the one solved on all blocks


def _placed(rows: Sequence[dict[str, Any]]) -> Iterable[tuple[tuple[int, int], dict[str, Any]]]:
    """Each row with the numbers of its training and of its length."""
    candidates = list(dict.fromkeys(row["candidate"] for row in rows))
    lengths = sorted({row["epochs"] for row in rows})
    return (((candidates.index(row["candidate"]), lengths.index(row["epochs"])), row) for row in rows)


def _mean(rows: Sequence[dict[str, Any]], kind: str, head: str) -> float:
    return statistics.fmean(row[head] for row in rows if row["augment"] == kind)


def _gains(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"{100 * (_mean(rows, kind, head) - _mean(rows, 'none', head)):+.1f}"
        for head in _HEADS
        for kind in KINDS[1:]
    ]


def main() -> None:
    parser = cifar_parser(__doc__, "augment")
    parser.add_argument("--photos", type=Path, help="the folder of clothing/; without it, only of CIFAR-10")
    given = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)

    def find(task: Task, kept: Path, store: Store) -> dict[str, Any]:
        of = prepared(task, given, kept, store)
        return {"images": len(of.dataset.train), "rows": rows_of(task, of)}

    texts = tables(found_of_tasks(given, RESULTS, (QUICK_TASK,) if given.quick else TASKS, find))
    print("\n\n".join(texts.values()))
    if not given.quick:
        write_tables(README, texts)


if __name__ == "__main__":
    main()
