"""Blocks: the stages that a model runs one after the other; running some of them, or in another way.

A block ends where nothing but its output goes on: no skip connection passes over the cut. So what
comes before a cut can be left out, run once and remembered, or run again, without touching the rest.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from advisor.records import Block, Census

_Function = Callable[..., Any]


def trained_part(census: Census, scope: int | None) -> Census:
    """The census without the layers that a scope of the last `scope` blocks leaves frozen."""
    front = front_modules(census, scope)
    if not front:
        return census
    trained = census.blocks[len(census.blocks) - (scope or 0) :]
    frozen, around = frozenset(front), frozenset(path for name in front for path in paths_to(name))
    kept = frozenset(name for block in trained for name in (*block.modules, *block.shared))
    names = [layer.name for layer in census.layers]
    last_of_front = max(index for index, name in enumerate(names) if is_inside(name, frozen))
    layers = [
        layer
        for index, layer in enumerate(census.layers)
        if is_inside(layer.name, kept)
        or layer.name == census.head
        or (
            index > last_of_front
            and not is_inside(layer.name, frozen)
            and layer.name not in around  # a container of the front
        )
    ]
    return replace(census, layers=tuple(layers))


def front_modules(census: Census, scope: int | None) -> tuple[str, ...]:
    """Paths of the modules that run before the last `scope` blocks, in order; None: all are trained."""
    if scope is None or scope >= len(census.blocks):
        return ()
    return links(census.blocks[: len(census.blocks) - scope])


def links(blocks: Sequence[Block]) -> tuple[str, ...]:
    """Paths of what the blocks run, in order; what runs several times is there as often."""
    return tuple(name for block in blocks for name in block.modules)


def has_replaceable_front(census: Census, scope: int | None) -> bool:
    """Whether the blocks before the last `scope` can be left out once their output is known."""
    if not front_modules(census, scope):
        return False
    # What the census's pass in eval mode never called may be called in training, and read any layer;
    # inside a block it is the block's own, whose code reads its weights.
    blocks = frozenset(links(census.blocks))
    uncalled = [layer.name for layer in census.layers if layer.calls == 0 and layer.parameters]
    if not all(is_inside(name, blocks) for name in uncalled):
        return False
    return census.blocks[len(census.blocks) - (scope or 0) - 1].replaceable


def run_front(model: nn.Module, front: Sequence[str], images: torch.Tensor, already: int = 0) -> torch.Tensor:
    """What the modules of a front make of images (N, C, H, W); what follows them is not run.

    Args:
        already: so many of them, the first ones, have run: `images` is what they made.
    """
    last = model.get_submodule(front[-1])

    def stop(*args: Any, **kwargs: Any) -> None:
        raise _Reached(last(*args, **kwargs))

    routes: dict[int, _Function] = dict.fromkeys(range(already), lambda *_args, **_kwargs: images)
    try:
        with torch.no_grad(), rerouted(model, front, routes | {len(front) - 1: stop}):
            model(images)
    except _Reached as reached:
        return reached.tensor
    raise AssertionError(f"{front[-1]} was called when the census was taken")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While it lasts, every module is in eval mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def without_front(model: nn.Module, front: Sequence[str]) -> Iterator[None]:
    """While it lasts, the model is called with what its front made of images, not with images.

    Each call of the front returns just that, whatever it is called with: so what the model's code does
    between them doesn't matter. A module that is called again behind the front then runs.
    """
    given: list[torch.Tensor] = []

    def remember(_module: nn.Module, args: tuple[Any, ...]) -> None:
        given[:] = args[:1]

    handle = model.register_forward_pre_hook(remember)
    try:
        with rerouted(model, front, dict.fromkeys(range(len(front)), lambda *_args, **_kwargs: given[0])):
            yield
    finally:
        handle.remove()


@contextmanager
def rerouted(model: nn.Module, chain: Sequence[str], routes: Mapping[int, _Function]) -> Iterator[None]:
    """While it lasts, functions take some of the calls that the model is a chain of.

    Args:
        chain: paths of what the model runs one after the other, from its first call on (`links`).
        routes: by the call's place in the chain. What they call themselves runs as it is.
    """
    turns = _Turns([model.get_submodule(name) for name in chain], routes)
    handle = model.register_forward_pre_hook(turns.begin)
    before = {module: vars(module).get("_compiled_call_impl") for module in turns.places}
    try:
        for module, real in before.items():
            # Called in the place of module and hooks, and wherever the model's code has the module from;
            # a stand-in at one path would be seen by calls by that path alone.
            call = partial(turns.call, module, real or module._call_impl)
            vars(module)["_compiled_call_impl"] = call
        yield
    finally:
        handle.remove()
        for module, real in before.items():
            del vars(module)["_compiled_call_impl"]
            if real is not None:
                vars(module)["_compiled_call_impl"] = real


class _Turns:
    """Which call of the chain it is: the next of that module's, not counting those inside other calls."""

    def __init__(self, chain: Sequence[nn.Module], routes: Mapping[int, _Function]) -> None:
        self.places: defaultdict[nn.Module, list[int]] = defaultdict(list)
        for place, module in enumerate(chain):
            self.places[module].append(place)
        self._routes = routes
        self._next, self._inside = 0, False

    def begin(self, *_: Any) -> None:
        """A forward pass of the model begins."""
        self._next, self._inside = 0, False

    def call(self, module: nn.Module, real: _Function, *args: Any, **kwargs: Any) -> Any:
        """The module is called; `real` is what it would have run."""
        if self._inside:
            return real(*args, **kwargs)
        places = self.places[module]
        turn = bisect_left(places, self._next)
        place = places[turn] if turn < len(places) else -1
        if place >= 0:
            self._next = place + 1
        self._inside = True
        try:
            return self._routes.get(place, real)(*args, **kwargs)
        finally:
            self._inside = False


def channels(output: torch.Tensor) -> int:
    """Of an output (N, C, H, W), (N, tokens, C), or (N, H, W, C) where equal sides tell; 0: of another."""
    if output.ndim == 3:
        return output.shape[2]
    if output.ndim != 4:
        return 0
    _, second, third, fourth = output.shape
    return fourth if second == third != fourth else second


def pool(output: torch.Tensor, channels: int) -> torch.Tensor:
    """The mean (N, channels) over all positions of such an output."""
    if output.ndim == 4 and output.shape[1] == channels:
        return output.mean((2, 3))
    return output.flatten(1, -2).mean(1)


class _Reached(Exception):  # noqa: N818 - not an error: the way out of a forward pass
    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.tensor = tensor


def is_inside(name: str, modules: Container[str]) -> bool:
    """Whether the path is one of the modules', or leads into one; of many, they are best a set."""
    return any(path in modules for path in paths_to(name))


def paths_to(name: str) -> Iterator[str]:
    """The path of a module, and of each that it is in, the model itself left out."""
    yield name
    while name := name.rpartition(".")[0]:
        yield name
