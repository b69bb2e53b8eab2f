"""A check as SARIF 2.1.0 (OASIS), as GitHub's code scanning takes it."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePath
from typing import Any, get_args
from urllib.parse import quote

from advisor.check.records import RULES, CheckReport, Finding, Rule, TargetReport
from advisor.report.check import changes

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_ORDER = get_args(Rule)


def to_sarif(report: CheckReport) -> str:
    """A run with a result for each finding, at the line of the configuration that names the model."""
    driver = {
        "name": "peft-advisor",
        "version": _version(),
        "rules": [
            {
                "id": rule,
                "shortDescription": {"text": RULES[rule]},
                "fullDescription": {"text": RULES[rule]},
                "help": {"text": f"{RULES[rule]}. `peft-advisor check` says why, and which layers did it."},
            }
            for rule in _ORDER
        ],
    }
    results = [_result(report, target, finding) for target in report.targets for finding in target.findings]
    document = {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}],
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _result(report: CheckReport, target: TargetReport, finding: Finding) -> dict[str, Any]:
    layers = finding.layers[: changes.LAYERS_SHOWN]
    lines = [f"{changes.title(target)}: {changes.plain(finding.message)}", *map(changes.layer_line, layers)]
    place = _place(report, target)
    identity = "\n".join((finding.rule, target.model, target.target)).encode("utf-8", "replace")
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": _ORDER.index(finding.rule),
        "level": finding.level,
        "message": {"text": "\n".join(lines)},
        "locations": [
            {
                "physicalLocation": place,
                "logicalLocations": [{"fullyQualifiedName": changes.title(target), "kind": "module"}],
            }
        ],
        "partialFingerprints": {"peftAdvisor/v1": hashlib.sha256(identity).hexdigest()},
    }
    if layers:
        result["relatedLocations"] = [
            {
                "id": number,
                "physicalLocation": place,
                "logicalLocations": [
                    {
                        "name": changes.plain(layer.name),
                        "fullyQualifiedName": f"{changes.plain(target.model)}.{changes.plain(layer.name)}",
                        "kind": "member",
                    }
                ],
                "message": {"text": changes.layer_line(layer)},
            }
            for number, layer in enumerate(layers)
        ]
    return result


def _place(report: CheckReport, target: TargetReport) -> dict[str, Any]:
    path = PurePath(report.configuration or "pyproject.toml")
    uri = path.as_uri() if path.is_absolute() else quote(path.as_posix())
    return {"artifactLocation": {"uri": uri}, "region": {"startLine": report.lines.get(target.model, 1)}}


def _version() -> str:
    try:
        return version("peft-advisor")
    except PackageNotFoundError:  # run from a source tree
        return "0"
