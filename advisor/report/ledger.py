"""Stacked bars with their figures beside them: what makes up each candidate's cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from advisor.records import LAYER_TYPES, Cost
from advisor.report import view
from advisor.report.rows import Row

# Class names of the style sheet's colours.
_MEMORY_COLOURS = dict(
    zip(view.MEMORY_PARTS, ("k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7", "k8"), strict=True)
)
_PHASE_COLOURS = dict(zip(view.FLOP_PHASES, ("k0", "k4", "k2", "k3"), strict=True))
_TYPE_COLOURS = dict(zip(LAYER_TYPES, ("k0", "k4", "k2", "k3", "k7", "k1", "k5", "k6"), strict=True))


@dataclass(frozen=True, slots=True)
class Column:
    """One part of a stacked bar."""

    label: str
    colour: str


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One candidate's parts, which add up to the total."""

    row: Row
    parts: tuple[int, ...]

    @property
    def total(self) -> int:
        """The bar's length."""
        return sum(self.parts)


@dataclass(frozen=True, slots=True)
class Ledger:
    """Stacked bars with their figures beside them."""

    caption: str
    unit: view.Unit
    columns: tuple[Column, ...]
    rows: tuple[LedgerRow, ...]
    limit: int | None = None

    def share(self, value: float) -> float:
        """Percent of the longest bar, or of the limit where that lies a little further out."""
        longest = max((row.total for row in self.rows), default=0)
        if self.limit and self.limit <= 1.6 * longest:
            longest = max(longest, self.limit)
        return 100 * value / longest if longest else 0.0

    @property
    def limit_share(self) -> float | None:
        """Where the limit's line stands; None where it is not on the chart."""
        if not self.limit:
            return None
        share = self.share(self.limit)
        return share if 0 < share <= 100 else None


def memory_ledgers(rows: Sequence[Row], limit: int | None) -> list[Ledger]:
    """Bytes at the peak: by purpose, against the limit; and by layer type."""
    by_purpose = _ledger(
        "Bytes held at the moment of the peak, by what they are for",
        rows,
        [Column(part.replace("_", " "), _MEMORY_COLOURS[part]) for part in view.MEMORY_PARTS],
        lambda cost: tuple(getattr(cost.memory, part) for part in view.MEMORY_PARTS),
        view.byte_unit,
        limit=limit,
    )
    by_type = _by_type(
        "Activations and temporaries at the peak, by the layer type that made them",
        rows,
        lambda cost, kind: cost.by_layer_type[kind].activation_bytes if kind in cost.by_layer_type else 0,
        view.byte_unit,
    )
    return [by_purpose, by_type]


def flop_ledgers(rows: Sequence[Row], limit: int | None) -> list[Ledger]:
    """FLOPs of an update: by phase, and by layer type."""
    by_phase = _ledger(
        "FLOPs of one update, by phase",
        rows,
        [Column(phase.replace("_", " "), _PHASE_COLOURS[phase]) for phase in view.FLOP_PHASES],
        lambda cost: tuple(getattr(cost.flops, phase) for phase in view.FLOP_PHASES),
        view.flop_unit,
        limit=limit,
    )
    by_type = _by_type(
        "FLOPs of one update, by layer type",
        rows,
        lambda cost, kind: cost.by_layer_type[kind].flops.total if kind in cost.by_layer_type else 0,
        view.flop_unit,
        limit=limit,
        total=lambda cost: cost.flops.total,
    )
    return [by_phase, by_type]


def trained_ledger(rows: Sequence[Row]) -> Ledger:
    """Trained parameters, by layer type."""
    return _by_type("Trained parameters, by layer type", rows, _trained, view.count_unit)


def type_colour(kind: str) -> str:
    """The style sheet's class for a layer type."""
    return _TYPE_COLOURS.get(kind, "k6")


def memory_colour(part: str) -> str:
    """The style sheet's class for a part of the memory."""
    return _MEMORY_COLOURS[part]


def _by_type(
    caption: str,
    rows: Sequence[Row],
    part: Callable[[Cost, str], int],
    unit: Callable[[Iterable[float]], view.Unit],
    *,
    limit: int | None = None,
    total: Callable[[Cost], int] | None = None,
) -> Ledger:
    """A column for each layer type, and one for what `total` has that no layer type does."""
    costs = [row.evaluation.cost for row in rows]
    present = view.layer_types_of(kind for cost in costs for kind in cost.by_layer_type)
    kinds = [kind for kind in present if any(part(cost, kind) for cost in costs)]
    columns = [Column(kind, type_colour(kind)) for kind in kinds]

    def parts(cost: Cost) -> tuple[int, ...]:
        return tuple(part(cost, kind) for kind in kinds)

    def parts_and_rest(cost: Cost) -> tuple[int, ...]:
        known = parts(cost)
        return (*known, (total(cost) if total else 0) - sum(known))

    if total and any(parts_and_rest(cost)[-1] for cost in costs):
        columns.append(Column("no layer", "k7"))
        return _ledger(caption, rows, columns, parts_and_rest, unit, limit=limit)
    return _ledger(caption, rows, columns, parts, unit, limit=limit)


def _ledger(
    caption: str,
    rows: Sequence[Row],
    columns: Sequence[Column],
    parts: Callable[[Cost], tuple[int, ...]],
    unit: Callable[[Iterable[float]], view.Unit],
    *,
    limit: int | None = None,
) -> Ledger:
    filled = tuple(LedgerRow(row, parts(row.evaluation.cost)) for row in rows)
    return Ledger(caption, unit(row.total for row in filled), tuple(columns), filled, limit)


def _trained(cost: Cost, kind: str) -> int:
    return cost.by_layer_type[kind].trainable_parameters if kind in cost.by_layer_type else 0
