"""Tables that tell the class of each image, as people and services write them: CSV, lists, JSON lines."""

from __future__ import annotations

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from advisor.data.files import images_below
from advisor.data.parts import one_form, part_of
from advisor.errors import DataError, first_line
from advisor.names import listed
from advisor.system.files import parse_json, read_text

Table = list[dict[str, str]]  # a row for each image: column -> text

# Tables whose meaning is known by their name: Hugging Face's imagefolder, Roboflow's, and the plainest.
TABLES = (".csv", ".tsv", ".jsonl", ".txt")  # suffixes of those that are read
_KNOWN = ("metadata.csv", "metadata.jsonl", "_classes.csv", "labels.csv", "labels.tsv", "labels.txt")
LABEL_COLUMNS = (
    *("label", "labels", "class", "classes", "class_name", "classname", "label_name", "category", "target"),
    *("species", "breed", "tag", "diagnosis", "y"),
)
_PARTS = ("split", "subset", "partition", "part")
_LEAST_FOUND = 0.5  # of the rows' images must be there


@dataclass(frozen=True, slots=True)
class Row:
    """An image and its class."""

    path: str
    label: str
    part: Literal["train", "held-out"] = "train"


@dataclass(frozen=True, slots=True)
class Listed:
    """What a table tells."""

    rows: tuple[Row, ...]
    has_parts: bool  # the rows tell which are held out
    notes: tuple[str, ...]

    @classmethod
    def joined(cls, parts: Sequence[Listed]) -> Listed:
        """The rows of several tables, each of one part."""
        rows = tuple(row for each in parts for row in each.rows)
        return cls(rows, len(parts) > 1, tuple(note for each in parts for note in each.notes))

    def of_part(self, part: Literal["train", "held-out"]) -> Listed:
        """The same rows, all of that part."""
        return replace(self, rows=tuple(replace(row, part=part) for row in self.rows))

    def class_names(self) -> tuple[tuple[str, ...], bool]:
        """The classes in order, and whether they are names and not numbers alone."""
        found = {row.label for row in self.rows}
        if all(label.isdecimal() for label in found):
            return tuple(sorted(found, key=lambda label: (int(label), label))), False
        return tuple(sorted(found)), True


def table_beside(folder: Path) -> Path | None:
    """The table of a known name in the folder, whose images lie beside it; None: there is none."""
    return next((folder / name for name in _KNOWN if (folder / name).is_file()), None)


def listed_in(path: Path, root: Path) -> Listed:
    """The images below `root` that the table names, and their classes.

    Which columns hold what is told by what is in them: paths or names of images that are there; of the
    others the one that is called `label` or the like, or the only one, or one of 0 and 1 for each class.

    Raises:
        DataError: it can't be read, or the columns can't be told.
    """
    images = _Images(root)
    table = _jsonl(path) if path.suffix.lower() == ".jsonl" else _csv(path, images)
    if not table:
        raise DataError(f"{path} holds no rows; give a table with a file name and a class in each row")
    columns = list(table[0])
    hits = {name: sum(images.find(row[name]) is not None for row in table) for name in columns}
    file_column = max(columns, key=lambda name: hits[name])
    if hits[file_column] < _LEAST_FOUND * len(table):
        raise DataError(
            f"{path}: of its {len(table):,} rows {hits[file_column]:,} name an image below {root} "
            f"(columns: {listed(columns)}); give as --data the folder that the names begin in"
        )
    part_column = next((name for name in columns if name.strip().casefold() in _PARTS), None)
    others = [name for name in columns if name not in (file_column, part_column)]
    label_of = _labels(path, table, others)
    rows, missing, without = [], 0, 0
    for number, row in enumerate(table):
        image, label = images.find(row[file_column]), label_of[number]
        missing += image is None
        without += image is not None and not label
        if image is not None and label:
            rows.append(Row(image, one_form(label), _part(row.get(part_column or "", ""))))
    _refuse_two_labels(path, rows)
    notes = [f"the classes are those of {path.name}: column {_column(others, table, label_of)}"]
    unnamed = images.count - len({row.path for row in rows})
    for count, what in (
        (missing, "rows name an image that is not there"),
        (without, "rows have no class"),
        (unnamed, f"images of {root} have no class in it"),
    ):
        notes += [f"{path.name}: {count:,} {what}; left out"] if count else []
    unique = tuple(dict.fromkeys(rows))
    return Listed(unique, len({row.part for row in unique}) > 1, tuple(notes))


