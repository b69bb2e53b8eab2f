"""A check as JUnit XML: a suite for each model, a case for each target."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from advisor.check.records import CheckReport, TargetReport
from advisor.report.check import changes


def to_junit(report: CheckReport) -> str:
    """A target fails with its findings; where its model couldn't be checked, that is an error."""
    by_model: dict[str, list[TargetReport]] = {}
    for target in report.targets:
        by_model.setdefault(target.model, []).append(target)
    suites = Element("testsuites", {"name": "peft-advisor check"} | _counts(report.targets))
    for model, targets in by_model.items():
        suite = SubElement(suites, "testsuite", {"name": changes.plain(model)} | _counts(targets))
        for target in targets:
            case = SubElement(
                suite,
                "testcase",
                name=changes.plain(target.target),
                classname=f"peft-advisor.{changes.plain(target.model)}",
                time=f"{target.seconds:.3f}",
            )
            _fill(case, target)
    indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(suites, encoding="unicode") + "\n"


def _fill(case: Element, target: TargetReport) -> None:
    errors = [finding for finding in target.findings if finding.level == "error"]
    if errors:
        tag = "error" if changes.could_not_be_checked(target) else "failure"
        messages = [changes.plain(finding.message) for finding in errors]
        layers = changes.changed_layers(target)
        shown = [changes.layer_line(layer) for layer in layers[: changes.LAYERS_SHOWN]]
        more = changes.more_layers(layers, len(shown))
        failure = SubElement(case, tag, message=messages[0], type=errors[0].rule)
        failure.text = "\n".join([*messages, *shown, *([more] if more else [])])
    said = [changes.choice_words(target)]
    said += [f"{f.level}: {changes.plain(f.message)}" for f in target.findings if f.level != "error"]
    said += [f"warning: {changes.plain(line)}" for line in (target.now.warnings if target.now else ())]
    text = "\n".join(filter(None, said))
    if text:
        SubElement(case, "system-out").text = text


def _counts(targets: Sequence[TargetReport]) -> dict[str, str]:
    errors = sum(changes.could_not_be_checked(target) for target in targets)
    failures = sum(target.failed for target in targets) - errors
    return {
        "tests": str(len(targets)),
        "failures": str(failures),
        "errors": str(errors),
        "time": f"{sum(target.seconds for target in targets):.3f}",
    }
