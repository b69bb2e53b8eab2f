"""Blocks by the order of calls, and why a model has none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advisor.models.layers import take_census

SIZE = (3, 8, 8)


def convolutions(count):
    return [nn.Conv2d(3 if number == 0 else 4, 4, 1) for number in range(count)]


class Model(nn.Module):
    """Its code is a function of it and the image."""

    def __init__(self, run, **parts):
        super().__init__()
        self.one, self.two, self.three = convolutions(3)
        self.head, self.run = nn.Linear(4, 2), run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.head(self.run(self, x).mean((2, 3)))


def twice(model, x):
    return model.three(model.two(model.two(model.one(x))))


def skipped(model, x):
    x = model.one(x)
    return x + model.three(model.two(x)) + model.two.weight.sum() * x.mean()


def dense(model, x):
    a = model.one(x)
    b = model.two(a)
    return a + b + model.three(a + b) + x.mean()


def cut_off(model, x):
    return model.three(model.two(model.one(x.detach())))


def one_piece(model, x):
    conv = nn.functional.conv2d
    return conv(conv(x, model.one.weight), model.two.weight)


def dropping(model, x):
    return model.three(model.drop(model.two(model.drop(model.drop(model.one(x))))))


@pytest.mark.parametrize(
    ("run", "parts", "why"),
    [
        (twice, {}, "layer `two` runs twice"),
        (dense, {}, "a connection skips every place between two of its layers"),
        (cut_off, {}, "no gradient flows from its output back to the image"),
    ],
)
def test_why_there_are_no_blocks_to_choose_from(run, parts, why):
    census = take_census(Model(run, **parts), SIZE)
    assert census.whole_because == why
    assert len(census.blocks) < 2


def test_a_network_of_functions_runs_as_one_piece():
    class Functions(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = convolutions(2)

        def forward(self, x):
            return one_piece(self, x).mean((2, 3))

    census = take_census(Functions(), SIZE)
    assert census.whole_because == "it runs as one piece, whose parts are not modules that it calls"
    assert census.blocks == ()


def test_weights_shared_by_two_blocks_are_not_frozen_here_and_trained_there():
    norm = nn.BatchNorm2d(4)
    blocks = [nn.Sequential(conv, norm) for conv in convolutions(2)]
    tied = nn.Sequential(*convolutions(3))
    tied[2].weight = tied[1].weight
    rest = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    nested = take_census(nn.Sequential(*blocks, *rest), SIZE)
    assert (nested.blocks, nested.whole_because) == ((), "`0` and `1` share weights")
    census = take_census(nn.Sequential(*tied, *rest), SIZE)
    assert (census.blocks, census.whole_because) == ((), "`1` and `2` share weights")


def test_a_dropout_between_all_layers_leaves_no_cut():
    census = take_census(Model(dropping, drop=nn.Dropout()), SIZE)
    assert [block.modules for block in census.blocks] == [("one", "drop", "drop", "two", "drop"), ("three",)]
    layers = [layer for conv in convolutions(3) for layer in (conv, census)][::2]
    drop = nn.Dropout()
    ends = nn.Sequential(
        *(part for layer in layers for part in (drop, layer)), drop, nn.Flatten(), nn.Linear(256, 2)
    )
    found = take_census(ends, SIZE)
    assert len(found.blocks) == 1
    assert found.whole_because == "`0` runs all over it, and otherwise in training"
    behind = nn.Sequential(
        *(part for layer in layers for part in (layer, drop)), nn.Flatten(), nn.Linear(256, 2), drop
    )
    found = take_census(behind, SIZE)
    assert found.blocks == ()
    assert found.whole_because == "`1` runs before and behind the last block, and otherwise in training"


def test_a_mode_is_looked_for_in_the_modules_own_code():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x) if self.training else x

    class Plain(nn.Module):
        def forward(self, x):
            return x * 2

    for between, count in ((nn.ReLU(), 3), (Plain(), 3), (Noisy(), 1), (nn.RReLU(), 1)):
        parts = [part for conv in convolutions(3) for part in (conv, between)]
        census = take_census(nn.Sequential(*parts, nn.Flatten(), nn.Linear(256, 2)), SIZE)
        assert len(census.blocks) == count


def test_a_branch_that_only_training_runs_must_not_upset_the_count():
    class Auxiliary(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.layer, self.act = nn.Conv2d(4, 4, 1), act

        def forward(self, x):
            return self.act(self.layer(x))

    def run(model, x):
        x = model.act(model.one(x))
        if model.training:
            x = x + model.aux(x)
        return model.three(model.act(model.two(x)))

    act = nn.ReLU()
    census = take_census(Model(run, act=act, aux=Auxiliary(act)), SIZE)
    assert census.blocks == ()
    assert census.whole_because == "`aux` may run in training only and shares `act` with the rest"
    census = take_census(Model(run, act=act, aux=Auxiliary(nn.ReLU())), SIZE)
    assert len(census.blocks) == 3


def test_one_layer_before_the_head_needs_no_reason():
    census = take_census(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2)), SIZE)
    assert (len(census.blocks), census.whole_because) == (1, "")
