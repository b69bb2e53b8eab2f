"""Datasets as Hugging Face's `datasets` and its hub keep them: Arrow and Parquet tables of images.

They are read with pyarrow alone, which runs none of their code; a folder without such tables is an
`imagefolder`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from advisor.data.arrays import checked_labels, joined_labels
from advisor.data.files import files_below, image_pool
from advisor.data.layouts import find_folder
from advisor.data.listed import LABEL_COLUMNS
from advisor.data.parts import Part, part_of
from advisor.data.pools import Found, Pool
from advisor.data.survey import Source, reason
from advisor.errors import DataError
from advisor.names import did_you_mean, listed
from advisor.system.files import read_json

if TYPE_CHECKING:
    import numpy.typing as npt

_ONE, _SEVERAL = "state.json", "dataset_dict.json"  # what save_to_disk writes beside one dataset, or several
_KINDS = (".parquet", ".arrow")


def find_hub(source: str, folder: Path, labels: str | None = None) -> Found:
    """The images of the dataset in a folder.

    Args:
        labels: the column that holds the classes, where there are several; as for `find_folder` where it is
            an imagefolder.

    Raises:
        DataError: it can't be read, or its columns can't be told.
    """
    parts = _parts(folder)
    if not parts:
        return find_folder(source, folder, labels)
    tables = {part: _read(source, files) for part, files in parts.items()}
    if "train" not in tables:
        raise DataError(f"{source} holds {listed([*tables])} but no train; add it")
    image, label = _columns(source, tables["train"], labels)
    classes = {part: table.classes(label) for part, table in tables.items()}
    known = [part for part in tables if not _is_unlabelled(classes[part])]
    held_out: Part | None = next((part for part in ("val", "test") if part in known), None)
    used = ["train", *([held_out] if held_out is not None else [])]
    notes = [f"the classes are those of the column {label}"] if len(tables["train"].of_classes) > 1 else []
    left = [part for part in tables if part not in used]
    if left:
        notes.append(f"left alone of {source}: {listed(left)}")
    numbers = [checked_labels(f"{source}, {label}", classes[part]) for part in used]
    names, places, is_named = joined_labels(source, numbers, tables["train"].names(label))
    pools = [tables[part].pool(image, of_part) for part, of_part in zip(used, places, strict=True)]
    return Found(source, names, is_named, pools[0], pools[1] if len(pools) > 1 else None, tuple(notes))


def is_saved(folder: Path) -> bool:
    """Whether a dataset was saved there as tables."""
    return any((folder / name).is_file() for name in (_ONE, _SEVERAL)) or any(
        next(inside.glob("*.parquet"), None) is not None for inside in (folder, folder / "data")
    )


@dataclass(frozen=True, slots=True)
class _Table:
    """The rows of one part."""

    source: str
    rows: Any  # pyarrow.Table
    features: Mapping[str, Mapping[str, Any]]  # what its writer says of each column

    @property
    def of_classes(self) -> list[str]:
        """The columns that hold classes, by their type."""
        return [name for name in self.rows.column_names if self.kind(name) == "ClassLabel"]

    @property
    def of_images(self) -> list[str]:
        """The columns that hold image files."""
        return [
            name
            for name, kind in zip(self.rows.column_names, self.rows.schema.types, strict=True)
            if self.kind(name) == "Image" or str(kind).startswith(("struct<bytes: binary", "binary"))
        ]

    def kind(self, column: str) -> str:
        """What the writer says of the column's type."""
        return str(self.features.get(column, {}).get("_type", ""))

    def names(self, column: str) -> list[str] | None:
        """Of its classes."""
        found = self.features.get(column, {}).get("names")
        return [str(name) for name in found] if isinstance(found, list) and found else None

    def classes(self, column: str) -> npt.NDArray[Any]:
        """Each row's."""
        if column not in self.rows.column_names:
            raise DataError(f"{self.source}: one part has no column {column}; all need the same columns")
        values = self.rows.column(column).to_pylist()
        if None in values:
            raise DataError(f"{self.source}: row {values.index(None)} has no {column}; remove what has none")
        return np.asarray(values)

    def pool(self, column: str, labels: npt.NDArray[np.int64]) -> Pool:
        """Its images, of these classes."""
        images = self.rows.column(column)
        sources: list[Source] = [partial(_content, images, index) for index in range(len(images))]
        return image_pool(sources, labels, lambda index: _name(images, index))


