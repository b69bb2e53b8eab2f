"""What the long tests found, one figure a line: kept in `results/reliability.json`, shown in the README.

The tests with the mark `long` record them (`make test-long`); a run of some of these renews theirs alone.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measurements.tables import README, table, write_tables

RESULTS = Path(__file__).parent / "results" / "reliability.json"


def keep(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Put new figures among those that are known, and into the README's table.

    Args:
        found: by what was tested: `value`, what it `should be`, and `of` how many, where that tells.
    """
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    figures = known.get("figures", {}) | found
    RESULTS.write_text(json.dumps({"figures": figures, "machine": _machine()}, indent=2) + "\n")
    rows = [(name, each["value"], each["should be"], each["of"]) for name, each in sorted(figures.items())]
    write_tables(README, {"reliability": table(("tested", "found", "should be", "of"), rows)})


def line(name: str, figure: Mapping[str, Any]) -> str:
    """As it is printed."""
    return f"{name}: {figure['value']} of {figure['of']} (should be {figure['should be']})"


def _machine() -> dict[str, Any]:
    from importlib.metadata import version

    versions = {name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")}
    return {"python": platform.python_version(), "system": platform.system(), **versions}
