"""Texts out of a user's file, or of an error in it, made safe to print."""

from __future__ import annotations

from advisor import errors


def shown(text: str) -> str:
    """A name out of a file, safe to print: no control characters, at most 100 characters."""
    printable = "".join(character for character in text if character.isprintable())
    return printable if len(printable) <= 100 else f"{printable[:97]}..."


def first_line(error: BaseException) -> str:
    """What an exception says, as a short single line that is safe to print."""
    return shown(errors.first_line(error))
