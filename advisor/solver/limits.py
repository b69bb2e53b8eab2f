"""The limits, one row each: how an evaluation is held against them, and how they are written.

A candidate's figures and a budget's limits are plain numbers by name; all else follows from the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from advisor.records import Accuracy, Budget, Cost, Evaluation, Forecast, LimitName, Measurement, Violation
from advisor.units import (
    format_bytes,
    format_count,
    format_flops,
    format_joules,
    format_percent,
    format_seconds,
    parse_bytes,
    parse_count,
    parse_flops,
    parse_joules,
    parse_percent,
    parse_seconds,
)

_DIGITS = 3  # significant ones, which is what is printed


@dataclass(frozen=True, slots=True)
class Limit:
    """How one limit is named, written and read."""

    option: str
    what: str  # is limited
    show: Callable[[float], str]  # a value, or a difference of two
    field: str  # of `Budget`
    parse: Callable[[str], float]  # as the command line does
    least: float  # the smallest step that is written
    zero: bool = False  # whether it may be zero
    share: bool = False  # steps are the same everywhere
    at_least: bool = False  # a floor, not a ceiling

    def typed(self, value: float) -> str:
        """As it is typed behind the option."""
        return self.show(value).replace(" ", "")

    def is_met(self, value: float, allowed: float) -> bool:
        """Whether a candidate with that value is within the limit."""
        return value >= allowed if self.at_least else value <= allowed

    def meeting(self, value: float) -> float | None:
        """The tightest limit that can be typed and that the value meets; None: there is none."""
        return self._nearest(value, met=True)

    def missing(self, value: float) -> float | None:
        """The loosest limit that can be typed and that the value doesn't meet; None: there is none."""
        return self._nearest(value, met=False)

    def _nearest(self, value: float, *, met: bool) -> float | None:
        size = math.floor(math.log10(value)) + 1 if value > 0 else 0
        step = self.least if self.share else max(self.least, 10.0 ** (size - _DIGITS))
        middle = round(value / step)
        first = 0 if self.zero else 1
        last = round(1 / step) if self.at_least else math.inf  # more than all of it is no floor
        numbers = [number for number in range(middle - 2, middle + 3) if first <= number <= last] or [first]
        found = [self.parse(self.typed(number * step)) for number in numbers]
        fitting = [limit for limit in found if self.is_met(value, limit) == met]
        return (max if met == self.at_least else min)(fitting, default=None)


def _seconds(value: float) -> str:
    """In ms or s alone, to three digits: minutes would be too coarse to be typed again."""
    if value < 1:
        return format_seconds(value)
    return f"{value:.3g} s" if value < 999.5 else f"{value:.0f} s"


def _share(value: float) -> str:
    return f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{value * 100:.1f} %"


LIMIT: Mapping[LimitName, Limit] = {
    "ram": Limit("--ram", "peak memory", format_bytes, "ram_bytes", parse_bytes, 1),
    "flops": Limit("--flops-budget", "FLOPs per update", format_flops, "flops", parse_flops, 1),
    "storage": Limit("--storage", "to ship", format_bytes, "storage_bytes", parse_bytes, 1),
    "step_time": Limit("--step-time", "time per update", _seconds, "step_seconds", parse_seconds, 1e-5),
    "total_time": Limit(
        "--total-time", "time of the fine-tune", _seconds, "total_seconds", parse_seconds, 1e-5
    ),
    "energy": Limit("--energy", "energy of the fine-tune", format_joules, "total_joules", parse_joules, 1e-5),
    "max_trainable": Limit(
        "--max-trainable", "trained params", format_count, "max_trainable", parse_count, 1, zero=True
    ),
    "max_overhead": Limit(
        *("--max-overhead", "added inference", _percent, "max_overhead", parse_percent, 0.001),
        zero=True,
        share=True,
    ),
    "min_accuracy": Limit(
        *("--min-accuracy", "accuracy", _share, "min_accuracy", float, 0.001), share=True, at_least=True
    ),
    "min_retained": Limit(
        *("--min-retained", "accuracy on old data", _share, "min_retained", float, 0.001),
        share=True,
        at_least=True,
    ),
}


def figures(
    cost: Cost,
    accuracy: Accuracy | None = None,
    measured: Measurement | None = None,
    forecast: Forecast | None = None,
    *,
    kernel_bytes: int = 0,
) -> dict[LimitName, float | None]:
    """What a candidate has of each that is limited; None: unknown.

    Args:
        kernel_bytes: as the budget has them.
    """
    retained = accuracy.retained if accuracy is not None else None
    here = measured.update_seconds if measured is not None and measured.survived else None
    return {
        # What a run took counts where it is more: operators' workspace differs.
        "ram": max(cost.peak_memory_bytes, measured.peak_memory_bytes if measured is not None else 0)
        + cost.kernels * kernel_bytes,
        "flops": cost.flops.total,
        "storage": cost.delta_bytes,
        "step_time": forecast.update_seconds if forecast is not None else here,
        "total_time": forecast.tune_seconds if forecast is not None else None,
        "energy": forecast.tune_joules if forecast is not None else None,
        "max_trainable": cost.trainable_parameters,
        "max_overhead": cost.inference_flops_ratio - 1,
        "min_accuracy": accuracy.mean if accuracy is not None else None,
        "min_retained": retained.mean if retained is not None else None,
    }


