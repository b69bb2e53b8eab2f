"""A check as JSON; `schema.json` beside this file documents every key."""

from __future__ import annotations

import json
from typing import Any

from advisor.check.records import CheckReport, LayerChange, TargetReport
from advisor.plain import encode

SCHEMA_VERSION = 1


def dumps(report: CheckReport) -> str:
    """JSON text, indented. Units are in the names: bytes, FLOPs (1 multiply-add = 2 FLOPs)."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "exit_code": report.exit_code,
        "configuration": report.configuration,
        "allowed_increase": report.allowed_increase,
        "targets": [_target(target) for target in report.targets],
    }
    return json.dumps(_well_formed(document), indent=2, allow_nan=False) + "\n"


def _well_formed(value: Any) -> Any:
    """Without lone surrogates, which a file's name may hold and most readers of JSON refuse."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_well_formed(key): _well_formed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_well_formed(item) for item in value]
    return value


def _target(target: TargetReport) -> dict[str, Any]:
    now, before = target.now, target.before
    return {
        "model": target.model,
        "target": target.target,
        "failed": target.failed,
        "answer": now.answer if now is not None else None,
        "fits": now.fits if now is not None else None,
        "machine": now.machine if now is not None else None,
        "now": _snapshot(now.snapshot) if now is not None else None,
        "before": _snapshot(before) if before is not None else None,
        # What the baseline's candidate costs now, where it is no longer the one recommended.
        "of_baseline": encode(now.of_baseline) if now is not None else None,
        "findings": [
            {
                "rule": finding.rule,
                "level": finding.level,
                "message": finding.message,
                "layers": [_layer(layer) for layer in finding.layers],
            }
            for finding in target.findings
        ],
        "warnings": list(now.warnings) if now is not None else [],
    }


def _snapshot(snapshot: Any) -> dict[str, Any]:
    encoded: dict[str, Any] = encode(snapshot)
    del encoded["layers"], encoded["of_tensors"]
    return encoded


def _layer(layer: LayerChange) -> dict[str, Any]:
    return {"name": layer.name, "before": encode(layer.before), "after": encode(layer.after)}
