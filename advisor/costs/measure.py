"""Run an update in a child process: what the allocator and the process really take, under a hard cap.

The cap is the kernel's limit on the child's private writable memory (RLIMIT_DATA): the runtime's own
footprint, measured in that child once everything is loaded and has run, plus the bytes allowed. An
allocation beyond it fails. Where the platform has no such limit, the allocator's peak is compared
with it instead.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from advisor.costs.recorder import optimizer_tensors
from advisor.errors import ModelError
from advisor.methods import Trainable
from advisor.methods.update import begin, update
from advisor.records import Candidate, Census, Measurement
from advisor.units import format_bytes

_TIMEOUT_SECONDS = 900
_CAPPED_UPDATES = 2
# glibc's malloc.h, and the ceiling of its own dynamic threshold on 64-bit machines.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _MOST_REUSED_BYTES = -1, -3, 32 * 2**20
# glibc keeps freed memory for later; here it has to go back at once, or a cap would count it.
_ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


def measure(
    model: nn.Module,
    census: Census,
    candidate: Candidate,
    batch_size: int,
    *,
    allowed_bytes: int | None = None,
    updates: int = 3,
    waiting: WaitingChild | None = None,
) -> Measurement:
    """Run the candidate in a child process: under the cap first, then `updates` timed updates without.

    Args:
        allowed_bytes: what an update may hold; the child gets no more than that on top of the
            runtime's own footprint. None: no cap.
        waiting: a child that was started earlier, to save the time that it takes to start; it serves
            one measurement.

    Raises:
        ModelError: the model can't be handed to another process, or the child fails for a reason
            other than memory.
    """
    with tempfile.TemporaryDirectory(prefix="peft-advisor-") as folder:
        job = Path(folder, "job.pt")
        content = {
            "model": model,
            "census": census,
            "candidate": candidate,
            "batch_size": batch_size,
        }
        content |= {"updates": updates, "threads": torch.get_num_threads()}
        try:
            torch.save(content, job)
        except Exception as error:
            raise ModelError(f"the model can't be run in a child process: {error}") from error
        measurement = (waiting or WaitingChild()).run(job, allowed_bytes)
        if measurement is None:  # the cap killed it: measure what it needs without one
            uncapped = WaitingChild().run(job, None)
            if uncapped is None:
                raise ModelError("the child process died without a memory cap; is the machine out of memory?")
            failure = "the process was killed by the memory cap"
            measurement = replace(uncapped, survived=False, failure=failure)
    return measurement


class WaitingChild:
    """A process that has imported what a measurement needs, and waits for its job. It runs one."""

    def __init__(self) -> None:
        environment = os.environ | _ALLOCATOR | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "advisor.costs.measure"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, job: Path, allowed_bytes: int | None) -> Measurement | None:
        """The measurement; None where the process died without one. Raises ModelError."""
        result = job.with_suffix(".json")
        try:
            order = json.dumps([str(job), allowed_bytes or 0])
            _, errors = self._process.communicate(order, timeout=_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ModelError(
                f"an update takes longer than {_TIMEOUT_SECONDS} s in the child process"
            ) from error
        finally:
            self.stop()
        if result.exists():
            return Measurement(**json.loads(result.read_text()))
        if self._process.returncode == 1:  # a Python error; signals and aborts have other codes
            last_line = errors.strip().splitlines()[-1] if errors.strip() else "no message"
            raise ModelError(f"the update failed in the child process: {last_line}")
        return None

    def stop(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stderr):
            if pipe is not None:
                pipe.close()


def _child(job: Path, allowed_bytes: int) -> Measurement:
    """Inside the child: load, warm up, run under the cap, then look at the allocator."""
    content = torch.load(job, weights_only=False)  # written by the parent, in its own private folder
    torch.set_num_threads(content["threads"])
    candidate, census = content["candidate"], content["census"]
    trainable, optimizer = begin(content["model"], census, candidate, learning_rate=1e-6)
    images = torch.rand(content["batch_size"], *census.input_size)
    labels = torch.arange(content["batch_size"]) % census.classes

    # The first update makes the optimizer's state, starts threads and compiles kernels.
    update(trainable, optimizer, images, labels)
    _return_freed_memory()
    held = _held_bytes(trainable, optimizer, images, labels)
    runtime = max(_process_bytes("VmRSS") - held, 0)
    cap = max(_process_bytes("VmData") - held, 0) + allowed_bytes if allowed_bytes else None
    _reset_resident_peak()
    failure = ""
    try:
        with _data_limit(cap) as enforced:
            for _ in range(_CAPPED_UPDATES):
                update(trainable, optimizer, images, labels)
    except (RuntimeError, MemoryError) as error:
        if cap is None:
            raise
        failure = f"an allocation failed under the cap: {str(error).strip().splitlines()[0]}"
    resident_peak = _process_bytes("VmHWM")

    _keep_freed_memory()
    update(trainable, optimizer, images, labels)
    if failure:
        resident_peak = _process_bytes("VmHWM")
    seconds = []
    for _ in range(content["updates"]):
        start = time.perf_counter()
        update(trainable, optimizer, images, labels)
        seconds.append(time.perf_counter() - start)
    peak = allocator_peak(trainable, optimizer, images, labels)
    if cap is not None and not enforced and peak > allowed_bytes:
        failure = f"the allocator's peak was {format_bytes(peak)}, {format_bytes(allowed_bytes)} are allowed"
    return Measurement(
        peak_memory_bytes=peak,
        peak_resident_bytes=resident_peak,
        runtime_bytes=runtime,
        update_seconds=statistics.median(seconds),
        updates=len(seconds),
        cap_bytes=cap,
        survived=not failure,
        failure=failure,
    )


def allocator_peak(
    trainable: Trainable,
    optimizer: torch.optim.Optimizer | None,
    images: torch.Tensor,
    labels: torch.Tensor,
) -> int:
    """The allocator's own events during one update, on top of what is held before it."""
    if optimizer is not None:
        # The update begins with this; the profiler sees only frees of what it saw allocated.
        optimizer.zero_grad(set_to_none=True)
    held = _held_bytes(trainable, optimizer, images, labels)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        update(trainable, optimizer, images, labels)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return held + max(accumulate((event.nbytes() for event in events), initial=0))


