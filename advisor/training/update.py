"""One update: the step that is simulated, measured, probed and run for real."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from itertools import dropwhile
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from advisor.errors import InputError
from advisor.methods import get_method
from advisor.models.blocks import (
    front_modules,
    has_replaceable_front,
    is_inside,
    links,
    rerouted,
    trained_part,
    without_front,
)
from advisor.models.layers import fuse_norms, logits
from advisor.parts.attachment import Trainable
from advisor.parts.closed_form import Examples, WideHead, feature_sizes, inputs_of, widen
from advisor.records import Candidate, Census
from advisor.training.accelerator import Precision, host
from advisor.training.step_at_once import StepAtOnce

RECALIBRATION_SAMPLES = 512  # images at most, to re-estimate statistics on


def reestimation_updates(images: int, batch_size: int) -> int:
    """How many batches the statistics are re-estimated on, of so many images."""
    return max(min(images, RECALIBRATION_SAMPLES) // batch_size, 1)


def begin(
    model: nn.Module, census: Census, candidate: Candidate, learning_rate: float
) -> tuple[Trainable, torch.optim.Optimizer | None]:
    """Attach the candidate to the model, in place, ready for the first update.

    Args:
        model: where the levers say so, with its statistics re-estimated already.

    Raises:
        InputError: the model's structure doesn't allow the candidate's levers.
    """
    trainable = attach(model, census, candidate)
    method, levers = get_method(candidate.method), candidate.levers
    trainable.train_mode()
    if levers.update == "end" or not trainable.parameters or trainable.solved is not None:
        return trainable, method.optimizer(trainable, levers, learning_rate)
    each = {
        parameter: method.optimizer(replace(trainable, parameters={name: parameter}), levers, learning_rate)
        for name, parameter in trainable.parameters.items()
    }
    return trainable, StepAtOnce(each)  # type: ignore[arg-type]


def attach(model: nn.Module, census: Census, candidate: Candidate) -> Trainable:
    """Attach the candidate to the model, in place, as it is trained: method, scope, statistics.

    Raises:
        InputError: the model's structure doesn't allow the candidate's levers.
    """
    method, levers = get_method(candidate.method), candidate.levers
    if levers.scope is not None and not 0 <= levers.scope <= len(census.blocks):
        raise InputError(f"the last {levers.scope} blocks can't be trained: {len(census.blocks)} were found")
    front = front_modules(census, levers.scope)
    if levers.cached_prefix != "no" and not has_replaceable_front(census, levers.scope):
        raise InputError("the model can't be run without its front, so the front's outputs can't be cached")
    if levers.fuse and levers.statistics == "reestimated":
        raise InputError("statistics that are to be shipped can't be fused into the layers before them")
    trainable = method.attach(model, trained_part(census, levers.scope), dict(candidate.setting))
    trainable.levers, trainable.front = levers, front
    if levers.statistics != "own":
        # Re-estimated ones are in the model that is given, and stay as they are.
        trainable.statistics = "frozen" if levers.statistics == "reestimated" else levers.statistics
    if levers.checkpoint:
        trainable.chain = links(census.blocks)
        trainable.checkpointed = _checkpointed(model, trainable.chain, census, levers.scope)
    if levers.fuse:
        fuse_norms(model, census, front)
    return trainable


def solve_head(
    trainable: Trainable, census: Census, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    """Give the trained model a head in closed form, in place, to be shipped with what was trained.

    Args:
        batches: images (n, C, H, W), normalised, and labels (n,); each image once.
    """
    linear = head_to_solve(trainable, census)
    assert trainable.solved is not None  # noqa: S101 - the candidate says so
    examples = Examples(feature_sizes(census, trainable.solved), linear.out_features)
    trainable.model.eval()
    with torch.no_grad():
        with inputs_of(linear) as inputs:
            for images, labels in batches:
                trainable.model(images)
                examples.add(host(inputs[0]), host(labels))
        weight, bias = examples.solve()
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    trainable.examples = examples


def head_to_solve(trainable: Trainable, census: Census) -> nn.Linear:
    """The Linear layer to hold a head in closed form, in place of the trained one, to be shipped as well."""
    head = census.head or ""
    if trainable.solved is None and trainable.levers.solved_head is not None:
        widen(trainable.model, census, trainable.levers.solved_head)
        trainable.solved = trainable.levers.solved_head
        kept = {n: p for n, p in trainable.parameters.items() if not is_inside(n, (head,))}
        held = trainable.model.get_submodule(head).named_parameters(prefix=head)
        trainable.parameters = kept | dict(held)
    module: Any = trainable.model.get_submodule(head)
    return module.linear if isinstance(module, WideHead) else module


def update(
    trainable: Trainable,
    optimizer: torch.optim.Optimizer | None,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    precision: Precision | None = None,
) -> torch.Tensor | None:
    """Move the trained parameters, and the statistics that the method updates, by one batch.

    With micro-batches the gradient is that of the whole batch, but for normalisation layers whose
    statistics are updated: those see one micro-batch at a time.

    Args:
        trainable: in train mode (`Trainable.train_mode`).
        optimizer: of its parameters; None where nothing is trained.
        images: (N, C, H, W), normalised; with a cached prefix, what `run_front` made of them.
        labels: (N,) class indices.
        precision: what it computes in; None: single.

    Returns:
        The method's loss, mean over the batch, before the update; None where nothing is trained.
    """
    count, precision = len(images), precision or Precision()
    size = min(trainable.levers.micro_batch or count, count)
    if optimizer is None:
        for part in images.split(size):
            if trainable.solved is not None:  # its features are what is kept of a batch
                with torch.no_grad(), precision.forward(), routed(trainable):
                    trainable.model(part)
            else:
                with precision.forward():
                    _reestimate(trainable, part)
        return None
    optimizer.zero_grad(set_to_none=True)
    total = None
    for start in range(0, count, size):
        part = slice(start, start + size)
        if isinstance(optimizer, StepAtOnce):
            optimizer.complete = start + size >= count
        with precision.forward(), routed(trainable):
            loss = trainable.loss(logits(trainable.model(images[part])), labels[part])
        if size < count:
            loss = loss * (len(labels[part]) / count)
        precision.backward(loss)
        total = loss.detach() if total is None else total + loss.detach()
    precision.step(optimizer)
    return total


@contextmanager
def routed(trainable: Trainable) -> Iterator[None]:
    """The model's forward pass as the levers want it: the front left out, blocks checkpointed."""
    with ExitStack() as routes:
        if trainable.levers.cached_prefix != "no":
            routes.enter_context(without_front(trainable.model, trainable.front))
        if trainable.checkpointed:
            again: dict[int, Callable[..., Any]] = {}
            for part in trainable.checkpointed:
                again |= dict.fromkeys(range(part.start, part.stop), _passed_on)
                again[part.start] = _run_twice(_chain(trainable.model, trainable.chain[part]), trainable)
            routes.enter_context(rerouted(trainable.model, trainable.chain, again))
        yield


