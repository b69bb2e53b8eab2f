"""How folders tell the classes of the images in them, and which part of the images is held out."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from advisor.data.files import (
    entries,
    file_pool,
    files_below,
    folders_in,
    images_below,
    is_image,
    suffixes,
    told_left_out,
)
from advisor.data.listed import TABLES, Listed, listed_in, table_beside
from advisor.data.parts import Part, one_form, part_of
from advisor.data.pools import Found, Pool
from advisor.data.survey import check_share
from advisor.errors import DataError
from advisor.names import listed

Level = Literal["first", "leaf"]  # which folders are the classes, where folders lie in folders
Files = dict[str, list[str]]  # class name -> its image files

# Where one image holds several things, or a class for each pixel.
_DETECTION = {"images", "labels", "annotations", "masks", "jpegimages", "imagesets", "segmentationclass"}


def find_folder(source: str, root: Path, labels: str | None = None) -> Found:
    """The images of class folders, of such folders in `train/` and `val/` or `test/`, or of a table's rows.

    Args:
        labels: a table with a row for each image; `first` or `leaf`: which folders are the classes, where
            folders lie in folders; None: the first, but a table beside images that lie in no class folder.

    Raises:
        DataError: the classes can't be told, or the folders look like something else.
    """
    if labels is not None and labels not in get_args(Level):
        return _of_rows(source, root, listed_in(Path(labels).expanduser(), root))
    level: Level = "leaf" if labels == "leaf" else "first"
    top, notes = _unwrapped(root)
    parts = _parts(top)
    if not parts:
        beside = table_beside(top)
        if beside is not None and len(folders_in(top)) <= 1:  # of images right there, or in images/
            return _of_rows(source, top, listed_in(beside, top))
        return _of_classes(source, top, top, None, level, notes)
    train, held_out = parts["train"], parts.get("val", parts.get("test"))
    if not _has_class_folders(train) and table_beside(train) is not None:
        return _of_rows(source, top, _joined_rows(parts, top))
    notes += _ignored(top, train, held_out)
    if held_out is not None and not _has_class_folders(held_out):
        if part_of(held_out.name) == "val":
            raise _flat(held_out)
        notes += (f"{held_out} holds no class folders: a part of {train} is held out instead",)
        held_out = None
    return _of_classes(source, top, train, held_out, level, notes)


def _of_classes(
    source: str, top: Path, train: Path, held_out: Path | None, level: Level, notes: tuple[str, ...]
) -> Found:
    """The images of class folders, perhaps in two parts."""
    files, more = _files_by_class(train, level)
    notes += more
    if held_out is None:
        return _whole(Found(source, tuple(files), True, file_pool(files, top), notes=notes))
    others, _ = _files_by_class(held_out, level)
    for name in sorted(files.keys() ^ others.keys()):
        has, lacks = (train, held_out) if name in files else (held_out, train)
        raise DataError(
            f"class folder {name!r} is in {has} but not in {lacks}; both need the same class folders"
        )
    pools = file_pool(files, top), file_pool({name: others[name] for name in files}, top)
    return _whole(Found(source, tuple(files), True, *pools, notes))


def _unwrapped(root: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder in which there is more than one folder of folders: archives come with one around them."""
    top = root
    while len(inside := folders_in(top)) == 1 and not any(is_image(path.name) for path in entries(top)):
        if not _has_class_folders(inside[0]) and table_beside(inside[0]) is None:
            break
        top = inside[0]
    return top, () if top == root else (f"the images are those of {top}: it is all that {root} holds",)


def _parts(top: Path) -> dict[Part, Path]:
    """The training folder and those that are held out, by their names; {}: all folders are classes."""
    folders = folders_in(top)
    found: dict[Part, Path] = {}
    for folder in folders:
        part = part_of(folder.name)
        if part is not None:
            if part in found:
                raise DataError(
                    f"{found[part].name}/ and {folder.name}/ in {top} may both be its {part} part; "
                    "leave one of them"
                )
            found[part] = folder
    splits = {part: folder for part, folder in found.items() if _has_class_folders(folder)}
    if not splits and len(found) < len(folders):
        return {}  # a class may be named "train", too: its images lie right in it
    names = ", ".join(f"{folder.name}/" for folder in found.values())
    if len(found) < 2 and not splits:
        return {}
    if "train" not in found or (splits and "train" not in splits):
        raise DataError(f"{names} in {top} look like parts of a split, but there is no train/; add it")
    if not splits:
        if table_beside(found["train"]) is None:
            raise _flat(found["train"], f"{names} in {top} look like parts of a split, but ")
        return found
    if len(found) == 1:
        others = listed([folder.name for folder in folders if folder != found["train"]])
        raise DataError(
            f"{names} in {top} looks like a part of a split, as it holds class folders, and beside it is no "
            f"val/ or test/, but {others}; give {found['train']} to have a part of it held out"
        )
    return found


def _ignored(top: Path, *used: Path | None) -> tuple[str, ...]:
    others = [f"{folder.name}/" for folder in folders_in(top) if folder not in used]
    return (f"left alone in {top}: {listed(others)}",) if others else ()


def _has_class_folders(folder: Path) -> bool:
    return any(next(images_below(each), None) is not None for each in folders_in(folder))


