"""Which candidates are proposed: each setting, with less of the network trained, and what memory asks for."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn

from advisor.costs import Simulator
from advisor.errors import is_fault_of_ours
from advisor.methods import get_method, methods
from advisor.models.layers import take_census
from advisor.parts.bypass import add_bypass
from advisor.records import Candidate, Levers
from advisor.store import Store
from advisor.story.candidates import Proposals

SIZE = (3, 32, 32)
BATCH = 8


def block(channels: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]


def network() -> nn.Sequential:
    inner = [module for _ in range(7) for module in block(8)]
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), *inner),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )


def proposed(names=None, allowed=None, images=0, model=None, store=None, batch_size=BATCH, simulator=None):
    model = model or network()
    census = take_census(model, SIZE)
    simulator = simulator or Simulator(model, census, images, workspace=False)
    proposals = Proposals(
        simulator, census, batch_size=batch_size, allowed_bytes=allowed, images=images, store=store
    )
    found = {}
    for name in names or methods():
        settings = list(get_method(name).settings(census, (2, 4)))
        if settings:
            found |= dict(proposals.of(get_method(name), settings, Levers()))
    return found, proposals.failures


def test_every_setting_and_three_scopes():
    found, failures = proposed(["lora"])
    plain = {dict(candidate.setting)["rank"] for candidate in found if candidate.levers == Levers()}
    assert plain == {2, 4}
    assert {candidate.levers.scope for candidate in found} == {None, 4, 2, 1}
    assert not failures


def test_less_of_the_network_never_takes_more_memory():
    found, _ = proposed(["full"])
    by_scope = sorted(found.items(), key=lambda item: item[0].levers.scope or 99)
    peaks = [cost.peak_memory_bytes for _, cost in by_scope]
    assert peaks == sorted(peaks)
    flops = [cost.flops.total for _, cost in by_scope]
    assert flops == sorted(flops)


def test_what_was_priced_is_not_priced_again(tmp_path, monkeypatch):
    model = network()
    with Store(tmp_path / "store.sqlite") as store:
        found, _ = proposed(["lora", "galore", "recalibrate"], images=40, model=model, store=store)
        simulated = []
        simulate = Simulator.cost
        monkeypatch.setattr(Simulator, "cost", lambda *args: simulated.append(args[1]) or simulate(*args))
        again, _ = proposed(["lora", "galore", "recalibrate"], images=40, model=model, store=store)
        assert again == found
        assert not simulated
        proposed(["recalibrate"], images=41, model=model, store=store)
        assert len(simulated) == 1
        model[0] = nn.Conv2d(3, 8, 3, padding=1, bias=True)
        proposed(["recalibrate"], images=40, model=model, store=store)
        assert len(simulated) == 2


def test_cached_prefixes_need_images():
    assert not any(candidate.levers.cached_prefix != "no" for candidate in proposed(["norm"])[0])
    cached = [c for c in proposed(["norm"], images=100)[0] if c.levers.cached_prefix != "no"]
    assert {candidate.levers.cached_prefix for candidate in cached} == {"ram"}


def test_in_small_batches_parts_of_the_network_are_trained_with_frozen_statistics_too():
    frozen = Levers(scope=4, statistics="frozen")
    cached, wide = replace(frozen, cached_prefix="ram"), replace(frozen, head="ridge-all")
    found, _ = proposed(["full"], images=40)
    assert {levers for levers in (cached, frozen, wide) if Candidate("full", levers=levers) in found} == {
        *(cached, frozen, wide)
    }
    found, _ = proposed(["full"], images=40, batch_size=16)
    assert not any(candidate.levers.scope and candidate.levers.statistics == "frozen" for candidate in found)


def test_a_cache_that_does_not_fit_goes_to_disk():
    found, _ = proposed(["head"], allowed=2_000_000, images=100_000)
    assert {candidate.levers.cached_prefix for candidate in found} == {"no", "disk"}


def test_a_cache_of_gigabytes_goes_to_disk_without_being_asked():
    found, _ = proposed(["head"], images=100_000_000)
    assert {candidate.levers.cached_prefix for candidate in found} == {"no", "disk"}


@pytest.mark.parametrize("share", [0.7, 0.4])
def test_where_memory_is_short_each_method_is_offered_in_a_form_that_fits(share):
    full = max(cost.peak_memory_bytes for cost in proposed(["full"])[0].values())
    found, _ = proposed(["full", "norm", "lora"], allowed=int(share * full))
    fitting = {c.method for c, cost in found.items() if cost.peak_memory_bytes <= share * full}
    assert fitting == {"full", "norm", "lora"}


def wide_at_the_end() -> nn.Sequential:
    """Weights outgrow activations in the last block, so smaller batches don't help there."""
    front = [module for _ in range(4) for module in block(8)]
    wide = (nn.Conv2d(8, 64, 3, stride=8), nn.ReLU(), nn.Conv2d(64, 256, 3), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 4))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *front, *wide, *head)


