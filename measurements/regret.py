"""Study: how much accuracy is lost by following the advice, on small images.

    python -m measurements.regret --data CIFAR --models CHECKPOINTS           # hours, resumable
    python -m measurements.regret --data CIFAR --models CHECKPOINTS --quick   # one small task, < 5 minutes

`measurements/advice.py` says what a task, its truth, and regret are. Here a task is a network trained on
CIFAR-10, and a corruption, JPEG coding or classes that it has never seen; the advice may take twice as long
as one fine-tune of every weight. Writes results/regret.json, and the tables in README.md.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from advisor.costs import Simulator
from advisor.data import load_data, parse_corruption
from advisor.data.corruptions import corrupted
from advisor.data.loading import LabelledImages
from advisor.models import load_model
from advisor.models.fingerprint import fingerprint, model_fingerprint
from advisor.probes import Trainer, in_quick_layout
from advisor.records import Candidate, Levers
from advisor.store import Store
from advisor.story.situation import Request, prepare
from measurements.advice import Size, Studied, Training, read, study, tables
from measurements.cifar_mobilenet import pretrained
from measurements.tables import README, write_tables
from measurements.truth import cifar_parser

RESULTS = Path(__file__).parent / "results" / "regret.json"
SIZE = (3, 32, 32)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CHECKPOINTS = {"resnet20": "resnet20-12fca82f.th", "resnet32": "resnet32-d509ac18.th"}


@dataclass(frozen=True, slots=True)
class Task:
    network: str
    situation: str  # a corruption; "jpeg": the files as they are; "8+2": two classes are new
    reported: bool = True  # else the advisor was developed on it

    @property
    def name(self) -> str:
        return f"{self.network}, {self.situation}"

    @property
    def known_classes(self) -> int:
        return int(self.situation[0]) if "+" in self.situation else len(CLASSES)


@dataclass(frozen=True, slots=True)
class CifarSize(Size):
    """Of the images, too."""

    images: int = 1440  # given
    tests: int = 2000
    epochs: int = 4


TASKS = (
    Task("mobilenet", "gaussian-noise:3"),
    Task("resnet20", "defocus-blur:4"),
    Task("resnet32", "pixelate:4"),
    Task("mobilenet", "contrast:4"),
    Task("resnet32", "8+2"),
    Task("resnet20", "contrast:4"),
    Task("resnet20", "5+5"),
    Task("mobilenet", "jpeg"),
    Task("mobilenet", "5+5", reported=False),
    Task("resnet20", "jpeg", reported=False),
)
QUICK_TASK = Task("resnet20", "gaussian-noise:3")
FULL = CifarSize(batch=32, seeds=3, probe_fine_tunes=2.0)
QUICK = CifarSize(batch=32, seeds=2, budgets=("loose",), probe_seconds=15.0, images=360, tests=400, epochs=1)
REESTIMATED = Levers(statistics="reestimated")
# What whoever has no advisor tries; each with its own head, and with those that can be solved for it.
TRAININGS: tuple[Training, ...] = (
    lambda blocks: Candidate("recalibrate"),
    lambda blocks: Candidate.of("ridge", {"features": "last"}, Levers()),
    lambda blocks: Candidate.of("ridge", {"features": "last"}, REESTIMATED),
    lambda blocks: Candidate("head"),
    lambda blocks: Candidate("head", levers=REESTIMATED),
    lambda blocks: Candidate("norm"),
    lambda blocks: Candidate("bias"),
    lambda blocks: Candidate("ssf"),
    lambda blocks: Candidate("ia3"),
    lambda blocks: Candidate.of("lora", {"rank": 2}, Levers()),
    lambda blocks: Candidate.of("lora", {"rank": 8}, Levers()),
    lambda blocks: Candidate.of("lora", {"rank": 8}, Levers(scope=blocks // 2)),
    lambda blocks: Candidate.of("dora", {"rank": 4}, Levers()),
    lambda blocks: Candidate.of("galore", {"rank": 4}, Levers()),
    lambda blocks: Candidate.of("sparse", {"fraction": 0.125}, Levers()),
    lambda blocks: Candidate("full", levers=Levers(scope=blocks // 4)),
    lambda blocks: Candidate("full", levers=Levers(scope=blocks // 2)),
    lambda blocks: Candidate("full"),
)
QUICK_TRAININGS = tuple(TRAININGS[number] for number in (0, 1, 3, 5, -1))


class Prepared(Studied):
    """A task's network and images."""

    size: CifarSize

    def __init__(
        self, task: Task, size: CifarSize, data: Path, models: Path, kept: Path, store: Store
    ) -> None:
        self.task, self.size, self.store = task, size, store
        self.reported, self.epochs = task.reported, size.epochs
        self._where = data, models, kept
        self.npz, test = _images(task, size, data, kept)
        story = prepare(self.network(), self.request, lambda *_: None)
        # Judged on images that neither training nor the advisor sees. Their labels are the outputs' numbers.
        if self.rehearse:
            shifted = corrupted(test.images, parse_corruption(self.rehearse), seed=1)
            test = LabelledImages(shifted, test.labels)
        # Every image trains in the end, whichever were held out for the choice.
        given = story.given.dataset
        train = LabelledImages.joined(given.train, given.validation)
        self.held_out = len(given.validation)
        self.dataset, self.census = replace(given, train=train, validation=test), story.census
        model = story.loaded.module
        self.trainer = Trainer(in_quick_layout(model, self.census), self.census, self.dataset, size.batch)
        self.simulator = Simulator(model, self.census, len(train))
        # Hours of training outlast edits of how images are held out, and of what a new head begins with.
        self.key = {
            "study": "regret",
            "task": task.name,
            "trained": {"epochs": size.epochs, "batch_size": size.batch},
            "model": model_fingerprint(self.network()),
            "images": fingerprint("", [("tests", test.images)]),
        }

    def network(self) -> nn.Module:
        """A new copy of what the task begins with."""
        return _network(self.task, *self._where)

    @property
    def rehearse(self) -> str | None:
        return self.task.situation if ":" in self.task.situation else None

    @property
    def request(self) -> Request:
        """What somebody asks who has the network and the images; for how long, is left open."""
        return Request(
            batch_size=self.size.batch,
            input_size=SIZE,
            data=str(self.npz),
            rehearse=self.rehearse,
            class_names=CLASSES[: self.task.known_classes],
            epochs=self.size.epochs,
            methods=self.size.methods,
            probe_seconds=self.size.probe_seconds,
            verify=False,
        )


