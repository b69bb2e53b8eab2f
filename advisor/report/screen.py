"""A recommendation on one screen of a terminal: what to use, what it takes, why not another, what to type.

Every line is made to fit the width, so nothing wraps; what there is no room for is in `--all`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rich.cells import cell_len
from rich.text import Text

from advisor.records import BASELINE, Accuracy, Evaluation, Recommendation
from advisor.report import view
from advisor.report.candidate_lines import candidate_lines, legend
from advisor.report.fitted import cut, folded, shell_lines
from advisor.report.next_steps import next_steps
from advisor.solver import LEAST, cheaper_text, describe, rate_words, whole_memory

LINES = 24
BEST = 5  # candidates shown
OBVIOUS = (BASELINE, "lora")  # methods that everybody asks about
_COMMAND_LINES = 3
_ANSWER_LINES = 5
_FEWEST_LINES = 4  # of candidates and warnings
_WARNED = 2  # warnings that candidates leave room for: the weightiest, the evidence
_BAR = 14
_APART = (2, 1, 5, 3, 4)  # sections with an empty line before them, as far as there is room

Lines = list[Text]


def screen(recommendation: Recommendation, width: int, saved: str | None = None) -> Lines:
    """At most `LINES` lines of that many columns.

    For the best five, what an answer can do without gives way: lines left empty, the words for what the
    choice's name says, the second command written out, and, where even few candidates have no room, why not
    another.

    Args:
        saved: the answer's JSON file, for the commands to type next.
    """
    answer = answer_lines(recommendation, width)
    budgets = budget_lines(recommendation, width)
    why = _why_not(recommendation, width)
    steps = _steps(recommendation, width, saved, written_out=2)
    warnings = _warnings(recommendation)
    wanted = BEST + 2 + min(len(warnings), _WARNED)

    def room() -> int:
        return LINES - sum(map(len, (answer, budgets, why, steps)))

    if room() < wanted:
        answer = answer_lines(recommendation, width, in_words=False)
    if room() < wanted:
        steps = _steps(recommendation, width, saved, written_out=1)
    while why and room() < _FEWEST_LINES:  # the choice and its kind go before what was not chosen
        why.pop()
    candidates = _candidates(recommendation, width, room() - min(len(warnings), _WARNED), saved)
    told = _told(warnings, width, room() - len(candidates))
    sections = (answer, budgets, candidates, why, told, steps)
    apart = _APART[: max(LINES - sum(map(len, sections)), 0)]
    lines: Lines = []
    for number, section in enumerate(sections):
        lines += [Text(), *section] if section and number in apart else section
    return lines


def answer_lines(recommendation: Recommendation, width: int, in_words: bool = True) -> Lines:
    """What to do, and what is won and lost by it, one below the other.

    Args:
        in_words: what the choice's name says is told in words, too.
    """
    chosen, data = view.chosen(recommendation), recommendation.data
    if chosen is None:
        style = "bold red" if recommendation.outcome == "none" else "bold green"
        first, *rest = folded(recommendation.answer or "No answer was worked out.", width, _ANSWER_LINES)
        return [Text(first, style), *map(Text, rest)]
    name = chosen.candidate.short
    words = f": {describe(chosen)}" if in_words else f", {rate_words(chosen)}"
    whole = _whole_memory(chosen, recommendation, width)
    wrong = data.error if data else None
    before = folded(f"First of all: {wrong.text}", width, _ANSWER_LINES) if wrong else []
    lines = [Text(line, "bold red") for line in before]
    told = folded(f"Use {name}" + (words if words[2:] not in (name, "") else ""), width, 2)
    lines += [Text(line, "bold green") for line in told]
    if chosen.accuracy is None:
        least = LEAST[recommendation.budget.prefer]
        unknown = "no data was given" if data is None else "nothing was probed"
        unsure = f"  accuracy  unknown, as {unknown}: of all that fit, the {least}"
        return [*lines, *whole, Text(cut(unsure, width))]
    base = data.base_accuracy if data else None
    held_out = [f", {text}" for text in view.held_out_texts(data, chosen.accuracy)] if data else []
    metric = recommendation.budget.metric_kind
    lines.append(_change(metric, base, chosen.accuracy, held_out, width))
    if data and (how := view.how_probed_text(data)):
        lines.append(Text(cut(f"  probes    {how.removeprefix(', ')}", width)))
    below = cheaper_text(chosen, recommendation.evaluations)
    if below:
        unnamed, _, name = below.rpartition(", ")
        told = [f"  {'':8}  {text}; --tolerance 0 takes it" for text in (f"{unnamed}, {name}", unnamed)]
        lines.append(Text(cut(next((line for line in told if cell_len(line) <= width), told[-1]), width)))
    by_class = view.by_class_text(chosen.accuracy, recommendation)
    if by_class:
        lines.append(Text(cut(f"  classes   {by_class}", width)))
    if chosen.accuracy.retained:
        old = base.retained if base else None
        is_lost = old and old.mean > chosen.accuracy.retained.mean
        remedy = "; see --min-retained" if is_lost and recommendation.budget.min_retained is None else ""
        lines.append(_change("old data", old, chosen.accuracy.retained, [remedy], width))
    return lines + whole


def _whole_memory(chosen: Evaluation, recommendation: Recommendation, width: int) -> Lines:
    if recommendation.runtime is None:
        return []
    told = whole_memory(chosen, recommendation.budget, recommendation.runtime)
    return [Text(cut(f"  {'memory':<8}  {told}", width))]


def budget_lines(recommendation: Recommendation, width: int) -> Lines:
    """Limits against use, with bars; a floor that isn't asked for is no budget."""
    chosen, model = view.chosen(recommendation), recommendation.model
    lines = [x for x in view.budget_lines(recommendation) if not x.at_least or x.allowed is not None]
    if not lines or recommendation.outcome == "leave":
        return []
    limits = [line.allowed_text for line in lines if line.allowed is not None and not line.at_least]
    limit_width = max(map(len, limits), default=0)
    size = "x".join(map(str, recommendation.input_size))
    title = f"One update of {model.name}, batch {recommendation.batch_size} of {size} ({model.source})"
    made = [Text(cut(title, width), "underline")]
    for line in lines:
        used = view.percent(line.used) if line.at_least and line.used is not None else line.used_text
        remark = "; ".join(filter(None, [_ran(chosen, line.name), line.remark]))
        text, over = f"{line.name:<16} {used:>10} ", False
        if line.allowed is None:
            text += f" {remark}"
        elif line.at_least:
            over = (line.used or 0.0) < line.allowed
            text += f"{line.allowed_text}  {remark}"
        else:
            share = line.share or 0.0
            over, filled = share > 1, min(round(_BAR * share), _BAR)
            bar = f"{_part(share):>6}  {'#' * filled:-<{_BAR}}"
            text += f"of {line.allowed_text:<{limit_width}}{bar}  {remark}"
        made.append(Text(cut(text.rstrip(), width), "red" if over else ""))
    for name, of in (("time per update", view.time_of), ("energy", view.energy_of)):
        told = of(chosen, recommendation) if chosen else None
        if told is not None:
            made.append(Text(cut(f"{name:<16} {told[0]:>10}  {told[1]}", width)))
    return made


