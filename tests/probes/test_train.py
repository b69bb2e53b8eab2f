"""The training loop: fair, repeatable, and leaving the user's model alone."""

from __future__ import annotations

import copy
import math
import pickle
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import advisor.training.loop
from advisor.data.deferred import Deferred
from advisor.data.loading import Dataset, LabelledImages
from advisor.data.pixels import Normalisation
from advisor.methods import get_method, methods
from advisor.models.layers import take_census
from advisor.probes.judging import ACCURACY
from advisor.probes.train import (
    FineTune,
    Kept,
    Trainer,
    Trial,
    in_quick_layout,
    trained_as,
    without_head,
)
from advisor.records import Candidate, Levers
from advisor.training.loop import evaluate, images_at_once

SIZE = (1, 6, 6)


def dataset(samples=120, seed=0):
    """Two classes, told apart by where the bright half is."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 2
    images = torch.randint(0, 90, (samples, *SIZE), generator=generator)
    images[labels == 0, :, :3] += 120
    images[labels == 1, :, 3:] += 120
    split = samples * 2 // 3
    parts = [LabelledImages(images[p].to(torch.uint8), labels[p]) for p in (slice(split), slice(split, None))]
    return Dataset("made", ("a", "b"), *parts, Normalisation((0.5,), (0.5,)), False)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    ).eval()


def trainer_of(model, data, batch_size=8):
    return Trainer(model, take_census(model, SIZE), data, batch_size)


def run(model, candidate, data, learning_rate=1e-2, updates=30, seed=0):
    """The trained candidate; None where it diverged."""
    tuned = FineTune(trainer_of(model, data), candidate, learning_rate, updates, seed)
    return tuned.trainable if tuned.run(updates) else None


@pytest.mark.parametrize("method", ["full", "head", "norm", "bias"])
def test_training_learns_and_leaves_the_model_alone(method):
    model, data = network(), dataset()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = run(model, Candidate(method), data, updates=120)
    right = evaluate(trained.model, data.validation, data.normalisation, pass_size=64)
    assert sum(right) / len(right) > 0.9
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_same_seed_gives_the_same_result_and_the_global_generator_is_left_alone():
    model, data = network(), dataset()
    candidate = Candidate.of("lora", {"rank": 2}, Levers())
    state = torch.get_rng_state()
    first = run(model, candidate, data).delta()
    assert torch.equal(state, torch.get_rng_state())
    second = run(model, candidate, data).delta()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = run(model, candidate, data, seed=1).delta()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_loss_that_becomes_nan_is_a_result():
    model, data = network(), dataset()
    with torch.no_grad():
        model[0].weight[0] = float("nan")
    assert run(model, Candidate("full"), data) is None
    trainer = Trainer(model, take_census(network(), SIZE), data, 8)
    found = trainer.probe(Trial(Candidate("full"), 1e-3, 5, 10, 0))
    assert found.correct is None
    assert found.failure == "diverged"


def test_a_learning_rate_far_too_high_is_no_crash():
    found = run(network(), Candidate("full"), dataset(), learning_rate=1e30)
    assert found is None


def test_evaluation_is_in_eval_mode_and_in_order():
    data, model = dataset(), network().train()
    right = evaluate(model, data.validation, data.normalisation, 7, pass_size=4)
    assert len(right) == 7
    images, labels = data.validation.batch(torch.arange(7), data.normalisation)
    with torch.no_grad():
        expected = (model.eval()(images).argmax(1) == labels).tolist()
    assert list(right) == [int(value) for value in expected]


def test_of_no_samples_nothing_is_judged_and_no_accuracy_is_known():
    data, model = dataset(), network()
    assert evaluate(model, data.validation, data.normalisation, 0, pass_size=64) == b""
    assert len(evaluate(model, data.validation, data.normalisation, pass_size=64)) == len(data.validation)
    trainer = Trainer(model, take_census(network(), SIZE), replace(data, retained=data.train), 8)
    assert trainer.judge_base(0) == trainer.judge_base_retained(0) == b""
    probe = trainer.probe(Trial(Candidate("head"), 1e-3, 1, 0, 0))
    assert (probe.correct, probe.retained) == (b"", b"")
    with pytest.raises(ValueError, match="no samples"):
        ACCURACY.of(b"")


@given(st.lists(st.booleans(), min_size=1, max_size=500))
def test_the_interval_is_wilsons(outcomes):
    accuracy = ACCURACY.of(bytes(outcomes))
    assert 0 <= accuracy.low <= accuracy.mean <= accuracy.high <= 1
    n, p, z = len(outcomes), accuracy.mean, 1.959964
    for bound in (accuracy.low, accuracy.high):
        if bound not in (0.0, 1.0, accuracy.mean):
            # Wilson's bounds solve |p - b| = z sqrt(b (1 - b) / n).
            assert math.isclose(abs(p - bound), z * math.sqrt(bound * (1 - bound) / n), rel_tol=1e-6)


def blocks(seed=0):
    """A chain of blocks with statistics, of which fronts can be cut off."""
    torch.manual_seed(seed)
    layers = [
        nn.Sequential(nn.Conv2d(1 if i == 0 else 4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        for i in range(3)
    ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(144, 2)).eval()


@pytest.mark.parametrize("statistics", ["own", "frozen", "updated", "reestimated"])
@pytest.mark.parametrize("scope", [None, 1])
def test_what_runs_once_for_all_gives_what_running_it_each_time_gives(statistics, scope, monkeypatch):
    model, data = blocks(), dataset()
    candidate = Candidate("full", levers=Levers(scope=scope, statistics=statistics))
    trial = Trial(candidate, 1e-3, 20, 40, 0)
    found = trainer_of(model, data).probe(trial)
    module = sys.modules["advisor.probes.train"]
    monkeypatch.setattr(module, "trained_as", lambda candidate, census: candidate)
    plain = trainer_of(model, data).probe(trial)
    assert found.correct == plain.correct
    assert found.correct is not None


def test_a_front_runs_once_for_all_candidates():
    calls = []
    model, data = blocks(), dataset()
    trainer = trainer_of(model, data)
    for method in ("full", "norm", "bias"):
        tuned = FineTune(trainer, Candidate(method, levers=Levers(scope=1)), 1e-3, 4, 0)
        tuned.trainable.model[0].register_forward_hook(lambda *_: calls.append(1))
        tuned.run(4)
        assert tuned.judge(40)
    assert not calls
    assert len(trainer._features) == 1


def test_what_fronts_make_goes_into_files_when_the_memory_for_it_is_used_up():
    data, census = dataset(), take_census(blocks(), SIZE)
    candidates = [Candidate("full", levers=Levers(scope=scope)) for scope in (2, 1)]

    def judged(remembered):
        trainer = Trainer(blocks(), census, data, 8, remembered=remembered)
        tuned = [FineTune(trainer, candidate, 1e-2, 8, 0) for candidate in candidates]
        assert all(one.run(8) for one in tuned)
        made = [front for fronts in trainer._features.values() for front in fronts]
        inside = sum(front.outputs.nbytes for front in made if front.folder is None)
        return [one.judge(40) for one in tuned], made, inside

    everything, made, inside = judged(2**20)
    assert all(front.folder is None for front in made)
    for share in (0.0, 0.4, 0.8):
        # Half of what is remembered is for states.
        same, made, held = judged(int(2 * share * inside))
        assert same == everything
        assert held <= share * inside
        assert any(front.folder is not None for front in made)
        assert (held > 0) == (share > 0)


@pytest.mark.parametrize(
    ("size", "images"), [((3, 32, 32), 64), ((3, 224, 224), 8), ((1, 9000, 9000), 1), ((7,), 64)]
)
def test_as_many_images_run_at_once_as_hold_half_a_million_pixels(size, images):
    assert images_at_once(size) == images


class Counting(nn.Module):
    """Passes images on, and counts them: of all copies together."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, x):
        self.seen.append(len(x))
        return x

    def __deepcopy__(self, memo):
        return Counting(self.seen)


