"""Which part of the data a name tells: of a folder, of an array, in a column of a table."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

Part = Literal["train", "val", "test"]

PARTS: dict[str, Part] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "holdout"), "test"),
}
# What may stand beside one of those words in a name: seg_train, training_set, train2017, TestData.
_FILLERS = re.compile(r"(seg|cls|data|set|dataset|images?|imgs?|split|folder|samples|[\W_\d])+")


def part_of(name: str) -> Part | None:
    """Which part of the data something of this name holds; None: it says nothing of the kind."""
    name = one_form(name).casefold()
    found = {
        part
        for word, part in PARTS.items()
        if word in name and _FILLERS.fullmatch(f"_{name}_".replace(word, "_", 1))
    }
    return found.pop() if len(found) == 1 else None


def one_form(name: str) -> str:
    """The name in the one form in which Unicode has it composed: macOS writes folders in another."""
    return unicodedata.normalize("NFC", name)