def _part(share: float) -> str:
    """Of a limit, in a column that is as wide as `999 %`."""
    return view.percent(share, 0) if share < 9.995 else "> 9 x"


def _change(name: str, before: Accuracy | None, after: Accuracy, more: Sequence[str], width: int) -> Text:
    """What it was and is; with the first of `more` that leaves room for the interval."""
    if before is None:
        text = view.accuracy_text(after)
    else:
        points = (after.mean - before.mean) * 100
        gain = f"{points:+.1f} points".replace("-", "\N{MINUS SIGN}")
        text = f"{before.mean * 100:.1f} -> {view.accuracy_text(after)}, {gain}"
    whole = [f"  {name:<8}  {text}{tail}" for tail in (*more, "")]
    return Text(cut(next((line for line in whole if cell_len(line) <= width), whole[-1]), width))


def _ran(chosen: Evaluation | None, line: str) -> str:
    if chosen is None or line != "peak memory":
        return ""
    if chosen.measured is None:
        return "not run"
    return "run within it" if chosen.measured.cap_bytes is not None else "run unlimited"


def _candidates(recommendation: Recommendation, width: int, room: int, saved: str | None) -> Lines:
    """The best that fit; where none does, those that come nearest to it; and where all others are."""
    evaluations = view.ordered(recommendation)
    fitting = [item for item in evaluations if item.fits]
    shown = (fitting or view.nearest(evaluations))[: min(BEST, max(room - 2, 1))]
    if not shown:
        return []
    header, *rows = candidate_lines(shown, recommendation, width, whole_names=False)
    header.stylize("underline")
    more = []
    if len(fitting) > len(shown):
        more.append(f"and {len(fitting) - len(shown)} more that fit")
    others = len(evaluations) - max(len(fitting), len(shown))
    if others:
        more.append(f"{others} that don't" if more else f"and {others} more that don't fit")
    again = [shlex.join(["peft-advisor", "report", saved, "--all"])] if saved else []
    tails = [f"{', '.join(more)}: {shown_by}" for shown_by in (*again, "--all")] if more else [""]
    notes = ["  " + "   ".join(filter(None, [tail, *legend(shown)])) for tail in tails]
    note = next((text for text in notes if cell_len(text) <= width), cut(notes[-1], width))
    return [header, *rows, *([Text(note, "dim")] if note.strip() else [])]


