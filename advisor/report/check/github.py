"""A check as GitHub's workflow commands: a line each, which GitHub shows at the configuration's line."""

from __future__ import annotations

from advisor.check.records import CheckReport, Finding, TargetReport
from advisor.report.check import changes

_COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}


def to_github(report: CheckReport) -> str:
    """A line for each finding; empty where there is none."""
    return "".join(
        f"{_annotation(report, target, finding)}\n"
        for target in report.targets
        for finding in target.findings
    )


def _annotation(report: CheckReport, target: TargetReport, finding: Finding) -> str:
    properties = {"title": f"peft-advisor: {changes.title(target)}"}
    if report.configuration:
        line = str(report.lines.get(target.model, 1))
        properties = {"file": report.configuration, "line": line, **properties}
    said = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    layers = [changes.layer_line(layer) for layer in finding.layers[: changes.LAYERS_SHOWN]]
    more = changes.more_layers(finding.layers, len(layers))
    message = "\n".join([changes.plain(finding.message), *layers, *([more] if more else [])])
    return f"::{_COMMANDS[finding.level]} {said}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(changes.plain(text)).replace(":", "%3A").replace(",", "%2C")
