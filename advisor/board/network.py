"""A network as source text that needs torch alone, written from what its modules do.

Each module is traced by itself, with the modules in it as they are, so the text has the network's own
structure: methods attach to the same paths, and its weights have the same names.
"""

from __future__ import annotations

import inspect
import keyword
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import fx, nn

from advisor.board.tensors import fill, tensors_of
from advisor.errors import ModelError, first_line
from advisor.models.blocks import evaluating
from advisor.models.padded import first_padding

_HEADER = '''"""The network, written from what its modules do; its weights are in base.safetensors."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import nn


def made(module: nn.Module, **parts: object) -> nn.Module:
    """The module with these modules, parameters and buffers in it."""
    for name, part in parts.items():
        setattr(module, name, part)
    return module


class PadsFirst(nn.Conv2d):
    """Pads its input with zeros first: by `around`, or as TensorFlow's "same" does where that is None."""

    around: tuple[int, ...] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        around = self.around
        if around is None:
            geometry = zip(x.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True)
            totals = [max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0) for n, k, s, d in geometry]
            around = tuple(part for total in reversed(totals) for part in (total // 2, total - total // 2))
        return super().forward(F.pad(x, around) if any(around) else x)


def stochastic_depth(x: torch.Tensor, p: float, mode: str, training: bool = True) -> torch.Tensor:
    """Leave a branch out, of each image ("row") or of all ("batch"), with probability p."""
    if not training or p == 0.0:
        return x
    size = [x.shape[0] if mode == "row" else 1] + [1] * (x.ndim - 1)
    noise = torch.empty(size, dtype=x.dtype, device=x.device).bernoulli_(1.0 - p)
    return x * (noise.div_(1.0 - p) if p < 1.0 else noise)

'''
_FOOTER = '''

def build() -> nn.Module:
    """The network, with weights that are not set yet."""
    network = {network}
{shared}    return network.requires_grad_(True)
'''
_OWN_FUNCTIONS = {"torchvision.ops.stochastic_depth": "stochastic_depth"}  # what the header has
_FACTORIES = ("rand", "randn", "zeros", "ones", "empty", "full", "arange", "linspace")
_ONLY_LOOK = (operator.eq, operator.getitem, getattr, "size", "dim")  # what nobody uses may be left out
_NOT_TOLD = ("device", "dtype", "args", "kwargs", "_weight", "_freeze")  # of constructors: no attribute tells
_NAMES = {"bias": lambda module: module.bias is not None}
_ATTENTION = {
    "bias": lambda module: module.in_proj_bias is not None,
    "add_bias_kv": lambda module: module.bias_k is not None,
}


def written(model: nn.Module, example: torch.Tensor) -> str:
    """The source text of a module with a function `build` that makes the network.

    Args:
        example: images (N, C, H, W) that it runs on; what comes out is held against the model's answers,
            in eval and in train mode, bit for bit.

    Raises:
        ModelError: the network can't be written so, or answers otherwise.
    """
    text = _Writer(model, example).text()
    _check(model, text, example)
    return text


def _check(model: nn.Module, text: str, example: torch.Tensor) -> None:
    again = built(text)
    fill(again, tensors_of(model).items())
    with evaluating(model), torch.no_grad():
        for training in (False, True):
            answers = []
            for network in (model, again):
                state = {name: tensor.clone() for name, tensor in network.named_buffers()}
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    answers.append(network.train(training)(example))
                for name, buffer in network.named_buffers():
                    buffer.copy_(state[name])
            if not isinstance(answers[0], torch.Tensor) or not torch.equal(*answers):
                mode = "training" if training else "evaluation"
                raise ModelError(
                    f"{type(model).__name__} can't be exported: written anew from its trace, it answers "
                    f"otherwise in {mode}; what its code decides from values is not in a trace"
                )


def built(text: str) -> nn.Module:
    """The network that a text is of."""
    names: dict[str, Any] = {"__name__": "network"}
    exec(compile(text, "network.py", "exec"), names)  # noqa: S102 - a text of ours
    network: nn.Module = names["build"]()
    return network


