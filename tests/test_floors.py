"""The oldest versions that pyproject.toml allows do what the newest do.

Torch's takes gigabytes with what it needs, so it is that of the environment that runs the tests, unless
FLOORS=all has its oldest installed, too.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

from tests.processes import ROOT

pytestmark = pytest.mark.long
OF_TORCH = ("torch", "torchvision")
SAID = re.compile(r"([a-z0-9.-]+)(?:\[.*\])?>=([0-9.a-z]+)$", re.IGNORECASE)
WHICH = """
import importlib.metadata, json, sys
print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))
"""


def floors():
    """The oldest version allowed of everything that an installation needs, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = [SAID.match(each) for each in project["dependencies"]]
    assert all(found), "each says from which version on"
    return dict(each.groups() for each in found)


def done(*command, **how):
    found = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **how)
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


def test_the_oldest_versions_work(tmp_path, figure):
    wanted = floors()
    with_torch = os.environ.get("FLOORS") == "all"
    oldest = {name: version for name, version in wanted.items() if with_torch or name not in OF_TORCH}
    home = tmp_path / "oldest"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    pins = [f"{name}=={version}" for name, version in oldest.items()]
    done(python, "-m", "pip", "install", "--quiet", *pins)
    own = Path(done(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    if not with_torch:
        (own / "others.pth").write_text(sysconfig.get_path("purelib"))  # which comes after its own
    there = json.loads(done(python, "-c", WHICH, *oldest))
    release = re.compile(r"(\.0)*$")
    assert {name: release.sub("", v) for name, v in there.items()} == {
        name: release.sub("", v) for name, v in oldest.items()
    }

    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    how = {"cwd": tmp_path, "env": env}
    advisor = (python, "-m", "advisor")
    assert "Use " in done(*advisor, "demo", "--probe-time", "20s", **how)
    priced = done(
        *advisor, "profile", "torchvision:mobilenet_v2", "--methods", "head,lora", "--json", "-", **how
    )
    assert json.loads(priced)["candidates"]
    assert "lora" in done(*advisor, "methods", **how)
    figure(
        "oldest versions allowed: commands that fail",
        0,
        0,
        of=f"3, with {', '.join(f'{name} {version}' for name, version in sorted(there.items()))}",
    )
