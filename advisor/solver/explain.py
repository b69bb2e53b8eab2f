"""The answer in words: one sentence, and what a looser limit would buy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

from advisor.names import answered
from advisor.records import BASELINE, Budget, DataSummary, Evaluation, Levers, Relaxation
from advisor.solver.budget import allowed_memory
from advisor.units import format_bytes, format_flops

_SHOW = {"ram": format_bytes, "flops": format_flops, "storage": format_bytes}
_OPTION = {
    "ram": "--ram",
    "flops": "--flops-budget",
    "storage": "--storage",
    "min_accuracy": "--min-accuracy",
    "min_retained": "--min-retained",
}


def answer(
    chosen: Evaluation | None,
    evaluations: Sequence[Evaluation],
    budget: Budget,
    data: DataSummary | None,
) -> str:
    """One sentence that stands alone, of the choice, or where there is none, of what would fit."""
    if chosen is None:
        return _nothing_fits(evaluations, budget)
    cost, accuracy = chosen.cost, chosen.accuracy
    allowed = allowed_memory(budget)
    memory = format_bytes(cost.peak_memory_bytes) + (f" of {format_bytes(allowed)}" if allowed else "")
    flops = f"{format_flops(cost.flops.total)} per update" + (
        f" of {format_flops(budget.flops)}" if budget.flops else ""
    )
    costs = f"{memory} at its peak, {flops}, {format_bytes(cost.delta_bytes)} to ship"
    ran = _ran(chosen, budget)
    if accuracy is None:
        why = "fewest FLOPs" if budget.fewest_flops else "least memory"
        unknown = "no data was given" if data is None else "nothing was probed"
        return (
            f"On cost alone, use {describe(chosen)}: the {why} of all that fit - {costs}{ran}. "
            f"Which one adapts best is unknown, as {unknown}."
        )
    gained = ""
    if data is not None and data.base_accuracy is not None:
        before = "unadapted" if data.scenario == "shift" else "before training"
        gained = f", up from {data.base_accuracy.mean:.1%} {before}"
    kept = ""
    if accuracy.retained is not None:
        base = data.base_accuracy.retained if data is not None and data.base_accuracy is not None else None
        is_lost = base is not None and base.mean > accuracy.retained.mean
        kept = f", {'but only ' if is_lost else ''}{accuracy.retained.mean:.1%} on the old data"
        kept += f" ({base.mean:.1%} before)" if base is not None else ""
    interval = f"{accuracy.low:.1%} to {accuracy.high:.1%}"
    return (
        f"Use {describe(chosen)}: {answered(f'{accuracy.mean:.1%}', accuracy.samples, budget.metric)} "
        f"({interval}){gained}{kept}, {costs}{ran}."
    )


def describe(evaluation: Evaluation) -> str:
    """The candidate in words: `lora, rank 4, learning rate 0.002`."""
    candidate, accuracy = evaluation.candidate, evaluation.accuracy
    parts = [candidate.method, *(f"{name} {value}" for name, value in candidate.setting)]
    parts += lever_words(candidate.levers)
    if accuracy is not None and accuracy.learning_rate is not None:
        parts.append(f"learning rate {accuracy.learning_rate:g}")
    return ", ".join(parts)


def lever_words(levers: Levers) -> list[str]:
    """What differs from the defaults: `last 5 blocks`, `micro-batches of 2`, `checkpointed`."""
    blocks = "block" if levers.scope == 1 else f"{levers.scope} blocks"
    words = {
        levers.optimizer: levers.optimizer != "adam",
        f"last {blocks}": bool(levers.scope),
        f"micro-batches of {levers.micro_batch}": levers.micro_batch is not None,
        "checkpointed": levers.checkpoint,
        "per-parameter updates": levers.update == "per-parameter",
        "front cached in memory": levers.cached_prefix == "ram",
        "front cached on disk": levers.cached_prefix == "disk",
        "norms fused in front": levers.fuse,
        "statistics frozen": levers.statistics == "frozen",
        "statistics updated": levers.statistics == "updated",
        "statistics re-estimated first": levers.statistics == "reestimated",
        "head solved in the end": levers.head == "ridge-last",
        "wide head of late blocks solved in the end": levers.head == "ridge-late",
        "wide head of all blocks solved in the end": levers.head == "ridge-all",
    }
    return [word for word, given in words.items() if given]


def relaxations(
    chosen: Evaluation | None, evaluations: Sequence[Evaluation], budget: Budget
) -> tuple[Relaxation, ...]:
    """For each limit, the candidate that a little more of it admits, and full fine-tuning where shut out."""
    found: list[Relaxation] = []
    for limit in _OPTION:
        blocked = [e for e in evaluations if {v.limit for v in e.violations} == {limit}]
        if not blocked:
            continue
        nearest = min(blocked, key=_shortfall)
        full = [e for e in blocked if e.candidate.method == BASELINE]
        plain = min(full, key=lambda e: len(e.candidate.levers.described()), default=nearest)
        for evaluation in (nearest,) if plain is nearest else (nearest, plain):
            name = _told_apart(evaluation, evaluations)
            found.append(_relaxation(limit, evaluation, name, chosen))
    return tuple(found)


def _told_apart(evaluation: Evaluation, evaluations: Sequence[Evaluation]) -> str:
    """The candidate's name, and that it is the whole network where a part of it fits already."""
    own = evaluation.candidate
    narrower = [
        e.candidate.levers.scope
        for e in evaluations
        if e.fits and e.candidate.method == own.method and e.candidate.levers.scope is not None
    ]
    if own.levers.scope is not None or not narrower:
        return own.short
    blocks = max(narrower)
    part = f"the last {blocks} blocks" if blocks > 1 else "the last block" if blocks else "the head"
    return f"{own.short}, on the whole network and not on {part} alone,"


