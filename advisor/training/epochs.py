"""A whole fine-tune, an epoch at a time: it can be cut off, and goes on as if it had never been."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from advisor.errors import InputError, first_line
from advisor.records import Candidate
from advisor.system.files import opened, replacing
from advisor.training.loop import Training, head_of

_FORMAT = "peft-advisor checkpoint 4"
_KEYS = {"key", "epochs", "state"}
_PIECES = 20  # of an epoch: how often progress is told

TrainingProgress = Callable[[str, float, str], None]  # stage, fraction of it done, what is running
EpochReport = Callable[[int, int, float], None]  # epoch from 1, of how many, accuracy


@dataclass(frozen=True, slots=True)
class Length:
    """How long a training is."""

    epochs: int
    updates_per_epoch: int  # 0 where a head is solved and nothing else is learned

    @classmethod
    def of(
        cls, candidate: Candidate, learning_rate: float | None, images: int, batch_size: int, epochs: int
    ) -> Length:
        """Of a candidate on so many images; an incomplete last batch of an epoch is left out."""
        # Statistics are re-estimated in a single pass; another would find the same.
        epochs = epochs if learning_rate is not None else 1
        is_solved = learning_rate is None and head_of(candidate) is not None
        return cls(epochs, 0 if is_solved else max(images // batch_size, 1))

    @property
    def updates(self) -> int:
        """Of all epochs."""
        return self.epochs * self.updates_per_epoch


def _read(file: BinaryIO) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True)


class Epochs:
    """A training's epochs, with a checkpoint after each."""

    def __init__(
        self,
        training: Training,
        length: Length,
        key: Mapping[str, Any],
        path: Path,
        read: Callable[[BinaryIO], Any] = _read,
    ) -> None:
        """Ready for the first epoch.

        Args:
            key: in words, what must be equal for a checkpoint to be this one's.
            path: the checkpoint's.
            read: what a file holds that `torch.save` wrote, without running code.
        """
        self.training, self.length, self._read = training, length, read
        self._key, self._path = dict(key), path
        self.epochs_run = 0
        self.diverged = False

    def train(self, progress: TrainingProgress, on_epoch: EpochReport) -> None:
        """Until all epochs are done, or it diverges: then the last whole epoch's weights are kept.

        Raises:
            InputError: it diverged in its first epoch, or the checkpoint can't be written.
        """
        while self.epochs_run < self.length.epochs:
            if not self._one_epoch(progress):
                self.diverged = True
                break
            if not self.length.updates_per_epoch:
                self.training.finish()
            correct = self.training.judge()
            self.epochs_run += 1
            self._save()
            on_epoch(self.epochs_run, self.length.epochs, sum(correct) / len(correct))
        if not self.epochs_run:
            raise InputError(
                "training diverged in its first epoch: the loss or a weight is no longer finite; "
                "give a lower --learning-rate"
            )
        progress("train", 1.0, "")
        if self.diverged:
            self.training.restore(self._saved()["state"])
        if self.training.trainable.examples is None:
            self.training.finish()

    def resume(self) -> None:
        """Go on from the folder's checkpoint, if there is one. Raises InputError."""
        if not self._path.exists():
            return
        saved = self._saved()
        differing = [
            f"{name} {_short(saved['key'].get(name))}, now {_short(value)}"
            for name, value in self._key.items()
            if saved["key"].get(name) != value
        ]
        if differing:
            raise InputError(
                f"{self._path}: is of another recipe ({'; '.join(differing)}); give --restart to begin "
                "anew, or another --output"
            )
        self.training.restore(saved["state"])
        self.epochs_run = saved["epochs"]

    def _one_epoch(self, progress: TrainingProgress) -> bool:
        epochs, each = self.length.epochs, self.length.updates_per_epoch
        for piece in range(1, _PIECES + 1):
            done = self.epochs_run * each + each * piece // _PIECES
            if done > self.training.done and not self.training.run(done):
                return False
            progress("train", done / max(epochs * each, 1), f"epoch {self.epochs_run + 1} of {epochs}")
        return True

    def _save(self) -> None:
        saved = {
            "format": _FORMAT,
            "key": self._key,
            "epochs": self.epochs_run,
            "state": self.training.state(),
        }
        try:
            with replacing(self._path) as temporary:
                torch.save(saved, temporary)
        except (OSError, RuntimeError) as error:  # torch says RuntimeError, of its own code, on a full disk
            reason = first_line(error) if isinstance(error, OSError) else "the disk seems to be full"
            raise InputError(
                f"{self._path}: the checkpoint can't be written ({reason}); "
                "make room, and give the same command again"
            ) from error

    def _saved(self) -> dict[str, Any]:
        try:
            with opened(self._path) as file:
                saved = self._read(file)
            if saved["format"] != _FORMAT or not isinstance(saved["key"], dict):
                raise ValueError("another format")
            if missing := _KEYS - saved.keys():
                raise ValueError(f"without {missing}")
        except Exception as error:  # whatever the file may hold
            raise InputError(
                f"{self._path}: is no checkpoint of a fine-tune, or a damaged one; give another --output, "
                "or --restart to have it replaced"
            ) from error
        return cast(dict[str, Any], saved)


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
