"""Blocks: the stages that a model runs one after the other, found by watching a forward pass.

A block ends where nothing but its output goes on: no skip connection passes over the cut. So what
comes before a cut can be left out, run once and remembered, or run again, without touching the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from advisor.records import Block, Census

_MULTIPLY_ADDS = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention)
_Place = tuple[int, int]  # a tensor and its version: in-place operations change it


@dataclass(slots=True)
class _Call:
    """One call of one module."""

    name: str
    module: nn.Module
    source: _Place | None = None  # the one tensor that it was called with
    result: _Place | None = None
    node: Any = None  # the autograd node that made the result
    inner: list[_Call] = field(default_factory=list)


class CallWatcher:
    """Hooks that write down which module was called with which module's output."""

    def __init__(self, model: nn.Module) -> None:
        self._root = _Call("", model)
        self._stack: list[_Call] = []
        self._kept: dict[int, torch.Tensor] = {}  # an address is a tensor's only while it lives
        self._handles = [
            handle
            for name, module in model.named_modules()
            for handle in (
                module.register_forward_pre_hook(self._entered(name)),
                module.register_forward_hook(self._left),
            )
        ]

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def blocks(self, image: torch.Tensor, output: torch.Tensor, head: str | None) -> tuple[Block, ...]:
        """The blocks before the head, in order; none where a module runs twice.

        Args:
            image: what the model was called with; gradients must reach it.
            output: what the model returned.
            head: path of the classifier layer.
        """
        elements = list(self._elements(self._root, _multiply_adds(self._root.module)))
        if max(Counter(element.name for element in elements).values(), default=0) > 1:
            return ()
        cuts = _articulations(output.grad_fn, image.grad_fn)
        groups: list[list[_Call]] = []
        before: _Call | None = None
        after: _Call | None = None
        for element in elements:
            if head is not None and _is_inside(head, (element.name,)):
                after = element
                break
            is_cut = before is None or before.node in cuts
            weighs = _multiply_adds(element.module) > 0
            if not groups or (is_cut and weighs and any(_multiply_adds(e.module) for e in groups[-1])):
                groups.append([])
            groups[-1].append(element)
            before = element
        blocks: list[Block] = []
        front: list[str] = []
        last: _Place | None = (id(image), image._version)
        for group, following in zip(groups, [*(group[0] for group in groups[1:]), after], strict=True):
            linked = True
            for element in group:
                linked = linked and element.source is not None and element.source == last
                last = element.result
            names = tuple(element.name for element in group)
            front += names
            replaceable = following is not None and self._is_replaceable(front, last, following, image)
            blocks.append(Block(names, linked, replaceable))
        return tuple(blocks)

    def _is_replaceable(
        self, front: Sequence[str], made: _Place | None, following: _Call, image: torch.Tensor
    ) -> bool:
        """Whether the model without the front comes to what follows with the same input."""
        model, output, wanted = self._root.module, self._tensor(made), self._tensor(following.source)
        if made is None or wanted is None:
            return False
        try:
            with torch.no_grad(), evaluating(model):
                if output is None:
                    output = run_front(model, front, image)
                with without_front(model, front):
                    got = _input_of(following.module, model, output)
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
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if not name:
                call = self._root
            else:
                call = _Call(name, module)
                self._stack[-1].inner.append(call)
            if len(args) == 1 and isinstance(args[0], torch.Tensor):
                call.source = self._place(args[0])
            self._stack.append(call)

        return hook

    def _left(self, _module: nn.Module, _args: object, output: object) -> None:
        call = self._stack.pop()
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


def trained_part(census: Census, scope: int | None) -> Census:
    """The census without the layers that a scope of the last `scope` blocks leaves frozen."""
    front = front_modules(census, scope)
    if not front:
        return census
    kept = [name for block in census.blocks[len(census.blocks) - (scope or 0) :] for name in block.modules]
    names = [layer.name for layer in census.layers]
    last_of_front = max(index for index, name in enumerate(names) if _is_inside(name, front))
    layers = [
        layer
        for index, layer in enumerate(census.layers)
        if _is_inside(layer.name, kept)
        or layer.name == census.head
        or (
            index > last_of_front
            and not _is_inside(layer.name, front)
            and not any(_is_inside(other, (layer.name,)) for other in front)  # a container of the front
        )
    ]
    return replace(census, layers=tuple(layers))


def front_modules(census: Census, scope: int | None) -> tuple[str, ...]:
    """Paths of the modules that run before the last `scope` blocks, in order; None: all are trained."""
    if scope is None or scope >= len(census.blocks):
        return ()
    return tuple(name for block in census.blocks[: len(census.blocks) - scope] for name in block.modules)


def has_replaceable_front(census: Census, scope: int | None) -> bool:
    """Whether the blocks before the last `scope` can be left out once their output is known."""
    if not front_modules(census, scope):
        return False
    # What the census's pass in eval mode never called may be called in training, and read any layer;
    # inside a block it is the block's own, whose code reads its weights.
    blocks = [name for block in census.blocks for name in block.modules]
    uncalled = [layer.name for layer in census.layers if layer.calls == 0 and layer.parameters]
    if not all(_is_inside(name, blocks) for name in uncalled):
        return False
    return census.blocks[len(census.blocks) - (scope or 0) - 1].replaceable


def run_front(model: nn.Module, front: Sequence[str], images: torch.Tensor) -> torch.Tensor:
    """What the modules of a front make of images (N, C, H, W); what follows them is not run."""

    def stop(_module: nn.Module, _args: object, output: torch.Tensor) -> None:
        raise _Reached(output)

    handle = model.get_submodule(front[-1]).register_forward_hook(stop)
    try:
        with torch.no_grad():
            model(images)
    except _Reached as reached:
        return reached.tensor
    finally:
        handle.remove()
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

    Each module of the front returns just that, whatever it is called with: so what the model's code
    does between them doesn't matter.
    """
    given: list[torch.Tensor] = []

    def remember(_module: nn.Module, args: tuple[Any, ...]) -> None:
        given[:] = args[:1]

    handle = model.register_forward_pre_hook(remember)
    try:
        with rerouted(model, {(name,): lambda *_args, **_kwargs: given[0] for name in front}):
            yield
    finally:
        handle.remove()


@contextmanager
def rerouted(model: nn.Module, routes: Mapping[tuple[str, ...], Callable[..., Any]]) -> Iterator[None]:
    """While it lasts, each chain of modules is replaced by one function.

    The modules' places are taken by stand-ins: the first runs the function, the others pass on what
    they get.
    """
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for names, function in routes.items():
            for position, name in enumerate(names):
                parent_name, _, own_name = name.rpartition(".")
                parent = model.get_submodule(parent_name)
                replaced.append((parent, own_name, parent._modules[own_name]))  # type: ignore[arg-type]
                parent._modules[own_name] = _Route(function if position == 0 else None)
        yield
    finally:
        for parent, own_name, module in reversed(replaced):
            parent._modules[own_name] = module


class _Route(nn.Module):
    def __init__(self, function: Callable[..., Any] | None) -> None:
        super().__init__()
        self._function = function

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return x if self._function is None else self._function(x, *args, **kwargs)


class _Reached(Exception):  # noqa: N818 - not an error: the way out of a forward pass
    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.tensor = tensor


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


def _is_inside(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


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
