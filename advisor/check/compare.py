"""What a change did: a target as it is now, held against its limits and against the baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields

from advisor.check.records import Checked, Figures, Finding, LayerChange, LayerFigures, Snapshot
from advisor.records import Budget
from advisor.units import format_bytes, format_count, format_flops

_UPDATE = "`peft-advisor check --update`"
# Of the candidate's figures: in words, and how they are printed.
FIGURES: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "peak_bytes": ("peak memory", format_bytes),
    "update_flops": ("FLOPs of an update", format_flops),
    "delta_bytes": ("bytes to ship", format_bytes),
    "trainable_parameters": ("trainable parameters", format_count),
}


def compare(now: Checked, before: Snapshot | None, allowed: float, *, expected: bool) -> list[Finding]:
    """Everything to be said, errors first.

    Args:
        before: None: the baseline has nothing of this target.
        allowed: by how much a cost may grow, as a fraction.
        expected: whether there is a baseline, so that the target ought to be in it.
    """
    findings = [*_of_limits(now, before)]
    if before is None:
        if expected:
            message = f"the baseline has nothing of this target; add it with {_UPDATE}"
            findings.append(Finding("baseline-missing", "error", message))
        return findings
    outdated = configured_otherwise(now.snapshot, before)
    if outdated:
        message = f"the baseline was made with another configuration: {outdated}; renew it with {_UPDATE}"
        findings.append(Finding("baseline-outdated", "warning", message))
    findings += _of_choice(now, before)
    findings += _of_costs(now, before, allowed)
    return sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.level))


def layer_changes(
    before: Mapping[str, LayerFigures], after: Mapping[str, LayerFigures]
) -> tuple[LayerChange, ...]:
    """The layers whose figures differ, the largest change of memory first; none where one side isn't known.

    A layer whose weight has another shape comes before those that only see larger inputs for it.
    """
    if not before or not after:  # not known
        return ()
    names = dict.fromkeys([*before, *after])
    changes = [
        LayerChange(name, before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    ]
    return tuple(sorted(changes, key=_weight, reverse=True))


def _weight(change: LayerChange) -> tuple[bool, int, int]:
    before, after = change.before, change.after
    reshaped = before is None or after is None or before.shape != after.shape
    memory, flops = (
        abs((getattr(after, name) if after else 0) - (getattr(before, name) if before else 0))
        for name in ("peak_bytes", "update_flops")
    )
    return reshaped, memory, flops


def _of_limits(now: Checked, before: Snapshot | None) -> Iterator[Finding]:
    if now.fits:
        return
    layers = layer_changes(before.layers, comparable_layers(now, before)) if before else ()
    yield Finding("budget-broken", "error", now.answer, layers)


def _of_choice(now: Checked, before: Snapshot) -> Iterator[Finding]:
    was, chosen = before.recommended, now.snapshot.recommended
    if was == chosen or chosen is None:  # that nothing fits is a broken limit
        return
    if was is None:
        message = f"{chosen} fits now, where nothing did; keep that with {_UPDATE}"
        yield Finding("cost-decreased", "note", message)
        return
    if now.machine not in before.machine_peak_bytes and now.snapshot.of_tensors == before.of_tensors:
        yield Finding(
            "machine-differs",
            "warning",
            f"{chosen} is recommended here instead of {was}, because of operators' workspace alone: that "
            "depends on the machine, and the baseline comes from others",
        )
        return
    yield Finding(
        "recommendation-flipped",
        "error",
        f"{flip_words(now, before)}; if that is meant, {_UPDATE}",
        layer_changes(before.layers, comparable_layers(now, before)),
    )


def flip_words(now: Checked, before: Snapshot) -> str:
    """That another candidate is recommended than before, and why."""
    was, chosen = before.recommended or "nothing", now.snapshot.recommended or "nothing"
    if now.of_baseline_broken:
        why = f": {was} no longer fits: {'; '.join(now.of_baseline_broken)}"
    elif now.of_baseline is not None:
        why = f": {was} still fits, but comes after it now"
    else:
        why = f": {now.of_baseline_failure}" if now.of_baseline_failure else ""
    return f"{chosen} is recommended instead of {was}{why}"


def _of_costs(now: Checked, before: Snapshot, allowed: float) -> Iterator[Finding]:
    figures = comparable_figures(now, before)
    if figures is None or before.figures is None:
        return
    grown, shrunk = cost_words(before.figures, figures, allowed)
    grown = grown or _grown_on_machine(now, before, allowed)
    layers = layer_changes(before.layers, comparable_layers(now, before))
    if grown:
        message = f"{before.recommended} costs more: {', '.join(grown)}; {_percent(allowed)} allowed"
        yield Finding("cost-increased", "error", message, layers)
    elif shrunk:
        message = f"{before.recommended} costs less: {', '.join(shrunk)}; keep that with {_UPDATE}"
        yield Finding("cost-decreased", "note", message, layers)


def cost_words(before: Figures, after: Figures, allowed: float) -> tuple[list[str], list[str]]:
    """The costs that grew by more than the allowed share, and those that shrank, with their figures."""
    grown: list[str] = []
    shrunk: list[str] = []
    for name, (words, show) in FIGURES.items():
        old, new = getattr(before, name), getattr(after, name)
        if exceeds(old, new, allowed):
            grown.append(f"{words} {_change(old, new, show)}")
        elif new < old:
            shrunk.append(f"{words} {_change(old, new, show)}")
    return grown, shrunk


def _grown_on_machine(now: Checked, before: Snapshot, allowed: float) -> list[str]:
    """The peak with workspace, where the baseline knows what it was on such a machine."""
    old = before.machine_peak_bytes.get(now.machine)
    new = (
        now.snapshot.machine_peak_bytes.get(now.machine)
        if before.recommended == now.snapshot.recommended
        else now.of_baseline_machine_peak_bytes
    )
    if old is None or new is None or not exceeds(old, new, allowed):
        return []
    return [f"peak memory with operators' workspace {_change(old, new, format_bytes)}"]


def exceeds(before: int, after: int, allowed: float) -> bool:
    """Whether a cost grew by more than the allowed share; what cost nothing may not begin to."""
    return after > before + allowed * before


def _change(before: int, after: int, show: Callable[[float], str]) -> str:
    change = f" ({(after - before) / before:+.1%})" if before else ""
    return f"{show(before)} -> {show(after)}{change}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g}%"


def comparable_figures(now: Checked, before: Snapshot) -> Figures | None:
    """The costs now, of the baseline's candidate; None: not known."""
    return now.snapshot.figures if now.snapshot.recommended == before.recommended else now.of_baseline


def comparable_layers(now: Checked, before: Snapshot) -> Mapping[str, LayerFigures]:
    """The layers now, under the baseline's candidate: what another one costs is no change of the model."""
    same = now.snapshot.recommended == before.recommended
    return now.snapshot.layers if same or not now.of_baseline_layers else now.of_baseline_layers


def configured_otherwise(now: Snapshot, before: Snapshot) -> str:
    """What differs between the two that is no cost; empty where nothing does."""
    differing = [
        f"{item.name.removesuffix('_bytes')} was {_shown(item.name, old)}, is {_shown(item.name, new)}"
        for item in fields(Budget)
        if (old := getattr(before.budget, item.name)) != (new := getattr(now.budget, item.name))
    ]
    differing += [
        f"{key} was {before.options.get(key) or 'not given'}, is {now.options.get(key) or 'not given'}"
        for key in dict.fromkeys([*before.options, *now.options])
        if before.options.get(key) != now.options.get(key)
    ]
    return ", ".join(differing)


def _shown(name: str, value: object) -> str:
    if value is None:
        return "not given"
    if name.endswith("_bytes") and isinstance(value, int):
        return format_bytes(value)
    return format_flops(value) if name == "flops" and isinstance(value, int) else str(value)
