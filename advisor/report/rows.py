"""The candidates in the order, with the numbers and the names that the whole page uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from advisor.records import Evaluation, Recommendation
from advisor.report import view

Kind = Literal["chosen", "fits", "rejected"]


@dataclass(frozen=True, slots=True)
class Row:
    """One candidate, in the order and with the number that the whole page uses."""

    number: int
    name: str
    evaluation: Evaluation
    kind: Kind
    comparison: str  # with the chosen one, where it fits
    reasons: tuple[str, ...]  # why it is rejected
    on_front: bool
    is_main: bool  # one of those to show first


def numbered_rows(recommendation: Recommendation) -> list[Row]:
    """The chosen one first, as `view.ordered` has them."""
    evaluations = view.ordered(recommendation)
    choice = view.chosen(recommendation)
    main = {evaluation.candidate.id for evaluation in view.main_ones(recommendation)}
    rows = []
    for number, evaluation in enumerate(evaluations, 1):
        identity = evaluation.candidate.id
        kind: Kind = "fits" if evaluation.fits else "rejected"
        if identity == recommendation.recommended:
            kind = "chosen"
        rows.append(
            Row(
                number=number,
                name=evaluation.candidate.short,
                evaluation=evaluation,
                kind=kind,
                comparison=view.against_choice(evaluation, choice) if evaluation.fits else "",
                reasons=tuple(view.reason(violation) for violation in evaluation.violations),
                on_front=identity in recommendation.front,
                is_main=identity in main,
            )
        )
    return rows
