"""What the tests of all commands run, and where."""

from __future__ import annotations

import shutil

import pytest

from advisor.cli import main
from advisor.demo import make_situation


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """A trained model and its changed situation, as `demo` makes them; nobody writes here."""
    path = tmp_path_factory.mktemp("demo")
    make_situation(path, scenario="shift", seed=0)
    return path


@pytest.fixture(scope="module")
def folder(demo, tmp_path_factory):
    """The same in a folder of the module's own."""
    return shutil.copytree(demo, tmp_path_factory.mktemp("folder") / "demo")


@pytest.fixture
def run(tell, monkeypatch, folder):
    """Run a command line in this process, in the demo's folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(folder)
    return tell


@pytest.fixture
def tell(capfd):
    """Likewise wherever the test is: nothing is trained for it."""

    def go(*arguments):
        with pytest.raises(SystemExit) as done:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return done.value.code or 0, out, err

    return go
