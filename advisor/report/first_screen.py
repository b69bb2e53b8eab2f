"""What a reader sees first: the answer in a few words, four figures, what else one may want, the evidence."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from advisor.names import achieved_text
from advisor.records import WEIGHTS, Accuracy, Evaluation, Finding, Recommendation
from advisor.report import view
from advisor.report.next_steps import next_steps
from advisor.solver import LEAST, describe, whole_memory
from advisor.units import format_seconds


@dataclass(frozen=True, slots=True)
class Headline:
    """The answer for who has no time."""

    badge: str
    mood: Literal["good", "bad", "plain"]
    title: str
    below: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bar:
    """Shares of a track in percent: what is filled, from where, and where something else stands."""

    start: float
    end: float
    tick: float | None
    told: str  # what it shows, in words
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure."""

    name: str
    figure: str
    notes: tuple[str, ...]
    bar: Bar | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """What is best at something, where it is not what was asked for."""

    wants: tuple[str, ...]
    evaluation: Evaluation
    command: str  # empty where there is nothing to carry out


def headline(recommendation: Recommendation) -> Headline:
    """The answer in at most 12 words, and what must not be missed beside it."""
    choice, data = view.chosen(recommendation), recommendation.data
    wrong = (f"First of all: {data.error.text}",) if data and data.error else ()
    if choice is None:
        return _without_choice(recommendation)
    badge = _badge(choice, recommendation)
    below = [*wrong, *_in_words(choice, recommendation)]
    if recommendation.runtime is not None:
        below.append(f"Memory: {whole_memory(choice, recommendation.budget, recommendation.runtime)}.")
    if choice.accuracy is None:
        least = LEAST[recommendation.budget.prefer]
        unknown = "no data was given" if data is None else "nothing was probed"
        below.append(f"Which one adapts best is unknown, as {unknown}.")
        title = f"Use {choice.candidate.short}: the {least} of all that fit"
        return Headline(badge, "good", title, tuple(below))
    base = data.base_accuracy if data else None
    before = f"{base.mean * 100:.1f} \N{RIGHTWARDS ARROW} " if base else ""
    achieved = achieved_text(f"{before}{view.percent(choice.accuracy.mean)}", recommendation.budget.metric)
    title = f"Use {choice.candidate.short}: {achieved}"
    old = _old_data(recommendation, choice.accuracy, base)
    rests_on = f"{view.tried_text(recommendation)}."
    return Headline(badge, "good", title, (*below, *([old] if old else []), rests_on))


def _badge(choice: Evaluation, recommendation: Recommendation) -> str:
    """Whether it fits, and what was held against the limits."""
    if choice.violations:
        return "a limit is broken"  # one of --warn: a warning says which
    ran = ", and was run" if choice.measured and choice.measured.survived else ""
    ram, runtime = recommendation.budget.ram_bytes, recommendation.runtime
    whole = choice.cost.peak_memory_bytes + (runtime.beside(choice.cost) if runtime else 0)
    return f"{'fits' if ram is None or whole <= ram else 'the update fits'}{ran}"


def _in_words(choice: Evaluation, recommendation: Recommendation) -> list[str]:
    """The setting, and what the method does, for who doesn't know its name."""
    words, card = describe(choice), recommendation.methods.get(choice.candidate.method)
    said = [words] if words != choice.candidate.short else []
    return [": ".join([*said, *([card.summary] if card else [])])] if said or card else []


def _without_choice(recommendation: Recommendation) -> Headline:
    answer = (recommendation.answer,) if recommendation.answer else ()
    if recommendation.outcome == "leave":
        return Headline("leave it as it is", "good", "Leave the model as it is", answer)
    if any(evaluation.fits for evaluation in recommendation.evaluations):
        if recommendation.outcome == "none":
            return Headline("nothing to recommend", "bad", "Nothing can be recommended", answer)
        return Headline("costs", "plain", "What each way of fine-tuning this model costs", answer)
    if not recommendation.evaluations:
        return Headline("nothing to train", "plain", "Nothing to train", answer)
    return Headline("nothing fits", "bad", "Nothing fits these limits", answer)


