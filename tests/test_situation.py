"""What every command starts from."""

from __future__ import annotations

import torch

from advisor.situation import Request, prepare


def test_the_random_weights_of_a_name_follow_the_seed_alone():
    state = torch.get_rng_state()
    found = [
        prepare("torchvision:squeezenet1_1", Request(seed=seed), lambda *_: None).base_fingerprint
        for seed in (0, 0, 1)
    ]
    assert torch.equal(state, torch.get_rng_state())
    assert found[0] == found[1] != found[2]
