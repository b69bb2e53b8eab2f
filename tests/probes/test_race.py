"""The race: it finds the better method, keeps to its time, remembers, and says what it could not know."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from advisor.costs import Simulator
from advisor.errors import DataError
from advisor.methods import get_method, learning_rates, registered
from advisor.models.layers import take_census
from advisor.probes import CrossValidation
from advisor.probes.judging import ACCURACY
from advisor.probes.race import _Race, race
from advisor.probes.train import Trainer, trained_as
from advisor.records import Candidate, Cost, Levers
from advisor.solver.paired import paired_gap
from advisor.store import Store
from advisor.training import loop
from advisor.training.loop import level_updates
from tests.probes.test_folds import few
from tests.probes.test_train import SIZE, dataset, network

CANDIDATES = [
    Candidate("recalibrate"),
    Candidate("head"),
    Candidate("norm"),
    Candidate.of("lora", {"rank": 2}, Levers()),
    Candidate.of("lora", {"rank": 4}, Levers()),
    Candidate("full"),
]
AMPLE = 300.0  # seconds: such a race ends of itself


def run(candidates=CANDIDATES, seconds=AMPLE, model=None, updates=24, images=900, **options):
    """A race on images of which two thirds train and the others judge."""
    model = model or network()
    census = take_census(network(), SIZE)
    trainer = Trainer(model, census, dataset(images), batch_size=8)
    simulator = Simulator(network(), census, images=80)
    costs = {candidate: simulator.cost(candidate, 8) for candidate in candidates}
    options = {"seed": 0, "key": trainer.key()} | options
    return race(trainer, costs, seconds=seconds, updates=updates, **options)


def found_alike(one, other):
    return (one.base, one.accuracies, one.failures) == (other.base, other.accuracies, other.failures)


def test_every_candidate_is_judged_or_has_a_reason():
    told = []
    found = run(updates=100, report=lambda fraction, running: told.append((fraction, running)))
    assert set(found.accuracies) | set(found.failures) == set(CANDIDATES)
    assert found.base is not None
    assert max(accuracy.mean for accuracy in found.accuracies.values()) > 0.9
    finalists = [a for a in found.accuracies.values() if a.finalist and a.learning_rate is not None]
    # Finalists are judged alike: after a whole fine-tune, on the same samples.
    assert {(a.updates, a.samples) for a in finalists} == {(100, 300)}
    assert [fraction for fraction, _ in told] == sorted(fraction for fraction, _ in told)
    assert not found.warnings


def test_several_seeds_are_averaged():
    one, other = ACCURACY.of(bytes([1, 1, 0, 0] * 50)), ACCURACY.of(bytes([2, 1, 1, 0] * 50), seeds=2)
    assert other.mean == one.mean == 0.5
    assert (other.low, other.high) == (one.low, one.high)  # no more images were seen
    low, high = paired_gap(one, other)
    assert low < 0 < high
    low, high = paired_gap(ACCURACY.of(bytes([2] * 200), seeds=2), other)
    assert 0.4 < low < 0.5 < high < 0.6


def test_it_keeps_to_its_time():
    start = time.perf_counter()
    run(seconds=3.0, updates=100_000)
    # Not a speed test: a race that ignored its limit would train for hours.
    assert time.perf_counter() - start < 12


def test_too_little_time_is_said():
    candidates = [Candidate.of("lora", {"rank": rank}, Levers()) for rank in (1, 2, 3, 4, 5, 6)]
    found = run(candidates, seconds=0.05, updates=1000)
    assert found.warnings
    assert found.failures
    assert all("--probe-time" in reason for reason in found.failures.values())


def test_without_time_for_a_whole_fine_tune_those_trained_the_longest_are_judged_alike():
    candidates = [Candidate("recalibrate"), Candidate("head"), Candidate("norm")]
    found = run(candidates, seconds=3.0, updates=10**6)
    assert any("no time to train for as long as a real fine-tune" in warning for warning in found.warnings)
    trained = [found.accuracies[c] for c in candidates[1:] if c in found.accuracies]
    assert max(accuracy.updates for accuracy in trained) < 10**6
    longest = max(accuracy.updates for accuracy in trained)
    assert [accuracy.finalist for accuracy in trained] == [a.updates == longest for a in trained]


def test_all_diverged_is_a_data_error():
    model = network()
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    with pytest.raises(DataError, match="NaN"):
        run([Candidate("full"), Candidate("recalibrate")], model=model)


@pytest.fixture
def method():
    """Make a method that is `full` but for what is given."""
    with ExitStack() as made:

        def make(name, **attributes):
            made.enter_context(
                registered(type(name, (type(get_method("full")),), {"name": name} | attributes)())
            )
            return Candidate(name)

        yield make


def test_one_that_diverges_does_not_end_the_others(method):
    breaks = method("breaks", learning_rates=(1e30, 2e30, 3e30))
    found = run([Candidate("norm"), breaks])
    assert "diverged" in found.failures[breaks]
    assert Candidate("norm") in found.accuracies


def test_one_that_runs_out_of_memory_does_not_end_the_others(method):
    def exhausting(self, trainable, levers, learning_rate):
        torch.empty(2**60)

    exhausts = method("exhausts")
    costs = dict.fromkeys((Candidate("head"), exhausts), simulated())
    type(get_method("exhausts")).optimizer = exhausting
    trainer = Trainer(network(), take_census(network(), SIZE), dataset(), 8)
    found = race(trainer, costs, seconds=AMPLE, updates=8, seed=0)
    assert "memory" in found.failures[exhausts]
    assert Candidate("head") in found.accuracies


@cache
def simulated() -> Cost:
    """What any candidate costs, where that doesn't matter; not made by workers that import this."""
    return Simulator(network(), take_census(network(), SIZE), images=80).cost(Candidate("head"), 8)


