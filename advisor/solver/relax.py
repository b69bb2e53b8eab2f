"""What another limit would give: each a promise that `solve` keeps with that limit set.

Limits are rounded to what can be typed, on the side on which the promise holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from advisor.records import BASELINE, Budget, DataSummary, Evaluation, LimitName, Relaxation
from advisor.solver.limits import LIMIT, figures_of, judged, limits_of, with_limits
from advisor.solver.paired import paired_half_width
from advisor.solver.verdict import solve
from advisor.units import format_percent


def relaxations(
    chosen: Evaluation | None, evaluations: Sequence[Evaluation], budget: Budget, data: DataSummary | None
) -> tuple[Relaxation, ...]:
    """For each hard limit: what more of it would change, and how much less of it changes nothing.

    Where nothing fits: the smallest change of each limit alone that makes something the answer, and where
    none alone does, the smallest of two, or more, together.
    """
    evaluations = judged(evaluations, budget)
    limits = {name: value for name, value in limits_of(budget).items() if name not in budget.warn}
    if chosen is None:
        return _ways_out(evaluations, budget, data, limits)
    found: list[Relaxation] = []
    for name, allowed in limits.items():
        more = _flip(name, allowed, chosen, evaluations, budget, data)
        found += [more] if more else []
        told = {more.candidate_id} if more else set()
        found += [
            each for each in _admitted(name, chosen, evaluations, budget) if each.candidate_id not in told
        ]
        found += _slack(name, allowed, chosen, evaluations, budget, data)
    return tuple(found)


def _flip(
    name: LimitName,
    allowed: float,
    chosen: Evaluation,
    evaluations: Sequence[Evaluation],
    budget: Budget,
    data: DataSummary | None,
) -> Relaxation | None:
    """The nearest looser limit with another answer."""
    for limit in _looser(name, evaluations, budget):
        answer = _answer(evaluations, with_limits(budget, {name: limit}), data)
        if answer is not None and answer.candidate != chosen.candidate:
            found = _relaxation({name: limit}, budget, answer, chosen, "answer", evaluations)
            return replace(found, sentence=found.sentence + _what_for(answer, chosen, budget))
    return None


def _what_for(answer: Evaluation, chosen: Evaluation, budget: Budget) -> str:
    """What speaks for an answer that isn't expected to be more accurate; empty where it is."""
    if answer.accuracy is None or chosen.accuracy is None:
        return ""
    if _is_more(answer.accuracy.mean, chosen.accuracy.mean):
        return ""
    now, then = figures_of(chosen, budget), figures_of(answer, budget)
    preferred: LimitName = "step_time" if budget.prefer == "time" else budget.prefer
    for name in (preferred, "ram", "flops", "storage", "min_retained"):
        limit, old, new = LIMIT[name], now[name], then[name]
        if old is not None and new is not None and new != old and limit.is_met(new, old):
            show = format_percent if limit.at_least else limit.show
            return f", for {limit.what} of {show(new)} instead of {show(old)}"
    return ""


def _admitted(
    name: LimitName, chosen: Evaluation, evaluations: Sequence[Evaluation], budget: Budget
) -> Iterator[Relaxation]:
    """Of what this limit alone shuts out: the nearest that is expected to be better, and full fine-tuning.

    Nothing that is expected to be no better; what nothing is known of, where nothing better is known.
    """
    mean = chosen.accuracy.mean if chosen.accuracy else None
    blocked = [
        (limit, e)
        for e in _shut_out_by(name, evaluations)
        if (limit := _limit_for(name, e, budget)) is not None
    ]
    blocked.sort(key=lambda pair: (-pair[0] if LIMIT[name].at_least else pair[0], pair[1].candidate.id))
    expected = {e.candidate: e.accuracy or e.predicted for _, e in blocked}
    better = [
        p
        for p in blocked
        if (its := expected[p[1].candidate]) and mean is not None and _is_more(its.mean, mean)
    ]
    unknown = [p for p in blocked if mean is None or expected[p[1].candidate] is None]
    full = [pair for pair in (*better, *unknown) if pair[1].candidate.method == BASELINE]
    plain = min(full, key=lambda pair: len(pair[1].candidate.levers.described()), default=None)
    shown = {pair[1].candidate: pair for pair in ((better or unknown)[:1] + ([plain] if plain else []))}
    for limit, evaluation in shown.values():
        yield _relaxation({name: limit}, budget, evaluation, chosen, "fits", evaluations)