def _chain(model: nn.Module, names: tuple[str, ...]) -> Callable[..., Any]:
    first, *others = [model.get_submodule(name) for name in names]

    def run(*args: Any, **kwargs: Any) -> Any:
        x = first(*args, **kwargs)
        for module in others:
            x = module(x)
        return x

    return run


def _passed_on(x: Any, *_args: Any, **_kwargs: Any) -> Any:
    return x


def _run_twice(function: Callable[..., Any], trainable: Trainable) -> Callable[..., Any]:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _running_again(trainable)  # the first time, the second

    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(function, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return run


@contextmanager
def _running_again(trainable: Trainable) -> Iterator[None]:
    with _statistics_kept(trainable):
        trainable.runs_again = True
        try:
            yield
        finally:
            trainable.runs_again = False


@contextmanager
def _statistics_kept(trainable: Trainable) -> Iterator[None]:
    """Batch statistics normalise, as the first time, but are not averaged into the running ones again."""
    training = [norm for _, norm in trainable.tracked_norms() if norm.training]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in training]
    for norm in training:
        # Not by hiding the running statistics: the second run must save the tensors that the first did.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(training, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


def _checkpointed(
    model: nn.Module, chain: tuple[str, ...], census: Census, scope: int | None
) -> tuple[slice, ...]:
    """The parts of the chain to run again: each trained block but the last, which is still at hand."""
    parts: list[slice] = []
    start, trained = 0, len(census.blocks) if scope is None else scope
    for number, block in enumerate(census.blocks[:-1]):
        stop = start + len(block.modules)
        if number >= len(census.blocks) - trained:
            # Of a block whose modules don't run one on the other's output, each is a part of its own.
            step = stop - start if block.linked else 1
            for first in range(start, stop, step):
                # What is run again needs its input as it was.
                begin = next((n for n in range(first, first + step) if not block.in_place[n - start]), None)
                parts += [slice(begin, first + step)] if begin is not None else []
        start = stop

    def is_frozen(part: slice) -> bool:
        parameters = (p for name in chain[part] for p in model.get_submodule(name).parameters())
        return not any(parameter.requires_grad for parameter in parameters)

    return tuple(dropwhile(is_frozen, parts))  # no gradient flows through the first of them


def _reestimate(trainable: Trainable, images: torch.Tensor) -> None:
    """Average the batches' statistics: batch n enters with weight 1 / n, so the first replaces the old."""
    trainable.batches_seen += 1
    norms = [norm for _, norm in trainable.tracked_norms()]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 1 / trainable.batches_seen
        with torch.no_grad():
            trainable.model(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
