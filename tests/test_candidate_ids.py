"""A candidate's id says all that the candidate is."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.methods import methods
from advisor.records import Candidate, Levers, Optimizer, StatisticsPolicy

LEVERS = st.builds(
    Levers,
    optimizer=st.sampled_from(get_args(Optimizer)),
    scope=st.none() | st.integers(0, 300),
    micro_batch=st.none() | st.integers(1, 64),
    checkpoint=st.booleans(),
    update=st.sampled_from(["end", "per-parameter"]),
    cached_prefix=st.sampled_from(["no", "ram", "disk"]),
    fuse=st.booleans(),
    statistics=st.sampled_from(get_args(StatisticsPolicy)),
)
VALUES = st.integers(-10, 100) | st.floats(1e-7, 1e7) | st.booleans() | st.sampled_from(["all", "depthwise"])
SETTINGS = st.dictionaries(st.sampled_from(["rank", "fraction", "scope", "large"]), VALUES, max_size=3)


@given(st.sampled_from(list(methods())), SETTINGS, LEVERS)
def test_it_is_read_back(method, setting, levers):
    candidate = Candidate.of(method, setting, levers)
    assert Candidate.parse(candidate.id) == candidate


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@last-3",
        "lora-rank=4@",
        "lora-rank=4@last",
        "full@adam",
        "full@cached-no",
        "full@cached-tape",
        "a b@x",
    ],
)
def test_what_is_none_is_refused(text):
    with pytest.raises(ValueError, match="is no"):
        Candidate.parse(text)
