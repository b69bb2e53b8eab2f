"""The sums that a head was solved of, as a file beside the adapter: more images can be added to them later.

`sums.safetensors` holds no image, and runs no code when it is read. A model that is shipped doesn't need it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from advisor.errors import InputError
from advisor.parts.sums import Sums
from advisor.system.files import opened

SUMS = "sums.safetensors"
FORMAT = "peft-advisor sums 1"


@dataclass(frozen=True, slots=True, eq=False)
class KeptSums:
    """Sums over images, and by what to know an image that is in them."""

    sums: Sums
    marks: torch.Tensor  # (images,) int64, see `marks_of`

    def content(self) -> bytes:
        """The file. Of the Gram matrix, which is symmetric, one half is kept."""
        sums = self.sums
        rows, columns = torch.triu_indices(*sums.gram.shape)
        tensors = {
            "gram": sums.gram[rows, columns],
            "moments": sums.moments.contiguous(),
            "features": sums.features.contiguous(),
            "targets": sums.targets.contiguous(),
            "sizes": torch.tensor(sums.sizes),
            "count": torch.tensor([sums.count]),
            "marks": self.marks,
        }
        return save_tensors(tensors, metadata={"format": FORMAT})

    @classmethod
    def read(cls, path: Path, sha256: str) -> KeptSums:
        """Those in the file that has this checksum. Raises InputError."""
        try:
            with opened(path) as file:
                content = file.read()
        except FileNotFoundError as error:
            raise InputError(
                f"{path}: is missing, and nothing can be added without it; take it from where apply wrote "
                "it, or run apply again"
            ) from error
        except OSError as error:
            raise InputError(f"{path}: can't be read ({error.strerror}); check its permissions") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise InputError(
                f"{path}: is not the file that recipe.json was written with, or was damaged since; take both "
                "from one run of apply"
            )
        try:
            return cls._of(load_tensors(content))
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise InputError(f"{path}: is damaged; take the file that apply wrote") from error

    @classmethod
    def _of(cls, tensors: dict[str, torch.Tensor]) -> KeptSums:
        sizes = tuple(tensors["sizes"].tolist())
        width, classes = sum(sizes), len(tensors["targets"])
        gram = torch.zeros(width, width, dtype=torch.float64)
        rows, columns = torch.triu_indices(width, width)
        gram[rows, columns] = gram[columns, rows] = tensors["gram"]
        moments = tensors["moments"].reshape(width, classes)
        count = int(tensors["count"])
        sums = Sums(sizes, count, gram, moments, tensors["features"].reshape(width), tensors["targets"])
        return cls(sums, tensors["marks"].reshape(count))


def marks_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A number for each image (N, C, H, W) of bytes and its label (N,), the same for the same: (N,) int64.

    Two different ones of a million images share theirs with a probability of 3e-8.
    """
    flat = images.contiguous().reshape(len(images), math.prod(images.shape[1:])).numpy()
    found = np.empty(len(flat), np.int64)
    for place, (image, label) in enumerate(zip(flat, labels.tolist(), strict=True)):
        digest = hashlib.blake2b(image.data, digest_size=8, salt=label.to_bytes(8, "little"))
        found[place] = int.from_bytes(digest.digest(), "little", signed=True)
    return torch.from_numpy(found)
