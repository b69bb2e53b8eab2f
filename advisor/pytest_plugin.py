"""A pytest plugin: a test fails where its model can't be fine-tuned within limits.

    @pytest.mark.limit_finetune(ram="128MB", flops="5GFLOP", input_size="3x64x64")
    def test_the_classifier_can_be_updated_on_the_camera():
        return build_classifier()

The test returns the model, or a name as on the command line; or the mark's `model=` gives it, or a function
that makes it. Something has to fit, as `recommend --no-probe` would have it; with `candidate="lora-rank=4"`,
that one. Several marks are several devices, and each must be met.

Loaded wherever peft-advisor is installed, so it imports nothing before a test is marked.
"""

from __future__ import annotations

import functools
import inspect
import re
import unittest
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from torch import nn

    from advisor.check.configuration import Target
    from advisor.check.records import Checked, LayerFigures

_MARK = "limit_finetune"
_LIMITS = ("ram", "flops", "storage")
_KEYS = (*_LIMITS, "runtime_overhead", "input_size", "batch_size", "methods", "ranks")
_KNOWN = (*_KEYS, "optimizer", "candidate", "arch", "trust", "model")
_LAYERS_SHOWN = 5


def pytest_configure(config: pytest.Config) -> None:
    """Say what the mark is."""
    config.addinivalue_line(
        "markers",
        f"{_MARK}(ram, flops, storage, input_size, batch_size, methods, candidate, model, ...): fail the "
        "test where the model that it returns can't be fine-tuned within these limits (peft-advisor)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse the mark where nothing would come of it."""
    if item.get_closest_marker(_MARK) is None:
        return
    kind = getattr(item, "cls", None)
    if not isinstance(item, pytest.Function) or (kind is not None and issubclass(kind, unittest.TestCase)):
        _fail("is for test functions and methods of plain classes, not for those of unittest.TestCase")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Run the test, and price what it returns."""
    marks = list(pyfuncitem.iter_markers(_MARK))
    if not marks:
        return (yield)
    function = pyfuncitem.obj
    returns = any(mark.kwargs.get("model") is None for mark in marks)
    if returns and (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)):
        _fail("what an async test returns can't be taken; give the mark model=...")
    kept: list[object] = []
    if returns:  # as a test that returns nothing: pytest would warn of a value
        pyfuncitem.obj = _keeping(function, kept)
    try:
        result = yield
    finally:
        pyfuncitem.obj = function
    problems = [_problem(mark, kept[-1] if kept else None) for mark in marks]
    if any(problems):
        _fail("\n".join(filter(None, problems)))
    return result


def _keeping(function: Callable[..., object], kept: list[object]) -> Callable[..., None]:
    @functools.wraps(function)
    def keeping(*arguments: Any, **named: Any) -> None:
        kept.append(function(*arguments, **named))

    return keeping


def _problem(mark: pytest.Mark, returned: object) -> str:
    """Why the test fails; empty where it passes."""
    from torch import nn

    from advisor.errors import AdvisorError, InputError

    try:
        target = _target(mark.args, mark.kwargs)
        given = mark.kwargs.get("model")
        model = returned if given is None else given
        if callable(model) and not isinstance(model, nn.Module):
            model = model()
        if model is None:
            return "no model; return it from the test, or give the mark model=..."
        if not isinstance(model, str | nn.Module):
            kind = type(model).__name__
            raise InputError(f"the model is of type {kind}; give a torch module, or a name such as timm:NAME")
        return _broken(target, model)
    except AdvisorError as error:
        return _as_arguments(str(error))


def _target(arguments: tuple[object, ...], given: Mapping[str, Any]) -> Target:
    """What is asked for. Raises InputError."""
    from pathlib import Path

    from advisor.check.configuration import one_model
    from advisor.errors import InputError
    from advisor.names import did_you_mean

    if arguments:
        raise InputError(f'takes limits by name, such as ram="128MB", not {arguments[0]!r}')
    for key in given:
        if key not in _KNOWN:
            meant = did_you_mean(key, _KNOWN) or f"; it takes {', '.join(_KNOWN)}"
            raise InputError(f"{key} is unknown{meant}")
    if not given.keys() & set(_LIMITS):
        raise InputError('limits nothing; give ram=, flops= or storage=, such as ram="128MB"')
    keys = {"flops-budget" if key == "flops" else key.replace("_", "-"): given[key] for key in given}
    keys.pop("model", None)
    if isinstance(keys.get("input-size"), list | tuple):
        keys["input-size"] = "x".join(map(str, keys["input-size"]))
    (target,) = one_model("the model", keys, Path.cwd()).targets
    return target


def _broken(target: Target, model: str | nn.Module) -> str:
    """How the limits are broken, with the layers that have the most of it; empty where they are not."""
    from advisor.check.price import Pricer

    with _as_in_a_check():
        checked = Pricer().price(target, model=model)
    return "" if checked.fits else "\n".join([checked.answer, *_layers(checked)])


@contextmanager
def _as_in_a_check() -> Iterator[None]:
    """One thread, on which operators' workspace depends; and what the model's code warns of fails no test."""
    import warnings

    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)


def _layers(checked: Checked) -> Iterator[str]:
    """A table of the layers that hold the most at the peak; where memory has no limit, by what has."""
    from advisor.report.check.changes import plain
    from advisor.units import format_bytes, format_count, format_flops

    budget = checked.snapshot.budget
    by: tuple[str, Callable[[LayerFigures], int]] = "train the most", lambda of: of.trainable_parameters
    if budget.ram_bytes is not None:
        by = "hold the most at the peak", lambda of: of.peak_bytes
    elif budget.flops is not None:
        by = "take the most FLOPs", lambda of: of.update_flops
    title, key = by
    layers = checked.snapshot.layers or checked.leanest_layers
    some = [
        name for name in sorted(layers, key=lambda name: key(layers[name]), reverse=True) if key(layers[name])
    ]
    if not some:
        return
    yield f"layers that {title}, with {checked.snapshot.recommended or 'what takes the least memory'}:"
    rows = [("", "", "", "at the peak", "FLOPs", "trained")]
    for name in some[:_LAYERS_SHOWN]:
        of = layers[name]
        shape = "x".join(map(str, of.shape))
        figures = format_bytes(of.peak_bytes), format_flops(of.update_flops)
        kind = of.layer_type if name != "other" else "(no layer)"
        rows.append((plain(name), kind, shape, *figures, format_count(of.trainable_parameters)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        texts = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
        yield "  " + "  ".join([*texts, *numbers])


def _as_arguments(message: str) -> str:
    """Options of the command line as what they are called here."""
    message = message.replace("--flops-budget", "--flops").replace("--input-size CxHxW", 'input_size="CxHxW"')
    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda option: option[1].replace("-", "_") + "=", message)


def _fail(message: str) -> NoReturn:
    pytest.fail(f"{_MARK}: {message}", pytrace=False)
