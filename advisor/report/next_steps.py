"""What to type next, as an answer has it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from advisor.names import names_code
from advisor.records import Recommendation
from advisor.solver import LIMIT

_SAVED = "advice.json"
_PROBING_ENDS = 1200  # seconds; to ask for twice as much time beyond it would be no help


@dataclass(frozen=True, slots=True)
class Step:
    """One command."""

    words: tuple[str, ...]
    brief: str  # the same where the command itself is too long to be shown


def next_steps(recommendation: Recommendation, saved: str | None) -> list[Step]:
    """At most two; none where the command that was asked isn't known.

    Args:
        saved: the answer's JSON file, if there is one.
    """
    asked = _asked(recommendation)
    steps: list[Step] = []
    to_save = () if saved else ("--json", _SAVED)
    if recommendation.recommended is None:
        looser = _looser(recommendation)
        steps = _again(asked, *looser, *to_save) if looser or not saved else []
    elif recommendation.data is None or "--no-probe" in asked:
        images = () if recommendation.data else ("--data", "IMAGES/")
        steps = _again([word for word in asked if word != "--no-probe"], *images, *to_save)
    elif saved or asked:
        apply = ("peft-advisor", "apply", recommendation.model.source, saved or _SAVED, "--output", "tuned/")
        trust = ("--trust",) if "--trust" in asked else ()
        steps = [] if saved else _again(asked, *to_save)
        source = recommendation.data.source
        code = ("--data", source) if names_code(source) else ()  # `apply` runs none that a report names
        steps.append(Step((*apply, *code, *trust), "peft-advisor apply MODEL OUT.json --output tuned/"))
        if saved:
            board = ("peft-advisor", "export", recommendation.model.source, saved, "--output", "bundle/")
            steps.append(Step((*board, *code, *trust), "peft-advisor export MODEL OUT.json --output bundle/"))
    return steps


def _again(asked: Sequence[str], *more: str) -> list[Step]:
    """The command with these options; nothing where it isn't known."""
    brief = " ".join(("the same command", *(("with", *more) if more else ())))
    return [Step((*_without(asked, *more[::2]), *more), brief)] if asked else []


def _asked(recommendation: Recommendation) -> list[str]:
    """The command that was typed; a saved answer may come from others, so nothing but one of ours."""
    try:
        words = shlex.split(str(recommendation.provenance.get("command", "")))
    except ValueError:  # a quote without its other half
        return []
    command = next((word for word in words if not word.startswith("PEFT_ADVISOR_")), "")
    return words if command == "peft-advisor" else []


def _without(words: Sequence[str], *options: str) -> list[str]:
    """The words less these options, and less their values."""
    kept: list[str] = []
    before = ""
    for word in words:
        is_value = before in options and not word.startswith("-")
        if not is_value and word.partition("=")[0] not in options:
            kept.append(word)
        before = word
    return kept


def _looser(recommendation: Recommendation) -> tuple[str, ...]:
    """Of what stands in the way where nothing is recommended, the least that would help."""
    budget, data = recommendation.budget, recommendation.data
    words: list[str] = []
    for name, value in recommendation.relaxations[0].limits.items() if recommendation.relaxations else ():
        if name in LIMIT:  # a saved answer may come from others
            whole = value + (budget.runtime_overhead_bytes if name == "ram" else 0)
            words += [LIMIT[name].option, LIMIT[name].typed(whole)]
    if words:
        return tuple(words)
    if recommendation.outcome == "none" and data and any(e.fits for e in recommendation.evaluations):
        seconds = min(max(2 * data.probe_seconds, 60), _PROBING_ENDS)
        return "--probe-time", f"{math.ceil(seconds / 60)}m"
    return ()
