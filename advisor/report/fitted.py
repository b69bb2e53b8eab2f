"""Text that fits a terminal's width: nothing is left for the terminal to wrap.

Widths are in columns, of which some characters take two.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, set_cell_size

from advisor.report.typeset import STAYS, kept_together
from advisor.report.view import printable

_CUT = " ..."
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*=)(.*)", re.DOTALL)


def cut(text: str, width: int) -> str:
    """On one line: where it is too long, without what is in brackets, or up to the end of a clause."""
    text = printable(text)
    if cell_len(text) > width:
        text = re.sub(r" \([^()]*\)", "", text)
    if cell_len(text) <= width:
        return text
    head = _chopped(text, width - len(_CUT) + 1)
    for ends in ("[,:;.] ", " "):
        last = max((match.start() for match in re.finditer(ends, head)), default=0)
        if last > width // 2:
            return head[:last] + _CUT
    return _chopped(text, width - len(_CUT)) + _CUT


def elided(name: str, width: int) -> str:
    """A name on one line: where it is too long, without its middle, for its two ends tell it apart."""
    name = printable(name)
    if cell_len(name) <= width:
        return name
    room = max(width - 3, 2)
    head, tail = _chopped(name, room // 2), _chopped(name[::-1], room - room // 2)[::-1]
    return f"{head}...{tail}"


def folded(text: str, width: int, most: int) -> list[str]:
    """A sentence on several lines, broken between words; what the last has no room for is cut."""
    text = kept_together(printable(text))
    wrapped = textwrap.wrap(text, max(width, 3), subsequent_indent="  ", break_on_hyphens=False)
    lines = [line.replace(STAYS, " ") for line in wrapped]
    whole, left = lines[: most - 1], " ".join(line.strip() for line in lines[most - 1 :])
    return [cut(line, width) for line in (*whole, *([f"  {left}" if whole else left] if left else []))]


def shell_lines(words: Sequence[str], width: int, indent: int) -> list[str]:
    r"""A command that can be pasted as it stands; each of its lines but the last ends in `\`."""
    quoted = [_quoted(word) for word in words]
    whole = " " * indent + " ".join(quoted)
    if cell_len(whole) <= width:
        return [whole]
    lines = [" " * indent]
    for number, (word, text) in enumerate(zip(words, quoted, strict=True)):
        # An option stays with its value where a line has room for both.
        both = " ".join(quoted[number : number + 2]) if word.startswith("-") else text
        wanted = both if indent + 2 + cell_len(both) <= width - 2 else text
        if cell_len(lines[-1]) + 1 + cell_len(wanted) <= width - 2:
            lines[-1] += f" {text}" if lines[-1].strip() else text
            continue
        lines[-1] += " \\"
        if indent + 2 + cell_len(text) <= width - 2:
            lines.append(" " * (indent + 2) + text)
            continue
        # A shell joins what follows such a line end to the word, from the first column on.
        pieces = list(_pieces(word, width - 2))
        lines += [f"{piece}\\" for piece in pieces[:-1]] + pieces[-1:]
    return lines


def _pieces(word: str, width: int) -> Iterator[str]:
    start = 0
    for end in range(1, len(word) + 1):
        if end == len(word) or cell_len(_quoted(word[start : end + 1])) > width:
            yield _quoted(word[start:end])
            start = end


def _quoted(word: str) -> str:
    """For a shell; of an assignment before a command the value alone, else it would be none."""
    word = printable(word)
    assignment = _ASSIGNMENT.fullmatch(word)
    return assignment[1] + shlex.quote(assignment[2]) if assignment else shlex.quote(word)


def _chopped(text: str, width: int) -> str:
    return set_cell_size(text, max(width, 0)).rstrip() if cell_len(text) > width else text
