"""Whether to act at all: leaving the model as it is, and guessing, compete with every candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from advisor.names import answered
from advisor.records import Accuracy, Budget, DataSummary, Evaluation, Outcome
from advisor.solver.choose import is_as_good, rank
from advisor.solver.limits import judged
from advisor.units import format_percent, format_percents

_CHANCE = 0.025  # that luck alone puts any of the candidates above guessing


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do."""

    outcome: Outcome
    choices: tuple[Evaluation, ...]  # where something is to be used: the choice first, then the next best
    reason: str = ""  # where nothing is: why, in one sentence


def solve(evaluations: Sequence[Evaluation], budget: Budget, data: DataSummary | None) -> Verdict:
    """What to do under this budget, from what is known of the candidates. The whole choice is here.

    Leaving the model as it is costs nothing. So it is chosen as a cheaper candidate would be: where no more
    than the tolerance is lost with it. And what is not surely above the share of the largest class has
    learnt nothing; where classes count alike, what is not surely above one in as many as there are.
    """
    found = judged(evaluations, budget)
    ranked = rank(found, budget)
    probed = [e for e in ranked if e.accuracy is not None]
    if not probed or data is None:
        return Verdict("use" if ranked else "none", tuple(ranked))
    # By luck the best of many tries is above guessing, whether or not they fit.
    tries = sum(e.accuracy is not None for e in evaluations)
    able = [e for e in probed if e.accuracy and has_learnt(e.accuracy, budget, data, tries)]
    finalists = [e for e in probed if e.accuracy and e.accuracy.finalist] or probed
    best = max(finalists, key=lambda e: e.accuracy.mean if e.accuracy else 0.0)
    assert best.accuracy is not None  # noqa: S101 - all of them are probed
    base = data.base_accuracy if data.scenario == "shift" else None  # else its head had to grow
    if (
        base is not None
        and has_learnt(base, budget, data, 1)
        and _meets_floors(base, budget)
        and is_as_good(base, best.accuracy, budget)
    ):
        return Verdict("leave", (), _leave(base, best, budget) + _hoped(base, found, budget))
    if not able:
        return Verdict("none", (), _unlearnable(best, tries, budget, data))
    return Verdict("use", tuple(able))


def has_learnt(accuracy: Accuracy, budget: Budget, data: DataSummary, tries: int) -> bool:
    """Whether guessing alone would hardly get so many right: in the best of as many tries as there were."""
    share, judged = _guess(accuracy, budget, data)
    if share is None or judged is None:
        return True
    from scipy.special import bdtrc  # of a binomial distribution what lies above

    samples = judged.effective_samples or judged.samples
    right = judged.mean if judged.seen is None else judged.seen
    return bool(tries * bdtrc(round(right * samples) - 1, samples, share) <= _CHANCE)


def _guess(accuracy: Accuracy, budget: Budget, data: DataSummary) -> tuple[float | None, Accuracy | None]:
    """What guessing gets right, and the accuracy to be held against it.

    Of one class all are found by always answering it, so of a recall the mean of all classes tells.
    """
    return data.guess(budget.metric), accuracy if budget.metric == "accuracy" else accuracy.balanced


def _meets_floors(base: Accuracy, budget: Budget) -> bool:
    """What the model forgets by being left alone is nothing, so only new data has a floor."""
    floor = None if "min_accuracy" in budget.warn else budget.min_accuracy
    return floor is None or base.mean >= floor


def _leave(base: Accuracy, best: Evaluation, budget: Budget) -> str:
    assert best.accuracy is not None  # noqa: S101 - the caller has it from those that are judged
    gain = (best.accuracy.mean - base.mean) * 100
    within = f"within {format_percent(budget.tolerance)}" if budget.tolerance and gain > 0 else "no better"
    expected = "" if gain <= budget.tolerance * 100 else ", as far as so few images can tell"
    return (
        f"Leave the model as it is: {answered(format_percent(base.mean), base.samples, budget.metric)} "
        f"({format_percents(base.low, base.high)}), and the best that was tried, {best.candidate.short}, is "
        f"{within}{expected}: {format_percent(best.accuracy.mean)}, {gain:+.1f} points."
    )


def _hoped(base: Accuracy, found: Sequence[Evaluation], budget: Budget) -> str:
    """What the race had no time for, where it is expected to be better: then to leave the model is hasty."""
    untried = ((e.predicted, e.candidate) for e in found if e.fits and e.accuracy is None and e.predicted)
    hope, best = max(untried, key=lambda one: one[0].mean, default=(None, None))
    if hope is None or best is None or hope.mean - base.mean <= budget.tolerance:
        return ""
    return (
        f" But {best.short}, which was not tried, is expected to come to {format_percent(hope.mean)} "
        f"({format_percents(hope.low, hope.high)}): allow more --probe-time."
    )


def _unlearnable(best: Evaluation, tries: int, budget: Budget, data: DataSummary) -> str:
    assert best.accuracy is not None  # noqa: S101 - the caller has it from those that are judged
    share, accuracy = _guess(best.accuracy, budget, data)
    assert accuracy is not None  # noqa: S101 - else it counts as learnt
    guess, samples = format_percent(share or 0.0), f"of {accuracy.samples:,}"
    if accuracy.seen is None:
        its = f"{format_percent(accuracy.mean)} ({format_percents(accuracy.low, accuracy.high)} {samples})"
    else:  # what was held against guessing, before all candidates' answers were counted in
        its = f"{format_percent(accuracy.seen)} {samples}"
    guessing, of = "largest class", ""
    if budget.metric != "accuracy":
        guessing, of = "same class", "of a class's images, on average over classes, "
    return (
        "Nothing can be recommended: from these images nothing was learnt that is surely better than always "
        f"answering the {guessing}, which is right for {of}{guess}; the best of {tries} that were "
        f"tried, {best.candidate.short}, for {its}. Check the labels, give more images, or allow more "
        "--probe-time."
    )
