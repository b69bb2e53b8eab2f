"""How many images may run at once where no gradient is needed: to judge, to fill a cache, to solve a head."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from advisor.costs.allocator import peak_of
from advisor.models.blocks import evaluating
from advisor.records import Census, Cost

_SIZES = (64, 32, 16, 8, 4, 2, 1)


def pass_size(model: nn.Module, census: Census, cost: Cost, allowed_bytes: int) -> int:
    """The most images, 64 at most, whose forward pass fits beside what the candidate holds meanwhile.

    Args:
        cost: of an update of the candidate.
        allowed_bytes: for all that is held, as `--ram` is.
    """
    memory = cost.memory
    rest = allowed_bytes - memory.weights - memory.buffers - memory.optimizer_state - memory.cached
    with evaluating(model), torch.inference_mode():
        for size in _SIZES:
            images = torch.zeros(size, *census.input_size)
            if images.nbytes < rest and images.nbytes + peak_of(partial(model, images)) <= rest:
                return size
    return _SIZES[-1]
