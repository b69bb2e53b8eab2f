"""The figures of a check as CSV, to be worked with: bytes, FLOPs and parameters in full."""

from __future__ import annotations

import csv
import io

from advisor.check.compare import FIGURES
from advisor.check.records import CheckReport
from advisor.report.check import changes
from advisor.report.text_tables import no_formula


def to_csv(report: CheckReport) -> str:
    """A line for each target and figure: of the candidate before, or where there was none of the one now."""
    written = io.StringIO()
    rows = csv.writer(written, lineterminator="\n")
    rows.writerow(["model", "target", "state", "candidate", "figure", "before", "now"])
    for target in report.targets:
        named = (
            target.model,
            target.target,
            changes.state(report, target),
            changes.compared_candidate(target),
        )
        before = target.before.figures if target.before is not None else None
        now = changes.figures_after(target)
        for figure in FIGURES:
            values = ("" if each is None else getattr(each, figure) for each in (before, now))
            rows.writerow([*map(no_formula, named), figure, *values])
    return written.getvalue()
