"""What the studies of the advice share: tasks and their truths, what is advised, and what that adds up to.

A task is a network and a new situation. Its truth: every candidate of a stated set, trained to the end at
each of its learning rates on every image given, and judged on others, with its own head and with heads
solved in closed form. Then the advisor, which has seen none of it, gets the network, the images and a
budget, and its pick is trained to the end as it advised: regret is the best feasible candidate's accuracy
less the pick's.
"""

from __future__ import annotations

import json
import statistics
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from torch import nn

from advisor.advise import recommend
from advisor.costs import Simulator
from advisor.data.loading import Dataset
from advisor.methods import get_method, learning_rates
from advisor.models.fingerprint import fingerprint
from advisor.parts.closed_form import solvable
from advisor.probes import FineTune, Trainer, Trial, executor_for, findings, head_of
from advisor.probes.picture import WORLDS, Prior, World, shipped_prior
from advisor.probes.train import Probe
from advisor.records import Accuracy, Candidate, Census, Recommendation
from advisor.store import Store
from advisor.story.situation import Request
from advisor.training.update import reestimation_updates
from measurements.carried import CarriedStore
from measurements.tables import table
from measurements.truth import (
    Row,
    best_of_others,
    best_that_fits,
    budgets,
    costs,
    fixed_rules,
    in_lines,
    say,
    share,
    summed_up,
    trained,
)

ADVISED = "peft-advisor"
LEFT_OUT = "the best of these rules on the other tasks"
_SHOWN = 12  # rules in the table
Training = Callable[[int], Candidate]  # of a network of so many blocks


@dataclass(frozen=True, slots=True)
class Size:
    """Of a study: the full one, or a quick one that shows that it works."""

    batch: int = 8
    seeds: int = 2  # of the best three
    # Of the advice alone:
    budgets: tuple[str, ...] = ("loose", "memory", "flops")
    # For its probes: as by default, seconds, or so many fine-tunes of every weight.
    probe_seconds: float | Literal["auto"] = "auto"
    probe_fine_tunes: float | None = None
    methods: tuple[str, ...] | None = None  # None: all


