"""Probes elsewhere find what they find here, and a worker that dies takes nobody down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from advisor.data.deferred import Deferred
from advisor.data.loading import LabelledImages
from advisor.errors import InputError
from advisor.models.layers import take_census
from advisor.probes.executor import executor_for
from advisor.probes.race import race
from advisor.probes.train import Trainer, Trial, training_of
from advisor.records import Candidate, Levers
from advisor.system.temporary import TemporaryFolder
from tests.probes.test_race import simulated
from tests.probes.test_train import SIZE, dataset, network
from tests.processes import ROOT

CANDIDATES = [Candidate("head"), Candidate("norm"), Candidate.of("lora", {"rank": 2}, Levers())]
TRIALS = [Trial(candidate, rate, 10, 40, 0) for candidate in CANDIDATES for rate in (1e-3, 1e-2)]


def trainer(model=None):
    model = model or network()
    return Trainer(model, take_census(network(), SIZE), dataset(), 8)


@pytest.fixture(scope="module")
def dask_address():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster.scheduler_address.replace("tcp://", "dask://")


def raced(spec):
    sent = trainer()
    with executor_for(spec, sent) as executor:
        costs = dict.fromkeys(CANDIDATES, simulated())
        found = race(sent, costs, seconds=3600, updates=16, seed=0, executor=executor)
        assert not executor.losses
    return found


def finds_what_is_found_here(spec):
    """What several run at once is chosen together; each finds the same as it would here."""
    found, here = raced(spec), trainer()
    assert found.base == raced("here").base
    assert any(accuracy.learning_rate for accuracy in found.accuracies.values())
    for candidate, accuracy in found.accuracies.items():
        if accuracy.learning_rate is None:
            continue
        training = training_of(candidate, here.census)
        trial = Trial(training, accuracy.learning_rate, accuracy.updates, accuracy.samples, seed=0)
        assert here.probe(trial).correct == accuracy.correct


def test_one_local_worker_runs_the_same_race():
    one, here = raced("local:1"), raced("here")
    assert (one.accuracies, one.failures, one.base) == (here.accuracies, here.failures, here.base)
    assert one.probes_run == here.probes_run


def test_local_workers_find_the_same():
    finds_what_is_found_here("local:2")


@pytest.mark.filterwarnings("ignore")  # the engine's own
def test_a_dask_cluster_finds_the_same(dask_address):
    finds_what_is_found_here(dask_address)


@pytest.mark.filterwarnings("ignore")  # the engine's own
@pytest.mark.parametrize("workers", [2, pytest.param(None, marks=pytest.mark.long)])
def test_ray_finds_the_same(workers):
    """On a cluster that is there, of two workers; on one that is started for it, with one for each core."""
    ray = pytest.importorskip("ray")
    if workers:
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    try:
        finds_what_is_found_here("ray")
        assert ray.is_initialized() == bool(workers)
    finally:
        ray.shutdown()


@pytest.mark.parametrize(
    ("resources", "workers"), [({}, None), ({"CPU": 1.0}, None), ({"CPU": 2.0}, 2), ({"CPU": 9.0}, 9)]
)
def test_a_ray_cluster_of_one_processor_is_refused(resources, workers, monkeypatch):
    """Whatever ray it is: this one says how many it has, and no more."""
    ray = SimpleNamespace(is_initialized=lambda: True, cluster_resources=lambda: resources)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.util", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "ray.util.joblib", SimpleNamespace(register_ray=lambda: None))
    if workers is None:
        with pytest.raises(InputError, match="fewer than 2 CPUs"), executor_for("ray", trainer()):
            pass
    else:
        with executor_for("ray", trainer()) as executor:
            assert executor.workers == workers


class Dies(torch.nn.Module):
    """Ends the process that it is in once it is trained for long enough, but for this one."""

    def __init__(self):
        super().__init__()
        self.network, self.home, self.calls = network(), os.getpid(), 0

    def forward(self, x):
        self.calls += torch.is_grad_enabled()
        if self.calls > 15 and os.getpid() != self.home:
            os._exit(9)
        return self.network(x)


def test_a_worker_that_dies_is_reported_and_the_others_go_on():
    model = Dies()
    sent = Trainer(model, take_census(model, SIZE), dataset(), 8)
    deadly = Trial(Candidate("head"), 1e-2, 20, 40, 7)  # of a seed of its own: it goes on from no other
    with executor_for("local:2", sent) as executor:
        found = {probe.trial: probe for probe in executor.run([*TRIALS, deadly])}
    assert set(found) == {*TRIALS, deadly}
    assert "died" in found[deadly].failure
    assert all(found[trial].correct for trial in TRIALS)
    assert executor.losses


def test_what_may_run_out_of_memory_runs_elsewhere():
    model = Dies()
    sent = Trainer(model, take_census(model, SIZE), dataset(), 8)
    deadly = Trial(Candidate("head"), 1e-2, 20, 40, 7)  # of a seed of its own: it goes on from no other
    with executor_for("here", sent, is_risky=lambda candidate: candidate == deadly.candidate) as executor:
        found = {probe.trial: probe for probe in executor.run([TRIALS[0], deadly])}
    assert "died" in found[deadly].failure
    assert found[TRIALS[0]].correct


def test_with_little_memory_left_what_may_run_out_of_it_is_not_run(monkeypatch):
    monkeypatch.setattr("advisor.system.machine.available_bytes", lambda: 2**31)
    risky = TRIALS[0].candidate
    with executor_for("here", trainer(), is_risky=lambda candidate: candidate == risky) as executor:
        left_out, *others = executor.run(TRIALS)
    assert left_out.failure == "it may need more memory than is left here"
    assert any(probe.correct for probe in others)


def test_where_all_may_run_out_of_memory_the_race_times_none_here_and_is_run():
    sent = trainer()
    with executor_for("here", sent, is_risky=lambda candidate: True) as executor:
        costs = dict.fromkeys(CANDIDATES, simulated())
        found = race(sent, costs, seconds=3600, updates=16, seed=0, executor=executor)
    assert any(accuracy.learning_rate for accuracy in found.accuracies.values())


@pytest.mark.parametrize("spec", ["here", "local:2"])
def test_images_are_not_made_before_a_trial_is_run(spec):
    late = trainer()
    parts = (late.dataset.train, late.dataset.validation)
    train, validation = (
        LabelledImages(Deferred(part.undecoded.shape, pytest.fail, lambda: ""), part.labels) for part in parts
    )
    late.dataset = replace(late.dataset, train=train, validation=validation)
    with executor_for(spec, late) as executor:
        assert not [*executor.run([])]


@pytest.mark.parametrize("spec", ["", "nowhere", "local:0", "local:x", "dask", "ray:1"])
def test_unknown_executors_are_refused(spec):
    with pytest.raises(InputError, match="--executor"), executor_for(spec, trainer()):
        pass


@pytest.mark.filterwarnings("ignore")  # the engine's own
def test_a_cluster_that_is_not_there_is_said(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("advisor.probes.executor._CLUSTER_SECONDS", 1.0)
    with pytest.raises(InputError, match="no dask scheduler"), executor_for("dask://127.0.0.1:9", trainer()):
        pass


WORKS = """
from advisor.probes.executor import executor_for
from tests.probes.test_executor import TRIALS, trainer

with executor_for("local:1", trainer()) as executor:
    for probe in executor.run(TRIALS):
        print("done", flush=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /dev/shm")
def test_what_a_tree_of_processes_shared_goes_with_the_next_run_after_it_was_killed(tmp_path):
    """Killed all at once, nobody of them is left to tidy up, loky's own tracker neither."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    tree = subprocess.Popen(
        [sys.executable, "-c", WORKS], env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with tree:
        assert tree.stdout.readline() == "done\n"
        os.killpg(tree.pid, signal.SIGKILL)

    def shared():
        return [each for each in Path("/dev/shm").iterdir() if f"-{tree.pid}-" in each.name.replace("_", "-")]

    assert shared()
    assert list(tmp_path.glob("peft-advisor-*"))
    with TemporaryFolder(tmp_path) as name:
        assert list(tmp_path.iterdir()) == [Path(name)]
    assert not shared()
