"""The resident study: a bundle that fails is told, and counts in no figure."""

from __future__ import annotations

import sys

import pytest

from advisor.plain import encode
from advisor.records import Runtime
from measurements import resident

FINISHED = """
import pathlib, sys
pathlib.Path(sys.argv[3], "history.json").write_text('{"peak_resident_bytes": 110000000}')
"""
FAILED = """
import sys
print("something before", file=sys.stderr)
sys.exit("finetune: the 5 MB that the advice promised are too little here")
"""


@pytest.fixture
def outcome(tmp_path):
    """What comes of a bundle whose script is this one."""

    def run(script):
        (tmp_path / "bundle").mkdir(exist_ok=True)
        (tmp_path / "bundle" / "finetune.py").write_text(script)
        return resident.outcome(sys.executable, tmp_path, tmp_path)

    return run


def test_the_peak_or_the_last_line_of_what_went_wrong_is_told(outcome):
    assert outcome(FINISHED) == {"measured_bytes": 110_000_000}
    assert outcome(FAILED) == {"failure": "finetune: the 5 MB that the advice promised are too little here"}
    assert outcome("import os; os._exit(3)") == {"failure": "it ended with 3"}


def test_failures_stand_in_the_tables_and_in_no_error(outcome):
    update = {"network": "small", "side": 32, "batch_size": 4, "candidate": "full"}
    update |= {"update_bytes": 5_000_000, "kernels": 50, "in_flight_bytes": 0}
    runs = [update | outcome(script) for script in (FINISHED, FINISHED, FAILED)]
    own = {"runtime": encode(Runtime(100_000_000, "", 100_000)), "updates": runs}
    found = resident.summary(own)
    assert (found["updates"], found["failed"], found["median_error"]) == (2, 1, 0.0)
    assert "| full | 2.0 | 110 | finetune: the 5 MB that" in resident.tables({"2.0": own})["resident_updates"]
