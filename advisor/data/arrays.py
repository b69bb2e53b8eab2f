"""Images that are arrays: of an .npz, or of scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from advisor.data.pixels import Frame, Size, fit, with_channels, wrong_channels
from advisor.data.pools import Failures, Found, Pool, class_names_of
from advisor.data.survey import Unreadable, check_share
from advisor.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    Labels = npt.NDArray[np.int64]

_CHUNK = 256  # images converted at once


def find_npz(source: str, path: Path) -> Found:
    """The images of an .npz with `images`, `labels` and perhaps `class_names`."""
    arrays = npz_arrays(path, ("images", "labels"), ("class_names",))
    count = len(arrays["images"])
    (images, kept), labels = checked_images(path, arrays["images"]), _checked_labels(path, arrays["labels"])
    if count != len(labels):
        raise DataError(f"{path}: {count} images but {len(labels)} labels; every image needs one label")
    names, labels = class_names_of(path, labels[kept], arrays.get("class_names"))
    return Found(source, names, "class_names" in arrays, array_pool(images, labels, path, kept, count))


def npz_arrays(path: Path, needed: Sequence[str], others: Sequence[str] = ()) -> dict[str, npt.NDArray[Any]]:
    """The arrays of these names: all that are needed, and those of the others that are there."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            for name in needed:
                if name not in archive:
                    keys = ", ".join(list(archive)[:5]) or "nothing"
                    raise DataError(
                        f"{path} has no array {name!r} (it holds {keys}); save it under that name"
                    )
            return {name: archive[name] for name in (*needed, *others) if name in archive}
    except DataError:
        raise
    except Exception as error:  # whatever zip, zlib and numpy raise on a damaged file
        if "Object arrays" in str(error):
            raise DataError(
                f"{path} holds object arrays, which could run code when loaded; "
                "save arrays of numbers and strings"
            ) from error
        raise DataError(
            f"{path} is not a readable .npz file ({type(error).__name__}); write it with numpy.savez"
        ) from error


def checked_images(path: Path, images: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Labels]:
    """The images that are whole, and their positions."""
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(
            f"{path}: images has shape {images.shape}; "
            "it must be (N, H, W), (N, H, W, C) or (N, C, H, W), none of them 0"
        )
    if images.dtype == np.uint8:
        return images, np.arange(len(images))
    if images.dtype.kind != "f":
        raise DataError(
            f"{path}: images are {images.dtype}; save them as uint8 (0 to 255) or as floats in [0, 1]"
        )
    kept = np.flatnonzero(np.isfinite(images).all(axis=tuple(range(1, images.ndim))))
    if len(kept) < len(images):
        check_share(_not_finite(kept, len(images)), len(images), f"{path}: ")
        images = images[kept]
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1 + 1e-4:  # resampling may overshoot 1 by rounding
        hint = "divide them by 255" if low >= 0 else "undo their normalisation"
        raise DataError(f"{path}: images range from {low:g} to {high:g}; floats must be in [0, 1]: {hint}")
    return images, kept


def _checked_labels(path: Path, labels: npt.NDArray[Any]) -> Labels:
    if labels.ndim != 1:
        raise DataError(
            f"{path}: labels has shape {labels.shape}; it must be (N,): one class number for each image"
        )
    if labels.dtype.kind not in "iu":
        raise DataError(f"{path}: labels are {labels.dtype}; save whole numbers, labels.astype(int)")
    whole = labels.astype(np.int64)
    if len(whole) and whole.min() < 0:
        raise DataError(f"{path}: labels hold {whole.min()}; class numbers start at 0")
    return whole


def _channel_axis(where: object, shape: tuple[int, ...], channels: int) -> int | None:
    """Which axis holds the channels: as many as the model's, else 1 or 3, else at most 4."""
    if len(shape) == 3:
        return None
    for allowed in ({channels}, {1, 3}, {1, 2, 3, 4}):
        axes = [axis for axis in (3, 1) if shape[axis] in allowed]
        if axes:
            return axes[0]  # channels last where both would do
    raise wrong_channels(where, shape, channels)


def array_pool(
    images: npt.NDArray[Any],
    labels: Labels,
    where: object,
    kept: Labels | None = None,
    total: int | None = None,
) -> Pool:
    """`kept`: the images' positions among the `total` that there were; None: all are there."""
    positions = np.arange(len(images)) if kept is None else kept
    unreadable = _not_finite(positions, len(images) if total is None else total)

    def read(indices: Labels, frame: Frame) -> tuple[torch.Tensor, Failures]:
        channels = frame.size[0]
        axis = _channel_axis(where, images.shape, channels)
        found = 1 if axis is None else images.shape[axis]
        if found != channels and (found, channels) not in ((1, 3), (3, 1)):
            raise wrong_channels(where, images.shape, channels)
        out = torch.empty(len(indices), *frame.size, dtype=torch.uint8)
        for start in range(0, len(indices), _CHUNK):
            chunk = images[indices[start : start + _CHUNK]]
            if chunk.dtype != np.uint8:
                chunk = np.rint(chunk.astype(np.float32).clip(0, 1) * 255).astype(np.uint8)
            chunk = chunk[:, None] if axis is None else np.moveaxis(chunk, axis, 1)
            tensor = with_channels(torch.from_numpy(np.ascontiguousarray(chunk)), channels)
            out[start : start + _CHUNK] = fit(tensor, frame)
        return out, {}

    def sizes(channels: int | None) -> frozenset[Size]:
        axis = _channel_axis(where, images.shape, 3 if channels is None else channels)
        if axis is None:
            return frozenset({(1, *images.shape[1:])})
        sides = [side for place, side in enumerate(images.shape) if place not in (0, axis)]
        return frozenset({(images.shape[axis], sides[0], sides[1])})

    return Pool(labels, read, lambda index: f"image {positions[index]}", sizes, unreadable)


def _not_finite(kept: Labels, total: int) -> tuple[Unreadable, ...]:
    missing = np.setdiff1d(np.arange(total), kept)
    return tuple(
        Unreadable(f"image {place}", "it holds NaN or infinite values") for place in missing.tolist()
    )


def find_digits() -> Found:
    """The 8x8 digits that scikit-learn comes with."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), 0 to 16
    names = tuple(str(name) for name in digits.target_names)
    return Found("digits", names, True, array_pool(images, digits.target.astype(np.int64), "digits"))
