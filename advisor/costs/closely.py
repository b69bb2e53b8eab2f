"""One update seen closely: what it does with each layer, and how the memory goes up and down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import Literal

from torch import nn

from advisor.costs.recorder import Recording, layer_holding
from advisor.models.blocks import is_inside
from advisor.parts.attachment import Trainable
from advisor.records import (
    Census,
    Flops,
    Held,
    Layer,
    LayerCost,
    LayerTypeCost,
    Memory,
    Moment,
    Phase,
    Timeline,
    Treatment,
)

MOST_MOMENTS = 120  # more can't be told apart in a chart
_LARGEST = 10
NO_LAYER = "other"  # the recorder's group of what no layer does
_PARTS = fields(Memory)
# What takes memory before, in and after an update, the most of it, and if it was seen closely, how.
Stage = tuple[Literal["before", "update", "after"], Memory, Timeline | None]


def layer_costs(
    census: Census,
    trainable: Trainable,
    own: Container[nn.Parameter],
    shares: Mapping[str, LayerTypeCost],
) -> tuple[LayerCost, ...]:
    """Each layer's share, in the order of the forward pass, then what no layer does.

    Args:
        own: the model's parameters from before the method was attached.
        shares: by the layers' paths.
    """
    trained_own: Counter[str | None] = Counter()
    names = census.types()
    for name, parameter in trainable.parameters.items():
        if parameter in own:
            trained_own[layer_holding(name, names)] += parameter.numel()
    once = frozenset(trainable.front if trainable.levers.cached_prefix != "no" else ())
    changes_statistics = trainable.statistics != "frozen" or trainable.levers.statistics == "reestimated"
    estimated = dict(trainable.tracked_norms() if changes_statistics else ())
    found = []
    for layer in (*census.layers, Layer("", "other", "", 0, 1)):
        share = shares.get(layer.name or NO_LAYER, LayerTypeCost(0, Flops(), 0))
        found.append(
            LayerCost(
                layer.name,
                layer.layer_type,
                _treatment(layer, census, trainable, trained_own[layer.name], share, once, estimated),
                layer.parameters,
                share.trainable_parameters,
                share.flops,
                share.saved_bytes,
                share.peak_bytes,
            )
        )
    return tuple(found)


def _treatment(
    layer: Layer,
    census: Census,
    trainable: Trainable,
    trained_own: int,
    share: LayerTypeCost,
    once: Container[str],
    estimated: Container[str],
) -> Treatment:
    """What the update does with the layer.

    Args:
        once: modules that run but once.
        estimated: layers whose statistics change.
    """
    if layer.name == census.head and (trainable.solved or trainable.levers.solved_head):
        return "solved"
    if share.trainable_parameters:
        return _trained(layer, trained_own, share.trainable_parameters)
    if is_inside(layer.name, once):
        return "once"
    if layer.name in estimated:
        return "statistics"
    if layer.calls == 0:
        return "unused"
    return "passed" if share.flops.input_gradient else "frozen"


def _trained(layer: Layer, own: int, every: int) -> Treatment:
    if every > own:
        return "added"
    return "trained" if own >= layer.parameters else "partly"


def timeline(recording: Recording, stages: Sequence[Stage]) -> Timeline:
    """Of the update that was recorded, and of what comes before and after it.

    Args:
        stages: in order, the update among them, whose memory holds what was not recorded, too.
    """
    names = [name for name, *_ in stages]
    place = names.index("update")
    update = stages[place][1]
    # What is held all the time, and was not recorded.
    more = {part.name: getattr(update, part.name) - getattr(recording.memory, part.name) for part in _PARTS}
    moments = [
        replace(
            moment,
            layer=_named(moment.layer),
            memory=Memory(**{part: getattr(moment.memory, part) + size for part, size in more.items()}),
        )
        for moment in recording.moments
    ]
    held = Counter({(part, _named(group)): size for (part, group), size in recording.held.items()})
    held.update({(part, ""): size for part, size in more.items()})
    held["workspace", max(moments, key=_total).layer if moments else ""] += update.workspace
    # What no layer does, such as summing gradients, is a moment of its own only where more is held then.
    told = [
        moment
        for before, moment in pairwise([Moment("forward", "", Memory()), *moments])
        if moment.layer or _total(moment) > _total(before)
    ]
    found = Timeline(tuple(_fewer(told)), _largest(held))
    for stage in (*reversed(stages[:place]), *stages[place + 1 :]):
        found = with_stage(found, stage)
    return found


def with_stage(known: Timeline, stage: Stage) -> Timeline:
    """With what is held before or after the update; if it is the most, with what that is."""
    name, memory, seen = stage
    phase: Phase = "before" if name == "before" else "after"
    moment = Moment(phase, "", memory)
    is_peak = memory.total > max(map(_total, known.moments), default=0)
    parts = Counter({(part.name, ""): getattr(memory, part.name) for part in _PARTS})
    return Timeline(
        (moment, *known.moments) if phase == "before" else (*known.moments, moment),
        (seen.largest if seen else _largest(parts)) if is_peak else known.largest,
    )


def _total(moment: Moment) -> int:
    return moment.memory.total


def _named(group: str) -> str:
    return "" if group == NO_LAYER else group


def _largest(held: Counter[tuple[str, str]]) -> tuple[Held, ...]:
    return tuple(Held(part, layer, size) for (part, layer), size in held.most_common(_LARGEST) if size)


def _fewer(moments: Sequence[Moment]) -> list[Moment]:
    """So many that a chart can show: of those that stand together, the one with the most held."""
    step = max(-(-len(moments) // MOST_MOMENTS), 1)
    return [max(moments[n : n + step], key=_total) for n in range(0, len(moments), step)]
