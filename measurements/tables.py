"""Tables of the studies: as Markdown, and where they stand in the READMEs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

README = Path(__file__).parent / "README.md"


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines).replace("| --- ", "|---")


def write_tables(readme: Path, tables: Mapping[str, str]) -> None:
    """Put each table between its marks, `<!-- NAME -->` and `<!-- /NAME -->`."""
    text = readme.read_text()
    for mark, content in tables.items():
        before, start, rest = text.partition(f"<!-- {mark} -->\n")
        _, end, after = rest.partition(f"<!-- /{mark} -->")
        text = f"{before}{start}\n{content}\n\n{end}{after}"
    readme.write_text(text)