def _is_more(mean: float, other: float) -> bool:
    """As far as is printed."""
    return round(100 * (mean - other), 1) > 0


def _slack(
    name: LimitName,
    allowed: float,
    chosen: Evaluation,
    evaluations: Sequence[Evaluation],
    budget: Budget,
    data: DataSummary | None,
) -> list[Relaxation]:
    """The tightest limit at which the answer stays, and what it is just beyond."""
    limit, offset = LIMIT[name], _offset(name, budget)
    values = {
        value
        for e in evaluations
        if (value := figures_of(e, budget)[name]) is not None and limit.is_met(value, allowed)
    }
    stays: float | None = None
    for value in sorted(values, reverse=not limit.at_least):  # from the limit inwards
        beyond = limit.missing(value + offset)
        kept = limit.meeting(value + offset)
        if kept is not None and limit.is_met(kept - offset, allowed):
            stays = (
                kept - offset if _stays({name: kept - offset}, chosen, evaluations, budget, data) else stays
            )
        if beyond is None or beyond <= offset or not limit.is_met(beyond - offset, allowed):
            continue
        answer = _answer(evaluations, with_limits(budget, {name: beyond - offset}), data)
        if answer is None or answer.candidate != chosen.candidate:
            flip = _relaxation({name: beyond - offset}, budget, answer, chosen, "answer", evaluations)
            if stays is None or stays == allowed:
                return [flip]
            return [_relaxation({name: stays}, budget, chosen, chosen, "stays", evaluations), flip]
    return []


def _ways_out(
    evaluations: Sequence[Evaluation],
    budget: Budget,
    data: DataSummary | None,
    limits: Mapping[LimitName, float],
) -> tuple[Relaxation, ...]:
    """Where nothing is the answer: the smallest changes that make something it."""
    for count in range(1, len(limits) + 1):
        found = []
        for names in combinations(limits, count):
            tried: list[tuple[float, dict[LimitName, float]]] = []
            for evaluation in evaluations:
                broken = {_name(v.limit) for v in evaluation.violations if v.hard}
                changes = {name: _limit_for(name, evaluation, budget) for name in names}
                if broken == set(names) and None not in changes.values():
                    known = {name: value for name, value in changes.items() if value is not None}
                    tried.append((_size(known, limits), known))
            for _, way in sorted(tried, key=lambda pair: pair[0]):
                answer = _answer(evaluations, with_limits(budget, way), data)
                if answer is not None:
                    found.append(_relaxation(way, budget, answer, None, "answer", evaluations))
                    break
        if found:
            return tuple(sorted(found, key=lambda item: _size(item.limits, limits)))
    return ()


def _size(changes: Mapping[LimitName, float], limits: Mapping[LimitName, float]) -> float:
    """How large a change is: the largest of the limits', as a share of what is allowed."""
    return max(abs(value - limits[name]) / (limits[name] or 1.0) for name, value in changes.items())


def _answer(evaluations: Sequence[Evaluation], budget: Budget, data: DataSummary | None) -> Evaluation | None:
    choices = solve(evaluations, budget, data).choices
    return choices[0] if choices else None


def _stays(
    limits: Mapping[LimitName, float],
    chosen: Evaluation,
    evaluations: Sequence[Evaluation],
    budget: Budget,
    data: DataSummary | None,
) -> bool:
    answer = _answer(evaluations, with_limits(budget, limits), data)
    return answer is not None and answer.candidate == chosen.candidate


def _looser(name: LimitName, evaluations: Sequence[Evaluation], budget: Budget) -> list[float]:
    """The limits at which one more candidate is within, from the nearest on."""
    blocked = (e for e in evaluations if any(_name(v.limit) == name for v in e.violations))
    found = {limit for e in blocked if (limit := _limit_for(name, e, budget)) is not None}
    return sorted(found, reverse=LIMIT[name].at_least)


