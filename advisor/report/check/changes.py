"""What every format shows of a check: a target's figures and its layers, before and after, in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from advisor.check.records import CheckReport, Figures, LayerChange, LayerFigures, TargetReport
from advisor.solver import allowed_memory
from advisor.units import format_bytes, format_count, format_flops

LAYERS_SHOWN = 10
# Terminals and XML take no control characters; a model's names may hold any.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure."""

    words: str
    before: str  # empty where nothing is known
    after: str
    change: str  # such as +42.5%; empty where nothing changed


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
    failed = [target for target in report.targets if target.failed]
    count = len(report.targets)
    what = "1 target" if count == 1 else f"{count} targets"
    if report.exit_code == 2:
        broken = [t for t in failed if any(f.rule == "model-failed" for f in t.findings)]
        return f"{len(broken)} of {what} could not be checked"
    return f"{len(failed)} of {what} failed" if failed else f"{what} passed"


def figure_rows(target: TargetReport) -> list[Row]:
    """The candidate's costs before and after: the baseline's candidate, where there is one."""
    before = target.before.figures if target.before is not None else None
    after = _figures_after(target)
    rows = [
        Row(
            words,
            show(getattr(before, name)) if before is not None else "",
            show(getattr(after, name)) if after is not None else "",
            change(getattr(before, name), getattr(after, name)) if before and after else "",
        )
        for name, (words, show) in _FIGURES.items()
    ]
    return rows if before is not None or after is not None else []


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
    return {
        "layer": plain(layer.name),
        "type": _both(layer, lambda figures: plain(figures.layer_type)),
        "weight": _both(layer, lambda figures: "x".join(map(str, figures.shape)) or "none"),
        "peak memory": _both(layer, lambda figures: format_bytes(figures.peak_bytes)),
        "FLOPs": _both(layer, lambda figures: format_flops(figures.update_flops)),
    }


def layer_line(layer: LayerChange) -> str:
    """The same in one line."""
    words = layer_words(layer)
    return (
        f"{words['layer']} ({words['type']}): weight {words['weight']}, peak memory {words['peak memory']}, "
        f"{words['FLOPs']}"
    )


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
    return f"{(after - before) / before:+.1%}" if before else "new"


def _both(layer: LayerChange, show: Callable[[LayerFigures], str]) -> str:
    if layer.before is None or layer.after is None:
        there = layer.after or layer.before
        assert there is not None  # noqa: S101 - a change has one of them
        return f"{show(there)} ({'new' if layer.before is None else 'gone'})"
    before, after = show(layer.before), show(layer.after)
    number, _, unit = before.partition(" ")
    if before == after:
        return before
    if unit and after.endswith(f" {unit}"):
        return f"{number} -> {after}"
    return f"{before} -> {after}"


def _figures_after(target: TargetReport) -> Figures | None:
    now, before = target.now, target.before
    if now is None:
        return None
    if before is None or before.recommended is None or before.recommended == now.snapshot.recommended:
        return now.snapshot.figures
    return now.of_baseline


_FIGURES: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "peak_bytes": ("peak memory", format_bytes),
    "update_flops": ("FLOPs of an update", format_flops),
    "delta_bytes": ("bytes to ship", format_bytes),
    "trainable_parameters": ("trainable parameters", format_count),
}
