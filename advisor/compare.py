"""Which network, with which method, on which board: the same question for each pair of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from advisor.advise import recommend
from advisor.device.profile import read_profile, target_of
from advisor.errors import AdvisorError, DataError
from advisor.names import told_apart
from advisor.records import Accuracy, Budget, Compared, Evaluation, Recommendation
from advisor.solver import cheapest_first
from advisor.story.situation import Progress, Request
from advisor.system.temporary import TemporaryFolder

_SOLVED = "ridge"  # a head in closed form: one pass over the images tells how good a network's features are


def compare(
    models: Sequence[str],
    targets: Sequence[str],
    budget: Budget,
    request: Request,
    *,
    best: int = 3,
    progress: Progress = lambda stage, fraction, running: None,
) -> tuple[Compared, ...]:
    """The answer for each network on each board, board by board, the best first.

    Costs decide what fits. With data, a head in closed form on what each network makes of the images tells
    which of those that fit somewhere are the best few: these are raced, and their choices run.

    Args:
        models: as `load_model` takes them.
        targets: profiles of boards; none: this machine.
        budget: the limits, on each board.
        request: what else is asked; its target doesn't matter.
        best: how many networks are raced, where there is data.
        progress: as of `recommend`.

    Raises:
        InputError: a target's profile, the data or what is asked can't be used, or no pair has an answer: of
            the first, why.
    """
    names = dict(zip(models, told_apart(models), strict=True))
    profiles = {path: read_profile(path) for path in targets}
    called = [target_of(path, profile).name for path, profile in profiles.items()]
    called = called if len(set(called)) == len(called) else list(profiles)
    boards: dict[str | None, str] = {None: ""} if not targets else dict(zip(profiles, called, strict=True))
    pairs = [(model, target) for model in models for target in boards]
    found: dict[tuple[str, str | None], Compared] = {}
    errors: list[AdvisorError] = []

    def ask(model: str, target: str | None, budget: Budget, request: Request) -> Recommendation:
        done = (len(found) + 0.5) / len(pairs)
        told = names[model] + (f" on {boards[target]}" if boards[target] else "")
        asked = replace(request, target=Path(target) if target is not None else None)
        return recommend(
            *(model, budget, asked), lambda stage, _, running: progress("compare", done, f"{told}: {running}")
        )

    with ExitStack() as cleanup:
        if request.store is None:  # what one board teaches serves the next
            folder = cleanup.enter_context(TemporaryFolder())
            request = replace(request, store=Path(folder, "store.sqlite"))
        costs = replace(request, probe_seconds=None, verify=False)
        for model, target in pairs:
            try:
                answer, trouble = ask(model, target, budget, costs), ""
            except DataError:
                raise
            except AdvisorError as error:
                errors.append(error)
                answer, trouble = None, str(error)
            found[model, target] = Compared(names[model], boards[target], answer, trouble)
        if len(errors) == len(pairs):
            raise errors[0]
        fitting = [model for model in models if any(_fits(found[model, target]) for target in boards)]
        if request.data is not None and request.probe_seconds is not None:
            solved: dict[str, Accuracy] = {}
            for model in fitting if len(fitting) > best else ():
                accuracy = _solved(ask(model, None, Budget(metric=budget.metric), _alone(request)))
                if accuracy is not None:
                    solved[model] = accuracy
            raced = sorted(fitting, key=lambda model: -solved[model].mean if model in solved else 1.0)[:best]
            for model, target in pairs:
                pair = found[model, target]
                if model in raced and _fits(pair):
                    found[model, target] = replace(pair, recommendation=ask(model, target, budget, request))
                else:
                    found[model, target] = replace(pair, solved=solved.get(model))
    progress("compare", 1.0, "")
    return tuple(pair for target in boards for pair in _in_order([found[model, target] for model in models]))


def _alone(request: Request) -> Request:
    """The head in closed form and nothing else, whose own time is short."""
    return replace(request, methods=(_SOLVED,), verify=False)


def _fits(pair: Compared) -> bool:
    return pair.recommendation is not None and any(each.fits for each in pair.recommendation.evaluations)


def _solved(answer: Recommendation) -> Accuracy | None:
    known = [each.accuracy for each in answer.evaluations if each.accuracy is not None]
    return max(known, key=lambda accuracy: accuracy.mean, default=None)


def _in_order(pairs: Sequence[Compared]) -> list[Compared]:
    """Of one board: what was raced by accuracy, what was not by its solved head's, then what has no answer.

    The best is the cheapest of those within the tolerance of the highest accuracy; where none is known,
    networks can't be told apart.
    """
    choices = {n: _choice(pair) for n, pair in enumerate(pairs)}
    known = {n: accuracy.mean for n, pair in enumerate(pairs) if (accuracy := _accuracy(pair))}
    best = None
    if known:
        budget = next(pair.recommendation.budget for pair in pairs if pair.recommendation)
        as_good = [n for n in known if known[n] >= max(known.values()) - budget.tolerance]
        cheapest = cheapest_first([each for n in as_good if (each := choices[n])], budget)
        # To leave a network as it is costs nothing.
        best = next((n for n in as_good if choices[n] is None), None)
        if best is None:
            best = next(n for n in as_good if choices[n] is cheapest[0])

    def place(n: int) -> tuple[int, float]:
        if n in known:
            return 0, -known[n]
        solved = pairs[n].solved
        return (1, -solved.mean if solved else 0.0) if choices[n] else (2, 0.0)

    order = sorted(choices, key=place)
    return [replace(pairs[n], is_best=n == best) for n in order]


def _choice(pair: Compared) -> Evaluation | None:
    answer = pair.recommendation
    return answer.evaluation(answer.recommended) if answer is not None and answer.recommended else None


def _accuracy(pair: Compared) -> Accuracy | None:
    """Of what is to be used: the choice, or the network as it is."""
    answer, choice = pair.recommendation, _choice(pair)
    if answer is not None and answer.outcome == "leave" and answer.data is not None:
        return answer.data.base_accuracy
    return choice.accuracy if choice is not None else None