@pytest.mark.parametrize("levers", [Levers(), Levers(statistics="frozen")])
def test_a_front_goes_on_from_what_a_part_of_it_has_made(levers):
    model, data, seen = blocks(), dataset(), []
    model[0].append(Counting(seen))
    census = take_census(model, SIZE)
    deep, shallow = (Candidate("full", levers=replace(levers, scope=scope)) for scope in (2, 1))
    trainer, other = (Trainer(model, census, data, 8) for _ in range(2))
    seen.clear()
    FineTune(trainer, deep, 1e-3, 4, 0)
    assert sum(seen) == 120  # each image once, trained on or held out
    tuned = FineTune(trainer, shallow, 1e-3, 4, 0)
    assert sum(seen) == 120
    assert len(trainer._features) == 2
    alone = FineTune(other, shallow, 1e-3, 4, 0)
    for one, same in zip(trainer._features[tuned_key(tuned)], other._features[tuned_key(alone)], strict=True):
        assert torch.equal(one.outputs, same.outputs)
        assert one.front == same.front
        assert all(torch.equal(one.pooled[block], same.pooled[block]) for block in same.pooled)
    for each in (tuned, alone):
        each.run(4)
    assert tuned.judge(40) == alone.judge(40)
    assert tuned.judge_solved(["all"]) == alone.judge_solved(["all"])


