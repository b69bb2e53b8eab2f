"""Training on another device: nothing is made on the wrong one, and what isn't there is told in a line."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from advisor.errors import InputError
from advisor.methods import get_method, learning_rates, methods
from advisor.models.layers import take_census
from advisor.names import check_device
from advisor.probes.folds import CrossValidation
from advisor.probes.train import Trainer, Trial
from advisor.records import Candidate, Levers
from advisor.training.accelerator import CPU, Accelerator, MixedPrecision, accelerator_for, host
from advisor.training.step_at_once import StepAtOnce
from advisor.training.update import begin, update
from tests.probes.test_train import SIZE, blocks, dataset

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU")
needs_none = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
FRONT = Levers(scope=1)
METHODS = [name for name, method in methods().items() if not method.needs_data]


def trainer(kind=Trainer, *more, augment="none", accelerator=CPU):
    data = replace(dataset(), augment=augment, retained=dataset(60, seed=5).train)
    return kind(blocks(), take_census(blocks(), SIZE), data, 8, *more, accelerator=accelerator)


def trial(candidate, updates=12):
    rates = learning_rates(candidate)
    return Trial(candidate, rates[0] if rates else None, updates if rates else 0, 40, 0, ("last", "all"))


@pytest.fixture
def elsewhere(monkeypatch):
    """A device whose tensors have no values: torch refuses any operator that reads from another, too.

    What is brought back from it, or looked at, is made up.
    """

    def brought(tensor, real=torch.Tensor.cpu):
        if not tensor.is_meta:
            return real(tensor)
        made = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0))
        return made.to(tensor.dtype)

    def looked_at(name, made_up):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda x: made_up(x) if x.is_meta else real(x))

    monkeypatch.setattr(torch.Tensor, "cpu", brought)
    looked_at("item", lambda _: 0.5)
    looked_at("__bool__", lambda _: True)
    looked_at("tolist", lambda x: [1] * len(x))
    monkeypatch.setattr(Accelerator, "_that_draw", lambda _: ("cpu",))
    return Accelerator("meta")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_probed_without_a_tensor_on_the_wrong_device(method, elsewhere):
    census = take_census(blocks(), SIZE)
    there = trainer(accelerator=elsewhere, augment="standard")
    for setting in list(get_method(method).settings(census, (2,)))[:1]:
        for levers in (Levers(), FRONT):
            if get_method(method).only_head and levers.scope is not None:
                continue
            found = there.probe(trial(Candidate.of(method, setting, levers), 2))
            assert not found.failure
            assert len(found.correct) == len(found.retained) == 40
    assert len(there.judge_base(7)) == 7
    assert not any(parameter.is_meta for parameter in there.model.parameters())


def test_folds_are_probed_there_too(elsewhere):
    there = trainer(CrossValidation, 3, accelerator=elsewhere, augment="flip")
    found = there.probe(trial(Candidate("norm", levers=replace(FRONT, statistics="reestimated")), 2))
    assert not found.failure
    assert len(found.solved) == 2
    assert there.judge_base(9)


def test_that_would_be_noticed(elsewhere, monkeypatch):
    monkeypatch.setattr(Accelerator, "placed", lambda _, tensor: tensor)
    found = trainer(accelerator=elsewhere).probe(trial(Candidate("full")))
    assert "device" in found.failure


def test_the_processor_finds_what_it_found_before_and_says_so():
    plain = trainer()
    assert plain.key()["device"] == "cpu"
    assert plain.key() != trainer(accelerator=Accelerator("cuda:0", "bfloat16", "H200")).key()
    state = torch.get_rng_state()
    candidate = Candidate.of("lora", {"rank": 2}, Levers())
    first, second = (trainer().probe(trial(candidate)) for _ in range(2))
    assert first.correct == second.correct
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("mixed", ["bfloat16", "float16"])
def test_mixed_precision_learns_and_keeps_weights_in_single_precision(mixed):
    there = trainer(accelerator=Accelerator("cpu", mixed))
    for candidate in (Candidate("full"), Candidate("norm", levers=FRONT), Candidate("recalibrate")):
        found = there.probe(trial(candidate, 60))
        assert not found.failure
        assert sum(found.correct) > 0.85 * len(found.correct) or candidate.method == "recalibrate"
    assert pickle.loads(pickle.dumps(there)).accelerator == there.accelerator
    assert there.accelerator.described == f"cpu ({mixed})"


def test_gradients_in_float16_are_scaled_and_what_overflows_moves_nothing():
    precision = MixedPrecision("cpu", "float16")
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    trainable, optimizer = begin(model, take_census(model, SIZE), Candidate("full"), 0.1)
    images, labels = torch.randn(8, *SIZE), torch.arange(8) % 2
    before = {name: p.detach().clone() for name, p in trainable.parameters.items()}
    update(trainable, optimizer, images * torch.inf, labels, precision=precision)
    assert all(torch.equal(before[name], p) for name, p in trainable.parameters.items())
    for _ in range(3):
        loss = update(trainable, optimizer, images, labels, precision=precision)
    assert loss.isfinite()
    assert loss < 2  # told without its scale
    assert any(not torch.equal(before[name], p) for name, p in trainable.parameters.items())
    assert all(p.dtype == torch.float32 for p in trainable.parameters.values())


def test_parameters_that_step_in_the_backward_pass_are_not_scaled():
    candidate = Candidate("full", levers=Levers(update="per-parameter"))
    _, optimizer = begin(blocks(), take_census(blocks(), SIZE), candidate, 0.1)
    assert isinstance(optimizer, StepAtOnce)
    precision = Accelerator("cpu", "float16").precision(may_scale=False)
    assert not isinstance(precision, MixedPrecision)
    assert isinstance(Accelerator("cpu", "bfloat16").precision(may_scale=False), MixedPrecision)


def test_what_is_brought_back_is_in_single_precision():
    assert host(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float32
    assert host(torch.ones(2, dtype=torch.int64)).dtype == torch.int64


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("gpu", r"--device 'gpu' is not known; use auto, cpu, cuda, cuda:N or mps"),
        ("cuda:x", r"--device 'cuda:x' is not known"),
        ("cuda:-1", r"--device 'cuda:-1' is not known"),
        ("", r"--device '' is not known"),
    ],
)
def test_what_is_no_device_is_told_in_a_line(typed, told):
    with pytest.raises(InputError, match=told) as caught:
        check_device(typed)
    assert "\n" not in str(caught.value)


@needs_none
@pytest.mark.parametrize(
    ("typed", "told"),
    [("cuda", r"--device cuda: torch .* finds no CUDA GPU here.*leave --device out"), ("cuda:3", "cuda:3")],
)
def test_a_gpu_that_is_not_there_is_told_in_a_line(typed, told):
    with pytest.raises(InputError, match=told) as caught:
        accelerator_for(typed)
    assert "\n" not in str(caught.value)
    assert accelerator_for("AUTO ") in (CPU, Accelerator("mps"))
    assert accelerator_for("cpu") == CPU


def test_of_several_gpus_one_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"--device cuda:2: torch finds 2 CUDA GPUs; the last is cuda:1"):
        accelerator_for("cuda:2")


def test_too_little_memory_of_a_gpu_is_told_as_that():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has ...")
    told = Accelerator("mps").failure(error)
    assert told == "mps has too little memory for it; --device cpu trains it in the host's"
    assert Accelerator("mps").failure(ValueError("bad")) == "bad"
    assert CPU.failure(ValueError("bad\nworse")) == "bad"


@needs_cuda
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_learns_as_the_processor_does(method):
    census, gpu = take_census(blocks(), SIZE), accelerator_for("cuda")
    for accelerator in (replace(gpu, mixed=""), gpu):
        for setting in list(get_method(method).settings(census, (2,)))[:1]:
            for levers in (Levers(), FRONT):
                if get_method(method).only_head and levers.scope is not None:
                    continue
                one = trial(Candidate.of(method, setting, levers), 40)
                here, there = trainer().probe(one), trainer(accelerator=accelerator).probe(one)
                assert not there.failure
                assert abs(sum(here.correct) - sum(there.correct)) <= 0.1 * len(here.correct)


@needs_cuda
def test_a_gpu_that_is_too_small_is_a_failed_probe():
    gpu = accelerator_for("cuda")
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        found = trainer(accelerator=gpu).probe(trial(Candidate("full")))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "has too little memory for it; --device cpu" in found.failure
