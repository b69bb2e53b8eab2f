"""What holds for every method with every lever and optimizer: it trains, and costs what is told."""

from __future__ import annotations

import copy

import pytest
import torch

from advisor.costs import Simulator
from advisor.costs.allocator import allocator_peak, held_bytes, peak_of
from advisor.data import Dataset, Normalisation
from advisor.data.loading import LabelledImages
from advisor.delivery.adapters import Recipe, load_adapter, save_adapter
from advisor.errors import InputError
from advisor.methods import get_method
from advisor.models.blocks import run_front
from advisor.models.layers import take_census
from advisor.probes import FineTune, Trainer, head_of
from advisor.records import Flops, Levers
from advisor.training.update import begin, head_to_solve, solve_head, update
from tests.methods.matrix import BATCH, CANDIDATES, REFUSED, RUNNABLE, SIZE, network

IMAGES = 4 * BATCH
UPDATES = 4
by_id = pytest.mark.parametrize("candidate", RUNNABLE, ids=lambda candidate: candidate.id)


@pytest.fixture(scope="module")
def base():
    """A network with statistics that fit what it sees, its census, and what prices its candidates."""
    torch.manual_seed(0)
    model = network().train()
    for _ in range(5):
        model(torch.randn(16, *SIZE))
    model.eval()
    census = take_census(model, SIZE)
    return model, census, Simulator(model, census, IMAGES)


def batch_of(trainable, candidate):
    torch.manual_seed(1)
    images, labels = torch.randn(BATCH, *SIZE), torch.randint(0, 5, (BATCH,))
    if candidate.levers.cached_prefix != "no":
        images = run_front(trainable.model, trainable.front, images)
    return images, labels


@by_id
def test_it_starts_as_the_identity_moves_what_it_trains_alone_and_costs_what_is_told(base, candidate):
    model, census, simulator = base
    torch.manual_seed(0)
    copied = copy.deepcopy(model)
    trainable, optimizer = begin(copied, census, candidate, 1e-3)
    if candidate.levers.cached_prefix == "no":
        x = torch.randn(3, *SIZE)
        with torch.no_grad():
            torch.testing.assert_close(copied.eval()(x), model(x), rtol=0, atol=1e-5)
    trainable.train_mode()
    was = {name: tensor.clone() for name, tensor in trainable.delta().items()}
    images, labels = batch_of(trainable, candidate)
    loss = update(trainable, optimizer, images, labels)
    assert loss is None or torch.isfinite(loss)
    measured = allocator_peak(trainable, optimizer, images, labels)
    cost = simulator.cost(candidate, BATCH)
    if head_of(candidate) is not None:
        del optimizer
        for parameter in trainable.model.parameters():
            parameter.grad = None
        head_to_solve(trainable, census)  # makes room for it
        at_rest = held_bytes(trainable, None)
        solving = peak_of(lambda: solve_head(trainable, census, every_image(candidate)))
        measured = (
            at_rest + solving
            if not get_method(candidate.method).learning_rates
            else max(measured, at_rest + solving)
        )

    moved = {
        name
        for name, tensor in trainable.delta().items()
        if name not in was or not torch.equal(tensor, was[name])
    }
    assert moved
    assert not moved & trainable.additions.keys()
    state = copied.state_dict()
    for name, tensor in model.state_dict().items():
        # Fused, a norm's place is empty and its convolution's weight another one.
        if (
            name in state
            and name not in {*was, *trainable.parameters}
            and "num_batches" not in name
            and not candidate.levers.fuse
        ):
            assert torch.equal(state[name], tensor), name

    assert cost.fidelity == "simulated"
    assert sum((part.flops for part in cost.by_layer_type.values()), Flops()) == cost.flops
    cached = cost.cache_bytes if candidate.levers.cached_prefix == "ram" else 0
    if candidate.levers.statistics != "reestimated":  # whose peak may be the re-estimation's
        # What is solved is priced on the network as it was before it was trained, and on all rows at once.
        within = 0.001 if head_of(candidate) is None else 0.01
        assert cost.peak_memory_bytes == pytest.approx(measured + cached, rel=within)
    assert cost.trainable_parameters == sum(p.numel() for p in trainable.parameters.values())
    assert cost.delta_bytes == sum(t.numel() * t.element_size() for t in trainable.delta().values())


