"""The race: it finds the better method, keeps to its time, and reports what it could not know."""

from __future__ import annotations

import sys
import time

import pytest
import torch

from advisor.errors import DataError
from advisor.models.layers import take_census
from advisor.probes.race import _methods_in_turn, _promoted, race
from advisor.probes.train import Probe
from advisor.records import Candidate, Levers
from tests.probes.test_train import SIZE, dataset, network


def run(candidates, seconds=4.0, model=None, **options):
    model = model or network()
    return race(
        model,
        take_census(network(), SIZE),
        candidates,
        dataset(),
        batch_size=8,
        seconds=seconds,
        seed=0,
        **options,
    )


CANDIDATES = [
    Candidate("recalibrate"),
    Candidate("head"),
    Candidate("norm"),
    Candidate.of("lora", {"rank": 2}, Levers()),
    Candidate("full"),
]


def test_every_candidate_is_judged_or_has_a_reason():
    told = []
    found = run(CANDIDATES, report=lambda fraction, running: told.append((fraction, running)))
    assert set(found.accuracies) | set(found.failures) == set(CANDIDATES)
    assert found.base is not None
    assert max(accuracy.mean for accuracy in found.accuracies.values()) > 0.9
    full = found.accuracies[Candidate("full")]
    assert full.learning_rate in (1e-4, 5e-4, 2e-3)
    assert found.accuracies[Candidate("recalibrate")].learning_rate is None
    finalists = [
        a for c, a in found.accuracies.items() if a.finalist and a.updates and c.method != "recalibrate"
    ]
    # Finalists are judged alike: after as many updates, on the same samples.
    assert len({(a.updates, a.samples) for a in finalists}) == 1
    assert [fraction for fraction, _ in told] == sorted(fraction for fraction, _ in told)


def test_each_methods_plain_middle_setting_runs_first():
    ranks = [Candidate.of("lora", {"rank": rank}, Levers()) for rank in (2, 4, 8)]
    narrow = [Candidate.of("lora", {"rank": 4}, Levers(scope=scope)) for scope in (1, 2)]
    norm = [Candidate("norm", levers=Levers(scope=1)), Candidate("norm")]
    turns = _methods_in_turn([*narrow, norm[0], *ranks, norm[1]])
    assert set(turns[:2]) == {ranks[1], norm[1]}
    assert set(turns[-2:]) == {ranks[0], ranks[2]}
    assert sorted(map(repr, turns)) == sorted(map(repr, [*narrow, *ranks, *norm]))


def test_it_keeps_to_its_time():
    start = time.perf_counter()
    run(CANDIDATES, seconds=3.0)
    # Not a speed test: a race that ignored its limit would train for 12 epochs of every candidate.
    assert time.perf_counter() - start < 12


def test_too_little_time_is_said():
    candidates = [Candidate.of("lora", {"rank": rank}, Levers()) for rank in (1, 2, 3)]
    found = run(candidates, seconds=0.05)
    assert found.failures or found.warnings
    assert all("--probe-time" in reason for reason in found.failures.values())


def test_all_diverged_is_a_data_error():
    model = network()
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    with pytest.raises(DataError, match="NaN"):
        run([Candidate("full"), Candidate("recalibrate")], model=model)


def test_one_that_diverges_does_not_end_the_others():
    class Breaks:
        name, learns_classes, learning_rates = "breaks", True, (1e30, 2e30, 3e30)

    from advisor.methods import _registry, get_method

    breaking = type(
        "Breaks", (type(get_method("full")),), vars(Breaks) | {"learning_rates": (1e30, 2e30, 3e30)}
    )
    _registry["breaks"] = breaking()
    try:
        found = run([Candidate("head"), Candidate("breaks")])
    finally:
        del _registry["breaks"]
    assert "diverged" in found.failures[Candidate("breaks")]
    assert Candidate("head") in found.accuracies


def result(candidate, right, samples=200):
    return Probe(candidate, 1e-3, 10, bytes([1] * right + [0] * (samples - right)), 0.1)


def test_promotion_keeps_the_best_and_the_cheapest_that_may_be_as_good():
    names = ["cheap", "hopeless", "middle", "good", "best"]  # in order of cost
    right = {"cheap": 172, "hopeless": 40, "middle": 170, "good": 178, "best": 180}
    best = {Candidate(name): result(Candidate(name), right[name]) for name in names}
    kept = [candidate.method for candidate, _ in _promoted(best, 4)]
    assert kept == ["cheap", "middle", "good", "best"]
    assert [candidate.method for candidate, _ in _promoted(best, 3)] == ["cheap", "good", "best"]


def test_a_machine_that_becomes_slow_cuts_the_last_probes_short_and_says_so(monkeypatch):
    module = sys.modules["advisor.probes.race"]  # the package's `race` is the function
    # Timed far too fast, the first rung is planned far too long.
    monkeypatch.setattr(module, "seconds_per_update", lambda *_: 1e-4)
    found = run([Candidate("head"), Candidate("norm"), Candidate("full")], seconds=1.0)
    assert any("took longer" in warning for warning in found.warnings)
    assert found.accuracies
