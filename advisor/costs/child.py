"""Inside the child process: a candidate's updates under the cap, then timed, then watched.

`costs.measure` starts it as a program, with the job on its standard input.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from advisor.costs.allocator import allocator_peak, held_bytes, peak_of
from advisor.costs.energy import count_joules
from advisor.costs.process import (
    data_limit,
    keep_freed_memory,
    process_bytes,
    reset_resident_peak,
    return_freed_memory,
)
from advisor.errors import first_line
from advisor.models.blocks import run_front
from advisor.parts.closed_form import Examples, feature_sizes
from advisor.records import Measurement
from advisor.system.machine import end_with_parent
from advisor.training.accelerator import accelerator_for
from advisor.training.step_at_once import StepAtOnce, make_costliest_next
from advisor.training.update import begin, update
from advisor.units import format_bytes

_FEWEST_TIMED = 5


class _Run:
    """A candidate on its device, with a batch, ready to be updated."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        census, candidate, batch_size = job["census"], job["candidate"], job["batch_size"]
        self.device = torch.device(job["device"])
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # where events are recorded
        model = job["model"].to(self.device)
        self._trainable, self._optimizer = begin(model, census, candidate, learning_rate=1e-6)
        accelerator = accelerator_for(job["device"])
        self._precision = accelerator.precision(may_scale=not isinstance(self._optimizer, StepAtOnce))
        images = torch.rand(batch_size, *census.input_size, device=self.device)
        if candidate.levers.cached_prefix != "no":
            with self._precision.forward():
                images = run_front(self._trainable.model, self._trainable.front, images)
        labels = torch.arange(batch_size, device=self.device) % census.classes
        self._batch: tuple[torch.Tensor, ...] = (images, labels)
        self._cache: tuple[torch.Tensor, ...] = ()
        solved = self._trainable.solved
        self._sizes = feature_sizes(census, solved) if solved is not None else ()
        self._images, self._classes = job["images"] or sum(self._sizes), census.classes
        in_memory = candidate.levers.cached_prefix == "ram" or self._sizes
        self.missing_cache_bytes = job["cache_bytes"] if in_memory else 0

    def update(self) -> None:
        """One update."""
        update(self._trainable, self._optimizer, *self._batch, precision=self._precision)

    def update_at_most(self) -> None:
        """One update of the costliest kind."""
        make_costliest_next(self._optimizer)
        self.update()

    def hold_cache(self) -> None:
        """Take the memory of a prefix cached in RAM; a RuntimeError says that there is too little."""
        if self.missing_cache_bytes:
            empty = torch.empty(self.missing_cache_bytes, dtype=torch.uint8, device=self.device)
            self._cache = (empty.fill_(1),)  # a page is resident once it is written to
            self.missing_cache_bytes = 0

    def solve_head(self) -> None:
        """Solve a head on random features of as many images as there are, where that is what is learned."""
        if self._sizes:
            self._cache = ()  # what stood for them
            rows = torch.rand(self._images, sum(self._sizes))
            labels = torch.arange(self._images) % self._classes
            Examples.of(self._sizes, self._classes, rows, labels).solve()

    def held_bytes(self) -> int:
        """What lives from one update to the next."""
        return held_bytes(self._trainable, self._optimizer, *self._batch, *self._cache)

    def peak_bytes(self) -> int:
        """The allocator's peak in an update of the costliest kind, or where a head is solved."""
        peak = allocator_peak(
            self._trainable, self._optimizer, *self._batch, *self._cache, precision=self._precision
        )
        if not self._sizes:
            return peak
        self._batch = self._cache = ()  # every image was seen
        return max(peak, self.held_bytes() + peak_of(self.solve_head))

    def timed_update(self) -> float:
        """Seconds that one update takes: the wall clock's, or on a GPU the device's own."""
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            self.update()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3
        before = time.perf_counter()
        self.update()
        return time.perf_counter() - before


def run_job(job: Mapping[str, Any], allowed_bytes: int | None, allowance: int) -> Measurement:
    """Load, warm up, run under the cap, then time updates and look at the allocator.

    Args:
        allowance: what the cap grants on top, for the runtime's own fluctuation.
    """
    torch.set_num_threads(job["threads"])
    run = _Run(job)
    on_host = run.device.type == "cpu"

    # The first update makes the optimizer's state, starts threads and compiles kernels; the costliest
    # kind and the one after it, with gradients there already, load code of their own.
    run.update()
    run.update_at_most()
    run.update()
    return_freed_memory()
    held = run.held_bytes() if on_host else 0
    runtime = max(process_bytes("VmRSS") - held, 0)
    # The kernel caps the host's memory only; a GPU's peak is compared with what is allowed.
    cap = None
    if allowed_bytes is not None and on_host:
        cap = max(process_bytes("VmData") - held, 0) + allowed_bytes + allowance
    reset_resident_peak()
    failure = ""
    try:
        with data_limit(cap):
            run.hold_cache()
            run.update_at_most()
            run.update()
            run.solve_head()
    except (RuntimeError, MemoryError) as error:
        if cap is None:
            raise
        failure = f"an allocation failed under the cap: {first_line(error)}"
    resident_peak = process_bytes("VmHWM")

    keep_freed_memory()
    run.update()
    if failure:  # what it would have taken; a cache that the cap refused may be too much for the machine
        resident_peak = process_bytes("VmHWM") + run.missing_cache_bytes
    seconds, joules = _timed(run, job["timing_seconds"])
    peak = run.peak_bytes() + run.missing_cache_bytes
    if allowed_bytes is not None and peak > allowed_bytes and not failure:
        failure = f"the allocator's peak was {format_bytes(peak)}, {format_bytes(allowed_bytes)} are allowed"
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Measurement(
        peak_memory_bytes=peak,
        peak_resident_bytes=resident_peak,
        runtime_bytes=runtime,
        update_seconds=median,
        updates=len(seconds),
        cap_bytes=cap if on_host else allowed_bytes,
        survived=not failure,
        failure=failure,
        update_seconds_lower_quartile=low,
        update_seconds_upper_quartile=high,
        update_joules=joules,
        device=str(run.device),
    )


def _timed(run: _Run, for_seconds: float) -> tuple[list[float], float | None]:
    """The seconds of each of several updates, and the joules of one on average."""
    seconds: list[float] = []
    end = time.perf_counter() + for_seconds
    joules_used = count_joules(run.device)
    while len(seconds) < _FEWEST_TIMED or time.perf_counter() < end:
        seconds.append(run.timed_update())
    joules = joules_used()
    return seconds, None if joules is None else joules / len(seconds)


def main(start: str) -> None:
    """Wait for the order on the standard input, run the job, and write what came of it beside the job."""
    end_with_parent()
    if start == "early":
        with suppress(ImportError, RuntimeError):
            import torchvision  # noqa: F401 - most models need it; imported while the parent is still busy
    text = sys.stdin.read()
    if not text:  # the parent ended, or needs no run
        return
    order = json.loads(text)
    import torch._dynamo  # every optimizer's first step would

    gc.enable()
    gc.freeze()
    sys.path[:] = order["path"]
    job = Path(order["job"])
    content: dict[str, Any]
    try:
        # Written by the parent, in its own private folder.
        loaded = torch.load(job, weights_only=False)
        content = {"measurement": asdict(run_job(loaded, order["allowed_bytes"], order["allowance"]))}
    except BaseException as error:  # noqa: BLE001 - whatever a user's module does: the parent says it
        content = {"error": f"{type(error).__name__}: {first_line(error)}"}
    job.with_suffix(".json").write_text(json.dumps(content))
    os._exit(0)  # tearing torch down takes longer than an update
