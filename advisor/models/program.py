"""A network out of a torch.export program (.pt2): its steps are read, and none of the file's code is run.

Convolutions, linear layers and norms become layers again, under the names that they had, so that methods find
them; every other step is one of torch's own operators on tensors, called as the program says.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from advisor.errors import ModelError
from advisor.models.blocks import evaluating
from advisor.models.printable import first_line, shown

_TARGET = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
_ON_SIZES: dict[str, Callable[..., Any]] = {
    f"_operator.{name}": getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "getitem", "eq", "ne", "lt", "le", "gt", "ge")
}
_CHECKS = re.compile(r".*(_assert|sym_constrain|_guards)")
# What makes tensors from nothing; every other operator must take one first. None may reach beyond tensors.
_MAKERS = {"arange", "full", "zeros", "ones", "scalar_tensor", "eye", "linspace"}
_REFUSED = re.compile(
    r".*(unsafe(?!_view)|sparse|quant|mkldnn|cudnn|storage|set_|resize|as_strided|file|stream)"
)
_SIZED = ("view", "reshape", "_unsafe_view", "expand", "repeat")  # with the batch's size first
_VALUES = ("as_int", "as_float", "as_bool", "as_string", "as_ints", "as_floats", "as_bools")
_DTYPES = {1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16}
_DTYPES |= {7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16}
_LAYOUTS = {2: torch.channels_last, 4: torch.preserve_format}
_SAME = 1e-4  # of outputs of a batch and of its halves


@dataclass(frozen=True, slots=True)
class _Name:
    """A value that an earlier step made."""

    name: str


@dataclass(frozen=True, slots=True)
class _Entry:
    """A parameter or a buffer, by its path."""

    path: str


class _Training:
    """Whether the network is being trained."""


@dataclass(frozen=True, slots=True)
class _Step:
    """What is called, with what, and what its results are called."""

    target: str  # an operator, or the path of a layer
    arguments: Mapping[str, Any]  # by name, in order
    by_name: frozenset[str]  # those that are passed so
    results: tuple[str, ...]
    is_layer: bool = False


class ExportedNetwork(nn.Module):
    """What a program computes."""

    def __init__(self, program: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Of a program's description, and its weights and constants by their paths.

        Raises:
            ModelError: it calls what is no operator on tensors, takes more than images, or only so many.
        """
        super().__init__()
        graph, signature = program["graph_module"]["graph"], program["graph_module"]["signature"]
        entries, inputs = _inputs(signature["input_specs"])
        outputs = [spec["user_output"]["arg"] for spec in signature["output_specs"] if "user_output" in spec]
        described = graph["tensor_values"]
        values = {name: [_hint(each) for each in about["sizes"]] for name, about in described.items()}
        if len(inputs) != 1 or not outputs or len(values[inputs[0]]) != 4:
            raise ModelError("is a program that takes more or other than images; give an image classifier's")
        self._input, self._output = inputs[0], outputs[0]["as_tensor"]["name"]
        self._batch, *size = values[self._input]
        self._is_fixed = "as_int" in described[self._input]["sizes"][0]
        self.input_size = tuple(size)
        kept = {name: _Entry(path) for name, path in entries.items()}
        steps = [_step(node, kept) for node in graph["nodes"] if not _CHECKS.match(node["target"])]
        self._steps = [self._with_layer(step, tensors, values) for step in steps]
        self._done_with = _last_uses(self._steps, self._output)
        parameters = {path for name, path in entries.items() if name.startswith("p_")}
        for path, tensor in tensors.items():
            self._keep(path, tensor, path in parameters)
        self.eval()
        self._check_batches()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> what the program gives."""
        known: dict[str, Any] = {self._input: images}
        for step, done_with in zip(self._steps, self._done_with, strict=True):
            known.update(zip(step.results, self._run(step, known, len(images)), strict=False))
            for name in done_with:  # else it would be held for longer than the network needs it
                known.pop(name, None)
        result: torch.Tensor = known[self._output]
        return result

    def _run(self, step: _Step, known: Mapping[str, Any], batch: int) -> Sequence[Any]:
        """What the step gives."""

        def value(said: Any) -> Any:
            if isinstance(said, _Name):
                return known[said.name]
            if isinstance(said, _Entry):
                above, _, name = said.path.rpartition(".")
                return getattr(self.get_submodule(above), name)
            if isinstance(said, list):
                return [value(each) for each in said]
            return self.training if isinstance(said, _Training) else said

        given = {name: value(said) for name, said in step.arguments.items()}
        if step.is_layer:
            return [self.get_submodule(step.target)(*given.values())]
        if self._is_fixed and batch != self._batch:
            self._resize(step.target, given, batch)
        plain = [each for name, each in given.items() if name not in step.by_name]
        found = _operator(step.target)(*plain, **{name: given[name] for name in step.by_name})
        return found if isinstance(found, tuple | list) else [found]

    def _resize(self, target: str, given: dict[str, Any], batch: int) -> None:
        """Sizes that were written for the program's own batch, for another one; in place."""
        match = _TARGET.fullmatch(target)
        if match is None or match[1] not in _SIZED:
            return
        name = list(given)[1]
        first, *rest = given[name]
        is_whole = match[1] in ("expand", "repeat") or -1 in rest
        if first > 0 and first % self._batch == 0 and (is_whole or math.prod(given[name]) != _count(given)):
            given[name] = [first // self._batch * batch, *rest]

    def _with_layer(
        self, step: _Step, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Sequence[int]]
    ) -> _Step:
        """The step as a layer of this network, where it is one of a kind that methods know."""
        match = _TARGET.fullmatch(step.target)
        _operator(step.target)  # refused now, not when it runs
        weight = step.arguments.get("weight")
        if match is None or not isinstance(weight, _Entry) or not weight.path.endswith(".weight"):
            return step
        image = next(iter(step.arguments.values()))
        make = _LAYERS.get(match[1])
        if make is None or not isinstance(image, _Name):
            return step
        path = weight.path.removesuffix(".weight")
        with torch.device("meta"):
            layer = make(tensors[weight.path].shape, step.arguments, len(values.get(image.name, ())))
        for name, said in step.arguments.items():
            if isinstance(said, _Entry) and said.path != f"{path}.{name}":
                return step  # a weight of somewhere else
        if layer is None:
            return step
        for name in (*layer._parameters, *layer._buffers):
            tensor = tensors.get(f"{path}.{name}")
            if name in layer._parameters and layer._parameters[name] is not None and tensor is not None:
                layer._parameters[name] = nn.Parameter(tensor)
            elif tensor is not None:
                layer._buffers[name] = tensor
        try:
            known = self.get_submodule(path)
        except AttributeError:
            above, last = self._above(path)
            above.add_module(last, layer)
        else:
            if str(known) != str(layer):
                return step  # used twice, in two ways
        return replace(step, target=path, arguments={"input": image}, by_name=frozenset(), is_layer=True)

    def _above(self, path: str) -> tuple[nn.Module, str]:
        """The module that holds what is at the path, made where it isn't there, and the last part of it."""
        place: nn.Module = self
        *above, last = path.split(".")
        for name in above:
            if name not in place._modules:
                place.add_module(name, nn.Module())
            place = place.get_submodule(name)
        return place, last

    def _keep(self, path: str, tensor: torch.Tensor, is_parameter: bool) -> None:
        place, last = self._above(path)
        if last in place._parameters or last in place._buffers:
            return
        if is_parameter and tensor.is_floating_point():
            place.register_parameter(last, nn.Parameter(tensor))
        else:
            place.register_buffer(last, tensor)

    def _check_batches(self) -> None:
        """Raises ModelError where images are not each classified by themselves, in batches of any size."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(2 * self._batch, *self.input_size, generator=generator)
        try:
            with torch.no_grad(), evaluating(self):
                whole = self(images)
                halves = torch.cat([self(half) for half in images.split(self._batch)])
            is_same = torch.allclose(whole, halves, rtol=_SAME, atol=_SAME)
        except Exception as error:
            if not self._is_fixed:
                raise ModelError(f"is a program that doesn't run here: {first_line(error)}") from error
            is_same = False
        if not is_same:
            raise ModelError(
                f"is a program for batches of exactly {self._batch}; export it again with dynamic_shapes="
                "({0: torch.export.Dim('batch')},)"
            )


def _last_uses(steps: Sequence[_Step], kept: str) -> list[list[str]]:
    """For each step, the values that no later one takes."""
    last = {name: place for place, step in enumerate(steps) for name in step.results}
    for place, step in enumerate(steps):
        last |= dict.fromkeys(_names_in([*step.arguments.values()]), place)
    del last[kept]
    found: list[list[str]] = [[] for _ in steps]
    for name, place in last.items():
        found[place].append(name)
    return found


def _names_in(said: Any) -> Iterator[str]:
    if isinstance(said, _Name):
        yield said.name
    elif isinstance(said, list):
        for each in said:
            yield from _names_in(each)


def _count(given: Mapping[str, Any]) -> int:
    return next(each.numel() for each in given.values() if isinstance(each, torch.Tensor))


def _inputs(specs: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], list[str]]:
    """Names in the graph -> paths of parameters, buffers and constants; and the names of what it is given."""
    entries, inputs = {}, []
    for spec in specs:
        ((kind, about),) = spec.items()
        if kind == "user_input":
            inputs.append(about["arg"]["as_tensor"]["name"])
        else:
            entries[about["arg"]["name"]] = about[f"{kind}_name"]
    return entries, inputs


def _step(node: Mapping[str, Any], kept: Mapping[str, _Entry]) -> _Step:
    arguments = {each["name"]: _argument(each["arg"], kept) for each in node["inputs"]}
    if "dropout" in node["target"] and "train" in arguments:
        arguments["train"] = _Training()
    by_name = frozenset(each["name"] for each in node["inputs"] if each.get("kind", 1) != 1)
    results = [name for output in node["outputs"] for name in _results(output)]
    return _Step(node["target"], arguments, by_name, tuple(results))


def _results(output: Mapping[str, Any]) -> list[str]:
    ((kind, about),) = output.items()
    several = about if kind == "as_tensors" else [about]
    named = [each if isinstance(each, Mapping) else {} for each in several]  # else it is nothing
    return [each.get("name", each.get("as_name", "")) for each in named]


def _argument(said: Mapping[str, Any], kept: Mapping[str, _Entry]) -> Any:
    """An operator's argument, as the file writes it."""
    ((kind, about),) = said.items()
    if kind in _VALUES:
        return about
    if kind in _READ:
        return _READ[kind](about)
    if kind == "as_tensor":
        return kept.get(about["name"], _Name(about["name"]))
    if kind == "as_tensors":
        return [_argument({"as_tensor": each}, kept) for each in about]
    if kind in ("as_optional_tensors", "as_sym_ints", "as_sym_bools"):
        return [_argument(each, kept) for each in about]
    if kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):  # a value, or the name of one
        return _argument(about, kept)
    raise ModelError(f"is a program with an argument of a kind that is not known here ({shown(kind)})")