def _old_data(recommendation: Recommendation, accuracy: Accuracy, base: Accuracy | None) -> str:
    if accuracy.retained is None:
        return ""
    now, before = accuracy.retained, base.retained if base else None
    if before is None:
        return f"Old data: {view.accuracy_text(now)} right."
    points = f"{(now.mean - before.mean) * 100:+.1f} points".replace("-", "\N{MINUS SIGN}")
    is_lost = before.mean > now.mean and recommendation.budget.min_retained is None
    forbid = f"; to forbid that: --min-retained {before.mean:.2f}" if is_lost else ""
    was = f"{before.mean * 100:.1f} \N{RIGHTWARDS ARROW} {view.accuracy_text(now)}"
    return f"Old data: {was}, {points}{forbid}."


def tiles(recommendation: Recommendation) -> list[Tile]:
    """Accuracy, memory, FLOPs, bytes to ship: of the choice, or the least of any candidate."""
    lines = view.budget_lines(recommendation)
    if not lines or recommendation.outcome == "leave":
        return []
    choice, full = view.chosen(recommendation), recommendation.full
    memory, flops, ship = lines[:3]
    costs = full.cost if full else None
    ran = ""
    if choice:
        run = choice.measured
        ran = "not run" if run is None else "run within the limit" if run.cap_bytes else "run without a limit"
    told = [of(choice, recommendation) for of in (view.time_of, view.energy_of)] if choice else []
    timed = "; ".join(" ".join(each) for each in told if each)
    found = [
        _cost_tile(memory, costs.peak_memory_bytes if costs else None, ran),
        _cost_tile(flops, costs.flops.total if costs else None, timed),
        _cost_tile(ship, costs.delta_bytes if costs else None, ""),
    ]
    accuracy = choice.accuracy if choice else None
    if accuracy:
        return [_accuracy_tile(recommendation, accuracy), *found]
    if choice is None:
        return found
    why = "no data was given" if recommendation.data is None else "nothing was probed"
    return [Tile(_measure(recommendation), "unknown", (f"{why}: chosen by cost alone",)), *found]


def _measure(recommendation: Recommendation) -> str:
    return f"{recommendation.budget.metric_kind} on new images"


def _accuracy_tile(recommendation: Recommendation, accuracy: Accuracy) -> Tile:
    data, least = recommendation.data, recommendation.budget.min_accuracy
    base = data.base_accuracy if data else None
    notes = [f"95 % interval {view.interval_text(accuracy)}"]
    if data:
        notes.append(view.held_out_text(data, accuracy).replace(" held out", " images held out", 1))
    by_class = view.by_class_text(accuracy, recommendation)
    notes += [by_class] if by_class else []
    notes += [f"at least {view.percent(least)} asked for"] if least is not None else []
    before = f"{base.mean * 100:.1f} \N{RIGHTWARDS ARROW} " if base else ""
    told = "accuracy with its interval" + (
        f"; the line is the model as it is, {view.percent(base.mean)}" if base else ""
    )
    bar = Bar(100 * accuracy.low, 100 * accuracy.high, 100 * base.mean if base else None, told)
    return Tile(
        _measure(recommendation),
        f"{before}{view.percent(accuracy.mean)}",
        tuple(notes),
        bar,
    )


def _cost_tile(line: view.BudgetLine, full: float | None, more: str) -> Tile:
    """Against its limit; without one against full fine-tuning; else without a bar."""
    notes = [line.remark] if line.remark else []
    notes += [more] if more else []
    used = line.used or 0.0
    bar = None
    if line.share is not None and line.allowed:
        longest = max(used, line.allowed)
        told = f"{view.percent(line.share, 0)} of the limit, {line.allowed_text}"
        bar = Bar(0, 100 * used / longest, 100 * line.allowed / longest, told, line.share > 1)
        notes.insert(0, told)
    elif full:
        told = f"{view.percent(used / full, 0)} of full fine-tuning"
        bar = Bar(0, min(100 * used / full, 100), None, told)
        notes.insert(0, f"{told}; no limit")
    return Tile(line.name, line.used_text, tuple(notes), bar)


