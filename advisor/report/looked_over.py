"""What a source of images holds, in the terminal and as JSON."""

from __future__ import annotations

import json

from rich.console import Console
from rich.text import Text

from advisor.names import listed
from advisor.plain import encode
from advisor.records import LookedOver
from advisor.report.fitted import folded
from advisor.report.terminal import Output

_MARKS = {"error": ("!!", "bold red"), "warning": ("! ", "yellow"), "note": ("- ", "")}
_LINES = 6  # of one finding, at most


def dumps_looked_over(seen: LookedOver) -> str:
    """As JSON."""
    return json.dumps(encode(seen), indent=1, ensure_ascii=False) + "\n"


def print_looked_over(seen: LookedOver, console: Console | None = None) -> None:
    """Counts first, then what was found, the weightiest first, with the files concerned."""
    console = console or Output(highlight=False)
    total, classes = sum(seen.counts.values()), len(seen.counts)
    counts = sorted(seen.counts.values())
    most, least = counts[-1], counts[0]
    each = f"{least:,} each" if most == least else f"{least:,} to {most:,} each"
    drawn = "drawn here" if seen.is_split_drawn else "its own"
    lines = [
        Text(seen.source, "bold"),
        Text(f"  images    {total:,} images of {classes:,} classes, {each}"),
        Text(f"  classes   {listed([*seen.counts], 6)}"),
        Text(f"  split     {seen.train:,} to train on, {seen.held_out:,} held out ({drawn})"),
    ]
    lines += [Text(f"  {line}") for note in seen.notes for line in folded(note, console.width - 2, _LINES)]
    for finding in seen.findings:
        mark, style = _MARKS[finding.weight]
        lines += [Text(line, style) for line in folded(f"{mark} {finding.text}", console.width, _LINES)]
        lines += [Text(f"     {name}") for name in finding.files]
    if not any(finding.weight != "note" for finding in seen.findings):
        lines.append(Text("Nothing odd was found.", "green"))
    for line in lines:
        line.truncate(console.width, overflow="ellipsis")
        console.print(line, no_wrap=True)
