"""Where probes run: in this process, or in others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from advisor.probes.train import Probe, Trainer, Trial


class Executor(Protocol):
    """Runs independent trials."""

    workers: int  # how many at once

    def run(self, trials: Iterable[Trial]) -> Iterator[Probe]:
        """Each trial's probe as it finishes; a trial is taken when it can begin."""
        ...


class InProcess:
    """One after the other, here."""

    workers = 1

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def run(self, trials: Iterable[Trial]) -> Iterator[Probe]:
        """Each trial's probe, in order."""
        return (self._trainer.probe(trial) for trial in trials)
