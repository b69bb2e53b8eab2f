"""The choice runs in a child process, under the memory limit, before it is recommended."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from advisor.costs import WaitingChild
from advisor.costs.measure import measure
from advisor.errors import AdvisorError, first_line
from advisor.records import Budget, Candidate, DataSummary, Evaluation
from advisor.solver import Verdict, enforced_memory, judged, solve
from advisor.story.situation import Progress, Request, Story
from advisor.system.interrupts import stoppable
from advisor.training.accelerator import accelerator_for
from advisor.units import format_bytes, format_seconds

_log = logging.getLogger(__name__)
_TIMED = 4  # candidates, where seconds are preferred: each run takes seconds itself


def verify(
    story: Story,
    evaluations: list[Evaluation],
    budget: Budget,
    data: DataSummary | None,
    request: Request,
    progress: Progress,
    waiting: WaitingChild | None,
) -> tuple[Evaluation | None, list[Evaluation], Verdict]:
    """Run the choice in a child process under the memory limit; if it breaks a limit there, the next one.

    Where seconds come first, the first few of those that may be chosen are timed before the choice is made.
    """
    verdict = solve(evaluations, budget, data)
    if not request.verify or not story.loaded.has_values:
        return (verdict.choices[0] if verdict.choices else None), judged(evaluations, budget), verdict
    allowed = enforced_memory(budget)
    is_timed_here = budget.prefer == "time" and request.target is None
    to_time = list(verdict.choices[:_TIMED]) if is_timed_here else []
    told: list[str] = []
    # A limit on memory, and a target, are those of another device than the one that trained probes.
    is_for_here = allowed is None and request.target is None
    device = accelerator_for(request.device).measured_on if is_for_here else "cpu"
    tried = 0
    chosen: Evaluation | None = None
    while to_time or verdict.choices:
        evaluation = to_time.pop(0) if to_time else verdict.choices[0]
        candidate = evaluation.candidate
        if evaluation.measured is not None:
            chosen = evaluation
            break
        progress("verify", tried / (tried + 1), candidate.short)
        tried += 1
        try:
            with stoppable():
                measured = measure(
                    story.loaded.module,
                    story.census,
                    candidate,
                    request.batch_size,
                    allowed_bytes=enforced_memory(budget, evaluation.cost),
                    cache_bytes=evaluation.cost.cache_bytes,
                    images=story.images,
                    device=device,
                    waiting=waiting if tried == 1 else None,
                )
        # What goes wrong with a run says nothing against the answer that was found.
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001
            _log.debug("running %s failed", candidate.id, exc_info=True)
            told.append(_not_run(candidate, error))
            chosen = verdict.choices[0]
            break
        ran = replace(evaluation, measured=measured)
        peak, seconds = format_bytes(measured.peak_memory_bytes), format_seconds(measured.update_seconds)
        _log.debug("ran %s: %s at the allocator's peak, %s per update", candidate.id, peak, seconds)
        evaluations = [ran if each.candidate == candidate else each for each in evaluations]
        if measured.survived and allowed is not None and measured.cap_bytes is None:
            told.append(
                f"{candidate.short} ran without the hard limit: under it the runtime itself failed, "
                f"which took more than usual; what the allocator gave out, "
                f"{format_bytes(measured.peak_memory_bytes)}, is within it"
            )
        [ran] = judged([ran], budget)
        told += [
            f"{candidate.short} would have been chosen, but {violation.reason}"
            for violation in ran.violations
            if violation.hard and violation.limit != "step_time"
        ]
        verdict = solve(evaluations, budget, data)
    progress("verify", 1.0, "")
    evaluations = judged(evaluations, budget)
    told += _too_slow(evaluations)
    story.warnings[:0] = told  # nothing weighs more than what speaks against the choice
    return chosen, evaluations, verdict


def _too_slow(evaluations: Sequence[Evaluation]) -> list[str]:
    """Which would have been chosen before, but for their seconds, in one line."""
    slow = [
        e
        for e in evaluations
        if e.forecast is None and any(v.limit == "step_time" and v.hard for v in e.violations)
    ]
    if not slow:
        return []
    quickest = min(slow, key=lambda e: e.update_seconds or 0.0)
    reason = next(v.reason for v in quickest.violations if v.limit == "step_time")
    many = f"{len(slow)} candidates were run and are too slow, the quickest of them " if len(slow) > 1 else ""
    return [f"{many}{quickest.candidate.short}: {reason}"]


def _not_run(candidate: Candidate, error: BaseException) -> str:
    """Why the choice was not run before it was recommended, for the user."""
    if isinstance(error, KeyboardInterrupt):
        reason = "interrupted"
    elif isinstance(error, AdvisorError):
        reason = str(error)
    else:
        reason = f"{type(error).__name__}: {first_line(error)}"
    return (
        f"{candidate.short} was not run in a child process before it was recommended ({reason}): "
        "its memory is the simulated one alone"
    )
