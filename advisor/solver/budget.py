"""The user's limits, and how far each candidate breaks them."""

from __future__ import annotations

from advisor.errors import InputError
from advisor.names import parse_metric
from advisor.records import Accuracy, Budget, Cost, Violation
from advisor.units import format_bytes, format_flops, parse_bytes, parse_flops


def parse_budget(
    *,
    ram: str | None = None,
    flops: str | None = None,
    fewest_flops: bool = False,
    storage: str | None = None,
    metric: str = "accuracy",
    min_accuracy: float | None = None,
    min_retained: float | None = None,
    tolerance_points: float = 1.0,
    runtime_overhead: str | None = None,
) -> Budget:
    """The limits as typed.

    Args:
        metric: accuracy, balanced or recall:CLASS.
        min_accuracy: in it, a fraction such as 0.8, or percent such as 80.
        min_retained: likewise, on the old data.
        tolerance_points: in percentage points.

    Raises:
        UnitError: a size or a count can't be parsed, or is not positive.
        InputError: a number is out of range.
    """
    if not 0 <= tolerance_points <= 100:
        raise InputError(
            f"--tolerance {tolerance_points:g} is out of range; give percentage points such as 1.0"
        )
    ram_bytes = parse_bytes(ram) if ram is not None else None
    overhead = parse_bytes(runtime_overhead) if runtime_overhead is not None else 0
    if ram_bytes is not None and overhead >= ram_bytes:
        raise InputError(
            f"--runtime-overhead {runtime_overhead} leaves nothing of --ram {ram}; "
            "it is what the runtime itself takes out of it"
        )
    return Budget(
        ram_bytes=ram_bytes,
        flops=parse_flops(flops) if flops is not None else None,
        fewest_flops=fewest_flops,
        storage_bytes=parse_bytes(storage) if storage is not None else None,
        metric=parse_metric(metric),
        min_accuracy=_fraction("--min-accuracy", min_accuracy),
        min_retained=_fraction("--min-retained", min_retained),
        tolerance=tolerance_points / 100,
        runtime_overhead_bytes=overhead,
    )


def violations(budget: Budget, cost: Cost, accuracy: Accuracy | None = None) -> tuple[Violation, ...]:
    """Every limit that the candidate breaks, with the numbers. Unknown accuracy breaks none."""
    found: list[Violation] = []

    def check(limit: str, what: str, value: int, allowed: int | None, show) -> None:  # type: ignore[no-untyped-def]
        if allowed is not None and value > allowed:
            reason = f"{what} {show(value)}, {show(value - allowed)} over the {show(allowed)} allowed"
            found.append(Violation(limit, value, allowed, reason))  # type: ignore[arg-type]

    check("ram", "peak memory", cost.peak_memory_bytes, allowed_memory(budget), format_bytes)
    check("flops", "one update takes", cost.flops.total, budget.flops, format_flops)
    check("storage", "to ship:", cost.delta_bytes, budget.storage_bytes, format_bytes)
    if budget.min_accuracy is not None and accuracy is not None and accuracy.mean < budget.min_accuracy:
        measure = "accuracy" if budget.metric == "accuracy" else f"{budget.metric} accuracy"
        reason = f"{measure} {accuracy.mean:.1%}, below the {budget.min_accuracy:.1%} asked for"
        found.append(Violation("min_accuracy", accuracy.mean, budget.min_accuracy, reason))
    retained = accuracy.retained if accuracy is not None else None
    if budget.min_retained is not None and retained is not None and retained.mean < budget.min_retained:
        reason = f"{retained.mean:.1%} on the old data, below the {budget.min_retained:.1%} asked for"
        found.append(Violation("min_retained", retained.mean, budget.min_retained, reason))
    return tuple(found)


def _fraction(option: str, value: float | None) -> float | None:
    if value is None:
        return None
    if not 0 < value <= 100:
        raise InputError(f"{option} {value:g} is out of range; give a fraction such as 0.8")
    return value / 100 if value > 1 else value


def allowed_memory(budget: Budget) -> int | None:
    """What an update may hold: --ram less the runtime's own footprint."""
    return None if budget.ram_bytes is None else budget.ram_bytes - budget.runtime_overhead_bytes