def test_an_identical_race_is_read_from_the_store(tmp_path):
    first = run(store=Store(tmp_path / "store"))
    assert first.probes_run > 0
    again = run(store=Store(tmp_path / "store"))
    assert again.probes_run == 0
    assert again.probes_recalled == first.probes_run
    assert found_alike(first, again)
    other = run(store=Store(tmp_path / "store"), seed=1)
    assert other.probes_run > 0


def test_a_failure_that_may_have_been_the_machines_is_not_remembered(method, tmp_path):
    def failing(self, trainable, levers, learning_rate):
        raise RuntimeError("out of memory")

    fails = method("fails", optimizer=failing)
    options = {"costs": {fails: simulated()}, "seconds": AMPLE, "updates": 24, "seed": 0}
    trainer = Trainer(network(), take_census(network(), SIZE), dataset(), 8)
    with Store(tmp_path / "store") as store:
        first = race(trainer, **options, store=store)
        assert "out of memory" in first.failures[fails]
        again = race(trainer, **options, store=store)
        assert again.probes_run == first.probes_run


def test_so_is_an_identical_race_that_its_time_cut_short(tmp_path):
    first = run(seconds=1.0, updates=2000, store=Store(tmp_path / "store"))
    again = run(seconds=1.0, updates=2000, store=Store(tmp_path / "store"))
    assert again.probes_run == 0
    assert found_alike(first, again)


def test_an_interrupted_race_tells_what_is_known_and_goes_on_from_there(tmp_path):
    whole = run(updates=200, store=Store(tmp_path / "whole"))
    main = threading.get_ident()
    seen = []

    def interrupt(_, running):
        seen.append(running)
        if len(seen) == 7:  # what needs no training, and timing, are done
            signal.pthread_kill(main, signal.SIGINT)

    stopped = run(updates=200, store=Store(tmp_path / "store"), report=interrupt)
    assert any("interrupted" in warning for warning in stopped.warnings)
    assert 0 < stopped.probes_run < whole.probes_run
    rest = run(updates=200, store=Store(tmp_path / "store"))
    assert stopped.probes_run + rest.probes_run == whole.probes_run
    assert found_alike(rest, whole)


def test_no_time_at_all_is_told_as_all_of_it():
    told = []
    found = run([Candidate("head")], seconds=0, report=lambda fraction, running: told.append(fraction))
    assert found.base is not None
    assert set(told) == {1.0}


def test_what_trains_alike_is_raced_once():
    plain, twice = (
        Candidate("norm"),
        Candidate("norm", levers=Levers(checkpoint=True, update="per-parameter")),
    )
    one = run([plain])
    found = run([plain, twice])
    assert found.accuracies[plain] == found.accuracies[twice]
    assert found.probes_run == one.probes_run
    census = take_census(network(), SIZE)
    assert trained_as(twice, census) == plain


def test_what_surely_forgets_too_much_goes_no_further(method, monkeypatch):
    """One learns as well as the other, but is wrong about all old images."""
    forgets, probe, ran = method("forgets"), Trainer.probe, []

    def probed(self, trial):
        ran.append(trial.candidate)
        found = probe(self, trial)
        kept = bytes([trial.candidate != forgets] * trial.samples)
        return replace(found, retained=kept)

    monkeypatch.setattr(Trainer, "probe", probed)
    found = run([Candidate("norm"), forgets], min_retained=0.5, updates=100)
    assert found.accuracies[Candidate("norm")].updates == 100
    assert ran.count(forgets) == 1
    assert ran[-1] == Candidate("norm")
    alone = run([forgets], min_retained=0.5, updates=100)
    assert alone.accuracies[forgets].updates == 100


def test_trainings_go_on_from_where_they_were(monkeypatch):
    updates, run_one = [], loop.update
    monkeypatch.setattr(loop, "update", lambda *args, **more: updates.append(run_one(*args, **more)))
    found = run([Candidate("norm")], updates=100)
    assert found.accuracies[Candidate("norm")].updates == 100
    timed, opened, levels = 8, 3 * 25, [level_updates(25), level_updates(50)]
    assert len(updates) <= timed + opened + (50 - levels[0]) + (100 - levels[1])