class _Writer:
    """One network being written."""

    def __init__(self, model: nn.Module, example: torch.Tensor) -> None:
        self._model = model
        self._constants = _constants_of_calls(model, example)
        self._classes: dict[tuple[str, str], str] = {}  # base and body -> name
        self._taken = Counter(("PadsFirst", "made", "build"))
        self._paths: dict[nn.Module, str] = {}  # where each was written
        self._tensors: dict[torch.Tensor, str] = {}
        self._shared: list[str] = []

    def text(self) -> str:
        """The whole module."""
        network = self._module(self._model, "", 4)
        classes = [f"\n\nclass {name}({base}):\n{body}" for (base, body), name in self._classes.items()]
        shared = "".join(f"    {line}\n" for line in self._shared)
        return _HEADER + "".join(classes) + _FOOTER.format(network=network, shared=shared)

    def _module(self, module: nn.Module, path: str, depth: int) -> str:
        """An expression that makes the module."""
        if module in self._paths:
            self._shared.append(_assignment(path, f'network.get_submodule("{self._paths[module]}")'))
            return "nn.Identity()"
        self._paths[module] = path
        if "parametrizations" in module._modules:
            raise self._refusal(path, module, "it computes its weight (a parametrization); fold it first")
        kind = _torch_class(module)
        if kind is nn.Conv2d and (padding := first_padding(module)) is not None:
            around = f", around={padding.around!r}"
            return f"made(PadsFirst({self._arguments(module, kind, path)}){around})"
        plain = type(module) if type(module) is kind else kind
        is_own = plain.forward is not type(module).forward
        name = f"nn.{kind.__name__}" if not is_own else self._class(module, kind, path)
        if kind in (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Module):
            arguments = ""
        else:
            arguments = self._arguments(module, kind, path)
        return self._with_parts(module, kind, path, f"{name}({arguments})", depth)

    def _with_parts(self, module: nn.Module, kind: type, path: str, call: str, depth: int) -> str:
        """The call that makes the module, and what the module holds besides what its class makes itself."""
        holds_all = kind in (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Module)
        parts: dict[str, str] = {}
        plain = set() if holds_all else set(_fresh(kind, module))
        for name, child in module._modules.items():
            if name not in plain:
                parts[name] = "None" if child is None else self._module(child, _join(path, name), depth + 4)
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            place = _join(path, name)
            if tensor is not None and self._tensors.setdefault(tensor, place) != place:
                raise self._refusal(path, module, f"it shares {name} with {self._tensors[tensor]}")
            if name not in plain:
                parts[name] = _tensor(module, name, tensor)
        if not parts:
            return call
        margin, inner = " " * depth, " " * (depth + 4)
        if kind is nn.Sequential and list(parts) == [str(number) for number in range(len(parts))]:
            lines = [f"{inner}{part}," for part in parts.values()]
            if call.endswith("()"):
                inside = "\n".join(lines)
                return f"{call[:-1]}\n{inside}\n{margin})"
        if kind is nn.ModuleList:
            inside = "\n".join(f"{inner}{part}," for part in parts.values())
            return f"{call[:-1]}[\n{inside}\n{margin}])"
        named = [
            f"{inner}{name}={part}," if _is_name(name) else f'{inner}**{{"{name}": {part}}},'
            for name, part in parts.items()
        ]
        inside = "\n".join([f"{inner}{call},", *named])
        return f"made(\n{inside}\n{margin})"

    def _class(self, module: nn.Module, kind: type, path: str) -> str:
        """The name of a class with what the module's forward pass does."""
        base, body = f"nn.{kind.__name__}", self._body(module, path)
        if (base, body) not in self._classes:
            wanted = type(module).__name__
            self._taken[wanted] += 1
            number = self._taken[wanted]
            self._classes[base, body] = wanted if number == 1 else f"{wanted}{number}"
        return self._classes[base, body]

    def _body(self, module: nn.Module, path: str) -> str:
        constants = self._constants.get(module, {})
        traces = []
        modes = [(each, each.training) for each in module.modules()]
        try:
            for training in (True, False):
                module.train(training)
                traces.append(_traced(module, constants))
        except Exception as error:  # whatever its code does with what is no tensor
            raise self._refusal(path, module, f"torch.fx can't trace it: {first_line(error)}") from error
        finally:
            for each, mode in modes:
                each.training = mode
        signature = inspect.signature(type(module).forward)
        given = ", ".join(_parameter(each) for each in signature.parameters.values())
        head = f"    def forward({given}):\n"
        train, evaluate = (self._lines(graph, signature, module, path, constants) for graph in traces)
        if train == evaluate:
            return head + "".join(f"        {line}\n" for line in train)
        return (
            f"{head}        if self.training:\n"
            + "".join(f"            {line}\n" for line in train)
            + "".join(f"        {line}\n" for line in evaluate)
        )

    def _lines(
        self,
        graph: fx.Graph,
        signature: inspect.Signature,
        module: nn.Module,
        path: str,
        constants: Mapping[str, Any],
    ) -> list[str]:
        """What a graph does, a line for each node; a tensor's name is given on when it is done with."""
        graph.eliminate_dead_code(lambda node: node.target not in _ONLY_LOOK)
        last: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            for used in node.all_input_nodes:
                last[used] = node
        names: dict[fx.Node, str] = {}
        taken, lines = set(signature.parameters), []
        for node in graph.nodes:
            if node.op == "placeholder":
                names[node] = re.sub(r"_\d+$", "", str(node.target)) if constants else str(node.target)
                names[node] = names[node] if names[node] in signature.parameters else str(node.target)
                continue
            if node.op == "output":
                lines.append(f"return {self._value(node.args[0], names, path, module)}")
                continue
            value = self._call(node, names, path, module)
            done = [used for used in node.all_input_nodes if last[used] is node]
            if node.op == "get_attr":
                names[node] = value  # no line of its own
                continue
            mine = next((names[used] for used in done if names[used].isidentifier()), None)
            if mine is None:
                mine = next(
                    (f"x{number}" for number in range(len(names) + 2) if f"x{number}" not in taken), ""
                )
            taken.add(mine)
            names[node] = mine
            lines.append(f"{mine} = {value}")
            rest = [names[u] for u in done if names[u].isidentifier() and names[u] != mine]
            if rest:
                lines.append(f"del {', '.join(dict.fromkeys(rest))}")
                taken -= set(rest) - set(signature.parameters)
        return _plainly(lines)

    def _call(  # noqa: PLR0911 - one for each kind of node
        self, node: fx.Node, names: Mapping[fx.Node, str], path: str, module: nn.Module
    ) -> str:
        def value(item: Any) -> str:
            return self._value(item, names, path, module)

        if node.op == "get_attr":
            if not _is_registered(module, str(node.target)):
                raise self._refusal(path, module, "it holds a tensor that is neither parameter nor buffer")
            return _attribute("self", str(node.target))
        arguments = ", ".join(
            [*map(value, node.args), *(f"{key}={value(item)}" for key, item in node.kwargs.items())]
        )
        if node.op == "call_module":
            return f"{_attribute('self', str(node.target))}({arguments})"
        if node.op == "call_method":
            first, *others = node.args
            more = ", ".join(
                [*map(value, others), *(f"{key}={value(item)}" for key, item in node.kwargs.items())]
            )
            return f"{value(first)}.{node.target}({more})"
        target: Any = node.target
        if target in (operator.add, operator.mul, operator.sub, operator.truediv, operator.floordiv):
            sign = {"add": "+", "mul": "*", "sub": "-", "truediv": "/", "floordiv": "//"}[target.__name__]
            return f"{value(node.args[0])} {sign} {value(node.args[1])}"
        if target is operator.getitem:
            return f"{value(node.args[0])}[{_index(node.args[1], value)}]"
        if target is getattr:
            return f"{value(node.args[0])}.{node.args[1]}"
        return f"{self._function(target, path, module)}({arguments})"

    def _function(self, target: Any, path: str, module: nn.Module) -> str:
        own = f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', '')}"
        for home, name in _OWN_FUNCTIONS.items():
            if own == f"{home}.{name}":
                return name
        name = getattr(target, "__name__", str(target))
        if getattr(torch.nn.functional, name, None) is target:
            return f"F.{name}"
        if getattr(torch, name, None) is target:
            return f"torch.{name}"
        if getattr(operator, name, None) is target:
            return f"operator.{name}"
        for place in ("torch.special", "torch.fft", "torch.linalg", "torch._C._nn"):
            holder: Any = torch
            for part in place.split(".")[1:]:
                holder = getattr(holder, part)
            if getattr(holder, name, None) is target:
                return f"{place}.{name}"
        raise self._refusal(path, module, f"it calls {own}, which is not torch's")

    def _value(  # noqa: PLR0911 - one for each kind of value
        self, item: Any, names: Mapping[fx.Node, str], path: str, module: nn.Module
    ) -> str:
        def value(each: Any) -> str:
            return self._value(each, names, path, module)

        if isinstance(item, fx.Node):
            return names[item]
        if isinstance(item, tuple):
            inside = ", ".join(map(value, item))
            return f"({inside},)" if len(item) == 1 else f"({inside})"
        if isinstance(item, list):
            return f"[{', '.join(map(value, item))}]"
        if isinstance(item, dict):
            return "{" + ", ".join(f"{key!r}: {value(each)}" for key, each in item.items()) + "}"
        if isinstance(item, slice):
            return f"slice({value(item.start)}, {value(item.stop)}, {value(item.step)})"
        if isinstance(item, torch.dtype | torch.memory_format) or item is Ellipsis:
            return str(item).replace("Ellipsis", "...")
        if isinstance(item, torch.device):
            return f'torch.device("{item}")'
        if _is_plain(item):
            return (
                repr(item) if not isinstance(item, float) or abs(item) < float("inf") else f'float("{item}")'
            )
        raise self._refusal(path, module, f"it holds a {type(item).__name__}, which can't be written down")

    def _arguments(self, module: nn.Module, kind: type, path: str) -> str:
        """What torch's own class is called with to make such a module."""
        told: list[str] = []
        special = _ATTENTION if kind is nn.MultiheadAttention else _NAMES
        for name, parameter in inspect.signature(kind).parameters.items():
            if name in _NOT_TOLD:
                continue
            own = special.get(name)
            if own is not None:
                found: Any = own(module)
            elif hasattr(module, name):
                found = getattr(module, name)
            else:
                raise self._refusal(path, module, f"what its {name} is can't be told")
            if found == parameter.default and type(found) is type(parameter.default):
                continue
            text = self._value(found, {}, path, module)
            told.append(text if parameter.default is inspect.Parameter.empty else f"{name}={text}")
        return ", ".join(told)

    def _refusal(self, path: str, module: nn.Module, why: str) -> ModelError:
        where = f"{path or 'the network'} ({type(module).__name__})"
        return ModelError(f"{type(self._model).__name__} can't be exported: {where}: {why}")


