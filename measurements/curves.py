"""Study: what short trainings of all kinds of candidates tell of long ones, and of each other.

    python -m measurements.curves --data CIFAR --models CHECKPOINTS --photos PHOTOS   # hours, resumable
    python -m measurements.curves --data CIFAR --models CHECKPOINTS --quick   # one small task, < 5 minutes

On tasks that no other study reports on, trainings drawn at random from those that the advisor would
consider are run at each of their learning rates, and judged on their way: after a sixteenth of the updates,
a quarter, all of them (each time cooled down, as a probe is). Writes results/curves.json, of which
measurements/prior.py makes what the race expects of candidates that it hasn't tried.
"""

from __future__ import annotations

import argparse
import json
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advisor.costs import keep_freed_memory
from advisor.methods import get_method, learning_rates
from advisor.parts.closed_form import solvable
from advisor.probes import Trainer, Trial, executor_for, head_of, training_of
from advisor.probes.train import Probe
from advisor.records import Budget, Candidate, Census, Features
from advisor.store import Store
from advisor.story.pricing import cost_all
from advisor.story.situation import Request, prepare
from advisor.training.update import reestimation_updates
from measurements import photo_tasks, regret
from measurements.truth import cifar_parser, found_of_tasks, share, trained

RESULTS = Path(__file__).parent / "results" / "curves.json"
SHARES = (1 / 16, 1 / 4, 1)  # of a whole fine-tune's updates
SEEN = 200  # of the images that judge: as many as an advisor has; the others are the truth


@dataclass(frozen=True, slots=True)
class Task:
    network: str
    # As the study of regret names them; "photos": other classes, for a network of ImageNet; "grocery":
    # five of each of the classes that the study of photos does not report.
    situation: str
    images: int  # given; some of them are held out
    batch: int
    epochs: int
    side: int = 32
    trainings: int = 20

    @property
    def is_of_photos(self) -> bool:
        return self.situation == "grocery"

    @property
    def name(self) -> str:
        return f"{self.network}, {self.situation}, {self.images} images"


TASKS = (
    Task("resnet20", "gaussian-noise:3", 480, 8, 6),
    Task("lite0", "photos", 400, 8, 6, 64),
    Task("mobilenet", "fog:4", 480, 16, 6),
    Task("resnet32", "6+4", 480, 8, 6),
    Task("lite0", "photos", 120, 8, 10, 64),
    Task("mobilenet", "photos", 400, 8, 6, 64),
    Task("lite0", "grocery", 405, 8, 5, 160, trainings=12),
    Task("resnet20", "7+3", 960, 32, 6),
    Task("resnet32", "motion-blur:3", 960, 32, 6),
    Task("mobilenet", "5+5", 480, 8, 6),
)
QUICK_TASK = Task("resnet20", "gaussian-noise:3", 120, 8, 2)
QUICK_TRAININGS = 3
JUDGING = 800


def drawn(task: Any, request: Request, count: int, seed: str) -> list[Candidate]:
    """Trainings at random from those that the advisor considers, no method twice as often as another."""
    story = prepare(task.network(), request, lambda *_: None)
    evaluations = cost_all(story, request, task.simulator, Budget())
    found = dict.fromkeys(training_of(e.candidate, task.census) for e in evaluations)
    random = np.random.default_rng(zlib.crc32(seed.encode()))
    names = list(dict.fromkeys(c.method for c in found if learning_rates(c)))
    of_each = [list(random.permutation([c.id for c in found if c.method == name])) for name in names]
    turns = [ids[turn] for turn in range(count) for ids in of_each if turn < len(ids)]
    untrained = [c for c in found if not learning_rates(c)]
    return [*untrained, *(Candidate.parse(str(each)) for each in turns[:count])]