def wishes(recommendation: Recommendation) -> list[Wish]:
    """The most accurate, the least forgetting, and the cheapest by each cost, of what fits and was tried.

    Where data was given, only of what is not surely worse than the model as it is.
    """
    fitting = [evaluation for evaluation in recommendation.evaluations if evaluation.fits]
    tried = [evaluation for evaluation in fitting if evaluation.accuracy]
    base = recommendation.data.base_accuracy if recommendation.data else None
    pool = (
        [e for e in tried if e.accuracy and (base is None or e.accuracy.mean >= base.mean)]
        or tried
        or fitting
    )
    if not pool or (recommendation.outcome != "use" and recommendation.recommended is None):
        return []
    best: dict[str, Evaluation] = {}
    if tried:
        best["most accurate"] = max(
            pool, key=lambda e: (e.accuracy.finalist, e.accuracy.mean) if e.accuracy else (False, 0.0)
        )
    remembering = [e for e in pool if e.accuracy and e.accuracy.retained]
    if remembering:
        best["least forgetting"] = max(
            remembering, key=lambda e: e.accuracy.retained.mean if e.accuracy and e.accuracy.retained else 0.0
        )
    best["least memory"] = min(pool, key=lambda e: (e.cost.peak_memory_bytes, e.cost.flops.total))
    best["fewest FLOPs"] = min(pool, key=lambda e: (e.cost.flops.total, e.cost.peak_memory_bytes))
    best["least to ship"] = min(pool, key=lambda e: (e.cost.delta_bytes, e.cost.peak_memory_bytes))
    grouped: dict[str, list[str]] = {}
    for wish, evaluation in best.items():
        grouped.setdefault(evaluation.candidate.id, []).append(wish)
    return [
        Wish(tuple(names), recommendation.evaluation(identity), _carry_out(recommendation, identity))
        for identity, names in grouped.items()
    ]


def _carry_out(recommendation: Recommendation, identity: str) -> str:
    evaluation = recommendation.evaluation(identity)
    if evaluation.accuracy is None:
        return ""
    saved = _saved(recommendation) or "advice.json"
    words = ["peft-advisor", "apply", recommendation.model.source, saved, "--output", "tuned/"]
    if identity != recommendation.recommended:
        words += ["--candidate", evaluation.candidate.short]
    return shlex.join(words)


def evidence(recommendation: Recommendation) -> list[tuple[str, str]]:
    """How much the answer rests on, as (what, how much)."""
    data, evaluations = recommendation.data, recommendation.evaluations
    tried = [item for item in evaluations if item.accuracy]
    whole = [item.accuracy for item in tried if item.accuracy and item.accuracy.finalist]
    lines = [("candidates", f"{len(evaluations):,} priced, {sum(e.fits for e in evaluations):,} fit")]
    if data is None:
        return [*lines, ("accuracy", "unknown: no data was given")]
    predicted = sum(item.predicted is not None and item.accuracy is None for item in evaluations)
    text = f"{len(tried):,} of them, {len(whole):,} to the end"
    seeds = max((accuracy.seeds for accuracy in whole), default=1)
    text += f" (up to {seeds} seeds)" if seeds > 1 else ""
    lines.append(("tried", text + (f"; {predicted:,} predicted from those" if predicted else "")))
    untried = view.untried_methods(recommendation)
    if tried and untried:
        lines.append(("never tried", f"{', '.join(untried)}: {view.why_untried(recommendation)}"))
    lines.append(("images", view.split_text(recommendation, data)))
    independent = {accuracy.effective_samples for accuracy in whole if accuracy.effective_samples}
    if independent:
        lines.append(("of these", f"as much is told as by {min(independent):,} independent ones"))
    recalled = f", {data.probes_recalled:,} more from the store" if data.probes_recalled else ""
    took = f"{data.probes_run:,} trainings in {format_seconds(data.probe_seconds)}"
    lines.append(("probes", f"{took}{recalled}{view.how_probed_text(data)}"))
    return lines


def ranked_findings(recommendation: Recommendation) -> list[Finding]:
    """What looking over the data found, the weightiest first."""
    found = recommendation.data.findings if recommendation.data else ()
    return sorted(found, key=lambda finding: WEIGHTS.index(finding.weight))


def commands(recommendation: Recommendation) -> list[str]:
    """What to type next."""
    return [shlex.join(step.words) for step in next_steps(recommendation, _saved(recommendation))]


def _saved(recommendation: Recommendation) -> str | None:
    """The answer's JSON file, as the command that was typed names it."""
    try:
        words = shlex.split(str(recommendation.provenance.get("command", "")))
    except ValueError:  # a quote without its other half
        return None
    named = [after for word, after in pairwise(words) if word == "--json"]
    named += [word.removeprefix("--json=") for word in words if word.startswith("--json=")]
    return named[-1] if named and named[-1] != "-" else None