def figures_of(evaluation: Evaluation, budget: Budget) -> dict[LimitName, float | None]:
    """Likewise, of all that is known of it."""
    return figures(
        evaluation.cost,
        evaluation.accuracy,
        evaluation.measured,
        evaluation.forecast,
        kernel_bytes=budget.kernel_bytes,
    )


def limits_of(budget: Budget) -> dict[LimitName, float]:
    """Those that are set; of RAM what is left for an update."""
    found: dict[LimitName, float] = {}
    for name, limit in LIMIT.items():
        allowed = getattr(budget, limit.field)
        if allowed is not None:
            found[name] = allowed - (budget.runtime_overhead_bytes if name == "ram" else 0)
    return found


def with_limits(budget: Budget, limits: Mapping[LimitName, float]) -> Budget:
    """The budget with other values of these, as `limits_of` has them."""
    changes = {
        LIMIT[name].field: value + (budget.runtime_overhead_bytes if name == "ram" else 0)
        for name, value in limits.items()
    }
    return replace(budget, **changes)  # type: ignore[arg-type]


def allowed_memory(budget: Budget, cost: Cost | None = None) -> int | None:
    """What an update may hold: --ram less the runtime's own footprint, that of its kernels included."""
    if budget.ram_bytes is None:
        return None
    kernels = cost.kernels if cost is not None else 0
    return budget.ram_bytes - budget.runtime_overhead_bytes - kernels * budget.kernel_bytes


def enforced_memory(budget: Budget, cost: Cost | None = None) -> int | None:
    """Likewise, where the limit is hard."""
    return None if "ram" in budget.warn else allowed_memory(budget, cost)


def violations(
    budget: Budget,
    cost: Cost,
    accuracy: Accuracy | None = None,
    measured: Measurement | None = None,
    forecast: Forecast | None = None,
) -> tuple[Violation, ...]:
    """Every limit that the candidate breaks, in numbers, hard ones first. What is unknown breaks none."""
    found: list[Violation] = []
    values = figures(cost, accuracy, measured, forecast, kernel_bytes=budget.kernel_bytes)
    for_kernels = cost.kernels * budget.kernel_bytes
    for name, allowed in limits_of(budget).items():
        value, hard = values[name], name not in budget.warn
        if value is None or LIMIT[name].is_met(value, allowed):
            continue
        if name == "ram" and cost.peak_memory_bytes + for_kernels <= allowed < value:
            reason = (
                f"did not survive a run under {format_bytes(allowed - for_kernels)}: the allocator needs "
                f"{format_bytes(value - for_kernels)}, operators' workspace included"
            )
            found.append(Violation("execution", value, allowed, reason, hard))
        else:
            # An update's own memory is told against what its kernels leave of it, as it is where it fits.
            besides = for_kernels if name == "ram" else 0
            reason = _reason(name, value - besides, allowed - besides, budget.measure)
            found.append(Violation(name, value, allowed, reason, hard))
    if measured is not None and not measured.survived and not any(v.limit == "execution" for v in found):
        # Whatever it asked for before it died, no other limit is known to be enough.
        reason = f"did not survive its run: {measured.failure or 'the process ended'}"
        found.append(Violation("execution", measured.peak_memory_bytes, allowed_memory(budget) or 0, reason))
    return tuple(sorted(found, key=lambda violation: not violation.hard))


def judged(evaluations: Sequence[Evaluation], budget: Budget) -> list[Evaluation]:
    """Each with the limits of this budget that it breaks."""
    return [
        replace(each, violations=violations(budget, each.cost, each.accuracy, each.measured, each.forecast))
        for each in evaluations
    ]


def _reason(name: LimitName, value: float, allowed: float, measure: str) -> str:
    limit = LIMIT[name]
    if name == "min_accuracy":
        return f"{measure} {format_percent(value)}, below the {format_percent(allowed)} asked for"
    if name == "min_retained":
        return f"{format_percent(value)} on the old data, below the {format_percent(allowed)} asked for"
    if name == "max_overhead" and allowed == 0:
        return f"can't be merged: an inference takes {limit.show(value)} more FLOPs"
    what = {"flops": "one update takes", "storage": "to ship:", "step_time": "one update takes"}
    what |= dict.fromkeys(("total_time", "energy"), "the fine-tune takes")
    said = f"{what.get(name, limit.what)} {limit.show(value)}"
    return f"{said}, {limit.show(value - allowed)} over the {limit.show(allowed)} allowed"
