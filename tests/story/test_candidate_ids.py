"""A candidate's id says all that the candidate is."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.demo import small_network
from advisor.methods import methods
from advisor.models import take_census
from advisor.records import Candidate, HeadPolicy, Levers, Optimizer, StatisticsPolicy

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


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("full", "full"),
        ("lora-rank=4@last-3", "lora-4@last-3"),
        ("lora-depthwise=skip-rank=2@sgd", "lora-skip-2@sgd"),
        ("norm@statistics-frozen@head-ridge-all", "norm@frozen@ridge-all"),
        ("head@last-0@cached-ram", "head@last-0@cached-ram"),
        ("other-large=True", "other-large=True"),
    ],
)
def test_the_short_name_leaves_out_what_its_values_say(name, short):
    assert Candidate.parse(name).short == short


def test_short_names_tell_every_candidate_of_a_model_apart():
    census = take_census(small_network(10), (1, 8, 8))
    candidates = {
        Candidate.of(method.name, setting, Levers(statistics=statistics, head=head))
        for method in methods().values()
        for setting in method.settings(census, (2, 4, 8))
        for statistics in get_args(StatisticsPolicy)
        for head in get_args(HeadPolicy)
    }
    assert len({candidate.short for candidate in candidates}) == len(candidates)