def _held_bytes(trainable: Trainable, optimizer: torch.optim.Optimizer | None, *batch: torch.Tensor) -> int:
    """Bytes of every tensor that lives from one update to the next, each storage once."""
    parameters = list(trainable.model.parameters())
    tensors: Iterable[torch.Tensor | None] = (
        *parameters,
        *(parameter.grad for parameter in parameters),
        *trainable.model.buffers(),
        *(tensor for state in optimizer_tensors(optimizer).values() for tensor in state),
        *batch,
    )
    storages = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@contextmanager
def _data_limit(cap: int | None) -> Iterator[bool]:
    """Hold the process to `cap` bytes of private writable memory; yields whether the kernel enforces it."""
    if cap is None or not sys.platform.startswith("linux"):
        yield False
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (cap, before[1]))
    try:
        yield True
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _process_bytes(field: str) -> int:
    """A field of /proc/self/status in bytes; elsewhere the peak resident set stands for all of them."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _return_freed_memory() -> None:
    gc.collect()
    if sys.platform.startswith("linux"):
        # Only glibc has it; other C libraries give freed memory back by themselves.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)


def _keep_freed_memory() -> None:
    """Let glibc reuse freed memory again, as it does by default: giving it back makes updates slow."""
    if sys.platform.startswith("linux"):
        set_option = getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)
        set_option(_M_MMAP_THRESHOLD, _MOST_REUSED_BYTES)
        set_option(_M_TRIM_THRESHOLD, 2 * _MOST_REUSED_BYTES)


def _reset_resident_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    with suppress(ImportError, RuntimeError):
        import torchvision  # noqa: F401 - most models need it; imported while the parent is still busy
    _order = sys.stdin.read()
    if _order:
        _job = Path(json.loads(_order)[0])
        _measurement = _child(_job, json.loads(_order)[1])
        _job.with_suffix(".json").write_text(json.dumps(asdict(_measurement)))
        os._exit(0)  # tearing torch down takes longer than an update