def every_image(candidate):
    """In parts as they run at once."""
    for _ in range(IMAGES // BATCH):
        images, labels = torch.randn(BATCH, *SIZE), torch.randint(0, 5, (BATCH,))
        size = candidate.levers.micro_batch or BATCH
        yield from zip(images.split(size), labels.split(size), strict=True)


@pytest.fixture(scope="module")
def trainer(base):
    model, census, _ = base
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (IMAGES, *SIZE), dtype=torch.uint8, generator=generator)
    part = LabelledImages(images, torch.arange(IMAGES) % 5)
    names = tuple("abcde")
    dataset = Dataset("made", names, part, part, Normalisation((0.5,), (0.5,)), named=True)
    return Trainer(model, census, dataset, BATCH)


def is_applied(candidate):
    """An optimizer meets its checkpoint alike under every lever but one, which holds several of it."""
    return candidate.levers.optimizer == "adam" or candidate.levers in (
        Levers(optimizer=candidate.levers.optimizer),
        Levers(optimizer=candidate.levers.optimizer, update="per-parameter"),
    )


@pytest.mark.parametrize("candidate", list(filter(is_applied, RUNNABLE)), ids=lambda candidate: candidate.id)
def test_it_resumes_bit_for_bit_and_comes_back_from_its_adapter(base, trainer, candidate, tmp_path):
    model, census, _ = base
    rate = 1e-3 if get_method(candidate.method).learning_rates else None
    undisturbed, first, second = (FineTune(trainer, candidate, rate, UPDATES, seed=3) for _ in range(3))
    assert undisturbed.run(UPDATES)
    first.run(UPDATES // 2)
    saved = tmp_path / "state.pt"
    torch.save(first.state(), saved)
    second.restore(torch.load(saved, weights_only=True))
    assert second.run(UPDATES)
    undisturbed.finish()
    second.finish()
    for name, tensor in undisturbed.trainable.delta().items():
        assert torch.equal(tensor, second.trainable.delta()[name]), name

    save_adapter(tmp_path, second.trainable, Recipe.of(model, candidate, census))
    loaded = load_adapter(model, tmp_path)
    x = torch.randn(3, *SIZE)
    with torch.no_grad():
        trained = second.trainable.model.eval()(x)
        assert torch.equal(loaded(x), trained)
        merged = get_method(candidate.method).merge(second.trainable.model)
        torch.testing.assert_close(merged(x), trained, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "optimizer"), REFUSED, ids="@".join)
def test_what_it_has_no_use_for_is_refused_in_words(base, name, optimizer):
    model, census, simulator = base
    refused = [c for c in CANDIDATES if c.method == name and c.levers.optimizer == optimizer]
    assert refused
    for candidate in refused:
        with pytest.raises(InputError, match=REFUSED[name, optimizer]):
            begin(copy.deepcopy(model), census, candidate, 1e-3)
        with pytest.raises(InputError, match=REFUSED[name, optimizer]):
            simulator.cost(candidate, BATCH)


def test_every_method_is_in_the_matrix_with_every_lever():
    trained = {c.method for c in CANDIDATES if get_method(c.method).learning_rates}
    for name in trained:
        levers = {c.levers for c in CANDIDATES if c.method == name}
        varied = {field for each in levers for field in each.described()}
        narrow = set() if get_method(name).needs_data else {"cached-ram", "fused"}
        assert {"micro-2", "checkpoint", "per-parameter", "sgd"} | narrow <= varied, name
    assert all(Levers() in {c.levers for c in CANDIDATES if c.method == name} for name in trained)
