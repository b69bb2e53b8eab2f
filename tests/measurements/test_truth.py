"""What the studies of the advice have in common."""

from __future__ import annotations

import pytest

from advisor.probes import Trial
from advisor.probes.train import Probe
from advisor.records import Budget, Candidate
from advisor.store import Store
from measurements.carried import CarriedStore
from measurements.truth import best_of_others, best_that_fits, budgets, fixed_rules, share, trained


def row(candidate, accuracy, memory, flops, checkpointed=None):
    return {
        "candidate": candidate,
        "accuracy": accuracy,
        "peak_memory_bytes": memory,
        "checkpointed_memory_bytes": checkpointed or memory,
        "flops": flops,
    }


ROWS = [row("head", 0.5, 10, 10), row("norm", 0.7, 90, 70, 50), row("full", 0.8, 100, 100, 80)]


def test_a_rule_that_does_not_fit_falls_back_to_the_head():
    assert fixed_rules(ROWS, Budget()) == {"head": 0.5, "norm": 0.7, "full": 0.8}
    assert fixed_rules(ROWS, Budget(flops=70)) == {"head": 0.5, "norm": 0.7, "full": 0.5}


def test_the_best_may_be_checkpointed_to_fit():
    limits = budgets(ROWS)
    assert best_that_fits(ROWS, limits["loose"])["candidate"] == "full"
    assert best_that_fits(ROWS, limits["memory"])["candidate"] == "norm"
    assert best_that_fits(ROWS, limits["flops"])["candidate"] == "head"


def test_the_best_rule_is_chosen_without_the_task_that_it_is_judged_on():
    regrets = {"a": {"one": [0.0], "two": [5.0]}, "b": {"one": [3.0], "two": [1.0]}}
    assert best_of_others(regrets) == [3.0, 5.0]
    assert best_of_others({"a": {"one": [0.0]}}) == []


class StoppedError(Exception):
    pass


class Executor:
    """Fails after so many trials."""

    def __init__(self, most):
        self.most, self.ran = most, []

    def run(self, trials):
        for trial in trials:
            if len(self.ran) == self.most:
                raise StoppedError
            self.ran.append(trial)
            yield Probe(trial, b"\1\0", 1.0)


def test_what_was_trained_before_a_kill_is_not_trained_again(tmp_path):
    trials = [Trial(Candidate("full"), rate, 4, 2, 0) for rate in (0.1, 0.2, 0.3)]

    def run(executor):
        with Store(tmp_path / "kept.sqlite") as store:
            return trained(
                trials,
                executor,
                store,
                lambda trial: {"rate": trial.learning_rate},
                lambda probe: {"accuracy": share(probe.correct), "failure": probe.failure},
            )

    with pytest.raises(StoppedError):
        run(Executor(2))
    again = Executor(9)
    assert [value["accuracy"] for value in run(again).values()] == [0.5] * 3
    assert again.ran == trials[2:]


def test_finished_trainings_of_an_unfinished_task_go_to_another_machine(tmp_path):
    whole, file = set(), tmp_path / "unfinished.json"
    with CarriedStore(tmp_path / "here.sqlite", file, whole.__contains__) as here:
        for task in ("a", "b"):
            here.put("truth", {"task": task}, {"accuracy": 0.5})
        whole.add("a")
        here.carry()
    with CarriedStore(tmp_path / "there.sqlite", file, whole.__contains__) as there:
        assert there.get("truth", {"task": "b"}) == {"accuracy": 0.5}
        assert there.get("truth", {"task": "a"}) is None
        whole.add("b")
        there.carry()
    assert not file.exists()
