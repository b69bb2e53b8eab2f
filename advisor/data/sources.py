"""Where images come from, as the user types it."""

from __future__ import annotations

import numpy as np

from advisor.data.arrays import array_pool, checked_images, find_digits, find_npz, npz_arrays
from advisor.data.layouts import SUFFIXES, file_pool, find_folder, images_below
from advisor.data.pools import Found, Pool, existing
from advisor.data.survey import check_share
from advisor.data.torchvision_data import find_torchvision
from advisor.errors import DataError


def find(source: str) -> Found:
    """The images and classes that a source holds; see `load_data`. Raises DataError."""
    found = _find(source)
    check_share(found.unreadable, found.total)
    return found


def find_unlabelled(source: str) -> Pool:
    """The images of a folder, in whatever folders below it, or of an .npz. Raises DataError."""
    path = existing(source)
    if path.is_dir():
        files = sorted(images_below(path))
        if not files:
            raise DataError(f"{path} holds no images; add some ({', '.join(SUFFIXES)})")
        pool = file_pool({"": files}, path)
    elif path.suffix.lower() == ".npz":
        given = npz_arrays(path, ("images",))["images"]
        images, kept = checked_images(path, given)
        pool = array_pool(images, np.zeros(len(images), np.int64), path, kept, len(given))
    else:
        raise DataError(f"{path} is neither a folder nor an .npz file; give a folder of images, or an .npz")
    check_share(pool.unreadable, pool.total)
    return pool


def _find(source: str) -> Found:
    if source == "digits":
        return find_digits()
    if source.startswith("torchvision:"):
        return find_torchvision(source)
    path = existing(source)
    if path.is_dir():
        return find_folder(source, path)
    if path.suffix.lower() == ".npz":
        return find_npz(source, path)
    raise DataError(
        f"{path} is neither a folder nor an .npz file; give a folder that holds one folder of "
        "images for each class, or an .npz with images and labels"
    )
