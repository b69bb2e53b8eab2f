"""What both renderers show."""

from __future__ import annotations

from dataclasses import replace

import pytest

from advisor.records import Levers, Recommendation
from advisor.report import view


def test_order(samples: dict[str, Recommendation]) -> None:
    order = [item.candidate.id for item in view.ordered(samples["without_data"])]
    # Without accuracies those that fit come by FLOPs: recalibrate has fewer than the chosen head.
    assert order[:4] == ["head", "recalibrate", "bias", "norm"]
    order = [item.candidate.id for item in view.ordered(samples["with_data"])]
    assert order[:4] == ["norm", "bias", "head", "recalibrate"]


def test_notes_that_repeat_are_one_line_that_names_no_lever(samples: dict[str, Recommendation]) -> None:
    evaluations = samples["with_data"].evaluations
    lora = samples["with_data"].evaluation("lora-8")
    frozen = replace(lora, candidate=replace(lora.candidate, levers=Levers(statistics="frozen")))
    assert view.summed_notes([*evaluations, frozen]) == [
        "features.1.conv.1: rank 4 capped at 3, and 4 more like it (lora-4, lora-8)"
    ]


def test_budget_lines_of_the_choice(samples: dict[str, Recommendation]) -> None:
    memory, flops, delta, accuracy = view.budget_lines(samples["with_data"])
    chosen = samples["with_data"].evaluation("norm")
    assert (memory.used, memory.allowed) == (chosen.cost.peak_memory_bytes, 640_000_000)
    assert memory.share == pytest.approx(chosen.cost.peak_memory_bytes / 640e6)
    assert (flops.allowed, flops.share) == (None, None)
    assert flops.remark == "fewest within 0.5 points of the best"
    assert delta.allowed == 2_000_000
    assert (accuracy.used, accuracy.allowed, accuracy.at_least) == (0.713, 0.5, True)


def test_budget_lines_where_nothing_fits(samples: dict[str, Recommendation]) -> None:
    given = samples["nothing_fits"]
    memory, flops, _, accuracy = view.budget_lines(given)
    assert memory.used == min(item.cost.peak_memory_bytes for item in given.evaluations)
    assert memory.allowed == 64_000_000
    assert memory.remark.startswith("by head; 164 MB less 100 MB")
    assert flops.used == min(item.cost.flops.total for item in given.evaluations)
    assert accuracy.used_text == "unknown"
    assert view.budget_lines(samples["empty"]) == []


def test_full_per_sample(samples: dict[str, Recommendation]) -> None:
    full = samples["profile"].full
    assert full is not None
    # Shares of the fixture: 92 % of both passes are convolution and linear layers.
    both = full.cost.flops.total - full.cost.flops.optimizer
    assert view.multiply_add_flops_per_sample(full, 8) == pytest.approx(0.92 * both / 8, rel=1e-6)
    assert view.multiply_add_flops_per_sample(full, 0) is None


@pytest.mark.parametrize(
    ("largest", "value", "text"),
    [
        (664e6, 604e6, "604.0"),
        (664e6, 1e4, "<0.1"),
        (64e6, 1.5e6, "1.50"),
        (64e6, 0, "-"),
        (9e6, 324e3, "324"),
        (5e9, 5e9, "5,000"),
        (12, 7, "7"),
    ],
)
def test_one_unit_for_a_table_of_sizes(largest: float, value: float, text: str) -> None:
    assert view.byte_unit([largest, 1.0]).show(value) == text


def test_comparison_with_the_choice(samples: dict[str, Recommendation]) -> None:
    given = samples["with_data"]
    chosen = given.evaluation("norm")
    assert view.against_choice(chosen, chosen) == ""
    text = view.against_choice(given.evaluation("head"), chosen)
    assert text == "\u221211.4 points, \u2212547 MB peak, 0.50 x FLOPs"


def test_printable_keeps_words_and_drops_controls() -> None:
    assert view.printable("caf\u00e9 \u6a21\u578b.pt") == "caf\u00e9 \u6a21\u578b.pt"
    assert view.printable("a\x1b[1m\nb\u202e\udcff\x00") == "a\ufffd[1m b\ufffd\ufffd\ufffd"


def test_what_was_seen_stands_beside_classes_where_the_accuracy_was_drawn_from_it(
    samples: dict[str, Recommendation],
) -> None:
    """Else the mean of the classes could be above the accuracy, and nothing would say why."""
    sample = samples["with_data"]
    data = replace(sample.data, data_classes=("cat", "dog"), largest_class_share=0.5)
    given = replace(sample, data=data)
    accuracy = replace(
        sample.evaluation(sample.recommended).accuracy,
        mean=0.9,
        recalls=(0.9, 1.0),
        samples_by_class=(10, 30),
        balanced=None,
    )
    for seen, told in ((None, ""), (0.905, ""), (0.975, "seen 97.5 %, ")):
        text = view.by_class_text(replace(accuracy, seen=seen), given)
        assert text == f"{told}worst 'cat' 90 % of 10, guessing 50.0 %"
