"""Study: how much accuracy is lost by following the advice, against having tried everything.

    python -m measurements.regret --data CIFAR --models CHECKPOINTS           # hours, resumable
    python -m measurements.regret --data CIFAR --models CHECKPOINTS --quick   # one small task, < 5 minutes

A task is a trained network and a new situation. Its truth: every candidate of a stated set, trained to
the end on about 1,000 images at its best learning rate, with three seeds, judged on 2,000 others. The
advisor has seen none of it: it gets the images, a budget, and about a tenth of the time. Regret is the best
feasible candidate's accuracy less that of the pick, which is trained to the end as well, at the
learning rate that was advised. The same race gives two picks: the cheapest within a point of the best, as
advised by default, and the most accurate. Writes results/regret.json, the plot beside it, and the tables
in README.md.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from advisor.advise import recommend
from advisor.costs import Simulator
from advisor.data import load_data, parse_corruption
from advisor.data.corruptions import corrupted
from advisor.data.loading import LabelledImages
from advisor.methods import learning_rates
from advisor.models import load_model
from advisor.probes import Trainer, Trial, executor_for, in_quick_layout
from advisor.probes.train import Probe
from advisor.records import Budget, Candidate, Levers, Recommendation
from advisor.situation import Request, prepare
from advisor.solver import rank
from advisor.store import Store
from advisor.training.update import reestimation_updates
from measurements.cifar_mobilenet import pretrained
from measurements.tables import README, table, write_tables
from measurements.truth import (
    best_that_fits,
    budgets,
    cifar_arguments,
    costs,
    fits,
    say,
    share,
    summed_up,
    trained,
)

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
class Size:
    """Of a study: the full one, or a quick one that shows that it works."""

    images: int = 1440  # of a task: about 1,000 to train on, the others held out
    tests: int = 2000
    batch: int = 32
    epochs: int = 4
    seeds: int = 3
    probe_share: float = 0.08  # of the time that the truth took: with pricing, about a tenth
    least_probe_seconds: float = 0.0


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
QUICK = Size(images=360, tests=400, epochs=1, seeds=2, least_probe_seconds=15)
ADVISED, MOST_ACCURATE = "peft-advisor", "peft-advisor, `--tolerance 0`"
REESTIMATED = Levers(statistics="reestimated")
# Whoever has no advisor tries these.
CANDIDATES: tuple[Callable[[int], Candidate], ...] = (
    lambda blocks: Candidate("recalibrate"),
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
QUICK_CANDIDATES = (0, 1, 3, 8, 15)


class Prepared:
    """A task's network and images, and everything that was ever trained on it."""

    def __init__(self, task: Task, size: Size, data: Path, models: Path, kept: Path, store: Store) -> None:
        self.task, self.size, self.store = task, size, store
        self.network = partial(_network, task, data, models, kept)  # a new copy of what the task begins with
        self.npz, test = _images(task, size, data, kept)
        story = prepare(self.network(), self.request, lambda *_: None)
        # Judged on images that neither training nor the advisor sees. Their labels are the outputs' numbers.
        if self.rehearse:
            shifted = corrupted(test.images, parse_corruption(self.rehearse), seed=1)
            test = LabelledImages(shifted, test.labels)
        self.dataset, self.census = replace(story.given.dataset, validation=test), story.census
        model = story.loaded.module
        self.trainer = Trainer(in_quick_layout(model, self.census), self.census, self.dataset, size.batch)
        # Hours of training outlast edits of the code; without the file they are done anew.
        self.key = {name: value for name, value in self.trainer.key().items() if name != "code"}
        self.key |= {"study": "regret"}
        self.simulator = Simulator(model, self.census, len(self.dataset.train))
        self._took: dict[Trial, float] = {}

    @property
    def rehearse(self) -> str | None:
        return self.task.situation if ":" in self.task.situation else None

    @property
    def seconds(self) -> float:
        """That all training took so far, on one core, whenever that was."""
        return sum(self._took.values())

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
            verify=False,
        )

    @property
    def updates(self) -> int:
        return self.size.epochs * (len(self.dataset.train) // self.size.batch)

    def base_accuracy(self) -> float:
        return share(self.trainer.judge_base(self.size.tests))

    def trial(self, candidate: Candidate, rate: float | None, seed: int) -> Trial:
        once = reestimation_updates(len(self.dataset.train), self.size.batch)
        updates = self.updates if rate is not None else once
        return Trial(candidate, rate, updates, self.size.tests, seed)

    def accuracies(self, trials: Sequence[Trial], executor: Any) -> dict[Trial, float]:
        """Share of the test images that each gets right; 0 where the training failed."""
        found = trained(trials, executor, self.store, self._key, self._record)
        self._took |= {trial: value["seconds"] for trial, value in found.items()}
        return {trial: value["accuracy"] for trial, value in found.items()}

    @staticmethod
    def _record(probe: Probe) -> dict[str, Any]:
        return {"accuracy": share(probe.correct), "seconds": probe.seconds, "failure": probe.failure}

    def _key(self, trial: Trial) -> dict[str, Any]:
        return self.key | asdict(trial) | {"candidate": trial.candidate.id}


def truth(task: Prepared, candidates: Sequence[Candidate], executor: Any) -> list[dict[str, Any]]:
    """Each candidate's mean test accuracy over the seeds, at the best of its learning rates."""
    rates = {candidate: learning_rates(candidate) or (None,) for candidate in candidates}
    found = task.accuracies([task.trial(c, rate, 0) for c in candidates for rate in rates[c]], executor)
    best = {c: max(rates[c], key=lambda rate: found[task.trial(c, rate, 0)]) for c in candidates}
    # Where the best is at the end of the grid, one step further.
    further = [task.trial(c, _beyond(rates[c], best[c]), 0) for c in candidates if _beyond(rates[c], best[c])]
    for trial, accuracy in task.accuracies(further, executor).items():
        if accuracy > found[task.trial(trial.candidate, best[trial.candidate], 0)]:
            best[trial.candidate] = trial.learning_rate
    rows = []
    repeated = repeats(task, [(c, best[c]) for c in candidates], executor)
    for candidate, accuracies in zip(candidates, repeated, strict=True):
        rows.append(
            {
                "candidate": candidate.id,
                "learning_rate": best[candidate],
                "accuracies": accuracies,
                "accuracy": statistics.fmean(accuracies),
                **costs(task.simulator, candidate, task.size.batch, is_trained=best[candidate] is not None),
            }
        )
    return rows


def repeats(
    task: Prepared, picks: Sequence[tuple[Candidate, float | None]], executor: Any
) -> list[list[float]]:
    """Test accuracies of each, over the seeds; where nothing is trained, there is but one."""
    trials = [
        [task.trial(candidate, rate, seed) for seed in range(task.size.seeds if rate else 1)]
        for candidate, rate in picks
    ]
    found = task.accuracies([trial for of_one in trials for trial in of_one], executor)
    return [[found[trial] for trial in of_one] for of_one in trials]


def advice(task: Prepared, budget: Budget, seconds: float) -> Recommendation:
    """What the tool says."""
    return recommend(task.network(), budget, replace(task.request, probe_seconds=seconds))


def picked(task: Prepared, advised: Recommendation, budget: Budget, executor: Any) -> dict[str, Any]:
    """The pick, what the probe predicts of it, and what it comes to."""
    evaluation = rank(advised.evaluations, budget)[0]
    predicted = evaluation.accuracy
    assert predicted is not None
    [accuracies] = repeats(task, [(evaluation.candidate, predicted.learning_rate)], executor)
    finalists = [e for e in advised.evaluations if e.accuracy is not None and e.accuracy.finalist]
    return {
        "candidate": evaluation.candidate.id,
        "learning_rate": predicted.learning_rate,
        "accuracies": accuracies,
        "accuracy": statistics.fmean(accuracies),
        "predicted": [predicted.low, predicted.mean, predicted.high],
        "covered": predicted.low <= statistics.fmean(accuracies) <= predicted.high,
        "probe_updates": predicted.updates,
        "finalist": predicted.finalist,
        "finalists": {e.candidate.id: e.accuracy.mean for e in finalists if e.accuracy},
    }


def rules(rows: Sequence[Mapping[str, Any]], budget: Budget) -> dict[str, float | None]:
    """What each rule of thumb would have come to, at its best learning rate; None: it doesn't fit."""
    by_id = {row["candidate"]: row for row in rows}
    feasible = [row for row in rows if fits(row, budget)]

    def accuracy(name: str) -> float | None:
        return by_id[name]["accuracy"] if name in by_id and by_id[name] in feasible else None

    largest = max(feasible, key=lambda row: row["trained_parameters"])
    return {
        "always LoRA, rank 8": accuracy("lora-rank=8"),
        "full if it fits, else LoRA": accuracy("full") or accuracy("lora-rank=8"),
        "head only": accuracy("head"),
        "the most parameters that fit": largest["accuracy"],
        "any that fits": statistics.fmean(row["accuracy"] for row in feasible),
    }


def study(
    tasks: Sequence[Task], size: Size, numbers: Sequence[int], data: Path, models: Path, kept: Path
) -> list[dict[str, Any]]:
    torch.set_num_threads(1)  # two trainings at a time are quicker than one on two cores
    store, found = Store(kept / "regret.sqlite"), []
    for task in tasks:
        say(task.name)
        prepared = Prepared(task, size, data, models, kept, store)
        candidates = [CANDIDATES[number](len(prepared.census.blocks)) for number in numbers]
        with executor_for("local", prepared.trainer) as executor:
            rows = truth(prepared, candidates, executor)
            truth_seconds = prepared.seconds / executor.workers
            seconds = max(size.probe_share * truth_seconds, size.least_probe_seconds)
            found.append(
                {
                    "task": task.name,
                    "reported": task.reported,
                    "base": prepared.base_accuracy(),
                    "truth_seconds": truth_seconds,
                    "truth": rows,
                    "cases": {},
                }
            )
            for name, budget in budgets(rows).items():
                key = prepared.key | {"budget": name, "size": asdict(size)}
                said = store.get("advice", key)
                if said is None:
                    torch.set_num_threads(2)
                    begun = time.perf_counter()
                    advised = advice(prepared, budget, seconds)
                    took = time.perf_counter() - begun
                    torch.set_num_threads(1)
                    said = {
                        "seconds": took,
                        "warnings": list(advised.warnings),
                        ADVISED: picked(prepared, advised, budget, executor),
                        MOST_ACCURATE: picked(prepared, advised, replace(budget, tolerance=0.0), executor),
                    }
                    store.put("advice", key, said)
                say(f"  {name}: {said[ADVISED]['candidate']} {said[ADVISED]['accuracy']:.3f}")
                best = best_that_fits(rows, budget)
                found[-1]["cases"][name] = {
                    "best_candidate": best["candidate"],
                    "best": best["accuracy"],
                    "advice": said,
                    "rules": rules(rows, budget),
                }
    return found


def summarise(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Regrets in percentage points, over the reported tasks' cases."""
    cases = [case for task in found if task["reported"] for case in task["cases"].values()]
    regrets = {
        who: [100 * (case["best"] - case["advice"][who]["accuracy"]) for case in cases]
        for who in (ADVISED, MOST_ACCURATE)
    }
    for rule in cases[0]["rules"] if cases else ():
        known = [(case["best"], case["rules"][rule]) for case in cases]
        regrets[rule] = [100 * (best - accuracy) for best, accuracy in known if accuracy is not None]
    return {
        "cases": len(cases),
        "regret": {
            who: {"cases": len(values)} | summed_up(values) for who, values in regrets.items() if values
        },
        "covered": statistics.fmean(case["advice"][ADVISED]["covered"] for case in cases) if cases else None,
    }


def tables(found: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    heads = ("followed", "cases that it fits", "mean regret", "95th percentile", "largest")
    rows = [
        (who, value["cases"], *(f"{value[part]:.2f}" for part in ("mean", "p95", "largest")))
        for who, value in summary["regret"].items()
    ]
    parts = [table(heads, rows)]
    heads = ("task", "as it is", "budget", "best that fits", "", "picked", "", "predicted")
    rows = []
    for task in found:
        for name, case in task["cases"].items():
            said = case["advice"][ADVISED]
            low, mean, high = (f"{100 * value:.1f}" for value in said["predicted"])
            rows.append(
                (
                    task["task"] + ("" if task["reported"] else " (developed on)"),
                    f"{100 * task['base']:.1f}",
                    name,
                    f"`{case['best_candidate']}`",
                    f"{100 * case['best']:.1f}",
                    f"`{said['candidate']}`",
                    f"{100 * said['accuracy']:.1f}",
                    f"{mean} ({low} to {high})",
                )
            )
    return "\n\n".join([*parts, table(heads, rows)])


def plot(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Each case's regret, by what was followed."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"] = "regret"  # the same figures make the same file
    cases = [case for task in found if task["reported"] for case in task["cases"].values()]
    names = [ADVISED, MOST_ACCURATE, *cases[0]["rules"]]
    figure = Figure(figsize=(8, 0.55 * len(names) + 1), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(names):
        got = [case["advice"][name]["accuracy"] if place < 2 else case["rules"][name] for case in cases]
        regrets = [100 * (c["best"] - a) for c, a in zip(cases, got, strict=True) if a is not None]
        spread = np.linspace(-0.2, 0.2, len(regrets)) if len(regrets) > 1 else [0.0]
        axes.scatter(regrets, place + np.asarray(spread), s=14, alpha=0.6, color=f"C{min(place // 2, 1)}")
        if regrets:
            axes.plot([statistics.fmean(regrets)] * 2, [place - 0.35, place + 0.35], color="black")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.axvline(0, color="grey", linewidth=0.5)
    axes.set_xlabel("regret, percentage points (line: mean)")
    figure.savefig(path, metadata={"Date": None})


def _beyond(rates: Sequence[float | None], best: float | None) -> float | None:
    """The next learning rate of the grid, had it one more, where the best is at its end."""
    if best is None or len(rates) < 2 or best not in (rates[0], rates[-1]):
        return None
    first, second = (rates[0], rates[1]) if best == rates[0] else (rates[-1], rates[-2])
    return float(f"{first * first / second:.3g}") if first and second else None


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


def _images(task: Task, size: Size, data: Path, kept: Path) -> tuple[Path, LabelledImages]:
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
    given = cifar_arguments(__doc__, "regret")
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) if given.quick else given.kept
        kept.mkdir(parents=True, exist_ok=True)
        where = (given.data, given.models, kept)
        if given.quick:
            found = study([QUICK_TASK], QUICK, QUICK_CANDIDATES, *where)
        else:
            found = study(TASKS, Size(), range(len(CANDIDATES)), *where)
    summary = summarise(found)
    print(tables(found, summary))
    if summary["covered"] is not None:
        print(f"\nthe prediction's 95 % interval holds the truth in {summary['covered']:.0%} of cases")
    if not given.quick:
        content = {"torch": torch.__version__.split("+")[0], "size": asdict(Size()), "summary": summary}
        RESULTS.write_text(json.dumps(content | {"tasks": found}, indent=1) + "\n")
        plot(found, RESULTS.with_suffix(".svg"))
        write_tables(README, {"regret": tables(found, summary)})


if __name__ == "__main__":
    main()