def _why_not(recommendation: Recommendation, width: int) -> Lines:
    """Of the methods that everybody asks about; where nothing fits, what would change that."""
    chosen = view.chosen(recommendation)
    if recommendation.outcome == "leave":
        return []
    if chosen is None:
        return [Text(cut(item.sentence, width)) for item in recommendation.relaxations[:2]]
    reasons: dict[str, str] = {}
    for method in OBVIOUS:
        item = view.plainest(recommendation, method)
        if item and method != chosen.candidate.method:
            known = ""
            if item.predicted and not item.accuracy:
                known = f"{view.known_mean_text(item)}; "
            elif chosen.accuracy and item.fits and not item.accuracy:
                known = "not tried; "
            reasons[item.candidate.short] = known + view.verdict_text(item, chosen)
        elif method in recommendation.not_applicable:
            reasons[method] = recommendation.not_applicable[method]
    longest = max(map(len, reasons), default=0)
    return [Text(cut(f"Why not {name:<{longest}}  {why}", width)) for name, why in reasons.items()]


def _warnings(recommendation: Recommendation) -> list[str]:
    """By weight: what the engine warns of, what the choice doesn't rest on, what was taken for granted.

    How much was tried is always told, so it comes second at least.
    """
    evidence = view.evidence_text(recommendation)
    assumed = [f"assumed: {text}" for text in recommendation.assumed]
    first, others = recommendation.warnings[:1], recommendation.warnings[1:]
    return [*first, *([evidence] if evidence else []), *others, *assumed]


def _told(warnings: Sequence[str], width: int, room: int) -> Lines:
    """As many as there is room for; the last line tells how many are left."""
    shown = warnings[: max(room, 0)]
    left = len(warnings) - len(shown)
    tails = [""] * (len(shown) - 1) + [f"; {left} more warning{'s' * (left > 1)}: --all" if left else ""]
    fitted = zip(shown, tails, strict=False)
    return [Text(cut(f"! {warning}", width - len(tail)) + tail, "yellow") for warning, tail in fitted]


def _steps(recommendation: Recommendation, width: int, saved: str | None, written_out: int) -> Lines:
    """What to type next: of the first `written_out` commands all that a shell needs."""
    lines: Lines = []
    for number, step in enumerate(next_steps(recommendation, saved)):
        command = shell_lines(step.words, width, len("Next: "))
        if len(command) > (_COMMAND_LINES if number < written_out else 1):
            command = [cut(f"      {step.brief}", width)]
        if number == 0:
            command[0] = command[0].replace("      ", "Next: ", 1)
        lines += map(Text, command)
    return lines
