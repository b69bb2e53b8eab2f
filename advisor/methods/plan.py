"""A per-layer plan: each layer is frozen, or trained as one of a few methods would train it; and the head."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from advisor.errors import InputError
from advisor.methods import get_method, middle_rate, register
from advisor.methods.base import Method, plain_optimizer
from advisor.parts.attachment import Attachment, Setting, Trainable, is_bias
from advisor.parts.bypass import BYPASS
from advisor.records import BASELINE, Candidate, Census, Layer, Levers

FREEZE, NORM, LORA = "freeze", "norm", "lora"
PARTS = (BASELINE, NORM, "bias", "sparse", LORA)  # the methods that a plan is made of
_ARGUMENTS = {"sparse": ("fraction", float), LORA: ("rank", int)}  # what follows a method's name
_RUN = re.compile(r"([a-z][a-z\d.+]*):(\d+)(?:-(\d+))?")
_EXAMPLE = "freeze:1-4,norm:5-9,lora4+norm:10-20,full:21"


@dataclass(frozen=True, slots=True)
class Run:
    """Layers that follow each other, and what is done in all of them."""

    first: int  # number of the layer, from 1, in the order of the census
    last: int
    weights: str  # of layers with weights: freeze, bias, sparse0.25, lora4 or full
    norms: str  # of normalisation layers: freeze or norm

    def __str__(self) -> str:
        done = "+".join(part for part in (self.weights, self.norms) if part != FREEZE) or FREEZE
        return f"{done}:{self.first}" + (f"-{self.last}" if self.last > self.first else "")

    def of(self, layer: Layer) -> str:
        """What is done in one of the layers."""
        return self.norms if layer.layer_type == "norm" else self.weights


def option(code: str) -> Candidate:
    """What is done in a layer, as a candidate of its method. Raises InputError where it is nothing known."""
    name = code.rstrip("0123456789.")
    argument = code.removeprefix(name)
    try:
        if name in _ARGUMENTS:
            key, kind = _ARGUMENTS[name]
            value = kind(argument)
            if value > 0 and (key == "rank" or value <= 1):
                return Candidate.of(name, {key: value}, Levers())
        elif name in PARTS and not argument:
            return Candidate(name)
    except ValueError:
        pass
    raise InputError(f"plan: {code!r} is nothing that is done in a layer; it is like those in {_EXAMPLE}")


def written(census: Census, codes: Sequence[str]) -> str:
    """The plan as a setting: `layers`, what is done in each, in as few runs as it takes.

    Args:
        codes: what is done in each layer of the census; in one that has nothing to train, anything.
    """
    runs: list[Run] = []
    first, weights, norms = 1, "", ""
    for number, (layer, code) in enumerate(zip(census.layers, codes, strict=True), 1):
        is_norm = layer.layer_type == "norm"
        before = norms if is_norm else weights
        if not layer.parameters or layer.name == census.head:
            continue
        if before and before != code:
            runs.append(Run(first, number - 1, weights or FREEZE, norms or FREEZE))
            first, weights, norms = number, "", ""
        weights, norms = (weights, code) if is_norm else (code, norms)
    runs.append(Run(first, len(census.layers), weights or FREEZE, norms or FREEZE))
    return ",".join(map(str, runs))


def read(text: str) -> tuple[Run, ...]:
    """The runs of a plan. Raises InputError where the text is none."""
    runs: list[Run] = []
    for part in text.split(","):
        found = _RUN.fullmatch(part)
        if found is None:
            raise InputError(f"plan: {part!r} is no run of layers, as those in {_EXAMPLE}")
        done, first, last = found.groups()
        codes = done.split("+")
        if codes == [FREEZE]:
            codes = []
        for code in codes:
            option(code)
        weights = [code for code in codes if code != NORM]
        if len(weights) > 1 or codes[len(weights) :] not in ([], [NORM]):
            raise InputError(f"plan: {done!r} is more than can be done in one layer; as in {_EXAMPLE}")
        run = Run(
            int(first), int(last or first), *(weights or [FREEZE]), *(codes[len(weights) :] or [FREEZE])
        )
        follows = runs[-1].last + 1 if runs else 1
        if run.first != follows or run.last < run.first:
            raise InputError(
                f"plan: {part!r} stands where layer {follows} should: each layer stands in one run"
            )
        runs.append(run)
    return tuple(runs)


@register
class Plan(Method):
    """What is done in each layer is found by a solver, from the gradients on the user's images.

    The layers are those of the census, counted from 1. The learning rate is that of whole weights; what norm,
    bias, sparse and lora train moves faster, by as much as those methods' own rates are higher.
    """

    name = "plan"
    summary = (
        "each layer frozen, or its norm, biases, some channels, a bypass or all of it trained; and the head"
    )
    formula = "max Σ ‖∂L/∂W‖² captured, layer by layer, within RAM and FLOPs; backward stops where it may"
    source = "surgical fine-tuning, arXiv 2210.11466; sparse update, arXiv 2206.15472, section 2.2"
    order = 15
    learning_rates = (1e-4, 5e-4, 2e-3)
    needs_data = True

    def settings(self, census: Census, ranks: Sequence[int]) -> list[Setting]:
        """What a plan looks like where no gradient is known: the later a layer, the more of it is trained."""
        if not self.applies(census):
            return []
        count = len(census.layers)
        steps = (
            (FREEZE, FREEZE),
            (FREEZE, NORM),
            (f"{LORA}{ranks[len(ranks) // 2]}", NORM),
            (BASELINE, NORM),
        )
        codes = [
            steps[len(steps) * place // count][layer.layer_type == NORM]
            for place, layer in enumerate(census.layers)
        ]
        return [{"layers": written(census, codes)}]

    def train(self, to: Attachment) -> Iterable[nn.Parameter]:
        """What the plan says, and the head."""
        runs = read(str(to.setting.get("layers", "")))
        layers = to.census.layers
        if runs[-1].last != len(layers):
            raise InputError(
                f"plan: it says what to do in {runs[-1].last} layers, and there are {len(layers)}: a plan is "
                "made for one network, all of it"
            )
        done: dict[str, list[Layer]] = {}
        for run in runs:
            for layer in layers[run.first - 1 : run.last]:
                done.setdefault(run.of(layer), []).append(layer)
        done.pop(FREEZE, None)
        to.notes.append(f"plan: {_told(runs, layers)}")
        trained = {id(parameter): parameter for parameter in to.head()}
        for code, chosen in done.items():
            candidate = option(code)
            part = replace(to.census, layers=tuple(chosen))
            attachment = Attachment(to.model, part, dict(candidate.setting), to.notes)
            for parameter in get_method(candidate.method).train(attachment):
                trained[id(parameter)] = parameter
        return trained.values()

    def optimizer(
        self, trainable: Trainable, levers: Levers, learning_rate: float
    ) -> torch.optim.Optimizer | None:
        """One group of parameters for each method that is among them, which moves at its own rate."""
        groups: dict[str, dict[str, nn.Parameter]] = {}
        for name, parameter in trainable.parameters.items():
            groups.setdefault(_moves_like(name, parameter), {})[name] = parameter
        optimizer: torch.optim.Optimizer | None = None
        for like, parameters in groups.items():
            rate = learning_rate * middle_rate(Candidate(like)) / middle_rate(Candidate(BASELINE))
            made = plain_optimizer(replace(trainable, parameters=parameters), levers, rate)
            if optimizer is None or made is None:
                optimizer = optimizer or made
            else:
                optimizer.add_param_group({"params": list(parameters.values()), "lr": rate})
        return optimizer

    def merge(self, model: nn.Module) -> nn.Module:
        """Bypasses, parametrizations and trained channels, all into the weights."""
        return get_method("sparse").merge(model)


def _told(runs: Sequence[Run], layers: Sequence[Layer]) -> str:
    """What is done where, by the layers' names: `norm in layers 5 to 9 (layer1.0.bn1 to layer1.1.bn2)`."""
    parts = []
    for run in runs:
        done = [code for code in (run.weights, run.norms) if code != FREEZE]
        first, last = layers[run.first - 1].name, layers[run.last - 1].name
        where = f"layer {run.first} ({first})"
        if run.last > run.first:
            where = f"layers {run.first} to {run.last} ({first} to {last})"
        parts += [f"{' and '.join(done)} in {where}"] if done else []
    return "; ".join(parts) or "nothing but the head"


def _moves_like(name: str, parameter: nn.Parameter) -> str:
    """The method whose rate a parameter is trained at."""
    path = name.split(".")
    if "peft_sparse" in path:
        return "sparse"
    if BYPASS in path or "parametrizations" in path:
        return LORA
    return "bias" if is_bias(name) else NORM if parameter.ndim <= 1 else BASELINE
