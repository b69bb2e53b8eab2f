"""Finding a model's blocks: a forward pass is watched, and cut where nothing but one output goes on.

What a model is a chain of are calls, not modules: one activation may stand between all its layers.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from advisor.models.blocks import channels, evaluating, is_inside, rerouted, run_front, without_front
from advisor.records import Block

_MULTIPLY_ADDS = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention)
_NO_GRADIENT = "no gradient flows from its output back to the image"
_Place = tuple[int, int]  # a tensor and its version: in-place operations change it


@dataclass(slots=True, eq=False)
class _Call:
    """One call of one module."""

    name: str
    module: nn.Module
    alone: bool = False  # called with one tensor and nothing else
    source: _Place | None = None  # the one tensor that it was called with
    in_place: bool = False  # it has written to that
    result: _Place | None = None
    node: Any = None  # the autograd node that made the result
    inner: list[_Call] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class _Cut:
    """A place behind a block."""

    block: int  # that it is behind
    calls: int  # of the chain, that come before it
    made: _Place | None  # what goes on from it
    following: _Call


class CallWatcher:
    """Hooks that write down which module was called with which module's output."""

    def __init__(self, model: nn.Module) -> None:
        self._root = _Call("", model)
        self._stack: list[_Call] = []
        self._calls: Counter[nn.Module] = Counter()
        self._kept: dict[int, torch.Tensor] = {}  # an address is a tensor's only while it lives
        self._names = {module: name for name, module in model.named_modules()}
        self._handles = [
            handle
            for module, name in self._names.items()
            for handle in (
                module.register_forward_pre_hook(self._entered(name), with_kwargs=True),
                module.register_forward_hook(self._left),
            )
        ]

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def blocks(
        self, image: torch.Tensor, output: torch.Tensor, head: str | None
    ) -> tuple[tuple[Block, ...], str]:
        """The blocks before the head, in order, and where there are none to choose from, why.

        Args:
            image: what the model was called with; gradients must reach it.
            output: what the model returned.
            head: path of the classifier layer.
        """
        every = list(self._elements(self._root, _multiply_adds(self._root.module)))
        if why := self._unrepeatable(every):
            return (), why
        count = next(
            (place for place, e in enumerate(every) if head is not None and is_inside(head, (e.name,))),
            len(every),
        )
        elements, after = every[:count], every[count] if count < len(every) else None
        if not any(_multiply_adds(element.module) for element in elements):
            return (), ""  # all before the head are functions
        if output.grad_fn is None:
            return (), _NO_GRADIENT
        kept_together, why = _same_mode(every, count)
        if why:
            return (), why
        cuts = _articulations(output.grad_fn, image.grad_fn)
        groups = _groups(elements, cuts, kept_together)
        if len(groups) < 2 and sum(_multiply_adds(element.module) for element in elements) > 1:
            why = _unbroken(cuts, kept_together)
        blocks: list[Block] = []
        places: list[_Cut] = []
        calls = 0
        last: _Place | None = (id(image), image._version)
        for group, following in zip(groups, [*(group[0] for group in groups[1:]), after], strict=True):
            linked = True
            for element in group:
                is_first = element is group[0]  # a chain passes on what its first module is called with
                linked = linked and element.source is not None and element.source == last
                linked = linked and (is_first or element.alone)
                last = element.result
            names = tuple(element.name for element in group)
            calls += len(names)
            if following is not None:
                places.append(_Cut(len(blocks), calls, last, following))
            in_place = tuple(element.in_place for element in group)
            features = self._features(group[-1])
            blocks.append(Block(names, linked, False, in_place, self._shared(group), features))
        for cut in self._replaceable(places, [element.name for element in every[: count + 1]], image):
            blocks[cut.block] = replace(blocks[cut.block], replaceable=True)
        return tuple(blocks), why

    def _unrepeatable(self, elements: Sequence[_Call]) -> str:
        """Why the model is no chain of calls that can be told apart, if so.

        What has weights, or statistics, must not be frozen here and trained there.
        """
        if self._root in elements and _multiply_adds(self._root.module) > 1:
            return "it runs as one piece, whose parts are not modules that it calls"
        holders: dict[torch.Tensor, _Call] = {}
        for element in elements:
            for tensor in {*element.module.parameters(), *element.module.buffers()}:
                other = holders.setdefault(tensor, element)
                if other is element:
                    continue
                if other.module is element.module:
                    return f"layer `{element.name}` runs twice"
                return f"`{other.name}` and `{element.name}` share weights"
        links = {element.module for element in elements}
        for module, name in self._names.items():
            layers = [m for m in module.modules() if next(m.parameters(recurse=False), None) is not None]
            if not layers or any(self._calls[each] for each in (module, *layers)):
                continue  # called, or its layers are, by the code around it
            for inner in module.modules():
                if inner in links:  # training may call it at any time, so calls can't be told apart
                    return (
                        f"`{name}` may run in training only and shares `{self._names[inner]}` with the rest"
                    )
        return ""

    def _shared(self, group: Sequence[_Call]) -> tuple[str, ...]:
        """Modules without weights that the group's have under a path outside theirs."""
        return tuple(
            dict.fromkeys(
                name
                for element in group
                for module in element.module.modules()
                if self._calls[module] and not is_inside(name := self._names[module], (element.name,))
            )
        )

    def _features(self, last: _Call) -> int:
        """Channels of what the call made; 0: it has no positions, or the module is called elsewhere, too."""
        made = self._kept[last.result[0]] if last.result is not None else None
        return channels(made) if made is not None and self._calls[last.module] == 1 else 0

    def _replaceable(self, cuts: Sequence[_Cut], chain: Sequence[str], image: torch.Tensor) -> Iterator[_Cut]:
        """Those at which the model without the front comes to what follows with the same input."""
        alike: defaultdict[Any, list[_Cut]] = defaultdict(list)
        for cut in cuts:
            made = self._tensor(cut.made)
            alike[None if made is None else (made.shape, made.dtype)].append(cut)
        with torch.no_grad(), evaluating(self._root.module):
            for kind, some in alike.items():
                told = {} if kind is None else self._in_one_pass(some, chain)
                for cut in some:
                    if told[cut] if cut in told else self._runs_without(chain[: cut.calls], cut, image):
                        yield cut

    def _in_one_pass(self, cuts: Sequence[_Cut], chain: Sequence[str]) -> dict[_Cut, bool]:
        """Whether they are replaceable, told by one pass, as of them the code around sees but their shape.

        Where it writes to what a call returns, what it does before matters, too: such a cut, and those after
        it, are left out. A pass for each cut would be too many in a deep network.
        """
        told: dict[_Cut, bool] = {}
        waiting = deque(cuts)
        given = self._made_at(cuts[0])

        def call(place: int, *args: Any, **_kwargs: Any) -> torch.Tensor:
            nonlocal given
            cut = waiting[0]
            if place == cut.calls:
                if given._version:
                    raise _Reached(given)
                wanted = self._tensor(cut.following.source)
                told[waiting.popleft()] = wanted is not None and bool(args) and torch.equal(args[0], wanted)
                if not waiting:
                    raise _Reached(given)
                given = self._made_at(waiting[0])
            return given

        routes = {place: partial(call, place) for place in range(len(chain))}
        # Else the code around the front asks for an image.
        with suppress(Exception), rerouted(self._root.module, chain, routes):
            self._root.module(given)
        return told if given._version else dict.fromkeys(cuts, False) | told

    def _made_at(self, cut: _Cut) -> torch.Tensor:
        made = self._tensor(cut.made)
        assert made is not None  # noqa: S101 - it was looked at before
        return made.clone()

    def _runs_without(self, front: Sequence[str], cut: _Cut, image: torch.Tensor) -> bool:
        """Whether it is replaceable, tried out."""
        model, output, wanted = self._root.module, self._tensor(cut.made), self._tensor(cut.following.source)
        if cut.made is None or wanted is None:
            return False
        try:
            output = run_front(model, front, image) if output is None else output.clone()
            with without_front(model, front):
                got = _input_of(cut.following.module, model, output)
        except Exception:  # noqa: BLE001 - the code around the front asks for an image
            return False
        return got is not None and torch.equal(got, wanted)

    def _elements(self, call: _Call, total: int) -> Iterator[_Call]:
        """The calls that the model is a chain of: containers and whole backbones are looked into."""
        weight = _multiply_adds(call.module)
        container = isinstance(call.module, nn.Sequential) and weight > 1
        if call.inner and (call is self._root or container or weight > total / 2):
            for inner in call.inner:
                yield from self._elements(inner, total)
        else:
            yield call

    def _entered(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._calls[module] += 1
            if not name:
                call = self._root
            else:
                call = _Call(name, module)
                self._stack[-1].inner.append(call)
            if len(args) == 1 and isinstance(args[0], torch.Tensor):
                call.source, call.alone = self._place(args[0]), not kwargs
            self._stack.append(call)

        return hook

    def _left(self, _module: nn.Module, _args: object, output: object) -> None:
        call = self._stack.pop()
        if call.source is not None:
            call.in_place = self._tensor(call.source) is None
        if isinstance(output, torch.Tensor):
            call.result = self._place(output)
            call.node = output.grad_fn

    def _place(self, tensor: torch.Tensor) -> _Place:
        self._kept[id(tensor)] = tensor
        return id(tensor), tensor._version

    def _tensor(self, place: _Place | None) -> torch.Tensor | None:
        """What was there; None where it has been written over since."""
        if place is None:
            return None
        tensor = self._kept[place[0]].detach()
        return tensor if tensor._version == place[1] else None


def _places(elements: Sequence[_Call]) -> dict[nn.Module, list[int]]:
    """Where in the chain each module runs, by itself or inside another."""
    places: defaultdict[nn.Module, list[int]] = defaultdict(list)
    for place, element in enumerate(elements):
        for module in element.module.modules():
            places[module].append(place)
    return places


def _same_mode(elements: Sequence[_Call], count: int) -> tuple[dict[int, str], str]:
    """Where no front may end: between two calls of a module that has one mode, and needs two.

    Returns:
        By the place in the chain that can't be cut before, the module's path; and where one runs behind
        the first `count` elements, too, why nothing can be cut.
    """
    kept_together: dict[int, str] = {}
    for module, places in _places(elements).items():
        if len(places) > 1 and _looks_at_mode(module):
            name = elements[places[0]].name
            if places[0] < count <= places[-1]:
                return {}, f"`{name}` runs before and behind the last block, and otherwise in training"
            kept_together |= dict.fromkeys(range(places[0] + 1, places[-1] + 1), name)
    return kept_together, ""


def _looks_at_mode(module: nn.Module) -> bool:
    """Whether the module's own code may compute something else in training: it reads `training`."""
    if isinstance(module, torch.jit.ScriptModule):
        return True  # its code is not Python's
    functions = (
        function for kind in type(module).__mro__ if kind is not nn.Module for function in vars(kind).values()
    )
    return any(
        "training" in code.co_names for code in (getattr(f, "__code__", None) for f in functions) if code
    )


def _groups(elements: Sequence[_Call], cuts: set[Any], kept_together: Container[int]) -> list[list[_Call]]:
    """The chain in pieces, each of which begins with a layer that multiplies and adds, behind a cut."""
    groups: list[list[_Call]] = []
    before: _Call | None = None
    for place, element in enumerate(elements):
        is_cut = before is None or (before.node in cuts and place not in kept_together)
        weighs = _multiply_adds(element.module) > 0
        if not groups or (is_cut and weighs and any(_multiply_adds(e.module) for e in groups[-1])):
            groups.append([])
        groups[-1].append(element)
        before = element
    return groups


def _unbroken(cuts: set[Any], kept_together: dict[int, str]) -> str:
    """Why a model of several layers is one block."""
    if not cuts:
        return _NO_GRADIENT
    if kept_together:
        return f"`{next(iter(kept_together.values()))}` runs all over it, and otherwise in training"
    return "a connection skips every place between two of its layers"


def _input_of(module: nn.Module, model: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    """What the model, called with `x`, calls the module with; None: it doesn't."""

    def stop(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        raise _Reached(args[0])

    handle = module.register_forward_pre_hook(stop)
    try:
        model(x)
    except _Reached as reached:
        return reached.tensor
    finally:
        handle.remove()
    return None


class _Reached(Exception):  # noqa: N818 - not an error: the way out of a forward pass
    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.tensor = tensor


def _multiply_adds(module: nn.Module) -> int:
    return sum(isinstance(inner, _MULTIPLY_ADDS) for inner in module.modules())


def _articulations(output: Any, image: Any) -> set[Any]:
    """The autograd nodes that every path from the output back to the image goes through."""
    sources: dict[Any, list[Any]] = {output: []}  # node -> the nodes that read its result
    waiting = [output]
    while waiting:
        node = waiting.pop()
        for before, _ in node.next_functions:
            if before is not None:
                if before not in sources:
                    sources[before] = []
                    waiting.append(before)
                sources[before].append(node)
    if image not in sources:
        return set()
    needed: set[Any] = set()  # those that the image reaches
    waiting = [image]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += sources[node]
    open_edges, found = 0, set()
    unread = {node: sum(source in needed for source in sources[node]) for node in needed}
    ready = [output]
    while ready:
        node = ready.pop()
        open_edges -= sum(source in needed for source in sources[node])
        if open_edges == 0:
            found.add(node)
        for before, _ in node.next_functions:
            if before in needed:
                open_edges += 1
                unread[before] -= 1
                if unread[before] == 0:
                    ready.append(before)
    return found
