"""A recommendation without names, to be passed on where model, data and classes are not to be known."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePath

from advisor.records import DataSummary, Finding, Recommendation

_PATH = re.compile(r"(?<![\w.])(?:~|\.{1,2})?/[^\s,;:'\"]+")
_KEPT = ("created", "seed", "versions")  # of the provenance: nothing in them names anything of the user's


def redacted(recommendation: Recommendation) -> Recommendation:
    """The same figures; model, data, classes and files go by what they are, and the command is left out."""
    data = recommendation.data
    names = dict(_names(recommendation))
    # The longest first: a folder's name is part of its files'. Whole words: one letter is everywhere.
    longest = sorted(filter(None, names), key=len, reverse=True)
    known = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in longest) or r"(?!)")

    def told(text: str) -> str:
        return _PATH.sub("a path", known.sub(lambda found: names[found[0]], text))

    def of_all(texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(told, texts))

    model = replace(
        recommendation.model,
        source="the model",
        name="the network",
        arch=None,
        fingerprint="",
    )
    target, runtime = recommendation.target, recommendation.runtime
    if runtime is not None and target is not None and runtime.where == target.name:
        runtime = replace(runtime, where="the target")
    kind, colon, called = recommendation.budget.metric.partition(":")
    return replace(
        recommendation,
        model=model,
        budget=replace(recommendation.budget, metric=f"{kind}{colon}{told(called)}"),
        data=_without_names(data, told) if data else None,
        target=replace(target, name="the target") if target is not None else None,
        runtime=runtime,
        answer=told(recommendation.answer),
        warnings=of_all(recommendation.warnings),
        assumed=of_all(recommendation.assumed),
        not_applicable={name: told(why) for name, why in recommendation.not_applicable.items()},
        evaluations=tuple(
            replace(
                item,
                probe_failure=told(item.probe_failure),
                violations=tuple(replace(each, reason=told(each.reason)) for each in item.violations),
                cost=replace(item.cost, notes=of_all(item.cost.notes)),
            )
            for item in recommendation.evaluations
        ),
        provenance={key: value for key, value in recommendation.provenance.items() if key in _KEPT},
    )


def _without_names(data: DataSummary, told) -> DataSummary:  # type: ignore[no-untyped-def]
    def of_finding(finding: Finding) -> Finding:
        return replace(finding, text=told(finding.text), files=(), pictures=())

    return replace(
        data,
        source="the data",
        retain=data.retain and "the old data",
        unlabelled=data.unlabelled and "the images without labels",
        labels=data.labels and "the labels",
        groups=data.groups and "the groups",
        class_names=None,
        data_classes=tuple(f"class {n}" for n, _ in enumerate(data.data_classes, 1)),
        findings=tuple(map(of_finding, data.findings)),
    )


def _names(recommendation: Recommendation) -> Iterator[tuple[str, str]]:
    """What is not to be told, and what stands in its place."""
    model, data = recommendation.model, recommendation.data
    yield from ((name, "the model") for name in _parts(model.source))
    yield model.name, "the network"
    if model.arch:
        yield model.arch, "the network"
    if recommendation.target is not None:
        yield recommendation.target.name, "the target"
    if data is None:
        return
    typed = (("the data", data.source), ("the old data", data.retain), ("unlabelled images", data.unlabelled))
    for instead, source in (*typed, ("the labels", data.labels), ("the groups", data.groups)):
        yield from ((name, instead) for name in _parts(source or ""))
    for n, name in enumerate(data.data_classes, 1):
        if not name.isdecimal():  # a number by itself names nothing
            yield name, f"class {n}"
    for name in data.class_names or ():
        if not name.isdecimal():
            yield name, "a class"
    for finding in data.findings:
        for file in finding.files:
            yield from ((name, "a file") for name in _parts(file))


def _parts(source: str) -> tuple[str, ...]:
    return source, PurePath(source).name
