"""Attention without data costs what it costs on the CPU, whichever kernel torch takes there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advisor.costs import Simulator
from advisor.costs.attention import DeviceNeededError
from advisor.methods import get_method
from advisor.models import take_census
from advisor.records import Candidate, Levers

SIZE = (3, 8, 8)


class Attends(nn.Module):
    """The columns of an image, which look at each other."""

    def __init__(self, attend):
        super().__init__()
        self.into, self.head = nn.Linear(24, 32), nn.Linear(32, 4)
        self.bias = nn.Parameter(torch.zeros(8, 8))
        self.layer = nn.MultiheadAttention(32, 4, batch_first=True)
        self.attend = attend

    def forward(self, x):
        columns = self.into(x.permute(0, 3, 1, 2).flatten(2))
        return self.head(self.attend(self, columns).mean(1))


def of_heads(**how):
    def attend(self, x):
        query = x.view(len(x), 8, 4, 8).transpose(1, 2)
        given = {"attn_mask": self.bias} if how.get("attn_mask") == "bias" else {}
        return F.scaled_dot_product_attention(query, query, query, **how | given).transpose(1, 2).flatten(2)

    return attend


def of_a_layer(**how):
    return lambda self, x: self.layer(x, x, x, **how)[0]


AS_ON_THE_CPU = {
    "plain": of_heads(),
    "causal": of_heads(is_causal=True),
    "scaled": of_heads(scale=0.5),
    "with dropout": of_heads(dropout_p=0.5),  # no fused kernel does that
    "a trained bias": of_heads(attn_mask="bias"),  # nor this, unless the bias is frozen
    "a layer": of_a_layer(need_weights=False),
    "a layer that tells its weights": of_a_layer(),
}
by_another_name = F.scaled_dot_product_attention
ELSEWHERE = {
    "torch's function by another name": lambda self, x: (
        by_another_name(*[x.view(len(x), 8, 4, 8).transpose(1, 2)] * 3).transpose(1, 2).flatten(2)
    ),
    "a mask of what is allowed": lambda self, x: of_heads(
        attn_mask=torch.ones(8, 8, dtype=torch.bool, device=x.device).tril()
    )(self, x),
    "shared heads": lambda self, x: (
        F.scaled_dot_product_attention(
            x.view(len(x), 8, 4, 8).transpose(1, 2), *[x.view(len(x), 2, 16, 8)] * 2, enable_gqa=True
        )
        .transpose(1, 2)
        .flatten(2)
    ),
}


def simulator(attend):
    model = Attends(attend)
    return Simulator(model, take_census(model, SIZE))


@pytest.mark.parametrize("method", ["full", "head", "bias", "lora"])
@pytest.mark.parametrize("how", AS_ON_THE_CPU)
def test_it_costs_what_it_does_on_the_cpu(how, method):
    model = Attends(AS_ON_THE_CPU[how])
    census = take_census(model, SIZE)
    prices = Simulator(model, census)
    candidate = Candidate.of(method, get_method(method).settings(census, (2,))[0], Levers())
    assert prices.cost(candidate, 2, "meta") == prices.cost(candidate, 2, "fake")


@pytest.mark.parametrize("how", ELSEWHERE)
def test_what_the_cpu_makes_fit_first_is_left_to_it(how):
    prices = simulator(ELSEWHERE[how])
    with pytest.raises(DeviceNeededError):
        prices.cost(Candidate("full"), 2, "meta")
    assert prices.cost(Candidate("full"), 2) == prices.cost(Candidate("full"), 2, "fake")


def test_a_layer_that_is_not_trained_on_may_be_one_kernel():
    """In eval mode torch runs all of a layer of attention at once, but on the CPU alone."""
    prices = simulator(of_a_layer(need_weights=False))
    candidate = Candidate.of("ridge", {"features": "last"}, Levers())
    assert prices.cost(candidate, 2) == prices.cost(candidate, 2, "fake")


def test_torch_is_left_as_it_was():
    before = F.scaled_dot_product_attention
    simulator(of_a_layer(need_weights=False)).cost(Candidate("full"), 2)
    assert F.scaled_dot_product_attention is before
