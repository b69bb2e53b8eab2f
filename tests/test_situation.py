"""What every command starts from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from advisor.errors import DataError, InputError
from advisor.situation import Request, prepare


def test_the_random_weights_of_a_name_follow_the_seed_alone():
    state = torch.get_rng_state()
    found = [
        prepare("torchvision:squeezenet1_1", Request(seed=seed), lambda *_: None).base_fingerprint
        for seed in (0, 0, 1)
    ]
    assert torch.equal(state, torch.get_rng_state())
    assert found[0] == found[1] != found[2]


def test_old_data_has_the_outputs_for_labels_and_no_new_classes(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    names = np.array(["a", "b", "c", "d"])
    for name, labels in (("old", [2, 0, 1] * 4), ("new", [0, 1, 2, 3] * 4)):
        images = np.full((len(labels), 8, 8), 10, np.uint8) * (np.array(labels)[:, None, None] + 1)
        np.savez(
            tmp_path / f"{name}.npz",
            images=images.astype(np.uint8),
            labels=labels,
            class_names=names[: max(labels) + 1],
        )
    old, new = str(tmp_path / "old.npz"), str(tmp_path / "new.npz")
    request = Request(input_size=(1, 8, 8), data=new, retain=old, class_names=("c", "a", "b"))
    retained = prepare(model, request, lambda *_: None).dataset.retained
    assert len(retained) == 12
    assert model[1].out_features == 3  # the caller's module is left alone
    outputs = {10: 1, 20: 2, 30: 0}  # by brightness
    assert [outputs[int(image.max())] for image in retained.images] == retained.labels.tolist()
    with pytest.raises(DataError, match="never seen"):
        prepare(model, replace(request, data=old, retain=new), lambda *_: None)
    with pytest.raises(InputError, match="--data"):
        prepare(model, replace(request, data=None), lambda *_: None)