def _network(task: Task, data: Path, models: Path, kept: Path) -> nn.Module:
    """The trained network, with the rows of the classes that it knows."""
    known = task.known_classes
    if task.network == "mobilenet":
        return pretrained(known, data, kept)
    arch = f"measurements.cifar_resnet:{task.network}"
    model = load_model(str(models / CHECKPOINTS[task.network]), arch=arch).module
    if known < len(CLASSES):  # its features have seen the others, its head has not
        head = model.get_submodule("linear")
        assert isinstance(head, nn.Linear)
        cut = nn.Linear(head.in_features, known)
        cut.load_state_dict({"weight": head.weight[:known], "bias": head.bias[:known]})
        model.add_module("linear", cut)
    return model


def _images(task: Task, size: CifarSize, data: Path, kept: Path) -> tuple[Path, LabelledImages]:
    """The user's images, as a file, and those that the truth is judged on; none trained the network."""
    pool = load_data(str(data / "test"), SIZE, max_train=10**6, max_validation=1).train
    generator = torch.Generator().manual_seed(zlib.crc32(task.name.encode()))
    shuffled = torch.randperm(len(pool), generator=generator)
    of_class = [shuffled[pool.labels[shuffled] == label] for label in range(len(CLASSES))]
    users = size.images // len(CLASSES)
    tests = size.tests // len(CLASSES)
    given = torch.cat([of_one[:users] for of_one in of_class])
    test = torch.stack([of_one[users : users + tests] for of_one in of_class]).T.flatten()
    path = kept / f"{task.name.replace(':', '-').replace(', ', '-')}-{size.images}.npz"
    images = pool.images[given].permute(0, 2, 3, 1).numpy()
    np.savez(path, images=images, labels=pool.labels[given].numpy(), class_names=np.array(CLASSES))
    return path, LabelledImages(pool.images[test], pool.labels[test])


def main() -> None:
    given = cifar_parser(__doc__, "regret").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) if given.quick else given.kept
        kept.mkdir(parents=True, exist_ok=True)
        results = kept / RESULTS.name if given.quick else RESULTS
        tasks = (QUICK_TASK,) if given.quick else TASKS
        size, trainings = (QUICK, QUICK_TRAININGS) if given.quick else (FULL, TRAININGS)
        where = (given.data, given.models, kept)
        prepared = {task.name: partial(Prepared, task, size, *where) for task in tasks}
        study(prepared, trainings, kept, results)
        found = read(results)
    texts = tables("regret", found["tasks"], found["summary"])
    print("\n\n".join(texts.values()))
    print("\n" + json.dumps({name: value for name, value in found["summary"].items() if name != "rules"}))
    if not given.quick:
        write_tables(README, texts)


if __name__ == "__main__":
    main()
