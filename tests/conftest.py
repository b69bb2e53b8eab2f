"""Settings for every test."""

from __future__ import annotations

import pytest
import torch

# Two test processes on two cores: more threads than cores make small operators wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """No test, nor a process that it starts, reads or writes the store of whoever runs the tests."""
    folder = str(tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
            patch.setenv(name, folder)
        yield
