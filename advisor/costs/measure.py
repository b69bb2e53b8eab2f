"""Run updates in a child process: what the allocator and the process really take, seconds, joules.

On the CPU they first run under a hard cap: the kernel's limit on the child's private writable memory
(RLIMIT_DATA), which is the runtime's own footprint, measured in that child once everything is loaded
and has run, plus the bytes allowed, plus a small allowance: Python takes its heap by the MiB and libc
by the 132 KiB, now and then. An allocation beyond the cap fails. What the allowance leaves open the
allocator's peak decides, which is the same in every run: it must not exceed the bytes allowed. Where
there is no such limit, on other platforms and on GPUs, it decides alone.

Nothing that goes wrong in the child may take the parent's work with it: the caller gets a ModelError.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cloudpickle
import torch
from torch import nn

from advisor.costs.process import GIVE_BACK
from advisor.errors import InputError, ModelError, first_line
from advisor.records import Candidate, Census, Measurement
from advisor.system.temporary import TemporaryFolder

_TIMEOUT_SECONDS = 900
# For the runtime's own fluctuation, on top of what is allowed: 0.25 MiB was enough in every run that was
# looked at. The larger one where the first fails although the allocator's peak fits.
_ALLOWANCE, _LARGE_ALLOWANCE = 4 * 2**20, 32 * 2**20

# What the child runs. Its import path is the parent's, in the same order: with PYTHONPATH instead, a
# module of the current folder could hide one of Python's own.
# Looks for garbage take a quarter of the imports' time, and find none.
_PROGRAM = (
    "import gc, sys; gc.disable(); sys.path[:] = sys.argv[2:]; "
    "from advisor.costs.child import main; main(sys.argv[1])"
)


def measure(
    model: nn.Module,
    census: Census,
    candidate: Candidate,
    batch_size: int,
    *,
    allowed_bytes: int | None = None,
    cache_bytes: int = 0,
    images: int = 0,
    device: str = "cpu",
    timing_seconds: float = 1.0,
    waiting: WaitingChild | None = None,
) -> Measurement:
    """Run the candidate in a child process: under the cap first, then timed without.

    Args:
        allowed_bytes: what an update may hold; the child gets no more than that on top of the
            runtime's own footprint. None: no cap.
        cache_bytes: the cost's; held as well where the candidate's prefix is cached in RAM, or where it is
            the features that a head is solved on.
        images: how many there are to train on: where a head is solved, it is on so many.
        device: `cpu`, `cuda` or `cuda:N`.
        timing_seconds: updates are timed for so long, and five at least.
        waiting: a child that was started earlier, to save the time that it takes to start; it serves
            one measurement.

    Returns:
        What was measured. It survived where it ran under the cap and the allocator's peak is within
        what is allowed. Where the peak is, and the cap was too tight all the same, the runtime took
        more than the allowances: that says nothing against the candidate, which then survived
        without a cap (`cap_bytes` is None).

    Raises:
        InputError: there is no such device.
        ModelError: the model can't be handed to another process, or the child fails for a reason
            other than memory.
    """
    _check_device(device)
    with TemporaryFolder() as folder:
        job = Path(folder, "job.pt")
        content = {
            "model": model,
            "census": census,
            "candidate": candidate,
            "batch_size": batch_size,
            "cache_bytes": cache_bytes,
            "images": images,
            "device": device,
            "timing_seconds": timing_seconds,
            "threads": torch.get_num_threads(),
        }
        try:
            # By value what the child can't import: classes of a script, a notebook or a function.
            torch.save(content, job, pickle_module=cloudpickle, pickle_protocol=pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            raise ModelError(f"the model can't be sent to a child process: {first_line(error)}") from error
        return _measured(job, allowed_bytes, waiting)


def _measured(job: Path, allowed_bytes: int | None, waiting: WaitingChild | None) -> Measurement:
    if allowed_bytes is None:
        return _uncapped(job, waiting)
    found = _capped(job, allowed_bytes, _ALLOWANCE, waiting)
    if not found.survived and found.peak_memory_bytes <= allowed_bytes:
        found = _capped(job, allowed_bytes, _LARGE_ALLOWANCE, None)
    if not found.survived and found.peak_memory_bytes <= allowed_bytes:
        found = replace(found, survived=True, failure="", cap_bytes=None)  # it was measured without one
    return found


def _capped(job: Path, allowed_bytes: int, allowance: int, waiting: WaitingChild | None) -> Measurement:
    found = (waiting or WaitingChild()).run(job, allowed_bytes, allowance)
    if found is None:  # the cap killed it: measure what it needs without one
        failure = "the process was killed by the memory cap"
        found = replace(_uncapped(job), survived=False, failure=failure)
    return found


def _uncapped(job: Path, waiting: WaitingChild | None = None) -> Measurement:
    found = (waiting or WaitingChild()).run(job, None, 0)
    if found is None:
        raise ModelError("the child process died without a memory cap; is the machine out of memory?")
    return found


class WaitingChild:
    """A process that has imported what a measurement needs, and waits for its job. It runs one.

    `early`: long before the job is there, so that it may import what most models need and some don't.
    """

    def __init__(self, *, early: bool = False) -> None:
        path = [entry or str(Path.cwd()) for entry in sys.path]
        self._process = subprocess.Popen(  # noqa: S603 - our own
            [sys.executable, "-c", _PROGRAM, "early" if early else "now", *path],
            env=os.environ | GIVE_BACK,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # A terminal's Ctrl-C goes to all processes of its foreground group: it is for the parent alone.
            start_new_session=True,
        )

    def run(self, job: Path, allowed_bytes: int | None, allowance: int) -> Measurement | None:
        """The measurement; None where the process died without one. Raises ModelError."""
        result = job.with_suffix(".json")
        try:
            # The path once more: loading the model may have added to it.
            path = [entry or str(Path.cwd()) for entry in sys.path]
            order = {"job": str(job), "allowed_bytes": allowed_bytes, "allowance": allowance, "path": path}
            _, errors = self._process.communicate(json.dumps(order), timeout=_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ModelError(
                f"an update takes longer than {_TIMEOUT_SECONDS} s in the child process"
            ) from error
        finally:
            self.stop()
        if result.exists():
            content = json.loads(result.read_text())
            result.unlink()  # another child may get the same job
            if "error" in content:
                raise ModelError(f"an update failed in the child process: {content['error']}")
            return Measurement(**content["measurement"])
        if self._process.returncode == 1:  # a Python error; signals and aborts have other codes
            last_line = errors.strip().splitlines()[-1] if errors.strip() else "no message"
            raise ModelError(f"the child process failed: {last_line}")
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
