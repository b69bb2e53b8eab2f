"""What torch's allocator hands out during an update: its own events on the CPU, its counter on a GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from advisor.costs.recorder import optimizer_tensors
from advisor.parts.attachment import Trainable
from advisor.training.accelerator import Precision
from advisor.training.step_at_once import make_costliest_next
from advisor.training.update import update

_WATCHED = "peft-advisor-update"


def allocator_peak(
    trainable: Trainable,
    optimizer: torch.optim.Optimizer | None,
    images: torch.Tensor,
    labels: torch.Tensor,
    *also_held: torch.Tensor,
    precision: Precision | None = None,
) -> int:
    """The most bytes in use during one update of the costliest kind, everything that is held included.

    The profiler sees a tensor go only if it saw it come. So it watches two updates, and the second
    counts: what that replaces, such as gradients, the first one made. Events come from every thread
    that torch hands a part of the update to, so it is their times that order them.
    """
    if images.device.type == "cuda":
        return _cuda_peak(trainable, optimizer, images, labels, precision)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        make_costliest_next(optimizer)
        update(trainable, optimizer, images, labels, precision=precision)
        gc.collect()  # garbage of the first update would go in the second, but isn't counted as held
        held = held_bytes(trainable, optimizer, images, labels, *also_held)
        make_costliest_next(optimizer)
        with record_function(_WATCHED):
            update(trainable, optimizer, images, labels, precision=precision)
    return held + _highest(profiler)


def peak_of(run: Callable[[], object]) -> int:
    """The most bytes that the CPU's allocator gives out while `run` runs, on top of what was there."""
    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
        record_function(_WATCHED),
    ):
        run()
    return _highest(profiler)


def _highest(profiler: Any) -> int:
    """Of the sum of what was given out and taken back, from the watched part's start on."""
    events = profiler.profiler.kineto_results.events()
    start = next(event.start_ns() for event in events if event.name() == _WATCHED)
    changes = [event for event in events if event.name() == "[memory]" and event.start_ns() >= start]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in changes), initial=0))


def held_bytes(trainable: Trainable, optimizer: torch.optim.Optimizer | None, *others: torch.Tensor) -> int:
    """Bytes of every tensor that lives from one update to the next, each storage once."""
    parameters = list(trainable.model.parameters())
    tensors: Iterable[torch.Tensor | None] = (
        *parameters,
        *(parameter.grad for parameter in parameters),
        *trainable.model.buffers(),
        *(tensor for state in optimizer_tensors(optimizer).values() for tensor in state),
        *others,
    )
    storages = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _cuda_peak(
    trainable: Trainable,
    optimizer: torch.optim.Optimizer | None,
    images: torch.Tensor,
    labels: torch.Tensor,
    precision: Precision | None,
) -> int:
    make_costliest_next(optimizer)
    torch.cuda.reset_peak_memory_stats(images.device)
    update(trainable, optimizer, images, labels, precision=precision)
    torch.cuda.synchronize(images.device)
    return torch.cuda.max_memory_allocated(images.device)