class Studied(ABC):
    """A task's network and images, and everything that was ever trained on it."""

    reported: bool  # else the advisor was developed on it
    size: Size
    epochs: int
    store: Store
    key: dict[str, Any]  # of all that a training's result depends on, but the training
    dataset: Dataset  # every image given trains, others judge
    held_out: int  # of the images given, by the advisor
    new_head = False  # the network knows none of the classes
    of_other_visits = 0  # of the images that judge, the first ones; 0: it is not known of any
    census: Census
    trainer: Trainer
    simulator: Simulator

    @abstractmethod
    def network(self) -> nn.Module:
        """A new copy of what the task begins with."""

    @property
    @abstractmethod
    def request(self) -> Request:
        """What somebody asks who has the network and the images."""

    @property
    def updates(self) -> int:
        """Of a training to its end."""
        return self.epochs * max(len(self.dataset.train) // self.size.batch, 1)

    def trial(self, candidate: Candidate, rate: float | None, seed: int, *, heads: bool = False) -> Trial:
        """To the end; with `heads`, judged with each head that can be solved for it, too."""
        updates = self.updates
        if rate is None:
            once = reestimation_updates(len(self.trainer.images_for(candidate)), self.size.batch)
            updates = once if head_of(candidate) is None else 0
        solved = solvable(self.census) if heads else ()
        return Trial(candidate, rate, updates, len(self.dataset.validation), seed, solved)

    def trial_key(self, trial: Trial) -> dict[str, Any]:
        told = {"candidate": trial.candidate.id, "rate": trial.learning_rate, "seed": trial.seed}
        return self.key | told | {"heads": list(trial.heads)}

    def costs(self, candidate: Candidate, *, is_trained: bool) -> dict[str, Any]:
        """Of an update; kept."""
        key = self.key | {"candidate": candidate.id}
        size = self.size.batch
        return self.store.remembered(
            "cost", key, lambda: costs(self.simulator, candidate, size, is_trained=is_trained)
        )

    def judged_base(self) -> bytes:
        """Which are right with the network as it is; with a new head, where it never saw the classes."""
        return self.trainer.judge_base(len(self.dataset.validation))


def answering(training: Candidate, census: Census) -> tuple[Candidate, ...]:
    """The candidates that one training answers for: with its own head first, then each solved one.

    Of a head that is trained alone, nothing would be left.
    """
    method, levers = get_method(training.method), training.levers
    if method.solves(dict(training.setting)) is not None:
        return tuple(Candidate.of(method.name, {"features": of}, levers) for of in solvable(census))
    if method.only_head or not learning_rates(training):
        return (training,)
    solved = [replace(training, levers=replace(levers, head=f"ridge-{of}")) for of in solvable(census)]  # type: ignore[arg-type]
    return (training, *solved)


def truth(task: Studied, trainings: Sequence[Candidate], executor: Any) -> dict[str, Any]:
    """What every candidate comes to, at each of its learning rates; several seeds of the best ones."""
    rates = {training: learning_rates(training) or (None,) for training in trainings}
    wanted = [(training, rate, 0) for training in trainings for rate in rates[training]]
    while True:
        found = _found(task, wanted, executor)
        ranked = sorted(_tried(task, trainings, found), key=lambda row: -row["accuracy"])
        more = [
            (row["training"], row["learning_rate"], seed)
            for row in ranked[:3]
            for seed in range(task.size.seeds if row["learning_rate"] else 1)
            if (row["training"], row["learning_rate"], seed) not in wanted
        ]
        if not more:
            break
        wanted += dict.fromkeys(more)
    rows = []
    for row in _tried(task, trainings, found):
        costs = task.costs(row.pop("of"), is_trained=row["learning_rate"] is not None)
        rows.append({name: value for name, value in row.items() if name != "training"} | costs)
    return {
        "reported": task.reported,
        "given": len(task.dataset.train),
        "judged_on": len(task.dataset.validation),
        "of_other_visits": task.of_other_visits,
        "blocks": len(task.census.blocks),
        "batch": task.size.batch,
        "new_head": task.new_head,
        "base": share(task.judged_base()),
        "seconds": sum(value["seconds"] for value in found.values()),
        "truth": rows,
    }


_Wanted = tuple[Candidate, float | None, int]  # a training, its learning rate, a seed


def _found(task: Studied, wanted: Sequence[_Wanted], executor: Any) -> dict[_Wanted, dict[str, Any]]:
    def trial(of: _Wanted) -> Trial:
        training, rate, seed = of
        return task.trial(training, rate, seed, heads=len(answering(training, task.census)) > 1)

    def record(probe: Probe) -> dict[str, Any]:
        candidates = answering(probe.trial.candidate, task.census)
        answers = [answers.correct for answers in probe.solved]
        if len(candidates) > len(answers):  # its own head is one of them
            answers = [probe.correct or b"", *answers]
        correct = dict(zip((candidate.id for candidate in candidates), answers, strict=False))
        return {
            "accuracy": max(map(share, answers), default=0.0),
            "correct": {name: np.packbits(list(right)).tobytes().hex() for name, right in correct.items()},
            "accuracies": {name: share(right) for name, right in correct.items()},
            "on_other_visits": {n: share(right[: task.of_other_visits]) for n, right in correct.items()},
            "seconds": probe.seconds,
            "judging_seconds": probe.judging_seconds,
            "failure": probe.failure,
        }

    trials = {of: trial(of) for of in wanted}
    kept = trained(list(trials.values()), executor, task.store, task.trial_key, record)
    return {of: kept[of_it] for of, of_it in trials.items()}


def _tried(
    task: Studied, trainings: Sequence[Candidate], found: Mapping[_Wanted, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A row of each candidate: at its best learning rate the mean over the seeds, at the others one."""
    rows = []
    for training in trainings:
        first = {rate: value for (of, rate, seed), value in found.items() if of == training and not seed}
        for candidate in answering(training, task.census):
            name = candidate.id
            by_rate = {rate: value["accuracies"].get(name, 0.0) for rate, value in first.items()}
            best = max(by_rate, key=lambda rate: by_rate[rate])
            seeds = [value for (of, rate, _), value in found.items() if of == training and rate == best]
            accuracies = [value["accuracies"].get(name, 0.0) for value in seeds]
            row = {
                "of": candidate,
                "training": training,
                "candidate": name,
                "learning_rate": best,
                "accuracy": statistics.fmean(accuracies),
                "accuracies": accuracies,
                "by_rate": {f"{rate:g}": value for rate, value in by_rate.items() if rate},
                "seconds": statistics.fmean(value["seconds"] - value["judging_seconds"] for value in seeds),
            }
            if task.of_other_visits:
                of_others = [value["on_other_visits"].get(name, 0.0) for value in seeds]
                row["accuracy_on_other_visits"] = statistics.fmean(of_others)
            rows.append(row)
    return rows


def study(
    prepared: Mapping[str, Callable[[Store], Studied]],
    trainings: Sequence[Training],
    kept: Path,
    results: Path,
    *,
    holding: str = "",
    only: str | None = None,
    teaching: Sequence[Training] = (),
    prior_of: Callable[[str], Callable[[World], Prior]] = lambda _: shipped_prior,
) -> None:
    """Find out each task's truth that the results lack, then what is advised; all of it is written at once.

    Trainings of a truth that is not whole lie beside the results: wherever the study goes on, it has them.

    Args:
        prepared: by name, in the order of the tables.
        holding: only tasks with this in their names.
        only: `truth` or `advice`.
        teaching: of tasks that are not reported, besides `trainings`.
        prior_of: what the advisor may know of other tasks, by the task's name.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    kept_in, carried = kept / f"{results.stem}.sqlite", results.with_name(f"{results.stem}_unfinished.json")

    def is_whole(name: str) -> bool:
        return "truth" in read(results).get("tasks", {}).get(name, {})

    with CarriedStore(kept_in, carried, is_whole) as store:
        for name, prepare in prepared.items():
            if holding not in name:
                continue
            known = read(results).get("tasks", {}).get(name, {})
            if ("truth" in known) if only == "truth" else only == "advice" and "truth" not in known:
                continue
            say(name)
            task = prepare(store)
            with executor_for("here", task.trainer) as running:
                if "truth" not in known:
                    blocks = len(task.census.blocks)
                    wanted = (*trainings, *(() if task.reported else teaching))
                    known = truth(task, [training(blocks) for training in wanted], running)
                    write(results, list(prepared), task.size, {name: known})
                    store.carry()
                if only != "truth":
                    say("  what other tasks teach")
                    said = advised(task, known["truth"], running, threads, prior_of(name))
                    write(results, list(prepared), task.size, {name: {"advice": said}})


def read(results: Path) -> dict[str, Any]:
    return json.loads(results.read_text()) if results.exists() else {}


def write(results: Path, order: Sequence[str], size: Size, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Put what was found of tasks beside what is there, and sum it up anew."""
    before = read(results).get("tasks", {})
    tasks = {name: before.get(name, {}) | found.get(name, {}) for name in {**before, **found}}
    tasks = dict(sorted(tasks.items(), key=lambda one: order.index(one[0]) if one[0] in order else -1))
    content = {"torch": torch.__version__.split("+")[0], "size": asdict(size), "summary": summarise(tasks)}
    part = results.with_suffix(".part")
    part.write_text(in_lines(content | {"tasks": tasks}, 4) + "\n")
    part.replace(results)


def advised(
    task: Studied, rows: Sequence[Row], executor: Any, threads: int, prior: Callable[[World], Prior]
) -> dict[str, Any]:
    """By budget: what is picked, and what it comes to when it is trained to the end as advised.

    Kept for as long as the advisor's code and what it knows of other tasks stay the same.
    """
    key: dict[str, Any] = task.key | {
        "code": task.trainer.key()["code"],
        "prior": fingerprint(repr([prior(world) for world in WORLDS]), []),
        "threads": threads,
        "size": asdict(task.size),
    }
    wanted = {name: budget for name, budget in budgets(rows).items() if name in task.size.budgets}
    kept = {name: task.store.get("advice", key | {"budget": name}) for name in wanted}
    full_seconds = None
    for name, budget in wanted.items():
        if kept[name] is not None:
            continue
        torch.set_num_threads(threads)
        full_seconds = full_seconds or fine_tune_seconds(task)
        request = task.request
        if task.size.probe_fine_tunes is not None:
            request = replace(request, probe_seconds=task.size.probe_fine_tunes * full_seconds)
        begun = time.perf_counter()
        with mock.patch.object(findings, "shipped_prior", prior):
            said = recommend(task.network(), budget, request)
        seconds = time.perf_counter() - begun
        torch.set_num_threads(1)
        assert said.data is not None
        found = _picked(task, said, executor) | {
            "seconds": seconds,
            "probe_seconds": said.data.probe_seconds,
            "probes": said.data.probes_run,
            "full_seconds": full_seconds,
            "warnings": list(said.warnings),
        }
        say(f"  {name}: {found['candidate'] or found['outcome']} {found['accuracy']:.3f}")
        task.store.put("advice", key | {"budget": name}, found)
        kept[name] = found
    return kept


def fine_tune_seconds(task: Studied) -> float:
    """Of every weight, on what the advice trains on, and judged once."""
    candidate = Candidate("full")
    begun = time.perf_counter()
    fine_tune = FineTune(task.trainer, candidate, learning_rates(candidate)[0], task.updates, seed=0)
    fine_tune.run(task.updates)
    fine_tune.judge(task.held_out)
    return time.perf_counter() - begun


def _picked(task: Studied, said: Recommendation, executor: Any) -> dict[str, Any]:
    predicted: Accuracy | None
    if said.recommended is None:  # then the network stays as it is
        name, rate = None, None
        base = task.judged_base()
        accuracies, on_other_visits = [share(base)], [share(base[: task.of_other_visits])]
        predicted = said.data.base_accuracy if said.data else None
    else:
        evaluation = said.evaluation(said.recommended)
        name, predicted = evaluation.candidate.id, evaluation.accuracy
        rate = predicted.learning_rate if predicted else None
        seeds = range(task.size.seeds if rate else 1)
        trials = [task.trial(evaluation.candidate, rate, seed) for seed in seeds]

        def record(probe: Any) -> dict[str, Any]:
            right = probe.correct or b""
            on_other = share(right[: task.of_other_visits])
            told = {"accuracy": share(right), "on_other_visits": on_other}
            return told | {"seconds": probe.seconds, "failure": probe.failure}

        found = trained(trials, executor, task.store, task.trial_key, record)
        accuracies = [found[trial]["accuracy"] for trial in trials]
        on_other_visits = [found[trial]["on_other_visits"] for trial in trials]
    return {
        "outcome": said.outcome,
        "candidate": name,
        "learning_rate": rate,
        "accuracy": statistics.fmean(accuracies),
        "accuracies": accuracies,
        **({"on_other_visits": statistics.fmean(on_other_visits)} if task.of_other_visits else {}),
        "predicted": [predicted.low, predicted.mean, predicted.high] if predicted else None,
    }


def cases(task: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By budget: the best that fits, and what fixed rules would have come to."""
    found = {}
    for name, budget in budgets(task["truth"]).items():
        best = best_that_fits(task["truth"], budget)
        found[name] = {
            "best_candidate": best["candidate"],
            "best": best["accuracy"],
            "rules": fixed_rules(task["truth"], budget),
        }
    return found


def summarise(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Regrets in percentage points, over the cases of reported tasks: of those advised on, once any were."""
    reported = {name: task for name, task in tasks.items() if task["reported"] and "truth" in task}
    advised_on = {name: task for name, task in reported.items() if "advice" in task} or reported
    by_rule: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    regrets, covered, cost = [], [], []
    for name, task in advised_on.items():
        for budget, case in cases(task).items():
            for rule, accuracy in case["rules"].items():
                by_rule[rule][name].append(100 * (case["best"] - accuracy))
            said = task.get("advice", {}).get(budget)
            if said is not None:
                regrets.append(100 * (case["best"] - said["accuracy"]))
                cost.append(said["seconds"] / said["full_seconds"])
                low, _, high = said["predicted"] or (1.0, 1.0, 0.0)
                # What is told holds for images unlike those given, where it is known which belong together.
                covered.append(low <= said.get("on_other_visits", said["accuracy"]) <= high)
    everywhere = {rule: by_task for rule, by_task in by_rule.items() if by_task.keys() == advised_on.keys()}
    rules = {rule: statistics.fmean(chain(*by_task.values())) for rule, by_task in everywhere.items()}
    left_out = best_of_others(everywhere)
    if left_out:
        rules[LEFT_OUT] = statistics.fmean(left_out)
    summed = summed_up(regrets) if regrets else {}
    return {
        "tasks": len(reported),
        "advised_cases": len(regrets),
        "mean_regret": summed.get("mean"),
        "p95_regret": summed.get("p95"),
        "coverage": statistics.fmean(covered) if covered else None,
        "cost": statistics.median(cost) if cost else None,
        "rules": dict(sorted(rules.items(), key=lambda rule: rule[1])),
    }


def tables(study: str, tasks: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any]) -> dict[str, str]:
    rules = [(f"`{rule}`", regret) for rule, regret in summary["rules"].items() if rule != LEFT_OUT]
    rows = [(f"{name}, else `head`", regret) for name, regret in rules[:_SHOWN]]
    rows += [(LEFT_OUT, summary["rules"][LEFT_OUT])] if LEFT_OUT in summary["rules"] else []
    if summary["mean_regret"] is not None:
        rows.insert(0, (ADVISED, summary["mean_regret"]))
    return {
        study: table(("followed", "mean regret"), [(name, f"{regret:.2f}") for name, regret in rows]),
        f"{study}_cases": _cases_table(tasks),
        f"{study}_truth": _truth_table(tasks),
    }


def _cases_table(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    heads = ["task", "images given", "judged on", "as it is", "budget", "best that fits", ""]
    rows = []
    for name, task in tasks.items():
        for budget, case in cases(task).items():
            said = task.get("advice", {}).get(budget)
            row = [
                name + ("" if task["reported"] else " (developed on)"),
                task["given"],
                f"{task['judged_on']:,}",
                f"{100 * task['base']:.1f}",
                budget,
                f"`{case['best_candidate']}`",
                f"{100 * case['best']:.1f}",
            ]
            if said is not None:
                row += [f"`{said['candidate']}`" if said["candidate"] else said["outcome"]]
                low, mean, high = (f"{100 * value:.1f}" for value in said["predicted"])
                on_other = said.get("on_other_visits")
                came = f"{100 * said['accuracy']:.1f}"
                came += "" if on_other is None else f" ({100 * on_other:.1f})"
                row += [came, f"{mean} ({low} to {high})"]
            rows.append(row)
    if any(len(row) > len(heads) for row in rows):
        heads += ["picked", "", "predicted"]
    return table(heads, [[*row, *[""] * (len(heads) - len(row))] for row in rows])


def _truth_table(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each training: right with its own head / with the best of those solved for it."""
    found: dict[str, dict[str, dict[bool, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    for name, task in tasks.items():
        for row in task["truth"]:
            training, is_solved = _training_of(Candidate.parse(row["candidate"]))
            found[training][name].setdefault(is_solved, []).append(row["accuracy"])

    def cell(by_head: Mapping[bool, Sequence[float]]) -> str:
        best = [f"{100 * max(by_head[solved]):.1f}" if solved in by_head else "-" for solved in (False, True)]
        return " / ".join(best) if by_head else ""

    rows = [(f"`{of}`", *(cell(by_task.get(name, {})) for name in tasks)) for of, by_task in found.items()]
    return table(("trained", *tasks), rows)


def _training_of(candidate: Candidate) -> tuple[str, bool]:
    """What is trained, and whether the head is solved for it."""
    solved = head_of(candidate) is not None
    setting = () if "features" in dict(candidate.setting) else candidate.setting
    return replace(candidate, setting=setting, levers=replace(candidate.levers, head="trained")).id, solved
