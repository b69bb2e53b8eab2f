"""The answer in words: one sentence, and what a looser limit would buy."""

from __future__ import annotations

from collections.abc import Sequence

from advisor.names import answered
from advisor.records import Budget, DataSummary, Evaluation, Levers, LimitName, Runtime
from advisor.solver.limits import LIMIT, allowed_memory, figures_of, limits_of
from advisor.solver.paired import paired_half_width
from advisor.units import format_bytes, format_flops, format_percent, format_percents

_LEAST_GAP = 0.0005  # of accuracy: what is printed as 0.1 points or more
LEAST = {
    "ram": "least memory",
    "flops": "fewest FLOPs",
    "storage": "fewest bytes to ship",
    "time": "least time",
}
_LEAST: dict[LimitName, str] = {
    "ram": "the least memory that any candidate needs is",
    "flops": "the fewest FLOPs of an update are",
    "storage": "the fewest bytes to ship are",
    "step_time": "the quickest update that is known takes",
    "total_time": "the quickest fine-tune takes",
    "energy": "the fine-tune with the least energy takes",
    "max_trainable": "the fewest trained parameters are",
    "max_overhead": "the least inference overhead is",
    "min_accuracy": "the best accuracy found is",
    "min_retained": "the best accuracy found on the old data is",
}


def answer(
    chosen: Evaluation | None,
    evaluations: Sequence[Evaluation],
    budget: Budget,
    data: DataSummary | None,
    runtime: Runtime | None = None,
) -> str:
    """One sentence that stands alone, of the choice, or where there is none, of what would fit."""
    if chosen is None:
        return _nothing_fits(evaluations, budget)
    cost, accuracy = chosen.cost, chosen.accuracy
    allowed = allowed_memory(budget, cost)
    memory = format_bytes(cost.peak_memory_bytes) + (f" of {format_bytes(allowed)}" if allowed else "")
    flops = f"{format_flops(cost.flops.total)} per update" + (
        f" of {format_flops(budget.flops)}" if budget.flops else ""
    )
    besides = f", besides {format_bytes(runtime.beside(cost))} for the runtime" if runtime else ""
    costs = f"{memory} at its peak{besides}, {flops}, {format_bytes(cost.delta_bytes)} to ship"
    ran = _ran(chosen, budget)
    if accuracy is None:
        why = LEAST[budget.prefer]
        unknown = "no data was given" if data is None else "nothing was probed"
        return (
            f"On cost alone, use {describe(chosen)}: the {why} of all that fit - {costs}{ran}. "
            f"Which one adapts best is unknown, as {unknown}."
        )
    gained = ""
    if data is not None and data.base_accuracy is not None:
        before = "unadapted" if data.scenario == "shift" else "before training"
        gained = f", up from {format_percent(data.base_accuracy.mean)} {before}"
    kept = ""
    if accuracy.retained is not None:
        base = data.base_accuracy.retained if data is not None and data.base_accuracy is not None else None
        is_lost = base is not None and base.mean > accuracy.retained.mean
        kept = f", {'but only ' if is_lost else ''}{format_percent(accuracy.retained.mean)} on the old data"
        kept += f" ({format_percent(base.mean)} before)" if base is not None else ""
    below = cheaper_text(chosen, evaluations)
    below = f", {below}" if below else ""
    interval = format_percents(accuracy.low, accuracy.high)
    return (
        f"Use {describe(chosen)}: {answered(format_percent(accuracy.mean), accuracy.samples, budget.metric)} "
        f"({interval}){gained}{below}{kept}, {costs}{ran}."
    )


def whole_memory(chosen: Evaluation, budget: Budget, runtime: Runtime) -> str:
    """`112 MB for the update; the runtime 190 MB more: 302 of 512 MB`, or which of the two doesn't fit."""
    update, ram = chosen.cost.peak_memory_bytes, budget.ram_bytes
    beside = runtime.beside(chosen.cost)
    total = update + beside
    where = f" on {runtime.where}" if runtime.where not in ("", "here") else ""
    besides = f"; the runtime {format_bytes(beside)} more{where}"
    if budget.runtime_overhead_bytes:
        besides = f" and {format_bytes(beside)} for the runtime{where}"
    said = f"{format_bytes(update)} for the update{besides}"
    if ram is None:
        return f"{said}: {format_bytes(total)} in all"
    if total > ram:
        fits = "exceeds" if update > ram else "fits"
        whole = f"with the runtime{where} it takes {format_bytes(total)}"
        return f"the update {fits} --ram {format_bytes(ram)}; {whole}"
    number, unit = format_bytes(total).split()
    allowed = format_bytes(ram)
    return f"{said}: {number}{'' if allowed.endswith(f' {unit}') else f' {unit}'} of {allowed}"


def describe(evaluation: Evaluation) -> str:
    """The candidate in words: `lora, rank 4, learning rate 0.002`."""
    candidate = evaluation.candidate
    parts = [candidate.method, *(f"{name} {value}" for name, value in candidate.said)]
    parts += [*lever_words(candidate.levers), rate_words(evaluation)]
    return ", ".join(filter(None, parts))


def rate_words(evaluation: Evaluation) -> str:
    """`learning rate 0.002`; empty where none was chosen."""
    rate = evaluation.accuracy.learning_rate if evaluation.accuracy else None
    return f"learning rate {rate:g}" if rate is not None else ""


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


def cheaper_text(chosen: Evaluation, evaluations: Sequence[Evaluation]) -> str:
    """What a cheaper choice may cost: `0.4 +- 1.1 points below the best that fits, dora-8`, or nothing."""
    known = [e for e in evaluations if e.fits and e.accuracy is not None and e.accuracy.finalist]
    best = max(known, key=lambda e: e.accuracy.mean if e.accuracy else 0.0, default=chosen)
    if best.accuracy is None or chosen.accuracy is None:
        return ""
    gap = best.accuracy.mean - chosen.accuracy.mean
    if gap < _LEAST_GAP:
        return ""
    half = paired_half_width(best.accuracy, chosen.accuracy)
    return f"{gap * 100:.1f} +- {half * 100:.1f} points below the best that fits, {best.candidate.short}"


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
    for name, allowed in limits_of(budget).items():
        limit = LIMIT[name]
        known = [(value, e) for e in evaluations if (value := figures_of(e, budget)[name]) is not None]
        if name in budget.warn or not known:
            continue
        value, nearest = (max if limit.at_least else min)(known, key=lambda pair: pair[0])
        if not limit.is_met(value, allowed):
            what = _LEAST[name]
            parts.append(
                f"{what} {_shown(name, value)} ({nearest.candidate.short}), {_shown(name, allowed)} "
                f"{'is asked for' if limit.at_least else 'are allowed'}"
            )
    if not parts:
        parts.append("each candidate breaks at least one of the limits; the table says which")
    return "Nothing fits: " + "; ".join(parts) + "."


def _shown(name: LimitName, value: float) -> str:
    return format_percent(value) if LIMIT[name].at_least else LIMIT[name].show(value)
