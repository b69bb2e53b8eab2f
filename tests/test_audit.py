"""What an installation brings has no known holes; needs the network, and pip-audit."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution

import pytest

from tests.processes import ROOT

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("pip_audit") is None, reason="needs pip-audit"),
]


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def brought():
    """Everything that is installed because the package needs it, without extras: version by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting, found = {name_of(each) for each in project["dependencies"]}, {}
    while waiting:
        name = waiting.pop()
        try:
            there = distribution(name)
        except ModuleNotFoundError:  # of another platform, or an extra's
            continue
        found[name] = there.version.partition("+")[0]
        waiting |= {name_of(each) for each in there.requires or () if "extra ==" not in each} - {*found}
    return found


def test_no_known_holes(tmp_path, figure):
    versions = brought()
    assert {"torch", "numpy", "pillow", "sympy"} <= {*versions}  # also what others need
    listed = tmp_path / "requirements.txt"
    listed.write_text("".join(f"{name}=={version}\n" for name, version in sorted(versions.items())))
    asked = (
        "--requirement",
        listed,
        "--no-deps",
        "--disable-pip",
        "--format",
        "json",
        "--progress-spinner",
        "off",
    )
    done = subprocess.run(
        [sys.executable, "-m", "pip_audit", *map(str, asked)], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr[-2000:]
    audited = json.loads(done.stdout)["dependencies"]
    unknown = [each["name"] for each in audited if "vulns" not in each]
    if len(unknown) == len(versions):
        pytest.skip(
            "the index that pip uses here tells no known holes: run it where PyPI's own can be reached"
        )
    assert unknown == []
    holes = [f"{each['name']} {each['version']}: {hole['id']}" for each in audited for hole in each["vulns"]]
    figure(
        "known holes in what an installation brings (pip-audit)",
        len(holes),
        0,
        of=f"{len(versions)} packages",
    )
    assert holes == []
