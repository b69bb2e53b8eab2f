"""A check as SARIF 2.1.0 (OASIS), as GitHub's code scanning takes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePath
from typing import Any, get_args
from urllib.parse import quote

from advisor.check.records import RULES, CheckReport, Finding, Level, Rule, TargetReport
from advisor.errors import EXIT_WRONG_INPUT
from advisor.report.check import changes

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_ORDER: tuple[Rule, ...] = get_args(Rule)
# What to do about each.
_HELP: Mapping[Rule, str] = {
    "budget-broken": (
        "Make the layers that are named cheaper, loosen the target's limits in the configuration, or "
        "let more methods be used. Renewing the baseline does not help."
    ),
    "recommendation-flipped": (
        "The method that the baseline has no longer fits, or another one takes less. If that is "
        "meant, run `peft-advisor check --update` and commit the baseline."
    ),
    "cost-increased": (
        "The layers that are named cost more than before. Undo that, or if it is meant, run `peft- "
        "advisor check --update` and commit the baseline. `fail-on-increase` says how much growth is "
        "allowed."
    ),
    "cost-decreased": (
        "Run `peft-advisor check --update` and commit the baseline, and the lower costs are what is "
        "held from then on."
    ),
    "baseline-outdated": (
        "Limits, input size, batch size or other options have changed since the baseline was made. "
        "Run `peft-advisor check --update` and commit the baseline."
    ),
    "baseline-missing": "Run `peft-advisor check --update` and commit the baseline.",
    "model-failed": (
        "The model could not be loaded or priced, so nothing is known of its costs. What its code "
        "printed is in the check's stderr."
    ),
    "accuracy-changed": "Two answers that were found with data differ in accuracy.",
    "machine-differs": (
        "What operators need on top of tensors depends on the processor and on torch's release, and "
        "the baseline comes from another kind of machine. `peft-advisor check --update` adds this "
        "one."
    ),
}
_LEVELS: Mapping[Rule, Level] = {
    "cost-decreased": "note",
    "accuracy-changed": "note",
    "baseline-outdated": "warning",
    "machine-differs": "warning",
}
_SEVERITIES: Mapping[Level, str] = {
    "error": "error",
    "warning": "warning",
    "note": "recommendation",
}  # GitHub's


def to_sarif(report: CheckReport) -> str:
    """A run with a result for each finding, at the line of the configuration that names the model."""
    driver = {"name": "peft-advisor", "version": _version(), "rules": [_rule(rule) for rule in _ORDER]}
    results = [_result(report, target, finding) for target in report.targets for finding in target.findings]
    warnings = [
        {
            "level": "warning",
            "message": {"text": _message(f"{changes.title(target)}: {changes.plain(warning)}")},
        }
        for target in report.targets
        for warning in (target.now.warnings if target.now is not None else ())
    ]
    invocation = {
        "executionSuccessful": report.exit_code != EXIT_WRONG_INPUT,
        "exitCode": report.exit_code,
        "toolExecutionNotifications": warnings,
    }
    run = {
        "tool": {"driver": driver},
        "automationDetails": {"id": "peft-advisor/check/"},
        "invocations": [invocation],
        "columnKind": "unicodeCodePoints",
        "results": results,
    }
    document = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _rule(rule: Rule) -> dict[str, Any]:
    level = _LEVELS.get(rule, "error")
    return {
        "id": rule,
        "name": "".join(word.capitalize() for word in rule.split("-")),
        "shortDescription": {"text": RULES[rule]},
        "fullDescription": {"text": f"{RULES[rule]}."},
        "help": {"text": _HELP[rule]},
        "defaultConfiguration": {"level": level},
        "properties": {"tags": ["fine-tuning", "cost"], "problem.severity": _SEVERITIES[level]},
    }


def _result(report: CheckReport, target: TargetReport, finding: Finding) -> dict[str, Any]:
    layers = finding.layers[: changes.LAYERS_SHOWN]
    more = changes.more_layers(finding.layers, len(layers))
    lines = [f"{changes.title(target)}: {changes.plain(finding.message)}", *map(changes.layer_line, layers)]
    lines += [more] if more else []
    place = _place(report, target)
    identity = "\n".join((finding.rule, target.model, target.target)).encode("utf-8", "replace")
    digest = hashlib.sha256(identity).hexdigest()
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": _ORDER.index(finding.rule),
        "level": finding.level,
        "message": {"text": _message("\n".join(lines))},
        "locations": [
            {
                "physicalLocation": place,
                "logicalLocations": [
                    {
                        "name": changes.plain(target.model),
                        "fullyQualifiedName": changes.title(target),
                        "kind": "module",
                    }
                ],
            }
        ],
        # GitHub goes by the first alone, and would make it of the line, which several targets share.
        "partialFingerprints": {"primaryLocationLineHash": f"{digest[:16]}:1", "peftAdvisor/v1": digest},
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
                "message": {"text": _message(changes.layer_line(layer))},
            }
            for number, layer in enumerate(layers)
        ]
    return result


def _message(text: str) -> str:
    """Neither a placeholder nor a link is read in it, whatever a name holds."""
    return text.replace("{", "{{").replace("}", "}}").replace("](", "] (")


def _place(report: CheckReport, target: TargetReport) -> dict[str, Any]:
    path = PurePath(report.configuration or "pyproject.toml")
    uri = path.as_uri() if path.is_absolute() else quote(path.as_posix())
    return {"artifactLocation": {"uri": uri}, "region": {"startLine": report.lines.get(target.model, 1)}}


def _version() -> str:
    try:
        return version("peft-advisor")
    except PackageNotFoundError:  # run from a source tree
        return "0"
