"""Run updates in a child process: what the allocator and the process really take, seconds, joules.

On the CPU they first run under a hard cap: the kernel's limit on the child's private writable memory
(RLIMIT_DATA), which is the runtime's own footprint, measured in that child once everything is loaded
and has run, plus the bytes allowed. An allocation beyond it fails. Where there is no such limit, on
other platforms and on GPUs, the allocator's peak is compared with the bytes allowed instead.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from advisor.costs.process import GIVE_BACK
from advisor.errors import InputError, ModelError
from advisor.records import Candidate, Census, Measurement

_TIMEOUT_SECONDS = 900


def measure(
    model: nn.Module,
    census: Census,
    candidate: Candidate,
    batch_size: int,
    *,
    allowed_bytes: int | None = None,
    cache_bytes: int = 0,
    device: str = "cpu",
    timing_seconds: float = 1.0,
    waiting: WaitingChild | None = None,
) -> Measurement:
    """Run the candidate in a child process: under the cap first, then timed without.

    Args:
        allowed_bytes: what an update may hold; the child gets no more than that on top of the
            runtime's own footprint. None: no cap.
        cache_bytes: the cost's; held as well where the candidate's prefix is cached in RAM.
        device: `cpu`, `cuda` or `cuda:N`.
        timing_seconds: updates are timed for so long, and five at least.
        waiting: a child that was started earlier, to save the time that it takes to start; it serves
            one measurement.

    Raises:
        InputError: there is no such device.
        ModelError: the model can't be handed to another process, or the child fails for a reason
            other than memory.
    """
    _check_device(device)
    with tempfile.TemporaryDirectory(prefix="peft-advisor-") as folder:
        job = Path(folder, "job.pt")
        content = {
            "model": model,
            "census": census,
            "candidate": candidate,
            "batch_size": batch_size,
            "cache_bytes": cache_bytes,
            "device": device,
            "timing_seconds": timing_seconds,
            "threads": torch.get_num_threads(),
        }
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
        environment = os.environ | GIVE_BACK | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "advisor.costs.child"],
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
            order = json.dumps([str(job), allowed_bytes])
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


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise InputError(f"updates are measured on cpu, cuda or cuda:N, but got {device!r}")
    if kind == "cuda" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise InputError(f"torch finds no device {device}: it sees {torch.cuda.device_count()} CUDA GPUs")