def _relaxation(limit: str, evaluation: Evaluation, name: str, chosen: Evaluation | None) -> Relaxation:
    short = _shortfall(evaluation)
    gain = None
    if chosen is not None and chosen.accuracy is not None and evaluation.accuracy is not None:
        gain = evaluation.accuracy.mean - chosen.accuracy.mean
    if limit in ("min_accuracy", "min_retained"):
        sentence = f"With {_OPTION[limit]} {short * 100:.1f} points lower, {name} fits"
    else:
        sentence = f"With {_SHOW[limit](short)} more {_OPTION[limit]}, {name} fits"
    if gain is not None:
        sentence += f": {gain * 100:+.1f} points"
    elif chosen is not None and chosen.accuracy is not None and evaluation.predicted is not None:
        more = (100 * (value - chosen.accuracy.mean) for value in astuple(evaluation.predicted))
        sentence += ": {:+.1f} points, as predicted ({:+.1f} to {:+.1f})".format(*more)
    else:
        sentence += " (not tried)"
    return Relaxation(limit, short, evaluation.candidate.id, gain, sentence)


def _shortfall(evaluation: Evaluation) -> float:
    violation = evaluation.violations[0]
    return abs(violation.value - violation.allowed)


def _ran(chosen: Evaluation, budget: Budget) -> str:
    measured = chosen.measured
    if measured is None:
        return "; it was not run"
    if budget.ram_bytes is None or measured.cap_bytes is None:
        peak = format_bytes(measured.peak_memory_bytes)
        return f"; it ran in a child process, where the allocator's peak was {peak}"
    return "; it ran in a child process that was held to it"


def _nothing_fits(evaluations: Sequence[Evaluation], budget: Budget) -> str:
    if not evaluations:
        return "Nothing fits: no method applies to this model."
    parts = []
    allowed = allowed_memory(budget)
    least = min(evaluations, key=lambda e: e.cost.peak_memory_bytes)
    if allowed is not None and least.cost.peak_memory_bytes > allowed:
        parts.append(
            f"the least memory that any candidate needs is {format_bytes(least.cost.peak_memory_bytes)} "
            f"({least.candidate.short}), {format_bytes(allowed)} are allowed"
        )
    least = min(evaluations, key=lambda e: e.cost.flops.total)
    if budget.flops is not None and least.cost.flops.total > budget.flops:
        parts.append(
            f"the fewest FLOPs of an update are {format_flops(least.cost.flops.total)} "
            f"({least.candidate.short}), {format_flops(budget.flops)} are allowed"
        )
    least = min(evaluations, key=lambda e: e.cost.delta_bytes)
    if budget.storage_bytes is not None and least.cost.delta_bytes > budget.storage_bytes:
        parts.append(
            f"the fewest bytes to ship are {format_bytes(least.cost.delta_bytes)} "
            f"({least.candidate.short}), {format_bytes(budget.storage_bytes)} are allowed"
        )
    judged = [e for e in evaluations if e.accuracy is not None]
    if budget.min_accuracy is not None and judged:
        best = max(judged, key=lambda e: e.accuracy.mean if e.accuracy else 0.0)
        assert best.accuracy is not None  # noqa: S101 - judged holds only those that have one
        if best.accuracy.mean < budget.min_accuracy:
            parts.append(
                f"the best accuracy found is {best.accuracy.mean:.1%} ({best.candidate.short}), "
                f"{budget.min_accuracy:.1%} is asked for"
            )
    remembering = [e.accuracy.retained for e in judged if e.accuracy and e.accuracy.retained]
    if budget.min_retained is not None and remembering:
        most = max(retained.mean for retained in remembering)
        if most < budget.min_retained:
            parts.append(
                f"the best accuracy found on the old data is {most:.1%}, "
                f"{budget.min_retained:.1%} is asked for"
            )
    if not parts:
        parts.append("each candidate breaks at least one of the limits; the table says which")
    return "Nothing fits: " + "; ".join(parts) + "."
