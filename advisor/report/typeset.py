"""Text set for a page: signs as they are printed, and what belongs together kept on one line.

What comes of these is for reading. What can be typed keeps its characters: a command's are untouched.
"""

from __future__ import annotations

import re

from markupsafe import Markup

from advisor.report.view import printable

STAYS = "\N{NO-BREAK SPACE}"
_UNITS = r"%|[kMGT]?B\b|[KMGT]iB\b|[kMGTP]?FLOPs?\b|(?:ms|min|s|h)\b|[kM]?J\b|[kM]\b|points?\b|x\b"
_FIGURE_AND_UNIT = re.compile(rf"(?<=\d) (?={_UNITS})|(?<=\d\sx) (?=FLOPs)")
_BATCH = re.compile(r"(?<=\bbatch) (?=\d)|(?<=\d) (?=of \d+x\d)|(?<=\d of) (?=\d+x\d)")
_FROM_TO = re.compile(r"(?<=\d) ([\N{RIGHTWARDS ARROW}\N{PLUS-MINUS SIGN}]) (?=\d)")
# With the signs beside it: a browser would end a line between the two.
_WHOLE = re.compile(r"(?:(?<!\S)--[a-z]+-[a-z-]+|\(?\d+\.\d-\d+\.\d)[),.:;]*")
_MINUS = re.compile(r"(?<![\w.%-])-(?=\d)")


def typeset(text: object) -> Markup:
    """`-0.8 +- 2.1 points` as `−0.8 ± 2.1 points`, no line ending within a figure, interval or option."""
    signs = _MINUS.sub("\N{MINUS SIGN}", printable(str(text)).replace(" +- ", " \N{PLUS-MINUS SIGN} "))
    told = str(Markup.escape(_FROM_TO.sub(rf"{STAYS}\1{STAYS}", kept_together(signs))))
    return Markup(_WHOLE.sub(r'<span class="word">\g<0></span>', told))  # noqa: S704 - escaped above


def kept_together(text: str) -> str:
    """With a space that no line ends at between each figure and its unit, and in `batch 8 of 3x32x32`."""
    return _BATCH.sub(STAYS, _FIGURE_AND_UNIT.sub(STAYS, text))


def breakable(name: str) -> Markup:
    """A candidate's name, which is broken before an `@` alone where it stands in `class="name"`."""
    method, *levers = printable(name).split("@")
    parts = [method, *(f"@{lever}" for lever in levers)]
    return Markup("<wbr>").join(parts)


def shell(command: str) -> Markup:
    """A command, which is broken between its words alone, as far as they fit."""
    words = re.split(r"( +)", printable(command))
    return Markup("").join(
        Markup('<span class="word">{}</span>').format(word) if "-" in word else word for word in words
    )
