"""Progress on stderr: a bar with the time left on a terminal, a line for each stage elsewhere."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from advisor.cli import talk
from advisor.units import format_seconds

_STAGES = {
    "load": "Loading",
    "cost": "Costing every candidate",
    "probe": "Probing on your data",
    "verify": "Running the choice",
    "train": "Training",
    "add": "Adding the images",
    "write": "Judging and writing",
    "export": "Writing the bundle",
    "quantise": "Quantising",
    "compare": "Comparing",
}
_LEAD_SECONDS = 15.0  # between two lines, at least


def _whole(width: int) -> Column:
    return Column(no_wrap=True, min_width=width, width=width)


class ProgressBars:
    """A context manager that is called as `advise.Progress` is. With --quiet it shows nothing."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, quiet=talk.is_quiet())
        # FORCE_COLOR makes rich take a file for a terminal: colours may be wanted there, moving bars aren't.
        is_terminal = console is not None or bool(sys.stderr and sys.stderr.isatty())
        self._moves = is_terminal and self._console.is_interactive and not self._console.quiet
        self._bars = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=16),
            TimeElapsedColumn(table_column=_whole(7)),
            TimeRemainingColumn(table_column=_whole(7)),
            TextColumn("left", table_column=_whole(4)),
            # What is running gets what is left of the line.
            TextColumn(
                "{task.fields[running]}",
                style="dim",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            expand=True,
            console=self._console,
            disable=not self._moves,
        )
        self._tasks: dict[str, TaskID] = {}
        self._stage, self._since = "", time.perf_counter()
        self._lead, self._led_since = "", -math.inf

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._enter("")
        self._bars.stop()

    def __call__(self, stage: str, fraction: float, running: str) -> None:
        """Move a stage's bar; what leads is a line above it, now and then."""
        if stage == "lead":
            self._tell_lead(running)
            return
        if stage not in self._tasks:
            self._enter(stage)
            self._tasks[stage] = self._bars.add_task(_STAGES[stage], total=1.0, running=running)
            if not self._moves:
                self._console.print(f"{_STAGES[stage]} ...", highlight=False)
        self._bars.update(self._tasks[stage], completed=fraction, running=running)

    def _tell_lead(self, lead: str) -> None:
        now = time.perf_counter()
        if lead != self._lead and now - self._led_since >= _LEAD_SECONDS:
            self.say(f"So far: {lead}; Ctrl-C takes it")
            self._lead, self._led_since = lead, now

    def say(self, line: str) -> None:
        """A line above the bars."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _enter(self, stage: str) -> None:
        """With --verbose, tell how long the stage before took."""
        now = time.perf_counter()
        if self._stage and talk.is_verbose():
            self.say(f"{_STAGES[self._stage]} took {format_seconds(now - self._since)}")
        self._stage, self._since = stage, now