def _plainly(lines: list[str]) -> list[str]:
    """Without what is of no use right before a return."""
    *rest, result = lines
    while rest and rest[-1].startswith("del "):
        rest.pop()
    name, _, value = rest[-1].partition(" = ") if rest else ("", "", "")
    return [*rest[:-1], f"return {value}"] if result == f"return {name}" else [*rest, result]


def _traced(module: nn.Module, constants: Mapping[str, Any]) -> fx.Graph:
    """What the module's own code does, with the modules in it as they are."""

    class Level(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
            return True

    before = set(vars(module))
    tracer = Level(autowrap_functions=())
    with _factories(tracer):
        graph = tracer.trace(module, concrete_args=dict(constants) or None)
    for name in set(vars(module)) - before:
        delattr(module, name)
    for node in list(graph.nodes):  # what asserts that arguments are the constants that they were
        if node.op == "call_function" and node.target is torch._assert:
            graph.erase_node(node)
    return graph


@contextmanager
def _factories(tracer: fx.Tracer) -> Iterator[None]:
    """While it lasts, what torch's functions make of a traced size is traced, too."""

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            found: list[fx.Proxy] = []
            fx.node.map_aggregate(
                (args, kwargs), lambda each: found.append(each) if isinstance(each, fx.Proxy) else None
            )
            if found:
                return tracer.create_proxy("call_function", function, args, kwargs)
            return function(*args, **kwargs)

        return call

    with ExitStack() as patches:
        for name in _FACTORIES:
            patches.enter_context(mock.patch.object(torch, name, watched(getattr(torch, name))))
        yield


def _constants_of_calls(model: nn.Module, example: torch.Tensor) -> dict[nn.Module, dict[str, Any]]:
    """What each module is called with that is no tensor, by the names of its arguments."""
    found: dict[nn.Module, dict[str, Any]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if type(module).__module__.startswith("torch."):
            return
        signature = inspect.signature(module.forward)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return
        bound.apply_defaults()
        told = bound.arguments.items()
        found.setdefault(module, {}).update({name: value for name, value in told if _is_plain(value)})

    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in model.modules()]
    try:
        with evaluating(model), torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _torch_class(module: nn.Module) -> Any:
    """The class of torch's own that the module is, or is derived from."""
    return next(kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn.modules."))


def _fresh(kind: type, module: nn.Module) -> set[str]:
    """What such a module holds that torch's own class made: the modules, parameters and buffers."""
    held = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    if kind is nn.MultiheadAttention:
        held |= set(module._parameters) | {"out_proj"}
    return held & {*module._modules, *module._parameters, *module._buffers}


def _tensor(module: nn.Module, name: str, tensor: torch.Tensor | None) -> str:
    if tensor is None:
        return "None"
    kind = "" if tensor.dtype is torch.float32 else f", dtype={tensor.dtype}"
    empty = f"torch.empty({tuple(tensor.shape)}{kind})"
    if name in module._parameters:
        return f"nn.Parameter({empty})"
    return f"nn.Buffer({empty}{', persistent=False' if name in module._non_persistent_buffers_set else ''})"


def _parameter(parameter: inspect.Parameter) -> str:
    """As it stands in a signature, without its annotation."""
    default = parameter.default
    if default is inspect.Parameter.empty:
        return str(parameter.replace(annotation=inspect.Parameter.empty))
    return f"{parameter.name}={default!r}" if _is_plain(default) else f"{parameter.name}=None"


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _is_registered(module: nn.Module, path: str) -> bool:
    """Whether the attribute is a parameter, a buffer or a module."""
    *way, name = path.split(".")
    holder = module.get_submodule(".".join(way))
    return name in {*holder._parameters, *holder._buffers, *holder._modules}


def _assignment(path: str, value: str) -> str:
    parent, _, name = path.rpartition(".")
    holder = f'network.get_submodule("{parent}")' if parent else "network"
    return f'setattr({holder}, "{name}", {value})'


def _attribute(start: str, path: str) -> str:
    found = start
    for part in path.split("."):
        found += f".{part}" if _is_name(part) else f"[{part}]" if part.isdecimal() else f'["{part}"]'
    return found


def _index(item: Any, value: Callable[[Any], str]) -> str:
    if isinstance(item, tuple):
        return ", ".join(_index(each, value) for each in item)
    if isinstance(item, slice):
        ends = [("" if end is None else value(end)) for end in (item.start, item.stop)]
        return ":".join([*ends, *([value(item.step)] if item.step is not None else [])])
    return value(item)


def _is_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
