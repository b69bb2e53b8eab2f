"""What a command that writes files, or looks into the store, says in the end: as text, Markdown or JSON.

`schema.json` beside this file documents every key of the latter.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.cli.outputs import Outputs
from advisor.cli.streams import nothing_more

if TYPE_CHECKING:
    from advisor.records import Accuracy

SCHEMA_VERSION = 1
_NAMED = 9  # columns that a line's name takes


@dataclass(frozen=True, slots=True)
class Done:
    """The same thing, for people and for scripts."""

    command: str  # which it was of those in the schema
    lines: tuple[tuple[str, str], ...]  # a name and what is told; without a name: in a line of its own
    figures: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"schema_version": SCHEMA_VERSION, "command": self.command, **self.figures}


def say(done: Done, outputs: Outputs) -> None:
    """As `--format` asks."""
    outputs.write_form(
        {
            "json": lambda: json.dumps(done.document(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
            "markdown": lambda: _markdown(done),
        }
    )
    if outputs.to_stdout:
        nothing_more()
        return

    from rich.text import Text

    from advisor.report.terminal import Output

    console = Output(highlight=False)
    for line in _text(done, console.width if sys.stdout.isatty() else None):
        console.print(Text(line), no_wrap=True, crop=False, overflow="ignore")


def figures_of(accuracy: Accuracy | None) -> dict[str, float | int] | None:
    """What scripts are told of an accuracy; None: unknown."""
    if accuracy is None:
        return None
    return {name: getattr(accuracy, name) for name in ("mean", "low", "high", "samples")}


def listed(
    files: Iterable[Path], warnings: Iterable[str], notes: Iterable[str]
) -> tuple[tuple[str, str], ...]:
    """The lines of what was written, and what there is to say about it."""
    wrote = (("Wrote", str(path)) for path in files)
    return (*wrote, *(("Warning", each) for each in warnings), *(("Note", each) for each in notes))


def _text(done: Done, width: int | None) -> Iterable[str]:
    """Folded between words, which paths are; in a file one line each, for grep."""
    from advisor.report.view import printable

    before = ""
    for name, told in done.lines:
        indent = " " * _NAMED if name else ""
        # Files are named once; each warning is, so that none hides behind another.
        start = "" if name == before == "Wrote" else f"{name}:" if name else ""
        before = name
        line = f"{start:<{len(indent)}}{printable(told)}"
        if width is None:
            yield line
            continue
        yield from textwrap.wrap(
            line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )


def _markdown(done: Done) -> str:
    from advisor.report.text_tables import plain

    return "".join(f"- {f'**{name}**: ' if name else ''}{plain(told)}\n" for name, told in done.lines)