_READ: dict[str, Callable[[Any], Any]] = {
    "as_name": _Name,
    "as_none": lambda _: None,
    "as_scalar_type": _DTYPES.__getitem__,
    "as_memory_format": lambda number: _LAYOUTS.get(number, torch.contiguous_format),
    "as_layout": lambda _: torch.strided,
    "as_device": lambda _: torch.device("cpu"),
}


def _hint(size: Mapping[str, Any]) -> int:
    """A side of a tensor; of one that may be of any length, that of the example."""
    return int(size["as_int"] if "as_int" in size else size["as_expr"]["hint"]["as_int"])


def _operator(target: str) -> Callable[..., Any]:
    """Of torch's own, on tensors or on their sizes; nothing else is ever called. Raises ModelError."""
    if target in _ON_SIZES:
        return _ON_SIZES[target]
    match = _TARGET.fullmatch(target)
    packet = getattr(torch.ops.aten, match[1], None) if match and not _REFUSED.match(match[1]) else None
    found = getattr(packet, match[2], None) if match and packet is not None else None
    if match is None or found is None or not isinstance(found, torch._ops.OpOverload):
        raise ModelError(f"is a program that calls {shown(target)}, which is not run here")
    takes = [str(each.type) for each in found._schema.arguments[:1]]
    if match[1] not in _MAKERS and not (takes and "Tensor" in takes[0]):
        raise ModelError(f"is a program that calls {shown(target)}, which is not run here")
    called: Callable[..., Any] = found
    return called