def tuned_key(tuned):
    return tuned.trainable.front, False, True


@pytest.mark.parametrize("scope", [None, 1])
def test_what_is_forgotten_is_told_of_the_same_network(scope):
    model, data = blocks(), dataset()
    old = dataset(samples=60, seed=1).train
    trainer = trainer_of(model, replace(data, retained=old))
    trial = Trial(Candidate("full", levers=Levers(scope=scope)), 1e-2, 20, 30, 0)
    found = trainer.probe(trial)
    assert len(found.retained) == 30
    plain = trainer_of(model, data).probe(trial)
    assert plain.retained is None
    assert plain.correct == found.correct
    # Judging the old images as held-out ones finds the same.
    swapped = trainer_of(model, replace(data, validation=old)).probe(trial)
    assert swapped.correct == found.retained
    assert trainer.judge_base_retained(30) == trainer_of(model, replace(data, validation=old)).judge_base(30)
    assert trainer.key() != trainer_of(model, data).key()


@pytest.mark.parametrize("method", [name for name in methods() if name != "lite-residual"])
def test_images_without_labels_serve_those_that_look_at_none_and_no_others(method):
    plain = dataset()
    dark = LabelledImages(plain.train.images // 3, torch.full((len(plain.train),), -1))
    model, census = network(), take_census(network(), SIZE)
    setting = next(iter(get_method(method).settings(census, (2,))))
    candidate = Candidate.of(method, setting, Levers())
    found = [run(model, candidate, data) for data in (plain, replace(plain, unlabelled=dark))]
    alone, more = (trained.delta() for trained in found)
    same = all(torch.equal(alone[name], more[name]) for name in alone)
    assert same == get_method(method).learns_classes


def test_statistics_are_estimated_on_images_without_labels_too():
    plain = dataset()
    dark = LabelledImages(plain.train.images // 3, torch.full((len(plain.train),), -1))
    trainer = trainer_of(network(), replace(plain, unlabelled=dark))
    assert len(trainer.images_for(Candidate("recalibrate"))) == 2 * len(plain.train)
    both = torch.cat([plain.train.images, dark.images])
    images = both.float().div(255).sub(0.5).div(0.5)
    first = network()[0]
    wanted = first(images).mean((0, 2, 3))
    found = trainer.copy_of_base(Candidate("head", levers=Levers(statistics="reestimated")))[1].running_mean
    assert torch.allclose(found, wanted, atol=1e-5)


def test_statistics_follow_their_policy():
    model, data = network(), dataset()
    before = model[1].running_mean.clone()
    means = {}
    for policy in ("frozen", "updated", "reestimated"):
        trained = run(model, Candidate("norm", levers=Levers(statistics=policy)), data)
        means[policy] = trained.model[1].running_mean
        assert ("1.running_mean" in trained.delta()) == (policy != "frozen")
    recalibrated = run(model, Candidate("recalibrate"), data, None, updates=10)
    assert torch.equal(means["frozen"], before)
    assert torch.equal(means["reestimated"], recalibrated.model[1].running_mean)
    assert not torch.equal(means["updated"], before)


def test_training_goes_on_from_its_state_as_if_nothing_had_happened():
    model, data = network(), dataset()
    candidate = Candidate.of("lora", {"rank": 2}, Levers())
    whole = FineTune(trainer_of(model, data), candidate, 1e-2, 30, seed=3)
    whole.run(30)
    first = FineTune(trainer_of(model, data), candidate, 1e-2, 30, seed=3)
    first.run(11)
    second = FineTune(trainer_of(model, data), candidate, 1e-2, 30, seed=3)
    second.restore(copy.deepcopy(first.state()))
    second.run(30)
    expected = whole.trainable.delta()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in second.trainable.delta().items())


@pytest.mark.parametrize("method", ["full", "lora", "galore", "norm"])
@given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=3, unique=True))
@settings(max_examples=5, deadline=None)
def test_a_longer_training_goes_on_from_a_shorter_one_and_finds_the_same(method, lengths):
    trainer, candidate = trainer_of(network(), dataset()), Candidate(method)
    trials = [Trial(candidate, 1e-2, updates, 40, 0) for updates in lengths]
    for trial in trials:
        trainer.probe(trial)
    fresh = trainer_of(network(), dataset())
    assert trainer.probe(trials[-1]).correct == fresh.probe(trials[-1]).correct


