"""What every format shows of a check: a target's figures and its layers, before and after, in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from advisor.check.compare import FIGURES
from advisor.check.records import CheckReport, Figures, LayerChange, LayerFigures, TargetReport
from advisor.solver import allowed_memory
from advisor.units import format_bytes, format_flops

LAYERS_SHOWN = 10
_LEAST_SHARE = 0.0005  # what is not shown as 0.0%
# Neither terminals nor XML take control characters, and some turn a line's direction; names may hold any.
_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)
_UPDATE = "`peft-advisor check --update`"
_DRIFT = {"recommendation-flipped", "cost-increased", "baseline-missing", "baseline-outdated"}


@dataclass(frozen=True, slots=True)
class Row:
    """One figure."""

    words: str
    before: str  # empty where nothing is known
    after: str
    change: str  # such as +42.5%; empty where nothing changed
    chosen: str = ""  # of the candidate that is recommended now, where that is another one


def plain(text: str) -> str:
    """Without what a terminal or a document can't show: that is written as an escape."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def state(report: CheckReport, target: TargetReport) -> str:
    """Of one target, in a word."""
    if report.is_difference:
        return "changed" if target.findings else "same"
    return "FAIL" if target.failed else "pass"


def title(target: TargetReport) -> str:
    """The model's name, and the target's where it has one of its own."""
    return plain(target.model if target.target == "default" else f"{target.model} ({target.target})")


def verdict(report: CheckReport) -> str:
    """The whole check in one sentence."""
    if report.is_difference:
        changed = sum(bool(target.findings) for target in report.targets)
        return f"{changed} of {len(report.targets)} changed" if changed else "nothing changed"
    count = len(report.targets)
    what = "1 target" if count == 1 else f"{count} targets"
    broken = sum(could_not_be_checked(target) for target in report.targets)
    failed = sum(target.failed for target in report.targets) - broken
    if broken:
        return f"{broken} of {what} could not be checked" + (f", {failed} failed" if failed else "")
    if failed:
        return f"{failed} of {what} failed"
    return f"{what} passed" if count else "nothing to check"


def could_not_be_checked(target: TargetReport) -> bool:
    """Whether nothing is known of it, as its model failed."""
    return any(finding.rule == "model-failed" for finding in target.findings)


def next_step(report: CheckReport) -> str:
    """How to make the baseline agree where a change is meant; empty where that is no question."""
    rules = {finding.rule for target in report.targets for finding in target.findings}
    if report.is_difference or not rules & _DRIFT:
        return ""
    limit = " A broken limit stays broken, whatever the baseline says." if "budget-broken" in rules else ""
    return f"If the new costs are meant, run {_UPDATE} and commit the baseline.{limit}"


def state_words(target: TargetReport) -> str:
    """Of a target with nothing to be said of it: how it stands to its baseline."""
    if target.before is None:
        return "within its limits"
    return "within what is allowed" if any(row.change for row in figure_rows(target)) else "no change"


def figure_rows(target: TargetReport) -> list[Row]:
    """The candidate's costs before and after: the baseline's candidate, where there is one.

    Peak memory is that of tensors alone, which is the same everywhere; then that with operators' workspace,
    as this machine has it.
    """
    before = target.before.figures if target.before is not None else None
    after = figures_after(target)
    if before is None and after is None:
        return []
    now, chosen = target.now, None
    if now is not None and target.before is not None and _is_flip(target):
        chosen = now.snapshot.figures
    rows = [
        _row(
            words,
            show,
            *(getattr(each, name) if each is not None else None for each in (before, after, chosen)),
        )
        for name, (words, show) in FIGURES.items()
    ]
    peaks = _with_workspace(target)
    if any(peak is not None for peak in peaks[1:]):
        rows.insert(1, _row("with operators' workspace", format_bytes, *peaks))
    return rows


def _row(
    words: str, show: Callable[[float], str], before: int | None, after: int | None, chosen: int | None
) -> Row:
    was, is_now, instead = ("" if value is None else show(value) for value in (before, after, chosen))
    return Row(words, was, is_now, "" if before is None or after is None else change(before, after), instead)


def _with_workspace(target: TargetReport) -> tuple[int | None, int | None, int | None]:
    """The peak on this kind of machine, before, after and of the new choice; None where it isn't known."""
    now, before = target.now, target.before
    if now is None:
        return None, None, None
    chosen = now.snapshot.machine_peak_bytes.get(now.machine)
    if before is None or not _is_flip(target):
        return (before.machine_peak_bytes.get(now.machine) if before is not None else None), chosen, None
    return before.machine_peak_bytes.get(now.machine), now.of_baseline_machine_peak_bytes, chosen