def _convolution(shape: Sequence[int], said: Mapping[str, Any], dimensions: int) -> nn.Module | None:
    if len(shape) != 4 or dimensions != 4 or said.get("transposed"):
        return None
    groups = said.get("groups", 1)
    return nn.Conv2d(
        shape[1] * groups,
        shape[0],
        tuple(shape[2:]),  # type: ignore[arg-type]
        stride=_pair(said.get("stride", 1)),
        padding=said["padding"] if isinstance(said.get("padding"), str) else _pair(said.get("padding", 0)),
        dilation=_pair(said.get("dilation", 1)),
        groups=groups,
        bias=said.get("bias") is not None,
    )


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    one, *more = [value] if isinstance(value, int) else value
    return one, more[0] if more else one


def _batch_norm(shape: Sequence[int], said: Mapping[str, Any], dimensions: int) -> nn.Module | None:
    kind = {4: nn.BatchNorm2d, 3: nn.BatchNorm1d, 2: nn.BatchNorm1d}.get(dimensions)
    return kind and kind(shape[0], eps=said.get("eps", 1e-5), momentum=said.get("momentum", 0.1))


def _layer_norm(shape: Sequence[int], said: Mapping[str, Any], dimensions: int) -> nn.Module:
    return nn.LayerNorm(list(shape), eps=said.get("eps", 1e-5), bias=said.get("bias") is not None)


def _group_norm(shape: Sequence[int], said: Mapping[str, Any], dimensions: int) -> nn.Module:
    return nn.GroupNorm(said["num_groups"], shape[0], eps=said.get("eps", 1e-5))


def _linear(shape: Sequence[int], said: Mapping[str, Any], dimensions: int) -> nn.Module:
    return nn.Linear(shape[1], shape[0], bias=said.get("bias") is not None)


_LAYERS: dict[str, Callable[[Sequence[int], Mapping[str, Any], int], nn.Module | None]] = {
    "conv2d": _convolution,
    "convolution": _convolution,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "linear": _linear,
}
