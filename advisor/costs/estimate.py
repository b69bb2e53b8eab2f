"""The cost of any plan that treats each layer as it likes, from a table that adds up.

A plan gives every layer an option: to stay frozen, or what one of a few candidates does with it. What
an option costs on a layer is read off one recorded update of that candidate (`costs.recorder`). It
depends on the other layers in one thing only: whether gradients flow through this one, on their way
to a trained layer before it. So the table has an entry for (flows, layer, option), and a plan costs the sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial, reduce
from operator import or_
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from advisor.costs.attention import DeviceNeededError, cpu_attention
from advisor.costs.memo import OperatorMemo, tensors_in
from advisor.costs.recorder import Recorder
from advisor.costs.simulate import shape_copy, without_collector
from advisor.errors import InputError
from advisor.records import BASELINE, Candidate, Census
from advisor.training.update import begin

_Integers = NDArray[np.int64]
_AT_ONCE = 1024  # plans whose figures stay in the processor's caches
_Saved = tuple[tuple[int, int], ...]  # storages by number, and their bytes


@dataclass(frozen=True, slots=True)
class Estimates:
    """One update of each plan: arrays of (N,)."""

    trainable_parameters: _Integers
    flops: _Integers  # forward, backward and optimizer, of the batch
    saved_bytes: _Integers  # what the forward pass leaves for the backward pass


@dataclass(frozen=True, slots=True)
class PlanTable:
    """What each of O options (0: frozen) costs in each of L layers. Of C calls the first L are first ones.

    Axis 0 of (2, L, O) arrays: whether gradients flow through the layer, to a trained one before it.
    """

    parameters: _Integers  # (L, O)
    flops: _Integers  # (2, L, O)
    saved_bytes: _Integers  # (2, L, O)
    saved_again_bytes: _Integers  # (C - L,): by a layer's further calls, where gradients flow through them
    outside_flops: int  # outside any layer
    leads_to: NDArray[np.bool_]  # (L, C): whether the layer's output enters the call


class Estimator:
    """Prices plans: (N, layers) integers, 0 for a layer that stays frozen, k for the k-th option.

    Within 5 % of a simulation (`tests/costs/test_estimate.py`), but for the saved bytes of models that read
    a layer's weight without calling the layer (measurements/README.md).
    """

    def __init__(
        self, model: nn.Module, census: Census, options: Sequence[Candidate], batch_size: int
    ) -> None:
        """Record one update of each option.

        Args:
            options: candidates without levers. Running statistics are updated, whatever the method's policy.

        Raises:
            InputError: an option has levers.
        """
        for option in options:
            if option.levers.described():
                raise InputError(f"{option.id}: a plan's options are methods and settings, without levers")
        self.layers = tuple(layer.name for layer in census.layers)
        with without_collector():
            frozen, *others = _recordings(model, census, options, batch_size)
        every = [frozen, *others]
        parameters = np.stack([recorded.parameters for recorded in every], axis=1)
        trains = parameters > 0
        to_input = np.stack([recorded.to_input for recorded in every], axis=1)
        needed = np.stack([recorded.own for recorded in every], axis=1)
        # Where no gradient flows on, one may still flow through what the option adds to the layer.
        flops = np.stack([needed + to_input - to_input[:, :1], needed + to_input])
        flops = np.where(trains, flops, flops[:, :, :1])

        flow = _bytes_by_call(frozen)
        layers = len(self.layers)
        beside = [_saved_alone(recorded, recorded) - _saved_alone(frozen, recorded) for recorded in every]
        own = [[_bytes(saved) for saved in recorded.saved[:layers]] for recorded in every]
        after = np.array([_bytes(saved) for saved in frozen.saved_after[:layers]])
        saved = np.stack(
            [np.stack(own, axis=1) + after[:, None], np.stack(beside, axis=1) + flow[:layers, None]]
        )
        frozen_saved = np.stack([np.zeros(layers, dtype=np.int64), flow[:layers]])[:, :, None]
        saved = np.where(trains, saved, frozen_saved)
        self.table = PlanTable(parameters, flops, saved, flow[layers:], frozen.outside, frozen.leads_to)
        # As pricing many plans at once wants them.
        self._flops, self._saved = flops.reshape(-1), saved.reshape(-1)
        self._leads_to = frozen.leads_to.astype(np.float32)

    @property
    def trains(self) -> NDArray[np.bool_]:
        """Whether an option trains anything in a layer: (layers, 1 + options); the first never does."""
        return self.table.parameters > 0

    def __call__(self, plans: _Integers) -> Estimates:
        """Price plans.

        Args:
            plans: (N, layers); in a layer where it trains nothing, an option leaves it frozen.
        """
        starts = range(0, max(len(plans), 1), _AT_ONCE)
        parts = [self._price(plans[start : start + _AT_ONCE]) for start in starts]
        return Estimates(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _price(self, plans: _Integers) -> tuple[_Integers, _Integers, _Integers]:
        layers, options = self.table.parameters.shape
        chosen = plans + options * np.arange(layers)  # positions in the flattened tables
        parameters = np.take(self.table.parameters, chosen)
        flows = (parameters > 0).astype(np.float32) @ self._leads_to > 0
        chosen += flows[:, :layers] * (layers * options)
        flops = np.take(self._flops, chosen).sum(axis=1) + self.table.outside_flops
        saved = np.take(self._saved, chosen).sum(axis=1)
        again = flows[:, layers:] @ self.table.saved_again_bytes.astype(np.float64)
        return parameters.sum(axis=1), flops, saved + again.astype(np.int64)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """One update whose gradients flow back to the image.

    By layer, in the order of the census; and by call: the layers' first ones, then any further ones.
    """

    parameters: _Integers
    own: _Integers  # FLOPs of the forward pass, the weights' gradients and the optimizer
    to_input: _Integers  # FLOPs of the gradients that flow on
    outside: int  # FLOPs of the forward pass outside any layer
    saved: tuple[_Saved, ...]  # by call
    saved_after: tuple[_Saved, ...]  # after that call has begun, outside any layer
    leads_to: NDArray[np.bool_]  # (layers, calls): whether the layer's output enters the call


def _recordings(
    model: nn.Module, census: Census, options: Sequence[Candidate], batch_size: int
) -> list[_Recorded]:
    memo = OperatorMemo()
    try:
        return [_record(model, census, option, batch_size, memo) for option in (None, *options)]
    except DeviceNeededError:
        return [_record(model, census, option, batch_size, None) for option in (None, *options)]


def _record(
    model: nn.Module, census: Census, option: Candidate | None, batch_size: int, memo: OperatorMemo | None
) -> _Recorded:
    """One update of the option, or of a model that is frozen but lets gradients through."""
    mode = torch.device("meta") if memo is not None else FakeTensorMode()
    copied = shape_copy(model, mode)
    with mode, cpu_attention() if memo is not None else nullcontext():
        trainable, optimizer = begin(copied, census, option or Candidate(BASELINE), learning_rate=1e-3)
        if option is None:
            copied.requires_grad_(False)
            trainable.parameters.clear()
            optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
        trainable.statistics = "updated"
        trainable.train_mode()
        images = torch.zeros(batch_size, *census.input_size, requires_grad=True)
        labels = torch.zeros(batch_size, dtype=torch.int64)
        groups = {layer.name: str(place) for place, layer in enumerate(census.layers)}
        recorder = Recorder(copied, groups, memo)
        with _Watcher(copied, census, images) as watcher:
            flops = recorder.record_update(trainable, optimizer, images, labels).flops
        parameters = np.zeros(len(groups), dtype=np.int64)
        for name, parameter in trainable.parameters.items():
            parameters[int(recorder.group_of(name))] += parameter.numel()
    by_layer = [flops[group] for group in groups.values()]
    return _Recorded(
        parameters,
        np.array([each.forward + each.weight_gradient + each.optimizer for each in by_layer]),
        np.array([each.input_gradient for each in by_layer]),
        flops["other"].forward,
        tuple(tuple(saved.items()) for saved in watcher.saved),
        tuple(tuple(saved.items()) for saved in watcher.saved_after),
        watcher.leads_to(),
    )


class _Watcher:
    """Notes, while a model runs, which layer saves what, and which layers' outputs enter which."""

    def __init__(self, model: nn.Module, census: Census, images: torch.Tensor) -> None:
        self._modules = [model.get_submodule(layer.name) for layer in census.layers]
        self._inside = [set(module.modules()) for module in self._modules]
        self.saved: list[dict[int, int]] = [{} for _ in self._modules]
        self.saved_after: list[dict[int, int]] = [{} for _ in self._modules]
        self.entered_by = [0] * len(self._modules)  # sets of layers, as bits
        # Weights and the batch are held anyway.
        held = (*model.parameters(), *model.buffers(), images)
        self._held = {tensor.untyped_storage()._cdata for tensor in held}
        self._running: list[int] = []
        self._called: set[int] = set()
        self._latest = 0
        self._behind: dict[Any, int] = {None: 0}  # autograd node -> layers whose outputs it follows from

    def __enter__(self) -> _Watcher:
        self._hooks = ExitStack()
        for place, module in enumerate(self._modules):
            for handle in (
                module.register_forward_pre_hook(
                    partial(self._entered, place), prepend=True, with_kwargs=True
                ),
                module.register_forward_hook(partial(self._left, place), always_call=True),
            ):
                self._hooks.callback(handle.remove)
        self._hooks.enter_context(torch.autograd.graph.saved_tensors_hooks(self._save, lambda tensor: tensor))
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()
        self._behind.clear()

    def leads_to(self) -> NDArray[np.bool_]:
        """Whether the layer's output enters the call: (layers, calls)."""
        layers = range(len(self._modules))
        found = np.array([[mask >> place & 1 for mask in self.entered_by] for place in layers], dtype=bool)
        for outer in self._called:
            for place, inner in enumerate(self._modules):
                if place != outer and inner in self._inside[outer]:
                    # A container's own weight may enter anything inside it.
                    found[outer, place] = True
                    # A weight that is read without its module being called is a part of what reads it.
                    if place not in self._called:
                        found[place] |= found[outer]
                        found[place, outer] = True
        return found

    def _save(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._held:
            inside = self._running and self._running[-1] == self._latest
            (self.saved if inside else self.saved_after)[self._latest][storage._cdata] = storage.nbytes()
        return tensor

    def _entered(self, place: int, _: nn.Module, args: Any, kwargs: Any) -> None:
        call = place
        if place in self._called:
            call = len(self.saved)
            self.saved.append({})
            self.saved_after.append({})
            self.entered_by.append(0)
        self._called.add(place)
        self._running.append(call)
        self._latest = call
        for tensor in tensors_in((args, kwargs)):
            self.entered_by[call] |= self._layers_behind(tensor.grad_fn)

    def _left(self, place: int, _: nn.Module, _args: Any, output: Any) -> None:
        self._running.pop()
        for tensor in tensors_in(output):
            if tensor.grad_fn is not None:
                self._behind[tensor.grad_fn] = self._layers_behind(tensor.grad_fn) | 1 << place

    def _layers_behind(self, node: Any) -> int:
        waiting = [node]
        while waiting:
            last = waiting[-1]
            before = [] if last in self._behind else [following for following, _ in last.next_functions]
            unknown = [following for following in before if following not in self._behind]
            if unknown:
                waiting += unknown
                continue
            if last not in self._behind:
                self._behind[last] = reduce(or_, (self._behind[following] for following in before), 0)
            waiting.pop()
        return self._behind[node]


def _bytes(saved: Iterable[tuple[int, int]]) -> int:
    return sum(size for _, size in saved)


def _bytes_by_call(recorded: _Recorded) -> _Integers:
    """What a call saves and what is saved after it, a storage counting where it is saved first.

    A call that comes again, such as an activation's, stands behind all first ones: what it saves is new.
    """
    seen: set[int] = set()
    found = []
    for saved in zip(recorded.saved, recorded.saved_after, strict=True):
        new = {storage: size for each in saved for storage, size in each if storage not in seen}
        found.append(sum(new.values()))
        seen |= new.keys()
    return np.array(found, dtype=np.int64)


def _saved_alone(recorded: _Recorded, option: _Recorded) -> _Integers:
    """What each layer that the option trains saves, and no layer that it leaves alone."""
    layers = len(option.parameters)
    trained = option.parameters > 0
    seen = {storage for saved in (*recorded.saved_after, *recorded.saved[layers:]) for storage, _ in saved}
    for place in np.flatnonzero(~trained):
        seen.update(storage for storage, _ in recorded.saved[place])
    alone = np.zeros(layers, dtype=np.int64)
    for place in np.flatnonzero(trained):
        alone[place] = _bytes(item for item in recorded.saved[place] if item[0] not in seen)
        seen.update(storage for storage, _ in recorded.saved[place])
    return alone
