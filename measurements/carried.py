"""Trainings of a study that is not at its end, in a file beside its results: another machine can go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from advisor.store import Store

_KIND = "truth"


class CarriedStore(Store):
    """A store that begins with what the file holds; the file gets each training that is finished.

    Those of a task that is whole leave the file: the results hold it then.
    """

    def __init__(self, path: Path, carried: Path, is_whole: Callable[[str], bool]) -> None:
        """`is_whole`: of a task, by name."""
        super().__init__(path)
        self._carried, self._is_whole = carried, is_whole
        for row in json.loads(carried.read_text()) if carried.exists() else ():
            if self.get(_KIND, row["key"]) is None:
                super().put(_KIND, row["key"], row["value"])

    def put(self, kind: str, key: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        """Keep the value, in the file, too, if it is of a training."""
        super().put(kind, key, value)
        if kind == _KIND:
            self.carry()

    def carry(self) -> None:
        """Write the file anew; without trainings of unfinished tasks there is none."""
        rows = [
            {"key": found.key, "value": found.value}
            for found in self
            if found.kind == _KIND and not self._is_whole(found.key["task"])
        ]
        if not rows:
            self._carried.unlink(missing_ok=True)
            return
        part = self._carried.with_suffix(".part")
        part.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
        part.replace(self._carried)
