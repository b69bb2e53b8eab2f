"""A check as Markdown, for a comment on the pull request or the summary of a job."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from advisor.check.records import CheckReport, LayerChange, TargetReport
from advisor.report.check import changes

# What Markdown or HTML would read as markup.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~$&])")
# What GitHub makes a link of, or calls somebody with: a space of no width ends it. Not `lora-rank=4@last-3`.
_LINKS = re.compile(r"(?<!\w)@(?=\w)|@(?=[\w-]+\.\w)|(?<!\w)#(?=\d)|(?i:\bwww)(?=\.)|:(?=//)")
_SIGNS = {"error": "❌", "warning": "⚠️", "note": "💡"}


def to_markdown(report: CheckReport) -> str:
    """The verdict, then each target: what there is to say, its figures and its layers, before and after."""
    sign = _sign(report.exit_code > 0, report.is_difference)
    lines = [f"### {sign}Fine-tuning costs: {changes.verdict(report)}", ""]
    for target in report.targets:
        lines += _target(target, report.is_difference)
    step = changes.next_step(report)
    lines += [f"**What next?** {_escaped(step)}"] if step else []
    return "\n".join(lines).rstrip("\n") + "\n"


def _sign(failed: bool, is_difference: bool) -> str:
    return "" if is_difference else "❌ " if failed else "✅ "


def _target(target: TargetReport, is_difference: bool) -> Iterator[str]:
    name = _code(changes.title(target))
    if not target.findings and target.now is not None:
        said = f"<code>{_html(changes.title(target))}</code>: {changes.state_words(target)}"
        yield f"<details><summary>{_sign(False, is_difference)}{said}</summary>"
        yield ""
        yield from _figures(target)
        yield "</details>"
        yield ""
        return
    yield f"#### {_sign(target.failed, is_difference)}{name}"
    yield ""
    for finding in target.findings:
        sign = "" if is_difference else f"{_SIGNS[finding.level]} "
        yield f"- {sign}{_escaped(changes.plain(finding.message))}"
    warnings = target.now.warnings if target.now is not None else ()
    yield from (f"- {_SIGNS['warning']} {_escaped(changes.plain(warning))}" for warning in warnings)
    yield ""
    yield from _figures(target)
    layers = changes.changed_layers(target)
    if layers:
        yield from _layers(layers)


def _figures(target: TargetReport) -> Iterator[str]:
    rows = changes.figure_rows(target)
    if not rows:
        return
    candidate = changes.candidate_change(target)
    names = [_code(name) if name != "nothing fits" else name for name in candidate.split(" -> ")]
    now = target.now
    is_named = now is not None and now.snapshot.recommended is not None and not now.fits
    yield f"{'Candidate' if is_named else 'Recommended'}: {' → '.join(names)}"
    yield ""
    of = _code(changes.compared_candidate(target))
    if target.before is None:
        yield from _table([of, "now"], [[row.words, row.after] for row in rows])
        yield ""
        return
    head = [of, "before", "now", "change"]
    cells = [
        [row.words, row.before or "–", row.after or "–", f"**{_prose(row.change)}**" if row.change else ""]
        for row in rows
    ]
    chosen = now.snapshot.recommended if now is not None else None
    if chosen is not None and any(row.chosen for row in rows):
        head.append(f"{_code(changes.plain(chosen))} now")
        cells = [[*each, row.chosen] for each, row in zip(cells, rows, strict=True)]
    yield from _table(head, cells)
    yield ""


def _layers(layers: Sequence[LayerChange]) -> Iterator[str]:
    shown = [changes.layer_words(layer) for layer in layers[: changes.LAYERS_SHOWN]]
    cells = [
        [
            _code(words["layer"]) + (f" ({words['state']})" if words["state"] else ""),
            _escaped(words["type"]),
            *(_arrow(words[key]) for key in ("weight", "peak memory", "FLOPs")),
        ]
        for words in shown
    ]
    yield from _table(["layer", "type", "weight", "held at the peak", "FLOPs of an update"], cells)
    yield ""
    more = changes.more_layers(layers, len(shown))
    if more:
        yield more
        yield ""


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    names = list(head)
    yield "| " + " | ".join(names) + " |"
    words = [name in ("type", "weight") for name in names[1:]]
    yield "|" + "|".join(["---", *("---" if is_text else "---:" for is_text in words)]) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _arrow(words: str) -> str:
    return words.replace(" -> ", " → ")


def _code(text: str) -> str:
    """As code, whatever it holds: backticks need a longer fence, and a pipe ends a cell even there."""
    text = text.replace("|", "¦")
    fence = "`" * (max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") or not text.strip() else ""
    return f"{fence}{space}{text}{space}{fence}"


def _html(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _escaped(text: str) -> str:
    """Markup is escaped, but for code that we write ourselves."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return _prose(text)
    return "".join(_code(part) if place % 2 else _prose(part) for place, part in enumerate(parts))


def _prose(text: str) -> str:
    return _MARKUP.sub(r"\\\1", _arrow(_LINKS.sub("\\g<0>\u200b", text)))