def prepared(task: Task, given: argparse.Namespace, kept: Path, store: Store) -> Any:
    """The task as the other studies have it, judged on fewer images."""
    size = photo_tasks.PhotoSize(side=task.side, judging=JUDGING, batch=task.batch)
    if task.is_of_photos:
        of = photo_tasks.Task(task.network, task.situation, epochs=task.epochs, reported=False)
        found = photo_tasks.Prepared(of, size, given.photos, kept, store)
        # Photos of other visits come first: some of them are to be seen, others the truth.
        mixed = torch.from_numpy(np.random.default_rng(0).permutation(JUDGING))
        dataset = replace(found.dataset, validation=found.dataset.validation.those(mixed))
        found.trainer = Trainer(found.trainer.model, found.census, dataset, task.batch)
        return found
    if task.situation == "photos":
        of = photo_tasks.Task(task.network, "test", given=task.images, epochs=task.epochs, reported=False)
        return photo_tasks.Prepared(of, size, given.data, kept, store)
    similar = regret.Task(task.network, task.situation, reported=False)
    sized = regret.CifarSize(images=task.images, tests=JUDGING, batch=task.batch, epochs=task.epochs)
    return regret.Prepared(similar, sized, given.data, given.models, kept, store)


def curves(task: Task, of: Any, count: int, executor: Any) -> dict[str, Any]:
    """A row for each training and learning rate: what it comes to on its way, with each of its heads."""
    trainer, rows = of.trainer, []
    updates = task.epochs * max(len(trainer.dataset.train) // task.batch, 1)
    once = reestimation_updates(len(trainer.dataset.train), task.batch)
    base = trainer.judge_base(JUDGING)
    for training in drawn(of, of.request, count, task.name):
        heads = heads_of(training, of.census)
        for rate in learning_rates(training) or (None,):
            lengths = (
                [max(round(share * updates), 1) for share in SHARES]
                if rate
                else [0 if head_of(training) else once]
            )
            trials = [Trial(training, rate, length, JUDGING, 0, heads) for length in lengths]
            found = trained(trials, executor, of.store, lambda trial: key(task, trial), _record)
            rows.append(
                {
                    "training": training.id,
                    "rate": rate,
                    "updates": lengths,
                    "heads": [None, *heads],
                    "seen": [found[trial]["seen"] for trial in trials],
                    "true": [found[trial]["true"] for trial in trials],
                }
            )
    return {
        "batch": task.batch,
        "updates": updates,
        "images": len(trainer.dataset.train),
        "new_head": of.new_head,
        "blocks": len(of.census.blocks),
        "base": [share(base[:SEEN]), share(base[SEEN:])],
        "rows": rows,
    }


def heads_of(training: Candidate, census: Census) -> tuple[Features, ...]:
    """Which can be solved for the network when it is trained."""
    method = get_method(training.method)
    is_trained = bool(learning_rates(training)) and not method.only_head
    return solvable(census) if is_trained or head_of(training) is not None else ()


def key(task: Task, trial: Trial) -> dict[str, Any]:
    told = {"candidate": trial.candidate.id, "rate": trial.learning_rate, "updates": trial.updates}
    return {"study": "curves", "task": task.name, "batch": task.batch, "side": task.side} | told


def _record(probe: Probe) -> dict[str, Any]:
    answers = [probe.correct or b"", *(each.correct for each in probe.solved)]
    return {
        "seen": [round(share(right[:SEEN]), 4) for right in answers],
        "true": [round(share(right[SEEN:]), 4) for right in answers],
        "accuracy": max(share(right) for right in answers),
        "failure": probe.failure,
    }


def main() -> None:
    parser = cifar_parser(__doc__, "curves")
    parser.add_argument("--photos", type=Path, help="the folder of grocery/; without it, only of CIFAR-10")
    given = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)

    def find(task: Task, kept: Path, store: Store) -> dict[str, Any]:
        of = prepared(task, given, kept, store)
        with executor_for("here", of.trainer) as executor:
            return curves(task, of, QUICK_TRAININGS if given.quick else task.trainings, executor)

    found = found_of_tasks(given, RESULTS, (QUICK_TASK,) if given.quick else TASKS, find)
    if given.quick:
        print(json.dumps(found[QUICK_TASK.name], indent=1))


if __name__ == "__main__":
    main()
