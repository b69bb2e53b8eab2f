"""A pytest plugin: a test fails where its model can't be fine-tuned within limits.

    @pytest.mark.limit_finetune(ram="128MB", flops="5GFLOP", input_size="3x64x64")
    def test_the_classifier_can_be_updated_on_the_camera():
        return build_classifier()

The test returns the model, or a name as on the command line; or the mark's `model=` gives it, or a function
that makes it. Something has to fit, as `recommend --no-probe` would have it; with `candidate="lora-rank=4"`,
that one. Loaded wherever peft-advisor is installed, so it imports nothing before a test is marked.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import nn

    from advisor.check.configuration import Target

_MARK = "limit_finetune"
_KEYS = ("ram", "flops", "storage", "runtime_overhead", "input_size", "batch_size", "methods", "ranks")
_KNOWN = (*_KEYS, "optimizer", "candidate", "arch", "trust", "model")
_LAYERS_NAMED = 3


def pytest_configure(config: pytest.Config) -> None:
    """Say what the mark is."""
    config.addinivalue_line(
        "markers",
        f"{_MARK}(ram, flops, storage, input_size, batch_size, methods, candidate, model, ...): fail the "
        "test where the model that it returns can't be fine-tuned within these limits (peft-advisor)",
    )


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Run the test, and price what it returns."""
    mark = pyfuncitem.get_closest_marker(_MARK)
    if mark is None:
        return (yield)
    kept: list[object] = []
    function = pyfuncitem.obj

    def keeping(*arguments: Any, **named: Any) -> None:
        kept.append(function(*arguments, **named))

    pyfuncitem.obj = keeping
    try:
        result = yield
    finally:
        pyfuncitem.obj = function
    problem = _problem(mark, kept[0] if kept else None)
    if problem:
        pytest.fail(problem, pytrace=False)
    return result


def _problem(mark: pytest.Mark, returned: object) -> str:
    """Why the test fails; empty where it passes."""
    from advisor.errors import AdvisorError

    try:
        target = _target(mark.args, mark.kwargs)
        model = mark.kwargs.get("model", returned)
        if callable(model) and not hasattr(model, "state_dict"):
            model = model()
        if model is None:
            return f"{_MARK}: no model; return it from the test, or give the mark model=..."
        return _broken(target, model)
    except AdvisorError as error:
        return f"{_MARK}: {error}"


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
    keys = {"flops-budget" if key == "flops" else key.replace("_", "-"): given[key] for key in given}
    keys.pop("model", None)
    (target,) = one_model("the model", keys, Path.cwd()).targets
    return target


def _broken(target: Target, model: str | nn.Module) -> str:
    """How the limits are broken, with the layers that hold the most; empty where they are not."""
    from advisor.check.price import Pricer
    from advisor.report.check.changes import plain
    from advisor.units import format_bytes

    checked = Pricer().price(target, model=model)
    if checked.fits:
        return ""
    lines = [f"{_MARK}: {checked.answer}"]
    layers = (checked.snapshot.layers or checked.leanest_layers).items()
    most = sorted(layers, key=lambda pair: pair[1].peak_bytes, reverse=True)[:_LAYERS_NAMED]
    held = (f"{plain(name)} {format_bytes(layer.peak_bytes)}" for name, layer in most)
    lines.append(f"the most is held for {', '.join(held)}")
    return "\n".join(lines)
