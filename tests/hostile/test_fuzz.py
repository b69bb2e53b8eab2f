"""Mutated files, for a bounded time: each is opened, or refused in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.hostile.fuzz import TARGETS
from tests.processes import ROOT


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
def test_fuzzing(target, tmp_path, figure):
    seconds = os.environ.get("FUZZ", "20")
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.fuzz", target, "--seconds", seconds, "--kept", tmp_path],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        timeout=float(seconds) + 300,
        check=True,
    )
    found = json.loads(done.stdout)
    how = "guided by coverage" if found["guided"] else "at random"
    assert found["faults"] == {}
    figure(f"fuzzing, {target}: faults", len(found["faults"]), 0, of=f"{found['runs']:,} files, {how}")