def _labels(path: Path, table: Table, columns: Sequence[str]) -> list[str]:
    """Each row's class; nothing where it has none."""
    named = [name for wanted in LABEL_COLUMNS for name in columns if name.strip().casefold() == wanted]
    chosen = named[:1] or (list(columns) if len(columns) == 1 else [])
    if chosen:
        return [row[chosen[0]].strip() for row in table]
    marks = [name for name in columns if {row[name].strip() for row in table} <= {"0", "1", "0.0", "1.0"}]
    if len(marks) < 2:
        raise DataError(
            f"{path}: which of the columns {listed(columns)} is the class can't be told; "
            "call it label, or leave one column beside the file names"
        )
    found = [[name.strip() for name in marks if row[name].strip() in ("1", "1.0")] for row in table]
    several = sum(len(names) > 1 for names in found)
    if several:
        raise DataError(
            f"{path}: {several:,} of {len(table):,} images have several classes; "
            "a classifier of one class an image can't learn that: leave those rows out"
        )
    return [names[0] if names else "" for names in found]


def _column(columns: Sequence[str], table: Table, labels: Sequence[str]) -> str:
    same = [name for name in columns if [row[name].strip() for row in table] == list(labels)]
    return repr(same[0].strip()) if same else "for each class, of 0 and 1"


def _part(text: str) -> Literal["train", "held-out"]:
    return "held-out" if part_of(text) in ("val", "test") else "train"


def _refuse_two_labels(path: Path, rows: Iterable[Row]) -> None:
    of_image: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        of_image[row.path].add(row.label)
    twice = [image for image, labels in of_image.items() if len(labels) > 1]
    if twice:
        first, second = sorted(of_image[twice[0]])[:2]
        raise DataError(
            f"{path}: {len(twice):,} images have two classes, such as {Path(twice[0]).name}: {first} and "
            f"{second}; leave one row for each image"
        )


class _Images:
    """The images below a folder, found by path, by name, or by name without suffix."""

    def __init__(self, root: Path) -> None:
        paths = sorted(images_below(root))
        self.count = len(paths)
        self._found: dict[str, str] = {}
        relative = [os.path.relpath(path, root).replace(os.sep, "/") for path in paths]
        stems = Counter(Path(name).stem for name in relative)
        names = Counter(Path(name).name for name in relative)
        for path, place in zip(paths, relative, strict=True):
            name, stem = Path(place).name, Path(place).stem
            for key, is_unique in ((place, True), (name, names[name] == 1), (stem, stems[stem] == 1)):
                if is_unique:
                    self._found.setdefault(one_form(key), path)

    def find(self, text: str) -> str | None:
        """The image's path; None where there is no such image, or several."""
        key = one_form(text.strip().replace("\\", "/").removeprefix("./"))
        return self._found.get(key) or self._found.get(key.rsplit("/", 1)[-1])


def _csv(path: Path, images: _Images) -> Table:
    """Rows of a table with commas, semicolons, tabs or blanks, with or without a line of names."""
    try:
        text = read_text(path, "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DataError(f"{path} can't be read: {why}; give a table in UTF-8") from error
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        return []
    delimiter = max(",;\t", key=lines[0].count)
    if lines[0].count(delimiter) == 0:
        delimiter = " "
    try:
        rows = [
            [cell.strip() for cell in row]
            for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
        ]
    except csv.Error as error:
        raise DataError(f"{path} can't be read as a table: {first_line(error)}; mend it") from error
    width = len(rows[0])
    ragged = next((number for number, row in enumerate(rows) if len(row) != width), None)
    if ragged is not None:
        raise DataError(
            f"{path}: row {ragged + 1} has {len(rows[ragged])} columns, the first {width}; mend it"
        )
    is_headed = not any(images.find(cell) for cell in rows[0])
    names = rows.pop(0) if is_headed else [f"column {number + 1}" for number in range(width)]
    return [dict(zip(names, row, strict=True)) for row in rows]


def _jsonl(path: Path) -> Table:
    try:
        found = [parse_json(line) for line in read_text(path).splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read as lines of JSON; write one object in each line") from error
    if not all(isinstance(row, Mapping) for row in found):
        raise DataError(f'{path}: each line must be an object such as {{"file_name": ..., "label": ...}}')
    columns = list(dict.fromkeys(name for row in found for name in row))
    return [{name: _text(row.get(name, "")) for name in columns} for row in found]


def _text(value: object) -> str:
    return str(value) if isinstance(value, str | int | float) else ""