def test_what_is_made_to_fit_is_offered_with_other_statistics_too():
    """Those of the parts of a batch are noisier than its own; frozen or re-estimated ones are not."""
    whole, _ = proposed(["full"], images=40)
    allowed = whole[Candidate("full")].peak_memory_bytes // 3
    found, _ = proposed(["full"], images=40, allowed=allowed)
    policies = {
        candidate.levers.statistics
        for candidate, cost in found.items()
        if candidate.levers.scope is None
        and candidate.levers.micro_batch
        and candidate.levers.head == "trained"
        and cost.peak_memory_bytes <= allowed
    }
    assert {"own", "frozen", "reestimated"} <= policies


def test_what_trains_nothing_is_made_to_fit_by_smaller_parts_alone():
    found, _ = proposed(["full", "recalibrate"], allowed=600_000)
    levers = [c.levers for c in found if c.method == "recalibrate"]
    assert any(each.micro_batch for each in levers)
    assert not any(each.checkpoint or each.update != "end" for each in levers)


@pytest.mark.parametrize("model", [network(), wide_at_the_end()], ids=["even", "wide at the end"])
def test_something_is_proposed_that_fits_exactly_where_brute_force_finds_something(model):
    census = take_census(model, SIZE)
    simulator = Simulator(model, census, workspace=False)
    scopes = (None, *range(1, len(census.blocks)))
    every = [
        Levers(scope=scope, micro_batch=micro, checkpoint=checkpoint, update=update)
        for scope, micro in product(scopes, (None, 4, 2, 1))
        for checkpoint, update in product((False, True), ("end", "per-parameter"))
    ]
    peaks = [simulator.cost(Candidate("full", levers=levers), BATCH).peak_memory_bytes for levers in every]
    for allowed in (min(peaks) - 1, min(peaks), *sorted(set(peaks))[1::25]):
        found, _ = proposed(["full"], allowed=allowed, model=model, simulator=simulator)
        least = min(cost.peak_memory_bytes for cost in found.values())
        assert least == min(peaks) if allowed < min(peaks) else least <= allowed


def test_a_fault_of_ours_is_not_the_models(monkeypatch):
    monkeypatch.setattr(type(get_method("norm")), "train", lambda self, to: list(type(to).head(None)))
    found, failures = proposed(["norm", "full"])
    assert {candidate.method for candidate in found} == {"full"}
    assert not failures


def test_who_raised_an_error_is_told_by_the_innermost_code_that_is_no_librarys():
    def raised(run):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            run()
        return is_fault_of_ours(caught.value)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    tiny = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))
    candidate = Candidate("full", levers=Levers(micro_batch=1))
    simulator = Simulator(tiny, take_census(tiny, SIZE))
    assert not raised(lambda: simulator.cost(candidate, BATCH))  # one value a channel: torch's own refusal
    assert not raised(lambda: model(torch.ones(1, 5, 9, 9)))
    assert raised(lambda: add_bypass(model[0], nn.Conv2d(5, 4, 3)) or take_census(model, SIZE))
    assert raised(lambda: get_method("full").attach(None, None, {}))


def test_what_fails_is_told_and_the_others_go_on():
    class ReadsItsBatch(nn.Sequential):
        def forward(self, x):
            if len(x) == BATCH // 2:
                raise ValueError("no half batches")
            return super().forward(x)

    found, failures = proposed(["full"], allowed=1000, model=ReadsItsBatch(*network()))
    assert found
    assert all("fails on this model" in why for why in failures.values())


def test_an_output_that_no_gradient_leaves_is_told_so():
    class Detached(nn.Sequential):
        def forward(self, x):
            return super().forward(x).detach()

    found, failures = proposed(["full", "head"], model=Detached(*network()))
    assert not found
    assert "no gradient comes from its outputs" in failures["full"]


def test_a_front_that_other_layers_may_read_in_training_is_not_cached():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.front, self.back = nn.Sequential(*network()[:12]), nn.Sequential(*network()[12:])
            self.auxiliary = nn.Linear(8, 4)

        def forward(self, x):
            x = self.front(x)
            y = self.back(x)
            return y + self.auxiliary(x.mean((2, 3))) if self.training else y

    found, failures = proposed(["norm"], images=100, model=Auxiliary())
    assert found
    assert not any(candidate.levers.cached_prefix != "no" for candidate in found)
    assert not failures


def test_a_method_that_finds_nothing_in_the_last_blocks_is_not_reported():
    # Without padding no pixel of the output has one of the input under its kernel's middle.
    last = (nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    found, failures = proposed(["adapter"], images=100, model=nn.Sequential(*network()[:-3], *last))
    assert {candidate.levers.scope for candidate in found} == {None, 5, 3, 2}
    assert not failures
