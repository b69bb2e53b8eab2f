"""The demo's real small case: a network trained on clean digits, and a situation that is new to it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from advisor.system.files import make_folder, write_whole

FILES = ("model.pt", "new-data.npz", "old-data.npz")
_OLD_CLASSES = 7  # of ten; the other three are new in the new-classes scenario
_EPOCHS = 30
_BATCH = 32


@dataclass(frozen=True, slots=True)
class MadeSituation:
    """The files written, and what is new."""

    model: Path
    data: Path
    old: Path
    before: float  # the model's accuracy on held-out digits of the kind that it was trained on
    change: str


def make_situation(folder: Path, *, scenario: str, seed: int = 0) -> MadeSituation:
    """Train on half of scikit-learn's 1,797 digits; write the model, and the other half changed.

    What the model was judged on is written as well: old data, to tell what is forgotten.

    `shift`: the same ten classes, blurred and noisy. `new-classes`: trained on 0 to 6, the new data
    holds 7 to 9 too.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    old, new, old_labels, new_labels = train_test_split(
        images, digits.target, test_size=0.5, random_state=seed, stratify=digits.target
    )
    if scenario == "new-classes":
        known = old_labels < _OLD_CLASSES
        old, old_labels = old[known], old_labels[known]
        change = "with the digits 7, 8 and 9, which it has never seen"
    else:
        change = "blurred and noisy"
    fitted, held_out, fitted_labels, held_out_labels = train_test_split(
        old, old_labels, test_size=0.25, random_state=seed, stratify=old_labels
    )
    model = _train(fitted, fitted_labels, seed)
    right = _predict(model, held_out) == torch.from_numpy(held_out_labels)

    if scenario == "shift":
        new = _corrupt(new, np.random.default_rng(seed))
    make_folder(folder)
    files = tuple(folder / name for name in FILES)
    write_whole(files[0], _written(lambda file: torch.save(model, file)), keep_old=True)
    for path, shown, labels in ((files[1], new, new_labels), (files[2], held_out, held_out_labels)):
        arrays = {"images": np.round(shown * 255).astype(np.uint8), "labels": labels}
        write_whole(path, _written(partial(np.savez_compressed, **arrays)), keep_old=True)
    return MadeSituation(files[0], files[1], files[2], right.float().mean().item(), change)


def _written(save: Callable[[io.BytesIO], None]) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def small_network(classes: int) -> nn.Sequential:
    """A depthwise-separable network for 1x8x8 images, of torch's own modules only."""

    def separable(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]

    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)),
        *separable(16, 32, 1),
        *separable(32, 64, 2),
        *separable(64, 96, 1),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, classes)),
    )


def _train(images: np.ndarray, labels: np.ndarray, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = small_network(int(labels.max()) + 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        inputs, targets = _normalised(images), torch.from_numpy(labels)
        batches = -(-len(targets) // _BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=_EPOCHS * batches)
        for _ in range(_EPOCHS):
            for indices in torch.randperm(len(targets)).split(_BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(inputs[indices]), targets[indices]).backward()
                optimizer.step()
                schedule.step()
    return model.eval()


def _predict(model: nn.Module, images: np.ndarray) -> torch.Tensor:
    with torch.inference_mode():
        return model(_normalised(images)).argmax(1)


def _normalised(images: np.ndarray) -> torch.Tensor:
    # What `recommend` does by default with images of one channel.
    return (torch.from_numpy(images).unsqueeze(1) - 0.5) / 0.5


def _corrupt(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Half of a 3x3 box blur, faded ink and Gaussian noise."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="edge")
    blurred = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2)).mean((-1, -2))
    faded = 0.1 + 0.4 * (images + blurred)
    return np.clip(faded + generator.normal(0, 0.05, images.shape), 0, 1).astype(np.float32)
