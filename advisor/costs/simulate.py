"""The cost of one update, from running it under fake tensors: no memory, no data, exact to the tensor.

The real attach, forward pass, backward pass and optimizer run; a dispatch mode sees every operator
(`costs.recorder`). FLOPs follow from shapes (`costs.flops`). Memory follows from storages: each new
one adds its bytes and its finalizer takes them off, so the running sum is what the allocator holds,
but for the workspace that a kernel takes inside one operator. An update that finds the optimizer's
state in place is recorded: the first one is cheaper than all that follow.
"""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import nullcontext

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from advisor.costs.recorder import METADATA, Recorder, Recording, writes_in_place_only
from advisor.methods import Method, Trainable, get_method
from advisor.methods.base import bypass_of, remove_bypass
from advisor.methods.update import begin, update
from advisor.records import LAYER_TYPES, Candidate, Census, Cost, Flops, LayerTypeCost


def simulate(model: nn.Module, census: Census, candidate: Candidate, batch_size: int) -> Cost:
    """Cost of one update of `candidate` on `batch_size` images of the census's input size.

    The model is left untouched. Where its code reads values while running, which fake tensors don't
    have, the update runs on real tensors instead, and the cost's fidelity says `measured`.
    """
    try:
        return _simulate(model, census, candidate, batch_size, FakeTensorMode())
    except (DataDependentOutputException, DynamicOutputShapeException):
        return _simulate(model, census, candidate, batch_size, None)


def forward_flops(model: nn.Module, census: Census) -> dict[str, int]:
    """FLOPs of one image's forward pass in eval mode, by layer type."""
    mode = FakeTensorMode()
    copied = fake_copy(model, mode)
    with mode:
        recording = _record_inference(copied, census)
    return {kind: flops.forward for kind, flops in recording.flops.items()}


def fake_copy(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy whose weights and buffers are fake tensors; shared ones stay shared."""
    memo: dict[int, object] = {}
    with mode:
        for tensor in (*model.parameters(), *model.buffers()):
            fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            if isinstance(tensor, nn.Parameter):
                memo[id(tensor)] = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            else:
                memo[id(tensor)] = fake
    return copy.deepcopy(model, memo)


def _simulate(
    model: nn.Module,
    census: Census,
    candidate: Candidate,
    batch_size: int,
    mode: FakeTensorMode | None,
) -> Cost:
    method = get_method(candidate.method)
    copied = fake_copy(model, mode) if mode else copy.deepcopy(model)
    with mode or nullcontext():
        trainable, optimizer = begin(copied, census, candidate, learning_rate=1e-3)
        images = torch.zeros(batch_size, *census.input_size)
        labels = torch.zeros(batch_size, dtype=torch.int64)
        recorder = Recorder(copied, census)
        _make_optimizer_state(trainable, optimizer)
        recording = recorder.record_update(trainable, optimizer, images, labels)
        if any(parameter.grad is None for parameter in trainable.parameters.values()):
            # Some weights take no part (auxiliary heads): give state only to those that do.
            optimizer = method.optimizer(trainable, candidate.levers, 1e-3)
            update(trainable, optimizer, images, labels)
            recording = recorder.record_update(trainable, optimizer, images, labels)
        period = getattr(optimizer, "refresh_every", 1)
        if period > 1:
            optimizer.refresh_next()  # type: ignore[union-attr]
            rare = recorder.record_update(trainable, optimizer, images, labels)
            recording = _over_a_period(recording, rare, period)
        trained: Counter[str] = Counter()
        for name, parameter in trainable.parameters.items():
            trained[recorder.layer_type_of(name)] += parameter.numel()
        delta_bytes = sum(tensor.numel() * tensor.element_size() for tensor in trainable.delta().values())
        ratio = _inference_ratio(method, copied, census)

    return Cost(
        trainable_parameters=trained.total(),
        delta_bytes=delta_bytes,
        flops=sum(recording.flops.values(), Flops()),
        memory=recording.memory,
        by_layer_type={
            kind: LayerTypeCost(trained[kind], recording.flops[kind], recording.bytes_at_peak.get(kind, 0))
            for kind in LAYER_TYPES
            if trained[kind] or recording.flops[kind].total or recording.bytes_at_peak.get(kind)
        },
        fidelity="simulated" if mode else "measured",
        uncounted_operators=tuple(sorted(recording.uncounted)),
        inference_flops_ratio=ratio,
        notes=trainable.notes,
    )


def _make_optimizer_state(trainable: Trainable, optimizer: torch.optim.Optimizer | None) -> None:
    """What a first update leaves behind, without its forward and backward pass."""
    if optimizer is None:
        return
    for parameter in trainable.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    with _SkipInPlace():
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class _SkipInPlace(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is METADATA and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        return args[0] if writes_in_place_only(func, args) else func(*args, **(kwargs or {}))


def _over_a_period(usual: Recording, rare: Recording, period: int) -> Recording:
    """The higher peak, and the average FLOPs, of `period` updates of which one is rare."""
    flops = {
        kind: Flops(
            *(
                getattr(usual.flops[kind], phase)
                + (getattr(rare.flops[kind], phase) - getattr(usual.flops[kind], phase)) // period
                for phase in Flops.__slots__
            )
        )
        for kind in LAYER_TYPES
    }
    higher = max(usual, rare, key=lambda recording: recording.memory.total)
    return Recording(flops, higher.memory, higher.bytes_at_peak, usual.uncounted | rare.uncounted)


def _inference_ratio(method: Method, attached: nn.Module, census: Census) -> float:
    """Forward FLOPs of the merged model against the base's: 1 unless something can't be merged."""
    bypasses = [bypass for module in attached.modules() if (bypass := bypass_of(module)) is not None]
    if all(hasattr(bypass, "weight_change") for bypass in bypasses):
        return 1.0
    merged = method.merge(attached)
    with_bypasses = sum(flops.forward for flops in _record_inference(merged, census).flops.values())
    for module in [module for module in merged.modules() if bypass_of(module) is not None]:
        remove_bypass(module)
    return with_bypasses / sum(flops.forward for flops in _record_inference(merged, census).flops.values())


def _record_inference(model: nn.Module, census: Census) -> Recording:
    model.eval()
    return Recorder(model, census).record_forward(torch.zeros(1, *census.input_size))
