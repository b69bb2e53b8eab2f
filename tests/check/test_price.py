"""One engine: what the check says is what `recommend --no-probe` says, and it is the same on every run."""

from __future__ import annotations

import pytest

from advisor.advise import recommend
from advisor.check import baseline
from advisor.check.configuration import Target, one_model
from advisor.check.price import Pricer, machine_kind
from advisor.errors import InputError, ModelError
from advisor.records import Budget, Candidate
from advisor.story.situation import Request

NETS = """
from torch import nn

def build(width=16):
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        nn.Sequential(nn.Conv2d(width, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))

def wide():
    return build(32)

def no_norms():
    front = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    return nn.Sequential(front, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """One with the networks, where the process is."""
    (tmp_path / "nets_of_price.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def target(folder, factory="build", **given):
    options = {"input-size": "3x16x16", "methods": "full,norm,lora,head", **given}
    (found,) = one_model(f"nets_of_price:{factory}", options, folder).targets
    return found


@pytest.mark.parametrize("ram", [None, "1MB", "350kB", "1kB"])
def test_it_says_what_recommend_says(folder, ram):
    wanted = target(folder, **({"ram": ram} if ram else {}))
    checked = Pricer().price(wanted)
    request = Request(
        input_size=(3, 16, 16), methods=("full", "norm", "lora", "head"), probe_seconds=None, verify=False
    )
    answer = recommend(wanted.source, wanted.budget, request)
    assert checked.snapshot.recommended == answer.recommended
    assert checked.answer == answer.answer
    assert checked.fits == (answer.recommended is not None)
    if answer.recommended is not None:
        cost = answer.evaluation(answer.recommended).cost
        assert checked.snapshot.machine_peak_bytes == {machine_kind(): cost.peak_memory_bytes}
        assert checked.snapshot.figures.peak_bytes == cost.tensor_peak_bytes
        assert checked.snapshot.figures.update_flops == cost.flops.total


def test_layers_add_up_to_the_whole(folder):
    found = Pricer().price(target(folder, candidate="full")).snapshot
    layers = found.layers.values()
    assert sum(layer.peak_bytes for layer in layers) == found.figures.peak_bytes
    assert sum(layer.update_flops for layer in layers) == found.figures.update_flops
    assert sum(layer.trainable_parameters for layer in layers) == found.figures.trainable_parameters
    assert list(found.layers)[:3] == ["0.0", "0.1", "0.2"]
    assert found.layers["1.0"].shape == (16, 8, 3, 3)


def test_two_runs_write_the_same_bytes(folder):
    first, second = (
        baseline.dumps({"a": {"default": Pricer().price(target(folder, ram="1MB"), to_keep=True).snapshot}})
        for _ in range(2)
    )
    assert first == second


def test_the_baselines_candidate_is_priced_again_where_it_is_no_longer_the_choice(folder):
    kept = Pricer().price(target(folder, candidate="norm"), to_keep=True).snapshot
    now = Pricer().price(target(folder, "wide", candidate="lora-rank=2"), kept)
    same = Pricer().price(target(folder, "wide", candidate="norm")).snapshot
    assert now.of_baseline == same.figures
    assert now.of_baseline_layers == same.layers
    assert now.of_baseline_machine_peak_bytes == next(iter(same.machine_peak_bytes.values()))
    broken = Pricer().price(target(folder, "wide", candidate="head", ram="200kB"), kept)
    assert "peak memory" in broken.of_baseline_broken[0]


def test_what_can_not_be_run_any_more_is_said(folder):
    kept = Pricer().price(target(folder, candidate="norm"), to_keep=True).snapshot
    now = Pricer().price(target(folder, "no_norms"), kept)
    assert now.of_baseline is None
    assert now.of_baseline_failure.startswith("norm can't be run on the model any more")


def test_a_named_candidate_is_held_against_the_limits(folder):
    found = Pricer().price(target(folder, candidate="lora-rank=4@last-1@micro-2", ram="100kB"))
    assert found.snapshot.recommended == "lora-rank=4@last-1@micro-2"
    assert not found.fits
    assert found.answer.startswith("lora-rank=4@last-1@micro-2 does not fit: peak memory")
    with pytest.raises(ModelError, match="norm can't be run on this model"):
        Pricer().price(target(folder, "no_norms", candidate="norm"))


def test_targets_of_one_model_are_not_priced_twice(folder, monkeypatch):
    from advisor.costs import Simulator

    priced = []
    cost = Simulator.cost
    monkeypatch.setattr(
        Simulator,
        "cost",
        lambda self, candidate, size: priced.append(candidate) or cost(self, candidate, size),
    )
    pricer = Pricer()
    first = pricer.price(target(folder, ram="1MB"))
    once = len(priced)
    again = pricer.price(target(folder, ram="1MB"))
    # by layer, the choice is recorded again; nothing else is
    assert {c.id for c in priced[once:]} <= {first.snapshot.recommended}
    assert again == first


def test_an_unknown_method_is_refused(folder):
    with pytest.raises(InputError, match="lorra"):
        Pricer().price(Target("a", "default", "nets_of_price:build", methods=("lorra",), budget=Budget()))


def test_of_tensors_is_asked_only_where_it_is_needed(folder):
    assert Pricer().price(target(folder)).snapshot.of_tensors is None
    kept = Pricer().price(target(folder), to_keep=True).snapshot
    assert Candidate.parse(kept.of_tensors).method in ("full", "norm", "lora", "head")


def test_the_baselines_candidate_stays_to_choose_from(folder):
    """What is proposed depends on how much of a limit is left: that alone flips nothing."""
    tight = target(folder, ram="350kB")
    kept = Pricer().price(tight, to_keep=True).snapshot
    roomy = target(folder, ram="100MB")
    assert Pricer().price(roomy).snapshot.recommended != kept.recommended
    assert Pricer().price(roomy, kept).snapshot.recommended == kept.recommended
    assert Pricer().price(roomy, kept, to_keep=True).snapshot.recommended != kept.recommended


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        ("lora-rnk=4", "lora has no setting rnk; did you mean rank?"),
        ("lora-rank=four", "lora's rank is 'four'"),
        ("norm-rank=4", "norm has no setting rank; it has none"),
        ("lorra-rank=4", "lorra"),
    ],
)
def test_a_setting_that_there_is_not_is_told(folder, candidate, words):
    with pytest.raises(InputError) as error:
        Pricer().price(target(folder, candidate=candidate))
    assert words in str(error.value)