def _flat(folder: Path, before: str = "") -> DataError:
    """What to do with images that lie in no class folders."""
    images = [path for path in entries(folder) if is_image(path.name)]
    what = f"holds {len(images)} images but no class folders" if images else "holds no class folders"
    tables = [path.name for path in entries(folder) if path.suffix.lower() in TABLES]
    hint = f"; if {tables[0]} tells the classes, give --labels {folder / tables[0]}" if tables else ""
    return DataError(f"{before}{folder} {what}; put the images into one folder for each class{hint}")


def _files_by_class(root: Path, level: Level) -> tuple[Files, tuple[str, ...]]:
    """Class name -> its image files, both in an order that doesn't depend on the file system; and notes."""
    folders = folders_in(root)
    if not folders:
        raise _flat(root)
    if {folder.name.casefold() for folder in folders} <= _DETECTION:
        names = ", ".join(f"{folder.name}/" for folder in folders)
        raise DataError(
            f"{names} in {root} look like data for detection or segmentation; give images that show one "
            "thing each, in one folder for each class"
        )
    every = {folder: sorted(files_below(folder)) for folder in folders}
    leaves = _by_leaf(root, every)
    files: Files = defaultdict(list)
    for folder, paths in every.items():  # in two Unicode forms, it may be there twice
        files[one_form(folder.name)] += [path for path in paths if is_image(path)]
        if not files[one_form(folder.name)]:
            _refuse_empty(folder, paths, [each for each in folders if not any(map(is_image, every[each]))])
    notes = told_left_out([path for paths in every.values() for path in paths])
    chosen = dict(leaves if level == "leaf" else files)
    if level == "first" and _is_ambiguous(root, every):
        first, lowest = listed([*files]), listed([*leaves])
        which = f"the first level is the class ({first}); to take the lowest ({lowest}), give --labels leaf"
        notes = (*notes, f"folders lie in class folders: {which}")
    return {name: chosen[name] for name in _in_order(chosen)}, notes


def _refuse_empty(folder: Path, paths: Sequence[str], empty: Sequence[Path]) -> None:
    strange = told_left_out(paths)
    also = f" ({strange[0]})" if strange else ""
    raise DataError(
        f"class folder {folder} holds no images{also} ({len(empty)} such folders); "
        f"add some ({', '.join(suffixes())}) or remove it"
    )


def _by_leaf(root: Path, every: Mapping[Path, Sequence[str]]) -> Files:
    """The images by the folder that they lie right in; by its path, where two have the same name."""
    found: Files = defaultdict(list)
    for paths in every.values():
        for path in filter(is_image, paths):
            found[os.path.relpath(os.path.dirname(path), root)].append(path)  # noqa: PTH120
    names = [Path(place).name for place in found]
    unique = len(set(names)) == len(names)
    return {
        one_form(name if unique else Path(place).as_posix()): found[place]
        for name, place in zip(names, found, strict=True)
    }


def _is_ambiguous(root: Path, every: Mapping[Path, Sequence[str]]) -> bool:
    """Whether the folders in the class folders may be classes themselves: another set of them in each."""
    below = [
        {Path(path).parent.relative_to(folder) for path in filter(is_image, paths)}
        for folder, paths in every.items()
    ]
    return any(len(places) > 1 for places in below) and any(places != below[0] for places in below)


def _in_order(names: Mapping[str, object]) -> list[str]:
    numbers = all(re.fullmatch(r"[0-9]{1,18}", name) for name in names)
    return sorted(names, key=(lambda name: (int(name), name)) if numbers else (lambda name: (0, name)))


def _joined_rows(parts: Mapping[Part, Path], top: Path) -> Listed:
    """The rows of the tables in each part's folder."""
    held_out = "val" if "val" in parts else "test"
    found = []
    for part in ("train", held_out):
        folder = parts.get(part)  # type: ignore[call-overload]
        table = table_beside(folder) if folder is not None else None
        if folder is None or table is None:
            continue
        found.append(listed_in(table, folder).of_part("train" if part == "train" else "held-out"))
    return Listed.joined(found)


def _of_rows(source: str, root: Path, rows: Listed) -> Found:
    """The images that a table names, with the classes that it gives them."""
    names, is_named = rows.class_names()

    def pool(part: str) -> Pool:
        files: Files = {name: [] for name in names}
        for row in rows.rows:
            if not rows.has_parts or row.part == part:
                files[row.label].append(row.path)
        return file_pool({name: sorted(paths) for name, paths in files.items()}, root)

    held_out = pool("held-out") if rows.has_parts else None
    return _whole(Found(source, names, is_named, pool("train"), held_out, rows.notes))


def _whole(found: Found) -> Found:
    """Itself, unless too many images or all of a class can't be read."""
    check_share(found.unreadable, found.total)
    for pool in found.pools:
        for label in np.flatnonzero(np.bincount(pool.labels, minlength=len(found.class_names)) == 0):
            if not pool.unreadable:
                continue  # none of it was there
            first = pool.unreadable[0]
            raise DataError(
                f"class folder {found.class_names[label]!r} holds no image that can be read ({first.name} "
                f"can't: {first.reason}); add some or remove it"
            )
    return found
