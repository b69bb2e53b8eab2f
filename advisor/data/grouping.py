"""What belongs together, as the user says it: by a pattern of names, or by a table."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np

from advisor.data.parts import one_form
from advisor.errors import DataError
from advisor.system.files import read_text

if TYPE_CHECKING:
    import numpy.typing as npt

    Groups = npt.NDArray[np.int64]  # (N,): images of the same number belong together

# What the columns of such a table are called.
_FILE = ("file", "filename", "file_name", "image", "path", "filepath", "name", "id")
_GROUP = (
    *("group", "groups", "visit", "video", "session", "sequence", "scene", "burst", "camera", "location"),
    *("patient", "patient_id", "subject", "subject_id", "animal", "individual", "site"),
)


def said_groups(said: str, names: Sequence[str]) -> tuple[Groups, str]:
    """One number for each image, equal for those that belong together; and how many the table leaves out.

    Args:
        said: the path of a table with the columns file and group; or a regular expression: images whose
            parts that it matches (its first group, if it has one) are equal belong together.
        names: of the images.

    Raises:
        DataError: it is neither, or tells nothing of these images.
    """
    is_table = Path(said).expanduser().is_file() if "\0" not in said else False
    keys = _by_table(Path(said).expanduser(), names) if is_table else _by_pattern(said, names)
    alone = [place for place, key in enumerate(keys) if key is None]
    told = [f"\0{key}" if key is not None else f"\1{place}" for place, key in enumerate(keys)]
    words = f" ({len(alone):,} that it says nothing of are each on their own)" if alone else ""
    return np.unique(told, return_inverse=True)[1].astype(np.int64), words


def _by_pattern(pattern: str, names: Sequence[str]) -> list[str | None]:
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise DataError(f"--groups {pattern!r} is no file, and no regular expression: {error}") from error
    found = [regex.search(name) for name in names]
    if not any(found):
        raise DataError(
            f"--groups {pattern!r} is no file, and matches none of the images' names, such as {names[0]}"
        )
    return [None if match is None else match[1 if regex.groups else 0] for match in found]


def _by_table(path: Path, names: Sequence[str]) -> list[str | None]:
    """The group that the table gives each image, by its path or, where no other has it, its file's name."""
    rows = _rows(path)
    by_path: dict[str, str] = {}
    by_file: dict[str, set[str]] = defaultdict(set)
    for file, group in rows:
        plain = _plain(file)
        if by_path.setdefault(plain, group) != group:
            raise DataError(f"{path} gives {file} two groups, {by_path[plain]} and {group}; give it one")
        by_file[PurePath(plain).name].add(group)
    found = [_group_of(_plain(name), by_path, by_file, path) for name in names]
    if not any(group is not None for group in found):
        raise DataError(f"{path} names {rows[0][0]}, but none of the images, such as {names[0]}")
    return found


def _group_of(
    name: str, by_path: Mapping[str, str], by_file: Mapping[str, set[str]], table: Path
) -> str | None:
    parts = PurePath(name).parts
    for start in range(len(parts)):  # the table may begin deeper in the folders
        found = by_path.get("/".join(parts[start:]))
        if found is not None:
            return found
    groups = by_file.get(parts[-1], set())
    if len(groups) > 1:
        raise DataError(
            f"{table} has several rows for {parts[-1]}, none of which is that of {name}; name it by its path"
        )
    return next(iter(groups), None)


def _rows(path: Path) -> list[tuple[str, str]]:
    """The file and the group in each row."""
    try:
        text = read_text(path, "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no table of text that can be read; save it as CSV in UTF-8") from error
    first = text.partition("\n")[0]
    mark = next((each for each in ("\t", ";") if each in first and "," not in first), ",")
    read = [[field.strip() for field in row] for row in csv.reader(text.splitlines(), delimiter=mark) if row]
    header = [field.casefold() for field in read[0]] if read else []
    file = next((header.index(name) for name in _FILE if name in header), None)
    group = next((header.index(name) for name in _GROUP if name in header), None)
    if file is None or group is None:
        held = ", ".join(header[:5]) or "nothing"
        raise DataError(f"{path} must have the columns file and group in its first row; it holds {held}")
    found = [(row[file], row[group]) for row in read[1:] if len(row) > max(file, group)]
    if not found:
        raise DataError(f"{path} has no rows below its first one; give a file and its group in each")
    return found


def _plain(name: str) -> str:
    return one_form(name).replace("\\", "/").removeprefix("./")