def test_a_longer_training_repeats_only_what_it_must(monkeypatch):
    trainer, run, updates = trainer_of(network(), dataset()), advisor.training.loop.update, []
    monkeypatch.setattr(
        advisor.training.loop, "update", lambda *args, **more: updates.append(run(*args, **more))
    )
    trainer.probe(Trial(Candidate("norm"), 1e-2, 20, 40, 0))
    updates.clear()
    trainer.probe(Trial(Candidate("norm"), 1e-2, 40, 40, 0))
    assert len(updates) == 40 - advisor.training.loop.level_updates(20)
    updates.clear()
    for other in (
        replace(Trial(Candidate("norm"), 1e-2, 40, 40, 0), seed=1),
        Trial(Candidate("norm"), 1e-3, 40, 40, 0),
    ):
        trainer.probe(other)
    assert len(updates) == 80


def test_states_are_kept_within_so_many_bytes():
    kept = Kept(1000)
    for number in range(4):
        kept.put((number,), {"model": torch.zeros(100), "done": number})
    assert [kept.get((number,)) is None for number in range(4)] == [True, True, False, False]
    kept.get((2,))
    kept.put((4,), {"model": torch.zeros(100)})
    assert kept.get((3,)) is None
    assert kept.get((2,)) is not None


def test_a_trainer_sent_elsewhere_finds_the_same():
    trainer = trainer_of(blocks(), dataset())
    trial = Trial(Candidate("norm", levers=Levers(scope=1)), 1e-2, 12, 40, 0)
    here = trainer.probe(trial)
    there = pickle.loads(pickle.dumps(trainer))
    assert there._features == {}
    assert there.probe(trial).correct == here.correct
    assert there.key() == trainer.key()


def test_decoding_counts_as_no_candidates_time(monkeypatch):
    data, trial, clock = dataset(), Trial(Candidate("head"), 1e-2, 4, 10, 0), [0.0]
    monkeypatch.setattr("advisor.probes.train.time.perf_counter", lambda: clock[0])

    def late(part):
        def make():
            clock[0] += 100
            return part.images

        return LabelledImages(Deferred(part.undecoded.shape, make, lambda: part.key), part.labels)

    def trainer():
        return trainer_of(network(), replace(data, train=late(data.train), validation=late(data.validation)))

    found = trainer().probe(trial)
    assert found == trainer_of(network(), data).probe(trial)
    assert (found.seconds, clock[0]) == (0, 200)
    assert trainer().time_updates(trial.candidate) == (0, 0)
    assert clock[0] == 400


@pytest.mark.parametrize("usual", [1.0, 0.125, 0.01])
def test_an_update_is_timed_without_the_first_however_many_there_is_time_for(usual, monkeypatch):
    """Which compiles kernels: here it takes 5 s, and belongs to what comes before."""
    module, clock, run = sys.modules[Trainer.__module__], [0.0], FineTune.run

    def timed(self, updates):
        clock[0] += sum(usual if done else 5.0 for done in range(self.done, updates))
        return run(self, updates)

    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(FineTune, "run", timed)
    assert trainer_of(network(), dataset()).time_updates(Candidate("norm")) == pytest.approx((5.0, usual))


def test_its_key_follows_the_model_and_the_data():
    key = trainer_of(network(), dataset()).key()
    assert trainer_of(network(), dataset()).key() == key
    assert trainer_of(network(seed=1), dataset()).key()["model"] != key["model"]
    assert trainer_of(network(), dataset(seed=1)).key()["data"] != key["data"]


def separable():
    """Convolutions of every layer type, with their norms.

    They have no biases: what a norm takes away again has a gradient of rounding errors alone, which Adam
    turns into whole steps, in a direction that each processor and layout has its own idea of.
    """
    torch.manual_seed(0)
    # (inputs, size of the kernel, padding, groups)
    shapes = ((1, 3, 0, 1), (16, 3, 1, 1), (16, 3, 0, 16), (16, 1, 0, 1), (16, 2, 0, 2))
    convolutions = [nn.Conv2d(n, 16, k, padding=p, groups=g, bias=False) for n, k, p, g in shapes]
    layers = [layer for conv in convolutions for layer in (conv, nn.BatchNorm2d(16), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)).eval()