def _is_flip(target: TargetReport) -> bool:
    now, before = target.now, target.before
    return (
        now is not None
        and before is not None
        and before.recommended is not None
        and before.recommended != now.snapshot.recommended
    )


def candidate_change(target: TargetReport) -> str:
    """The recommended candidate, or that of before and that of now."""
    now = target.now.snapshot.recommended if target.now is not None else None
    before = target.before.recommended if target.before is not None else now
    if target.now is None:
        return plain(before or "")
    words = [plain(name) if name is not None else "nothing fits" for name in (before, now)]
    return words[0] if words[0] == words[1] else " -> ".join(words)


def compared_candidate(target: TargetReport) -> str:
    """The candidate that `figure_rows` are of."""
    if target.before is not None and target.before.recommended is not None:
        return plain(target.before.recommended)
    now = target.now.snapshot.recommended if target.now is not None else None
    return plain(now or "")


def changed_layers(target: TargetReport) -> tuple[LayerChange, ...]:
    """Of the first finding that names some: all of them are of the same change."""
    return next((finding.layers for finding in target.findings if finding.layers), ())


def layer_words(layer: LayerChange) -> dict[str, str]:
    """Of one layer: its type, weight, memory at the peak and FLOPs, each with before and after."""
    state = "new" if layer.before is None else "gone" if layer.after is None else ""
    kind = _both(layer, lambda figures: plain(figures.layer_type))
    return {
        "layer": plain(layer.name),
        "type": "no layer's" if layer.name == kind == "other" else kind,
        "state": state,  # empty where it is there before and after
        "weight": _both(layer, lambda figures: "x".join(map(str, figures.shape))),
        "peak memory": _both(layer, lambda figures: format_bytes(figures.peak_bytes)),
        "FLOPs": _both(layer, lambda figures: format_flops(figures.update_flops)),
    }


def layer_line(layer: LayerChange) -> str:
    """The same in one line."""
    what, costs = layer_parts(layer)
    return f"{what}: {costs}"


def layer_parts(layer: LayerChange) -> tuple[str, str]:
    """What it is, and what it costs."""
    words = layer_words(layer)
    kind = ", ".join(filter(None, (words["type"], words["state"])))
    weight = f" {words['weight']}" if words["weight"] else ""
    return f"{words['layer']} ({kind}){weight}", f"{words['peak memory']} at the peak, {words['FLOPs']}"


def more_layers(layers: Sequence[LayerChange], shown: int) -> str:
    """`and 3 more layers`; empty where all are shown."""
    more = len(layers) - shown
    return "" if more <= 0 else f"and {more} more layer{'s' * (more > 1)}"


def choice_words(target: TargetReport) -> str:
    """What is recommended now and what it takes, against its limits; empty where nothing is."""
    now = target.now
    if now is None or now.snapshot.recommended is None or now.snapshot.figures is None:
        return ""
    budget, figures = now.snapshot.budget, now.snapshot.figures
    peak = now.snapshot.machine_peak_bytes.get(now.machine, figures.peak_bytes)
    allowed = allowed_memory(budget)
    parts = (
        (format_bytes, peak, allowed, "at the peak"),
        (format_flops, figures.update_flops, budget.flops, "an update"),
        (format_bytes, figures.delta_bytes, budget.storage_bytes, "to ship"),
    )
    said = [
        f"{show(used)}{f' of {show(most)}' if most is not None else ''} {what}"
        for show, used, most, what in parts
    ]
    return f"{plain(now.snapshot.recommended)}: {', '.join(said)}"


def change(before: int, after: int) -> str:
    """`+42.5%`; empty where nothing changed, and in words where there was nothing."""
    if before == after:
        return ""
    if not before:
        return "new"
    share = (after - before) / before
    return f"{share:+.1%}" if abs(share) >= _LEAST_SHARE else f"{'+' if share > 0 else '-'}<0.1%"


def _both(layer: LayerChange, show: Callable[[LayerFigures], str]) -> str:
    if layer.before is None or layer.after is None:
        there = layer.after or layer.before
        return show(there) if there is not None else ""
    before, after = show(layer.before), show(layer.after)
    if before == after:
        return before
    before, after = before or "none", after or "none"
    number, _, unit = before.partition(" ")
    if unit and after.endswith(f" {unit}"):
        return f"{number} -> {after}"
    return f"{before} -> {after}"


def figures_after(target: TargetReport) -> Figures | None:
    """What the candidate that `figure_rows` are of costs now; None: it isn't known."""
    now, before = target.now, target.before
    if now is None:
        return None
    if before is None or not _is_flip(target):
        return now.snapshot.figures
    return now.of_baseline
