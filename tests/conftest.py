"""Settings for every test."""

from __future__ import annotations

import gc
import os
import signal
import sys

import pytest

# Two test processes on two cores: more threads than cores make small operators wait for each other.
# torch reads this; it is not imported here, as the process that only hands tests out needs none.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["GOMP_SPINCOUNT"] = "10000"  # whatever else runs when a command starts
# Shells have what they start in the background ignore interrupts, and so would the commands under test.
signal.signal(signal.SIGINT, signal.default_int_handler)


_frozen = {"modules": 0}
_figures = {}  # what long tests found


def pytest_runtest_setup():
    """Each look for garbage, of which memory's tests take many, else goes through all imports: 0.2 s."""
    if len(sys.modules) > _frozen["modules"] + 20:
        gc.collect()
        gc.freeze()
        _frozen["modules"] = len(sys.modules)


def pytest_unconfigure():
    """What stays frozen is taken for a leak by some libraries."""
    gc.unfreeze()


@pytest.fixture
def figure():
    """For long tests: keep what was found, `figure(name, value, should_be, of=...)`, and hold it to that.

    `should_be` is a number that the value may not exceed, or text where nothing is asserted.
    """

    def found(name, value, should_be, of="-"):
        _figures[name] = {"value": value, "should be": should_be, "of": of}
        assert isinstance(should_be, str) or value <= should_be, f"{name}: {value}, should be {should_be}"

    return found


def pytest_terminal_summary(terminalreporter):
    """A line for each figure, which are kept where the studies keep theirs."""
    if _figures:
        from measurements.reliability import keep, line

        for name, each in _figures.items():
            terminalreporter.write_line(line(name, each))
        keep(_figures)


@pytest.fixture(autouse=True, scope="session")
def forked_children():
    """Children that measure or check are forked: that spares each the imports, 4 s of a processor."""
    from tests.processes import FORKS, fork_children  # which looks at the environment

    if FORKS:
        fork_children()


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """No test, nor a process that it starts, reads or writes the store of whoever runs the tests."""
    folder = str(tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
            patch.setenv(name, folder)
        yield
