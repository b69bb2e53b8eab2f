"""Which branches of the code no test takes: of what `make coverage` records, kept as long tests' figures are.

Processes that tests start are seen, too, but for those that are killed. Those of the packages that mutants
are made of are told by themselves, too.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

from coverage import Coverage

from measurements.mutants import PACKAGES
from measurements.reliability import keep, line

MOST = 10  # percent


def main() -> None:
    """Read what is recorded, print and keep the shares."""
    recorded = Coverage()
    recorded.load()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        recorded.json_report(outfile=str(report))
        files = json.loads(report.read_text())["files"]
    branches, missed = Counter[str](), Counter[str]()
    for path, found in files.items():
        package = Path(path).parts[1]
        for name in ("all", package) if package in PACKAGES else ("all",):
            branches[name] += found["summary"]["num_branches"]
            missed[name] += found["summary"]["missing_branches"]
    figures = {
        f"branches that no test takes, percent: {name}": {
            "value": round(100 * missed[name] / count, 1),
            "should be": MOST,
            "of": count,
        }
        for name, count in sorted(branches.items())
    }
    for name, figure in figures.items():
        print(line(name, figure))
    keep(figures)


if __name__ == "__main__":
    main()
