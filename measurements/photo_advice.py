"""What the advisor says to a task on photos, what its pick comes to, and what all of it adds up to."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from typing import Any

import torch

from advisor.advise import recommend
from advisor.methods import learning_rates
from advisor.probes import FineTune, head_of
from advisor.records import Accuracy, Candidate, Recommendation
from measurements.photo_tasks import Prepared
from measurements.tables import table
from measurements.truth import (
    Row,
    best_of_others,
    best_that_fits,
    budgets,
    fixed_rules,
    say,
    share,
    summed_up,
    trained,
)

ADVISED = "peft-advisor"
LEFT_OUT = "the best of these rules on the other tasks"
_SHOWN = 12  # rules in the table


def advised(task: Prepared, rows: Sequence[Row], executor: Any, threads: int) -> dict[str, Any]:
    """By budget: what is picked, and what it comes to when it is trained to the end as advised.

    Kept for as long as the advisor's code stays the same.
    """
    key: dict[str, Any] = task.key | {
        "code": task.trainer.key()["code"],
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
        said = recommend(task.network(), budget, task.request)
        torch.set_num_threads(1)
        assert said.data is not None
        found = _picked(task, said, executor) | {
            "probe_seconds": said.data.probe_seconds,
            "probes": said.data.probes_run,
            "full_seconds": full_seconds,
            "warnings": list(said.warnings),
        }
        say(f"  {name}: {found['candidate'] or found['outcome']} {found['accuracy']:.3f}")
        task.store.put("advice", key | {"budget": name}, found)
        kept[name] = found
    return kept


def fine_tune_seconds(task: Prepared) -> float:
    """Of every weight, on what the advice trains on, and judged once."""
    candidate = Candidate("full")
    begun = time.perf_counter()
    fine_tune = FineTune(task.trainer, candidate, learning_rates(candidate)[0], task.updates, seed=0)
    fine_tune.run(task.updates)
    fine_tune.judge(task.held_out)
    return time.perf_counter() - begun


def _picked(task: Prepared, said: Recommendation, executor: Any) -> dict[str, Any]:
    predicted: Accuracy | None
    if said.recommended is None:  # then the network stays as it is
        name, rate, accuracies = None, None, [task.base_accuracy()]
        predicted = said.data.base_accuracy if said.data else None
    else:
        evaluation = said.evaluation(said.recommended)
        name, predicted = evaluation.candidate.id, evaluation.accuracy
        rate = predicted.learning_rate if predicted else None
        seeds = range(task.size.seeds if rate else 1)
        trials = [task.trial(evaluation.candidate, rate, seed) for seed in seeds]

        def record(probe: Any) -> dict[str, Any]:
            accuracy = share((probe.correct or b"")[: task.counted])
            return {"accuracy": accuracy, "seconds": probe.seconds, "failure": probe.failure}

        found = trained(trials, executor, task.store, task.trial_key, record)
        accuracies = [found[trial]["accuracy"] for trial in trials]
    return {
        "outcome": said.outcome,
        "candidate": name,
        "learning_rate": rate,
        "accuracy": statistics.fmean(accuracies),
        "accuracies": accuracies,
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
    """Regrets in percentage points, over the reported tasks' cases; rules need no advice."""
    reported = {name: task for name, task in tasks.items() if task["reported"] and "truth" in task}
    by_rule: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    regrets, covered, cost = [], [], []
    for name, task in reported.items():
        for budget, case in cases(task).items():
            for rule, accuracy in case["rules"].items():
                by_rule[rule][name].append(100 * (case["best"] - accuracy))
            said = task.get("advice", {}).get(budget)
            if said is not None:
                regrets.append(100 * (case["best"] - said["accuracy"]))
                cost.append(said["probe_seconds"] / said["full_seconds"])
                low, _, high = said["predicted"] or (1.0, 1.0, 0.0)
                covered.append(low <= said["accuracy"] <= high)
    everywhere = {rule: by_task for rule, by_task in by_rule.items() if by_task.keys() == reported.keys()}
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


def tables(tasks: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any]) -> dict[str, str]:
    rules = [(f"`{rule}`", regret) for rule, regret in summary["rules"].items() if rule != LEFT_OUT]
    rows = [(f"{name}, else `head`", regret) for name, regret in rules[:_SHOWN]]
    rows += [(LEFT_OUT, summary["rules"][LEFT_OUT])] if LEFT_OUT in summary["rules"] else []
    if summary["mean_regret"] is not None:
        rows.insert(0, (ADVISED, summary["mean_regret"]))
    return {
        "photos": table(("followed", "mean regret"), [(name, f"{regret:.2f}") for name, regret in rows]),
        "photos_cases": _cases_table(tasks),
        "photos_truth": _truth_table(tasks),
    }


def _cases_table(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    heads = ("task", "photos given", "judged on", "as it is", "budget", "best that fits", "")
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
                row += [f"{100 * said['accuracy']:.1f}", f"{mean} ({low} to {high})"]
            rows.append(row)
    if any(len(row) > len(heads) for row in rows):
        heads += ("picked", "", "predicted")
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
