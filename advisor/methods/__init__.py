"""The registry of fine-tuning methods: every module of this folder that registers one, and entry points.

Third parties add theirs through the entry-point group `peft_advisor.methods`, whose objects are
Method instances.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from types import MappingProxyType

from advisor.errors import InputError
from advisor.methods.base import Method
from advisor.names import unknown_method
from advisor.parts.attachment import Setting, Trainable
from advisor.records import Candidate

__all__ = [
    "Method",
    "Setting",
    "Trainable",
    "get_method",
    "learning_rates",
    "methods",
    "middle_rate",
    "register",
    "registered",
]

_registry: dict[str, Method] = {}
_found = False


def register(method_class: type[Method]) -> type[Method]:
    """Class decorator: make an instance known under its name. Raises ValueError on a taken name."""
    _add(method_class())
    return method_class


def methods() -> Mapping[str, Method]:
    """Every known method by name, in reading order; those that state none come last."""
    _find()
    ordered = sorted(_registry.values(), key=lambda method: method.order)
    return MappingProxyType({method.name: method for method in ordered})


def get_method(name: str) -> Method:
    """The method of that name. Raises InputError naming the known ones."""
    _find()
    if name not in _registry:
        raise InputError(unknown_method(name, tuple(methods())))
    return _registry[name]


@contextmanager
def registered(method: Method) -> Iterator[Method]:
    """While it lasts, the method is known under its name: to try one out. ValueError on a taken name."""
    _find()
    _add(method)
    try:
        yield method
    finally:
        del _registry[method.name]


# Adam moves a weight by about the learning rate, whatever its gradient; plain SGD by the gradient times
# it, which is far less once a network is trained, and a momentum of 0.9 adds up to ten times that.
_RATES = {"adam": 1.0, "adamw": 1.0, "momentum": 5.0, "sgd": 50.0}


def learning_rates(candidate: Candidate) -> tuple[float, ...]:
    """The rates to try, ascending: the method's, which are Adam's, scaled to the candidate's optimizer."""
    scale = _RATES[candidate.levers.optimizer]
    return tuple(rate * scale for rate in get_method(candidate.method).learning_rates)


def middle_rate(candidate: Candidate) -> float:
    """The one in the middle, which the others are counted from."""
    rates = learning_rates(candidate)
    return rates[len(rates) // 2]


def _find() -> None:
    global _found  # noqa: PLW0603 - found once, on first use: entry points may import heavy packages
    if not _found:
        _found = True
        for module in pkgutil.iter_modules(__path__):
            importlib.import_module(f"{__name__}.{module.name}")
        for entry_point in entry_points(group="peft_advisor.methods"):
            _add(entry_point.load())


def _add(method: Method) -> None:
    if not isinstance(method, Method):
        raise TypeError(f"{method!r} is no instance of advisor.methods.Method")
    if method.name in _registry:
        raise ValueError(f"a method named {method.name!r} is already registered")
    _registry[method.name] = method
