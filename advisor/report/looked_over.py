"""What a source of images holds, in the terminal, as JSON, as Markdown, and its classes as CSV."""

from __future__ import annotations

import csv
import io
import json

from rich.console import Console
from rich.text import Text

from advisor.names import listed
from advisor.plain import encode
from advisor.records import LookedOver
from advisor.report.fitted import folded
from advisor.report.terminal import Output
from advisor.report.text_tables import no_formula, plain
from advisor.report.view import printable

_MARKS = {"error": ("!!", "bold red"), "warning": ("!", "yellow"), "note": ("-", "")}
_LINES = 6  # of one finding, at most
_NOTHING_ODD = "Nothing odd was found."
SCHEMA_VERSION = 1


def dumps_looked_over(seen: LookedOver) -> str:
    """As JSON."""
    document = {"schema_version": SCHEMA_VERSION, **encode(seen)}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def markdown_of_looked_over(seen: LookedOver) -> str:
    """What was found, the weightiest first, and how many images each class has."""
    lines = [f"# {plain(seen.source)}", ""]
    lines += [f"- {name}: {plain(text)}" for name, text in _told(seen)]
    lines += [f"- {plain(note)}" for note in seen.notes]
    lines += ["", "## Found", ""]
    for finding in seen.findings:
        lines.append(f"- **{finding.weight}** {plain(finding.text)}")
        lines += [f"  - {plain(name)}" for name in finding.files]
    lines += [] if _is_odd(seen) else [_NOTHING_ODD]
    lines += ["", "| class | images |", "|---|--:|"]
    lines += [f"| {plain(name)} | {count:,} |" for name, count in seen.counts.items()]
    return "\n".join(lines) + "\n"


def csv_of_looked_over(seen: LookedOver) -> str:
    """A line for each class."""
    written = io.StringIO()
    rows = csv.writer(written, lineterminator="\n")
    rows.writerow(["class", "images"])
    rows.writerows([no_formula(name), count] for name, count in seen.counts.items())
    return written.getvalue()


def print_looked_over(seen: LookedOver, console: Console | None = None) -> None:
    """Counts first, then what was found, the weightiest first, with the files concerned."""
    console = console or Output(highlight=False)
    head = [("bold", seen.source), *(("", f"  {name:<9} {text}") for name, text in _told(seen))]
    lines = [Text(printable(text), style) for style, text in head]
    lines += [Text(f"  {line}") for note in seen.notes for line in folded(note, console.width - 2, _LINES)]
    for finding in seen.findings:
        mark, style = _MARKS[finding.weight]
        lines += [Text(line, style) for line in folded(f"{mark} {finding.text}", console.width, _LINES)]
        lines += [Text(f"     {printable(name)}") for name in finding.files]
    if not _is_odd(seen):
        lines.append(Text(_NOTHING_ODD, "green"))
    for line in lines:
        line.truncate(console.width, overflow="ellipsis")
        console.print(line, no_wrap=True)


def _told(seen: LookedOver) -> list[tuple[str, str]]:
    total, classes = sum(seen.counts.values()), len(seen.counts)
    counts = sorted(seen.counts.values())
    most, least = counts[-1], counts[0]
    each = f"{least:,} each" if most == least else f"{least:,} to {most:,} each"
    drawn = "drawn here" if seen.is_split_drawn else "its own"
    return [
        ("images", f"{total:,} images of {classes:,} classes, {each}"),
        ("classes", listed([*seen.counts], 6)),
        ("split", f"{seen.train:,} to train on, {seen.held_out:,} held out ({drawn})"),
    ]


def _is_odd(seen: LookedOver) -> bool:
    return any(finding.weight != "note" for finding in seen.findings)