def _content(images: Any, index: int) -> bytes:
    value = images[index].as_py()
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is None:
        raise ValueError("the table holds its path and not the image itself")
    return bytes(content)


def _name(images: Any, index: int) -> str:
    value = images[index].as_py()
    path = value.get("path") if isinstance(value, dict) else None
    return str(path) if path else f"row {index}"


def _parts(folder: Path) -> dict[Part, list[Path]]:
    """The files of each part; {}: there are no tables."""
    found: dict[Part, list[Path]] = defaultdict(list)
    if (folder / _SEVERAL).is_file():
        for each in sorted(path for path in folder.iterdir() if (path / _ONE).is_file()):
            part = part_of(each.name)
            if part is not None:
                found[part] += _saved(each)
        return dict(found)
    if (folder / _ONE).is_file():
        return {"train": _saved(folder)}
    tables = (
        [Path(path) for path in sorted(files_below(folder)) if path.endswith(_KINDS)]
        if folder.is_dir()
        else []
    )
    for path in tables:
        found[_part_of_file(path)].append(path)
    return dict(found)


def _part_of_file(path: Path) -> Part:
    """As its own name tells, such as train-00000-of-00001.parquet, or that of its folder."""
    words = [*path.stem.replace("_", "-").split("-"), path.parent.name]
    return next((part for word in words if word.isalpha() and (part := part_of(word))), "train")


def _saved(folder: Path) -> list[Path]:
    """The tables of one dataset, in its order; nothing outside of the folder."""
    try:
        listed_there = read_json(folder / _ONE)["_data_files"]
        return [folder / Path(str(each["filename"])).name for each in listed_there]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / _ONE} is damaged; save the dataset again") from error


def _read(source: str, files: Sequence[Path]) -> _Table:
    try:
        arrow = import_module("pyarrow")
        parquet = import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise DataError(f"{source} needs pyarrow: pip install 'peft-advisor[hf]'") from error
    try:
        read = [
            parquet.read_table(path)
            if path.suffix == ".parquet"
            else arrow.ipc.open_stream(arrow.memory_map(str(path))).read_all()
            for path in files
        ]
        rows = arrow.concat_tables(read)
        said = json.loads((rows.schema.metadata or {}).get(b"huggingface", b"{}"))
        features = said.get("info", {}).get("features") or {}
    except Exception as error:  # pyarrow's own, and whatever JSON may hold
        raise DataError(f"{source}: its tables can't be read: {reason(error)}; save it again") from error
    return _Table(source, rows, features)


def _columns(source: str, table: _Table, wanted: str | None) -> tuple[str, str]:
    """Those of the images and of their classes."""
    columns = table.rows.column_names
    if not table.of_images:
        raise DataError(
            f"{source}: none of its columns ({listed(columns)}) holds image files; cast_column(..., Image()) "
            "makes one of arrays or paths"
        )
    if wanted is not None:
        if wanted not in columns:
            raise DataError(f"{source} has no column {wanted!r} for --labels{did_you_mean(wanted, columns)}")
        return table.of_images[0], wanted
    named = [name for name in columns if name.casefold() in LABEL_COLUMNS]
    found = [name for name in table.of_classes if name in named] or table.of_classes or named
    if not found:
        raise DataError(
            f"{source}: none of its columns ({listed(columns)}) tells the classes; give it with "
            "--labels COLUMN"
        )
    return table.of_images[0], found[0]


def _is_unlabelled(classes: npt.NDArray[Any]) -> bool:
    """Whether it is a test set whose classes were held back."""
    return classes.dtype.kind in "iu" and len(classes) > 0 and int(classes.max()) < 0
