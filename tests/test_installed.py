"""What is shipped works where it is installed, and where there is no network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.processes import ROOT

pytestmark = pytest.mark.long


def done(*arguments, **how):
    """Run it to its end: what it says."""
    found = subprocess.run([*map(str, arguments)], capture_output=True, text=True, check=False, **how)
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built of a copy, as building leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    files = done("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, files):
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder / "source" / name)
    build = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder)
    done(*build, folder / "source")
    (found,) = folder.glob("*.whl")
    return found


def test_a_wheel_in_a_fresh_environment(wheel, tmp_path, figure):
    home = tmp_path / "fresh"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    done(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    own = Path(done(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # Torch and the rest are gigabytes: those of the environment that runs the tests come after its own.
    (own / "others.pth").write_text(sysconfig.get_path("purelib"))
    where = done(python, "-c", "import advisor; print(advisor.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(home)
    command = home / "bin" / "peft-advisor"
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    assert done(command, "--version", cwd=tmp_path, env=env).startswith("peft-advisor ")
    assert "lora" in done(command, "methods", cwd=tmp_path, env=env)
    priced = done(
        command,
        "profile",
        "torchvision:squeezenet1_1",
        "--methods",
        "head",
        "--format",
        "json",
        cwd=tmp_path,
        env=env,
    )
    assert '"schema_version"' in priced
    figure("installed from a wheel: commands that fail", 0, 0, of=3)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a network namespace")
def test_the_demo_without_a_network(tmp_path, figure):
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-n", "true"], check=False).returncode:
        pytest.skip("needs a network namespace")
    env = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    said = done("unshare", "-n", sys.executable, "-m", "advisor", "demo", cwd=tmp_path, env=env)
    assert "Use " in said
    figure("demo with the network denied: failures", 0, 0, of=1)
