"""How threads wait on a processor that others use, too."""

from __future__ import annotations

import os

import pytest

from advisor.system.processor import wait_without_spinning

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


def test_beside_another_process_threads_sleep_sooner(monkeypatch):
    spins = []
    for load in (0.0, 1.5):
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 9.0, 9.0))
        wait_without_spinning()
        spins.append(int(os.environ["GOMP_SPINCOUNT"]))
    assert spins[0] > spins[1] > 0


@pytest.mark.parametrize("name", NAMES)
def test_what_the_user_has_set_stays(monkeypatch, name):
    monkeypatch.setenv(name, "7")
    wait_without_spinning()
    assert {each: os.environ[each] for each in NAMES if each in os.environ} == {name: "7"}
