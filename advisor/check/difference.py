"""What changed between two models, two baselines or two saved answers, in any combination."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from advisor.check import baseline as baselines
from advisor.check.compare import (
    comparable_figures,
    comparable_layers,
    configured_otherwise,
    cost_words,
    flip_words,
    layer_changes,
)
from advisor.check.configuration import DEFAULT_TARGET
from advisor.check.records import (
    Checked,
    CheckReport,
    Figures,
    Finding,
    LayerFigures,
    Snapshot,
    TargetReport,
)
from advisor.records import Evaluation, Recommendation
from advisor.units import format_percent, format_percents

Targets = Mapping[tuple[str, str], Checked]  # by model and target


def of_baseline(path: Path) -> Targets:
    """What a baseline holds, as if it had just been found. Raises InputError."""
    return {
        (model, target): _as_checked(snapshot)
        for model, targets in (baselines.read(path) or {}).items()
        for target, snapshot in targets.items()
    }


def of_answer(saved: Recommendation) -> Targets:
    """What a saved answer recommends; its layers are told by type."""
    chosen = saved.evaluation(saved.recommended) if saved.recommended is not None else None
    snapshot = Snapshot(
        budget=saved.budget,
        options={
            "model": saved.model.source,
            "batch-size": str(saved.batch_size),
            "input-size": "x".join(map(str, saved.input_size)),
        },
        recommended=saved.recommended,
        figures=_figures(chosen) if chosen else None,
        layers=_by_type(chosen) if chosen else {},
        # As the answer told it; what operators take besides tensors is that of a machine.
        machine_peak_bytes={str(saved.provenance.get("machine", "")): chosen.cost.peak_memory_bytes}
        if chosen
        else {},
    )
    return {(saved.model.name, DEFAULT_TARGET): replace(_as_checked(snapshot), answer=saved.answer)}


def with_candidate_of(after: Checked, before: Snapshot, saved: Recommendation) -> Checked:
    """With what a saved answer says of the candidate that was recommended before, where it is another one."""
    found = [e for e in saved.evaluations if e.candidate.id == before.recommended]
    if not found or before.recommended == after.snapshot.recommended:
        return after
    return replace(
        after,
        of_baseline=_figures(found[0]),
        of_baseline_layers=_by_type(found[0]),
        of_baseline_broken=tuple(violation.reason for violation in found[0].violations),
    )


def accuracy_change(before: Recommendation, after: Recommendation) -> Finding | None:
    """Of the two recommended candidates, where both were tried on data."""
    accuracies = [
        saved.evaluation(saved.recommended).accuracy if saved.recommended is not None else None
        for saved in (before, after)
    ]
    old, new = accuracies
    if old is None or new is None:
        return None
    gain = (new.mean - old.mean) * 100
    told = [
        f"{format_percent(each.mean)} ({format_percents(each.low, each.high)} of {each.samples:,})"
        for each in (old, new)
    ]
    return Finding("accuracy-changed", "note", f"accuracy {' -> '.join(told)}, {gain:+.1f} points")


def difference(before: Targets, after: Targets, more: Mapping[tuple[str, str], Finding]) -> CheckReport:
    """A report of all that differs.

    One model against another one is told under the latter's name.

    Args:
        more: what else is to be said, by model and target of `after`.
    """
    alone = next(iter(before.values())) if len(before) == len(after) == 1 else None
    reports = []
    for key, now in after.items():
        old = alone or before.get(key)
        snapshot = old.snapshot if old is not None else None
        if snapshot is not None and not snapshot.layers.keys() & now.snapshot.layers.keys():
            snapshot = replace(snapshot, layers={})  # told by layer and by type: nothing compares
            now = replace(now, snapshot=replace(now.snapshot, layers={}), of_baseline_layers={})  # noqa: PLW2901
        findings = [*_notes(now, snapshot), *([more[key]] if key in more else [])]
        reports.append(TargetReport(*key, tuple(findings), now, snapshot))
    for key, old in {} if alone else before.items():
        if key not in after:
            findings = [Finding("baseline-missing", "note", "is no longer there")]
            reports.append(TargetReport(*key, tuple(findings), None, old.snapshot))
    return CheckReport(tuple(reports), "", allowed_increase=0.0, is_difference=True)


def _notes(now: Checked, before: Snapshot | None) -> Iterator[Finding]:
    if before is None:
        yield Finding("baseline-missing", "note", "was not there before")
        return
    layers = layer_changes(before.layers, comparable_layers(now, before))
    configured = configured_otherwise(now.snapshot, before)
    if configured:
        yield Finding("baseline-outdated", "note", f"asked otherwise: {configured}", layers)
    if now.snapshot.recommended != before.recommended:
        yield Finding("recommendation-flipped", "note", flip_words(now, before), layers)
    figures = comparable_figures(now, before)
    if figures is not None and before.figures is not None:
        grown, shrunk = cost_words(before.figures, figures, 0.0)
        if grown:
            yield Finding(
                "cost-increased", "note", f"{before.recommended} costs more: {', '.join(grown)}", layers
            )
        if shrunk:
            yield Finding(
                "cost-decreased", "note", f"{before.recommended} costs less: {', '.join(shrunk)}", layers
            )


def _as_checked(snapshot: Snapshot) -> Checked:
    machine = next(iter(snapshot.machine_peak_bytes), "")
    answer = f"use {snapshot.recommended}" if snapshot.recommended is not None else "nothing fits"
    return Checked(snapshot, machine, snapshot.recommended is not None, answer)


def _figures(evaluation: Evaluation) -> Figures:
    cost = evaluation.cost
    peak = cost.peak_memory_bytes if cost.tensor_peak_bytes is None else cost.tensor_peak_bytes
    return Figures(cost.trainable_parameters, cost.delta_bytes, cost.flops.total, peak)


def _by_type(evaluation: Evaluation) -> dict[str, LayerFigures]:
    return {
        f"all {kind} layers": LayerFigures(
            kind, (), share.trainable_parameters, share.flops.total, share.peak_bytes
        )
        for kind, share in evaluation.cost.by_layer_type.items()
    }
