"""What an update does with each layer of the network, as a map and with its costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from advisor.records import TREATMENTS, Evaluation, Flops, LayerCost, Recommendation, Treatment
from advisor.report import view
from advisor.report.ledger import type_colour
from advisor.units import format_bytes, format_count, format_flops

WORDS: dict[Treatment, str] = {
    "trained": "trained",
    "partly": "some of it trained",
    "added": "additions trained",
    "solved": "solved in closed form",
    "statistics": "statistics updated",
    "passed": "frozen, gradients pass",
    "frozen": "frozen, forward only",
    "once": "frozen, run once an image",
    "unused": "never run",
}
_MOST = 8  # layers that stand together, or a third of all


@dataclass(frozen=True, slots=True)
class Cell:
    """A layer on the map."""

    treatment: Treatment
    text: str


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that stand together, such as those of a block."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a table: a layer, or all layers of a type."""

    name: str
    layer_type: str
    colour: str
    what: str  # what is done with it; of a type, with how many
    parameters: int
    trained: int
    flops: Flops
    saved: int


@dataclass(frozen=True, slots=True)
class Layers:
    """One candidate's layers."""

    name: str
    map: tuple[Group, ...]
    legend: tuple[tuple[Treatment, str, int], ...]  # with how many layers that have weights
    by_layer: tuple[Line, ...]
    by_type: tuple[Line, ...]
    total: Line
    flop_unit: view.Unit
    byte_unit: view.Unit


def layers_of(recommendation: Recommendation) -> Layers | None:
    """Of the recommended candidate, or else of full fine-tuning; None where neither was looked at closely."""
    shown = view.chosen(recommendation) or recommendation.full
    return _of(shown) if shown is not None and shown.cost.by_layer else None


def _of(evaluation: Evaluation) -> Layers:
    every = evaluation.cost.by_layer
    weighty = [each for each in every if each.parameters]
    counted = {treatment: sum(each.treatment == treatment for each in weighty) for treatment in TREATMENTS}
    kinds = view.layer_types_of(each.layer_type for each in every)
    by_type = [_line_of_type(kind, [each for each in every if each.layer_type == kind]) for kind in kinds]
    by_layer = [_line(each) for each in every if each.name or each.flops.total or each.saved_bytes]
    return Layers(
        evaluation.candidate.short,
        tuple(_map(weighty)),
        tuple((treatment, WORDS[treatment], count) for treatment, count in counted.items() if count),
        tuple(by_layer),
        tuple(by_type),
        _sum("all", "", "", by_layer),
        view.flop_unit((line.flops.total for line in by_type), least=10),
        view.byte_unit(line.saved for line in by_layer),
    )


def _line(each: LayerCost) -> Line:
    return Line(
        each.name or "between layers",
        each.layer_type if each.name else "no layer",
        type_colour(each.layer_type),
        WORDS[each.treatment] if each.parameters else "",
        each.parameters,
        each.trained_parameters,
        each.flops,
        each.saved_bytes,
    )


def _line_of_type(kind: str, layers: Sequence[LayerCost]) -> Line:
    treated = [each.treatment for each in layers if each.parameters]
    what = ", ".join(
        f"{treated.count(treatment)} {WORDS[treatment]}" for treatment in TREATMENTS if treatment in treated
    )
    return _sum(kind, kind, what, [_line(each) for each in layers])


def _sum(name: str, kind: str, what: str, lines: Sequence[Line]) -> Line:
    return Line(
        name,
        kind,
        type_colour(kind),
        what,
        sum(line.parameters for line in lines),
        sum(line.trained for line in lines),
        sum((line.flops for line in lines), Flops()),
        sum(line.saved for line in lines),
    )


def _map(layers: Sequence[LayerCost], depth: int = 1) -> list[Group]:
    """In the order of the forward pass, grouped by how their paths begin; where many are, by more of it.

    Args:
        depth: of a path, how many parts are read.
    """
    most = max(_MOST, len(layers) // 3)
    found = []
    for start, members in groupby(layers, key=lambda each: each.name.split(".")[:depth]):
        together = list(members)
        if len(together) > most and any(each.name.count(".") >= depth for each in together):
            found += _map(together, depth + 1)
        else:
            cells = tuple(Cell(each.treatment, _told(each)) for each in together)
            found.append(Group(".".join(start), cells))
    return found


def _told(each: LayerCost) -> str:
    trained = (
        f", {format_count(each.trained_parameters)} parameters trained" if each.trained_parameters else ""
    )
    return (
        f"{each.name} ({each.layer_type}): {WORDS[each.treatment]}{trained}; "
        f"{format_flops(each.flops.total)}, {format_bytes(each.saved_bytes)} of activations kept"
    )
