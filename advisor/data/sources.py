"""Where images come from, as the user types it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from advisor.data.arrays import array_pool, checked_images, find_digits, find_npz, unlabelled_images
from advisor.data.files import file_pool, images_below, suffixes
from advisor.data.hub import find_hub, is_saved
from advisor.data.layouts import find_folder
from advisor.data.listed import TABLES
from advisor.data.objects import find_given, find_object
from advisor.data.pools import Found, Pool, existing
from advisor.data.survey import check_share
from advisor.data.torchvision_data import find_torchvision
from advisor.errors import DataError
from advisor.names import names_code

_GIVEN = "given images"  # what they are called that are no text
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
_HUB = "hf:"  # before the path of a dataset of Hugging Face's


def find(source: Any, labels: str | None = None) -> Found:
    """The images and classes that a source holds; see `load_data` and `find_folder`. Raises DataError.

    Args:
        source: text, or what `find_given` takes.
    """
    if not isinstance(source, str):
        if labels is not None:
            raise DataError("labels tells the classes of images in a folder; images that are given have them")
        found = find_given(_GIVEN, source)
    elif source.startswith(_HUB):
        found = find_hub(source, existing(source.removeprefix(_HUB)), labels)
    else:
        found = _find(source, labels)
    check_share(found.unreadable, found.total)
    return found


def find_unlabelled(source: str) -> Pool:
    """The images of a folder, in whatever folders below it, or of an .npz. Raises DataError."""
    path = existing(source)
    if path.is_dir():
        files = sorted(images_below(path))
        if not files:
            raise DataError(f"{path} holds no images; add some ({', '.join(suffixes())})")
        pool = file_pool({"": files}, path)
    elif path.suffix.lower() == ".npz":
        given = unlabelled_images(path)
        images, kept, _ = checked_images(path, given)
        pool = array_pool(images, np.zeros(len(images), np.int64), path, kept, len(given))
    else:
        raise DataError(f"{path} is neither a folder nor an .npz file; give a folder of images, or an .npz")
    check_share(pool.unreadable, pool.total)
    return pool


def _find(source: str, labels: str | None) -> Found:
    if labels is not None and not Path(source).expanduser().is_dir():
        raise DataError(
            f"--labels tells the classes of images in a folder, and {source} is none; leave it out"
        )
    if source == "digits":
        return find_digits()
    if source.startswith("torchvision:"):
        return find_torchvision(source)
    if names_code(source) and not Path(source).exists():
        return find_object(source)
    path = existing(source)
    if path.is_dir():
        return (find_hub if is_saved(path) else find_folder)(source, path, labels)
    if path.suffix.lower() == ".npz":
        return find_npz(source, path)
    raise DataError(f"{path} is neither a folder nor an .npz file; {_mend(path)}")


def _mend(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in TABLES:
        return f"if it tells the classes of images, give their folder, and --labels {path}"
    if suffix in _ARCHIVES:
        return "unpack it, and give the folder"
    if suffix == ".py":
        return f"give {path}:NAME, with what makes the dataset"
    return "give a folder that holds one folder of images for each class, or an .npz with images and labels"
