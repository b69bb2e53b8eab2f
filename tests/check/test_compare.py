"""What fails a change, what is only said, and which layers are named."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.check.compare import compare, exceeds, layer_changes
from advisor.check.records import Figures, LayerFigures
from advisor.records import Budget
from tests.check.records import ELSEWHERE, FIGURES, HERE, LAYERS, checked, snapshot

WIDER = LAYERS | {
    "features.0": LayerFigures("standard", (32, 3, 3, 3), 864, 2_000_000, 1_200_000),
    "features.1": LayerFigures("norm", (32,), 64, 400_000, 200_000),
    "head": LayerFigures("linear", (5, 32), 165, 1_600_000, 200_100),
    "other": LayerFigures("other", (), 0, 0, 900_000),
}


def found(now, before=None, allowed=0.05, expected=True):
    return compare(now, before or snapshot(), allowed, expected=expected)


def test_no_change_says_nothing():
    assert found(checked()) == []


@pytest.mark.parametrize("figure", ["trainable_parameters", "delta_bytes", "update_flops", "peak_bytes"])
def test_any_cost_that_grows_beyond_what_is_allowed_fails(figure):
    old = getattr(FIGURES, figure)
    at_most = replace(FIGURES, **{figure: old + old // 20})
    assert found(checked(snapshot(figures=at_most))) == []
    (finding,) = found(
        checked(snapshot(figures=replace(FIGURES, **{figure: old + old // 20 + 1}), layers=WIDER))
    )
    assert (finding.rule, finding.level) == ("cost-increased", "error")
    assert "(+5.1%)" in finding.message or "(+5.0%)" in finding.message
    assert "5% allowed" in finding.message
    assert finding.layers[0].name == "features.0"
    assert found(checked(snapshot(figures=replace(FIGURES, **{figure: old * 2}))), allowed=1.0) == []


def test_a_cost_that_shrinks_passes_and_says_how_to_keep_it():
    smaller = replace(FIGURES, peak_bytes=900_000)
    (finding,) = found(checked(snapshot(figures=smaller)))
    assert (finding.rule, finding.level) == ("cost-decreased", "note")
    assert "peak memory 1.00 MB -> 900 kB (-10.0%)" in finding.message
    assert "check --update" in finding.message


def test_layers_whose_shape_changed_come_first_then_those_that_hold_more():
    names = [change.name for change in layer_changes(LAYERS, WIDER)]
    assert names == ["features.0", "features.1", "head", "other"]
    gone = {name: figures for name, figures in LAYERS.items() if name != "head"}
    (change,) = layer_changes(LAYERS, gone)
    assert (change.name, change.after) == ("head", None)
    assert layer_changes(gone, LAYERS)[0].before is None


def test_a_limit_that_breaks_fails_and_names_the_layers():
    now = checked(
        snapshot(recommended=None, figures=None, layers={}), answer="Nothing fits.", of_baseline_layers=WIDER
    )
    first = found(now)[0]
    assert (first.rule, first.level, first.message) == ("budget-broken", "error", "Nothing fits.")
    assert first.layers[0].name == "features.0"


def test_without_a_baseline_limits_alone_are_checked():
    assert compare(checked(), None, 0.05, expected=False) == []
    (finding,) = compare(checked(), None, 0.05, expected=True)
    assert (finding.rule, finding.level) == ("baseline-missing", "error")
    (broken,) = compare(checked(fits=False, answer="Nothing fits."), None, 0.05, expected=False)
    assert broken.rule == "budget-broken"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"of_baseline": FIGURES, "of_baseline_broken": ("peak memory 3 MB",)},
            "no longer fits: peak memory 3 MB",
        ),
        ({"of_baseline": FIGURES}, "norm still fits, but comes after it now"),
        ({"of_baseline_failure": "norm can't be run on the model any more: no norms"}, "no norms"),
    ],
)
def test_a_recommendation_that_flips_fails_and_says_why(changes, words):
    flips = found(checked(snapshot(recommended="bias"), of_baseline_layers=WIDER, **changes))
    assert [(f.rule, f.level) for f in flips] == [("recommendation-flipped", "error")]
    assert "bias is recommended instead of norm" in flips[0].message
    assert words in flips[0].message
    assert flips[0].layers[0].name == "features.0"


def test_where_it_flips_the_costs_of_the_same_candidate_are_compared():
    dearer = replace(FIGURES, update_flops=3_000_000)
    rules = [f.rule for f in found(checked(snapshot(recommended="bias"), of_baseline=dearer))]
    assert rules == ["recommendation-flipped", "cost-increased"]


def test_what_another_machine_makes_of_it_is_no_failure():
    before = snapshot(machine_peak_bytes={ELSEWHERE: 1})
    now = checked(snapshot(recommended="bias", of_tensors="norm"), of_baseline=FIGURES)
    (finding,) = found(now, before)
    assert (finding.rule, finding.level) == ("machine-differs", "warning")
    # but where tensors alone say so too, it is the model's change
    (finding,) = found(replace(now, snapshot=replace(now.snapshot, of_tensors="bias")), before)
    assert finding.rule == "recommendation-flipped"


def test_workspace_is_compared_with_its_like_alone():
    more = checked(snapshot(machine_peak_bytes={HERE: 2_000_000}))
    (finding,) = found(more)
    assert finding.rule == "cost-increased"
    assert "with operators' workspace 1.10 MB -> 2.00 MB" in finding.message
    assert found(more, snapshot(machine_peak_bytes={ELSEWHERE: 1_100_000})) == []


def test_a_baseline_of_another_configuration_is_said():
    before = snapshot(budget=Budget(ram_bytes=1_000_000), options={"model": "nets:build", "batch-size": "4"})
    (finding,) = found(checked(), before)
    assert (finding.rule, finding.level) == ("baseline-outdated", "warning")
    assert "ram was 1.00 MB, is 2.00 MB" in finding.message
    assert "batch-size was 4, is 8" in finding.message


def test_where_something_fits_at_last_it_is_a_note():
    (finding,) = found(checked(), snapshot(recommended=None, figures=None, layers={}))
    assert (finding.rule, finding.level) == ("cost-decreased", "note")


COUNTS = st.integers(0, 10**12)
ALL = st.builds(Figures, COUNTS, COUNTS, COUNTS, COUNTS)


@given(ALL, ALL, st.floats(0, 2), st.floats(0, 2))
def test_who_allows_more_is_told_of_no_more_failures(before, after, one, other):
    def errors(allowed):
        findings = compare(checked(snapshot(figures=after)), snapshot(figures=before), allowed, expected=True)
        return sum(finding.level == "error" for finding in findings)

    assert errors(max(one, other)) <= errors(min(one, other))


@given(COUNTS, st.floats(0, 3))
def test_nothing_that_stays_the_same_exceeds(cost, allowed):
    assert not exceeds(cost, cost, allowed)
    assert exceeds(cost, 10 * cost + 1, allowed)