def test_what_trains_alike_is_run_in_the_quickest_way():
    """What is before all that is trained runs once, and its output is kept; where that can't be, all runs."""
    census = take_census(blocks(), SIZE)
    count = len(census.blocks)
    stiff = replace(census, blocks=tuple(replace(block, replaceable=False) for block in census.blocks))
    last = Levers(scope=1, checkpoint=True, update="per-parameter")
    kept = Levers(scope=1, cached_prefix="ram")
    for method, levers, own, whole in (
        ("full", last, kept, Levers(scope=1)),
        ("full", Levers(scope=count), Levers(), Levers()),  # nothing is before it
        ("head", Levers(), Levers(scope=0, cached_prefix="ram"), Levers()),
        ("head", Levers(scope=1), kept, Levers()),
        ("head", Levers(statistics="updated"), Levers(statistics="updated"), Levers(statistics="updated")),
    ):
        candidate = Candidate(method, levers=levers)
        assert trained_as(candidate, census).levers == own
        assert trained_as(candidate, stiff).levers == whole


def deep():
    """Three blocks, with statistics of what it sees."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)),
    ).train()
    model(torch.randn(32, *SIZE))
    return model.eval()


@pytest.mark.parametrize("levers", [Levers(), Levers(scope=1), Levers(statistics="reestimated")])
@pytest.mark.parametrize("method", ["ridge", "head", "full"])
def test_heads_that_are_judged_on_the_way_are_those_that_are_carried_out(method, levers):
    if method == "ridge":
        levers = replace(levers, scope=None)
    data = dataset()
    old = dataset(60, seed=5).train
    trainer = trainer_of(deep(), replace(data, retained=old))
    heads = ("last", "late", "all")
    trained = Candidate.of(method, {"features": "last"} if method == "ridge" else {}, levers)
    rate = 1e-2 if method != "ridge" else None
    quick = trained_as(trained, trainer.census)
    probe = trainer.probe(Trial(quick, rate, 12 if rate else 0, 30, 0, heads))
    assert not probe.failure
    trained_in = probe.trial.updates * probe.update_seconds
    assert probe.setup_seconds + trained_in + probe.judging_seconds <= probe.seconds + 1e-6
    for features, found in zip(heads, probe.solved, strict=True):
        if method == "ridge":
            whole = Candidate.of("ridge", {"features": features}, levers)
        else:
            whole = replace(trained, levers=replace(levers, head=f"ridge-{features}"))
        assert without_head(whole) == trained
        tuned = FineTune(trainer, whole, rate, 12, 0)
        assert tuned.run(12 if rate else 0)
        tuned.finish()
        assert found.correct == tuned.judge(30)
        by_itself = tuned.answered(30)
        assert found.retained == by_itself.retained
        margins = [np.frombuffer(each.margins, np.float32) for each in (found, by_itself)]
        assert margins[0] == pytest.approx(margins[1], rel=1e-3, abs=1e-4)
        assert bytes((margins[0] > 0).astype(np.uint8)) == found.correct
        assert tuned.judge(30) == evaluate(
            tuned.trainable.model, data.validation, data.normalisation, 30, pass_size=64
        ) or (tuned.trainable.levers.cached_prefix != "no")


@pytest.mark.parametrize("method", methods())
def test_channels_last_every_method_learns_the_same(method):
    model, data = separable(), dataset()
    quick = in_quick_layout(model, take_census(model, SIZE))
    assert quick[3].weight.stride() != model[3].weight.stride()
    assert not any(parameter.grad is not None for parameter in [*quick.parameters(), *model.parameters()])
    settings = list(get_method(method).settings(take_census(model, SIZE), (2, 4)))
    images, _ = data.validation.batch(torch.arange(40), data.normalisation)
    for setting in settings[:2]:
        candidate = Candidate.of(method, setting, Levers())
        trained = [run(one, candidate, data, 1e-3, updates=3).model.eval() for one in (model, quick)]
        with torch.no_grad():
            plain, fast = (one(images) for one in trained)
        assert torch.allclose(plain, fast, rtol=1e-3, atol=2e-4)


def test_a_model_that_cannot_run_channels_last_stays_as_it_is():
    class Viewing(nn.Sequential):
        def forward(self, x):
            x = self[1](self[0](x))
            return self[2](x.view(len(x), -1))

    torch.manual_seed(0)
    model = Viewing(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(64, 2)).eval()
    assert in_quick_layout(model, take_census(model, SIZE)) is model
