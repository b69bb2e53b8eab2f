"""Settings for every test."""

from __future__ import annotations

import torch

# Two test processes on two cores: more threads than cores make small operators wait for each other.
torch.set_num_threads(1)