def _shut_out_by(name: LimitName, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Those that break this hard limit and no other; what died in its run below it fits at no known limit."""
    return [
        e
        for e in evaluations
        if {_name(v.limit) for v in e.violations if v.hard} == {name}
        and not any(v.limit == "execution" and v.value <= v.allowed for v in e.violations)
    ]


def _limit_for(name: LimitName, evaluation: Evaluation, budget: Budget) -> float | None:
    """The tightest limit that can be typed and that the candidate meets; None: unknown."""
    value, offset = figures_of(evaluation, budget)[name], _offset(name, budget)
    limit = LIMIT[name].meeting(value + offset) if value is not None else None
    return None if limit is None else limit - offset


def _offset(name: LimitName, budget: Budget) -> int:
    """What is typed beyond what an update may have."""
    return budget.runtime_overhead_bytes if name == "ram" else 0


def _name(limit: str) -> str:
    return "ram" if limit == "execution" else limit


def _relaxation(
    limits: Mapping[LimitName, float],
    budget: Budget,
    to: Evaluation | None,
    chosen: Evaluation | None,
    effect: str,
    evaluations: Sequence[Evaluation],
) -> Relaxation:
    name, allowed = next(iter(limits.items()))
    gain = None
    if to is not None and chosen is not None and to.accuracy and chosen.accuracy and effect != "stays":
        gain = to.accuracy.mean - chosen.accuracy.mean
    return Relaxation(
        limit=name,
        by=abs(allowed - limits_of(budget)[name]),
        candidate_id=to.candidate.id if to is not None else None,
        accuracy_gain=gain,
        sentence=f"With {_typed(limits, budget)}"
        + _effect(to, chosen, effect, gain, evaluations)
        + _untimed(to, budget),
        effect=effect,  # type: ignore[arg-type]
        limits=dict(limits),
    )


def _typed(limits: Mapping[LimitName, float], budget: Budget) -> str:
    """`--ram 118MB (18.0 MB more)`."""
    now, parts = limits_of(budget), []
    for name, value in limits.items():
        limit = LIMIT[name]
        less = "less" if value < now[name] else "more"
        by = f"{limit.show(abs(value - now[name]))} {less}"
        if limit.at_least:
            by = f"{abs(value - now[name]) * 100:.1f} points {'lower' if less == 'less' else 'higher'}"
        parts.append(f"{limit.option} {limit.typed(value + _offset(name, budget))} ({by})")
    return " and ".join(parts)


def _effect(
    to: Evaluation | None,
    chosen: Evaluation | None,
    effect: str,
    gain: float | None,
    evaluations: Sequence[Evaluation],
) -> str:
    if to is None:
        return " nothing fits"
    if effect == "stays":
        return " the answer stays"
    name = _told_apart(to, evaluations)
    said = f" the answer is {name}" if effect == "answer" else f" {name} fits"
    accuracy = chosen.accuracy if chosen is not None else None
    if gain is not None and accuracy and to.accuracy:
        half = 100 * paired_half_width(to.accuracy, accuracy)
        old, now = to.accuracy.retained, accuracy.retained
        forgets = f", {100 * (old.mean - now.mean):+.1f} on old data" if old and now else ""
        return f"{said}: {gain * 100:+.1f} +- {half:.1f} points{forgets}"
    if accuracy and to.predicted:
        low, mean, high = (
            100 * (x - accuracy.mean) for x in (to.predicted.low, to.predicted.mean, to.predicted.high)
        )
        return f"{said}: {mean:+.1f} points, as predicted ({low:+.1f} to {high:+.1f})"
    return said if effect == "answer" else f"{said} (not tried)"


def _untimed(to: Evaluation | None, budget: Budget) -> str:
    """That nothing says whether the limit on seconds is met."""
    is_limited = budget.step_seconds is not None and "step_time" not in budget.warn
    return (
        ", if it is quick enough: it was not run" if is_limited and to and to.update_seconds is None else ""
    )


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
    return f"{own.short} (on the whole network, not on {part} alone)"
