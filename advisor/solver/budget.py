"""The user's limits, from the text that was typed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from advisor.errors import InputError, UnitError
from advisor.names import one_of, parse_metric
from advisor.records import LIMITS, Budget, LimitName, Preference
from advisor.solver.limits import LIMIT
from advisor.units import (
    parse_bytes,
    parse_count,
    parse_flops,
    parse_joules,
    parse_percent,
    parse_seconds,
    parse_share,
)

FEWEST = "fewest"  # what a bare --flops-budget stands for
_Number = TypeVar("_Number", int, float)
MERGE = "merge"  # what --max-overhead takes for: nothing that can't be merged
_PREFERENCES: tuple[Preference, ...] = ("ram", "flops", "storage", "time")


def parse_budget(
    *,
    ram: str | None = None,
    flops: str | None = None,
    storage: str | None = None,
    step_time: str | None = None,
    total_time: str | None = None,
    energy: str | None = None,
    max_trainable: str | None = None,
    max_overhead: str | None = None,
    metric: str = "accuracy",
    min_accuracy: str | None = None,
    min_retained: str | None = None,
    tolerance_points: float = 0.5,
    prefer: str | None = None,
    warn: Sequence[str] = (),
    runtime_overhead: str | None = None,
    ram_includes_runtime: bool | None = None,
) -> Budget:
    """The limits as typed.

    Args:
        flops: `fewest` for no limit, but the fewest FLOPs before all other costs.
        max_overhead: percent, or `merge`.
        metric: accuracy, balanced or recall:CLASS.
        min_accuracy: in it, a fraction such as 0.8, or percent such as 80 or 80%.
        min_retained: likewise, on the old data.
        tolerance_points: in percentage points.
        prefer: which cost comes first; RAM by default.
        warn: limits that exclude nothing.
        runtime_overhead: what the runtime takes out of `ram`.
        ram_includes_runtime: whether that is to be found out; None: with a target.

    Raises:
        UnitError: a size or a count can't be parsed, or is not positive.
        InputError: a number is out of range, or a word is not known.
    """
    if not 0 <= tolerance_points <= 100:
        raise InputError(
            f"--tolerance {tolerance_points:g} is out of range; give percentage points such as 0.5"
        )
    ram_bytes = _named("--ram", parse_bytes, ram)
    overhead = _named("--runtime-overhead", parse_bytes, runtime_overhead) or 0
    if ram_bytes is not None and overhead >= ram_bytes:
        raise InputError(
            f"--runtime-overhead {runtime_overhead} leaves nothing of --ram {ram}; "
            "it is what the runtime itself takes out of it"
        )
    if ram_includes_runtime and runtime_overhead is not None:
        raise InputError("--runtime-overhead tells what --ram-includes-runtime would find out; give one")
    if ram_includes_runtime and ram_bytes is None:
        raise InputError("--ram-includes-runtime counts the runtime within --ram: give it, too")
    first = _PREFERENCES[0] if prefer is None else one_of("--prefer", prefer, _PREFERENCES)
    if flops == FEWEST:
        if prefer is not None and first != "flops":
            raise InputError(
                f"a bare --flops-budget prefers the fewest FLOPs, --prefer {first} something else; give one"
            )
        first, flops = "flops", None
    budget = Budget(
        ram_bytes=ram_bytes,
        flops=_named("--flops-budget", parse_flops, flops),
        storage_bytes=_named("--storage", parse_bytes, storage),
        metric=parse_metric(metric),
        min_accuracy=_named("--min-accuracy", parse_share, min_accuracy),
        min_retained=_named("--min-retained", parse_share, min_retained),
        tolerance=tolerance_points / 100,
        runtime_overhead_bytes=overhead,
        ram_includes_runtime=ram_includes_runtime,
        prefer=first,  # type: ignore[arg-type]
        step_seconds=_named("--step-time", parse_seconds, step_time),
        total_seconds=_named("--total-time", parse_seconds, total_time),
        total_joules=_named("--energy", parse_joules, energy),
        max_trainable=_named("--max-trainable", parse_count, max_trainable),
        max_overhead=_overhead(max_overhead),
        warn=tuple(dict.fromkeys(_limit(word) for word in warn)),
    )
    for name in budget.warn:
        if getattr(budget, LIMIT[name].field) is None:
            raise InputError(
                f"--warn {_word(name)} makes a limit soft that isn't set; give {LIMIT[name].option}"
            )
    return budget


def _limit(word: str) -> LimitName:
    known = {_word(name): name for name in LIMITS}
    return known[one_of("--warn", word, tuple(known))]


def _word(name: LimitName) -> str:
    return name.replace("_", "-")


def _overhead(text: str | None) -> float | None:
    if text is not None and text.strip().lower() == MERGE:
        return 0.0
    return _named("--max-overhead", parse_percent, text)


def _named(option: str, parse: Callable[[str], _Number], text: str | None) -> _Number | None:
    """What was typed for the option, which an error names."""
    if text is None:
        return None
    try:
        return parse(text)
    except UnitError as error:
        raise UnitError(f"{option}: {error}") from error
