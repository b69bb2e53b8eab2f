"""What the check knows of one model under one target: the same engine as `recommend --no-probe`.

The choice is made as there, with operators' workspace, which is measured on this machine. What a baseline
keeps of it are the costs of tensors alone: they are the same on every machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from advisor.check.ahead import Found, priced_ahead
from advisor.check.configuration import Target
from advisor.check.records import Checked, Figures, LayerFigures, Snapshot
from advisor.costs import Simulator
from advisor.errors import InputError, ModelError, first_line
from advisor.methods import get_method, methods
from advisor.names import did_you_mean
from advisor.records import Candidate, Cost, Evaluation, Memory
from advisor.solver import answer, rank, violations
from advisor.story.candidates import Pricing
from advisor.story.pricing import cost_all, simulator_for
from advisor.story.situation import Request, Story, prepare
from advisor.system.processor import processor_name

# What a model's random weights do is no matter of costs.
_IRRELEVANT = "has random weights"


class Pricer:
    """Prices targets; what several of them have in common is done once."""

    def __init__(self, *, ahead: bool = False) -> None:
        """Prepare to price.

        Args:
            ahead: whether a fork of this process may help: it must run one thread, and have run no
                backward pass.
        """
        self._ahead = priced_ahead if ahead else _alone
        self._known: dict[object, tuple[Story, _Prices]] = {}

    def price(
        self,
        target: Target,
        before: Snapshot | None = None,
        *,
        to_keep: bool = False,
        model: str | nn.Module | None = None,
    ) -> Checked:
        """What one target comes to.

        Args:
            before: the baseline's. Its candidate is among those to choose from, even where it would not be
                proposed any more: what is proposed depends on how much of a limit is left.
            to_keep: whether the snapshot is to become a baseline, which says what tensors alone would
                decide. The choice is then made anew.
            model: instead of the target's source; it is left untouched.

        Raises:
            InputError: the model can't be loaded or priced, or an option has no such value.
        """
        request = _request(target)
        story, prices = self._prepared(target, request, target.source if model is None else model)
        kept = None
        if before is not None and before.recommended is not None and not to_keep:
            kept = Candidate.parse(before.recommended)
        with self._ahead(lambda found: self._from_the_end(target, story, request, prices, found)) as told:
            prices.told = told
            choice, evaluations = _choice(target, story, request, prices, kept)
            prices.told = list
        recommended = choice.candidate.id if choice else None
        kind = machine_kind()
        is_flip = before is not None and before.recommended != recommended
        of_tensors = None
        if to_keep or (is_flip and before is not None and kind not in before.machine_peak_bytes):
            also = choice.candidate if to_keep and choice is not None else kept
            plain, _ = _choice(target, story, request, _OfTensors(prices), also)
            of_tensors = plain.candidate.id if plain else None
        checked = Checked(
            Snapshot(
                budget=target.budget,
                options=target.options | {"input-size": "x".join(map(str, story.census.input_size))},
                recommended=recommended,
                figures=_figures(choice.cost) if choice else None,
                layers=_layers(prices, story, choice.candidate) if choice else {},
                machine_peak_bytes={kind: choice.cost.peak_memory_bytes} if choice else {},
                of_tensors=of_tensors,
            ),
            kind,
            fits=choice is not None and choice.fits,
            answer=_answer(target, choice, evaluations),
            leanest_layers={} if choice else _layers(prices, story, _leanest(evaluations)),
            warnings=tuple(
                warning for warning in dict.fromkeys(story.warnings) if _IRRELEVANT not in warning
            ),
        )
        return _with_baseline(checked, kept, prices, story) if kept is not None and is_flip else checked

    def _from_the_end(
        self, target: Target, story: Story, request: Request, prices: _Prices, found: Found
    ) -> None:
        """What `_choice` does, beginning with the last method."""
        if target.candidate is None:
            prices.tell = found
            backwards = tuple(reversed(request.methods or tuple(methods())))
            cost_all(story, replace(request, methods=backwards), prices, target.budget)

    def _prepared(self, target: Target, request: Request, model: str | nn.Module) -> tuple[Story, _Prices]:
        key = (model, target.arch, target.trust, target.input_size, target.batch_size)
        if key not in self._known:
            story = prepare(model, request, lambda stage, fraction, running: None)
            self._known[key] = story, _Prices(simulator_for(story), target.batch_size)
        return self._known[key]


@contextmanager
def _alone(work: Callable[[Found], object]) -> Iterator[Callable[[], list[tuple[Candidate, Cost]]]]:
    """Nothing helps."""
    del work
    yield list


def machine_kind() -> str:
    """What operators' workspace depends on: torch's release, the processor, what it is allowed to use."""
    capability = torch.backends.cpu.get_cpu_capability()
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")
    parts = [f"torch {torch.__version__.partition('+')[0]}", processor_name(), capability]
    return ", ".join(parts + ([f"oneDNN up to {allowed}"] if allowed else []))


class _Prices:
    """Stands for a simulator, and remembers: both passes ask for much the same candidates."""

    def __init__(self, simulator: Simulator, batch_size: int) -> None:
        self.simulator, self.batch_size = simulator, batch_size
        self._known: dict[Candidate, Cost | Exception] = {}
        self.told: Callable[[], list[tuple[Candidate, Cost]]] = list  # costs found elsewhere meanwhile
        self.tell: Found = lambda candidate, cost: None  # called with each that is found here

    def cost(self, candidate: Candidate, batch_size: int) -> Cost:
        """As `Simulator.cost`."""
        if candidate not in self._known:
            self._known.update(self.told())
        if candidate not in self._known:
            try:
                cost = self._known[candidate] = self.simulator.cost(candidate, batch_size)
                self.tell(candidate, cost)
            except Exception as error:  # noqa: BLE001 - whoever asks again is told the same
                self._known[candidate] = error
        known = self._known[candidate]
        if isinstance(known, Exception):
            raise known
        return known

    def key(self) -> dict[str, Any]:
        """As `Simulator.key`."""
        return self.simulator.key()


class _OfTensors:
    """Likewise, of tensors alone: their breakdown is left out."""

    def __init__(self, prices: _Prices) -> None:
        self._prices = prices

    def cost(self, candidate: Candidate, batch_size: int) -> Cost:
        """As `Simulator.cost`."""
        cost = self._prices.cost(candidate, batch_size)
        assert cost.tensor_peak_bytes is not None  # noqa: S101 - the simulator knows it
        return replace(cost, memory=Memory(temporaries=cost.tensor_peak_bytes))

    def key(self) -> dict[str, Any]:
        """As `Simulator.key`."""
        return self._prices.key() | {"workspace": False}


def _request(target: Target) -> Request:
    for name in target.methods or ():
        get_method(name)
    return Request(
        batch_size=target.batch_size,
        input_size=target.input_size,
        arch=target.arch,
        trust=target.trust,
        methods=target.methods,
        ranks=target.ranks,
        optimizer=target.optimizer,
        probe_seconds=None,
        verify=False,
    )


def _choice(
    target: Target, story: Story, request: Request, prices: Pricing, also: Candidate | None
) -> tuple[Evaluation | None, list[Evaluation]]:
    """The candidate that was named, or the one that is recommended, and all that were looked at.

    Args:
        also: to be looked at besides what is proposed.
    """
    if target.candidate is None:
        evaluations = cost_all(story, request, prices, target.budget)
        if also is not None and all(evaluation.candidate != also for evaluation in evaluations):
            with suppress(Exception):  # it can't be run any more, so it is no choice
                cost = _price_named(also, prices, story, request.batch_size)
                evaluations.append(Evaluation(also, cost, violations=violations(target.budget, cost)))
        return next(iter(rank(evaluations, target.budget)), None), evaluations
    named = Candidate.parse(target.candidate)
    try:
        cost = _price_named(named, prices, story, request.batch_size)
    except InputError as error:
        raise ModelError(f"{named.id} can't be run on this model: {error}") from error
    except Exception as error:
        why = f"{type(error).__name__}: {first_line(error)}"
        raise ModelError(f"{named.id} can't be run on this model: {why}") from error
    evaluation = Evaluation(named, cost, violations=violations(target.budget, cost))
    return evaluation, [evaluation]


def _price_named(candidate: Candidate, prices: Pricing, story: Story, batch_size: int) -> Cost:
    """Of a candidate that nothing has proposed. Raises what `Simulator.cost` does, and ModelError."""
    method = get_method(candidate.method)
    settings = list(method.settings(story.census, (1,)))
    if not settings:
        raise ModelError(f"the model has nothing for it: {method.summary}")
    known = dict.fromkeys(name for setting in settings for name in setting)
    for name, value in candidate.setting:
        if name not in known:
            meant = did_you_mean(name, known) or f"; it has {', '.join(known) or 'none'}"
            raise ModelError(f"{method.name} has no setting {name}{meant}")
        kinds = {type(setting[name]) for setting in settings if name in setting}
        if type(value) not in kinds:
            raise ModelError(f"{method.name}'s {name} is {value!r}, but should be as in {settings[0]}")
    return prices.cost(candidate, batch_size)


def _answer(target: Target, choice: Evaluation | None, evaluations: Sequence[Evaluation]) -> str:
    if choice is not None and choice.violations:
        reasons = "; ".join(violation.reason for violation in choice.violations)
        return f"{choice.candidate.id} does not fit: {reasons}."
    return answer(choice, list(evaluations), target.budget, None)


def _with_baseline(checked: Checked, candidate: Candidate, prices: _Prices, story: Story) -> Checked:
    """With what the baseline's candidate costs on the model as it is now."""
    try:
        cost = _price_named(candidate, prices, story, prices.batch_size)
    except Exception as error:  # noqa: BLE001 - whatever the model or the method raises: it is said
        why = f"{candidate.id} can't be run on the model any more: {first_line(error)}"
        return replace(checked, of_baseline_failure=why)
    return replace(
        checked,
        of_baseline=_figures(cost),
        of_baseline_layers=_layers(prices, story, candidate),
        of_baseline_broken=tuple(v.reason for v in violations(checked.snapshot.budget, cost)),
        of_baseline_machine_peak_bytes=cost.peak_memory_bytes,
    )


def _leanest(evaluations: Sequence[Evaluation]) -> Candidate:
    return min(evaluations, key=lambda evaluation: evaluation.cost.peak_memory_bytes).candidate


def _figures(cost: Cost) -> Figures:
    assert cost.tensor_peak_bytes is not None  # noqa: S101 - the simulator knows it
    return Figures(cost.trainable_parameters, cost.delta_bytes, cost.flops.total, cost.tensor_peak_bytes)


def _layers(prices: _Prices, story: Story, candidate: Candidate) -> Mapping[str, LayerFigures]:
    known = {layer.name: layer for layer in story.census.layers}
    return {
        name: LayerFigures(
            known[name].layer_type if name in known else "other",
            known[name].weight_shape if name in known else (),
            share.trainable_parameters,
            share.flops.total,
            share.peak_bytes,
        )
        for name, share in prices.simulator.by_layer(candidate, prices.batch_size).items()
    }