def test_the_learning_curve_is_what_was_seen_after_each_round():
    found = run(updates=100)
    trained = [accuracy for accuracy in found.accuracies.values() if accuracy.learning_rate is not None]
    assert any(len(accuracy.curve) > 1 for accuracy in trained)
    for accuracy in trained:
        lengths = [point.updates for point in accuracy.curve]
        assert lengths == sorted(set(lengths))
        seen = accuracy.mean if accuracy.seen is None else accuracy.seen
        assert (lengths[-1], accuracy.curve[-1].mean) == (accuracy.updates, seen)
    [untrained] = run([Candidate("recalibrate")]).accuracies.values()
    assert (untrained.learning_rate, untrained.curve) == (None, ())


def test_what_is_told_of_the_luckiest_is_less_than_what_was_seen():
    found = run([Candidate.of("lora", {"rank": rank}, Levers()) for rank in (1, 2, 4)], images=90, updates=48)
    best = max((a for a in found.accuracies.values() if a.finalist), key=lambda accuracy: accuracy.seen)
    assert best.low < best.mean < best.seen == sum(best.correct) / len(best.correct)


def test_what_leads_is_told_all_along_and_led_in_the_end():
    leads = []
    found = run(updates=24, lead=lambda candidate, told: leads.append((candidate, told)))
    assert len(leads) > 1
    leader, told = leads[-1]
    assert found.accuracies[leader].mean == pytest.approx(told.mean)
    assert told.mean == pytest.approx(max(a.mean for a in found.accuracies.values() if a.finalist))


def test_of_few_hundred_images_what_leads_is_judged_on_more_than_the_first_fold():
    """And nothing is judged on more than it was worth: not all candidates are."""
    model, census = network(), take_census(network(), SIZE)
    simulator = Simulator(model, census, images=300)
    costs = {one: simulator.cost(one, 8) for one in CANDIDATES}
    trainer = CrossValidation(model, census, few(400), 8, folds=4)
    found = race(trainer, costs, seconds=AMPLE, updates=24, seed=0)
    judged = [len(accuracy.correct) for accuracy in found.accuracies.values()]
    assert min(judged) == trainer.steps[0] < max(judged)
    best = max((a for a in found.accuracies.values() if a.finalist), key=lambda accuracy: accuracy.mean)
    assert len(best.correct) == max(judged)


def racing(candidates, *, seconds=AMPLE, updates=24):
    """A race that has not begun."""
    model, census = network(), take_census(network(), SIZE)
    simulator = Simulator(model, census, images=80)
    costs = {candidate: simulator.cost(candidate, 8) for candidate in candidates}
    trainer = Trainer(model, census, dataset(90), batch_size=8)
    ignored = {"report": lambda *_: None, "lead": lambda *_: None, "executor": None, "store": None, "key": {}}
    how = {"seed": 0, "metric": ACCURACY, "min_retained": None, "new_head": False}
    return _Race(trainer, costs, seconds, updates, **how, **ignored)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_of_the_rates_that_were_not_tried_the_most_promising_alone_may_be_run(place):
    norm = Candidate("norm")
    race = racing([norm])
    picture = race._found.picture([24])
    hopes = np.zeros(len(picture.points))
    hopes[list(picture.rows_of(norm, learning_rates(norm)[place], 1.0, ()))] = 0.5
    assert race._rates(picture, replace(picture.given([]), means=hopes)) == {
        norm: [learning_rates(norm)[place]]
    }


def test_what_fails_when_it_is_timed_takes_no_time():
    """Its probes will say why: until then nothing is known of it."""
    race = racing([Candidate("norm")])

    def time_updates(candidate):
        raise RuntimeError("out of memory")

    race._trainer.time_updates = time_updates
    race._time()
    assert race._clock.timed == {Candidate("norm"): (0.0, 0.0)}


@pytest.mark.parametrize(
    ("updates", "each", "lengths"),
    [
        (1600, 0.0, [100, 400, 1600]),  # a sixteenth, a quarter and all of it
        (180, 0.0, [45, 180]),  # fewer than 12 updates say nothing
        (40, 0.0, [40]),
        (1600, 0.05, [400]),  # twice 80 s is more than there is; nor can many of 20 s be run
        (1600, 0.01, [1600]),  # of 16 s they can't either: parts of some would cost too many others
        (1600, 0.005, [100, 400, 1600]),
    ],
)
def test_trainings_run_for_as_long_as_there_is_time_and_for_parts_of_that(updates, each, lengths):
    race = racing([Candidate("norm")], seconds=100.0, updates=updates)
    race._time = lambda: race._clock.timed.update({Candidate("norm"): (0.0, each)})
    assert race._planned_lengths(30) == lengths
