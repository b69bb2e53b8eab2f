"""PyTorch without its compiler, which an optimizer's first step would load: 150 MB that nothing here uses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

_NAME = "torch._dynamo"


def leave_compiler_out() -> None:
    """Let something small stand for the compiler, until more is asked of it than an update asks."""
    if _NAME not in sys.modules:
        sys.modules[_NAME] = torch._dynamo = _Absent(_NAME)


class _Absent(ModuleType):
    """What `torch.optim` and `torch.utils.checkpoint` ask of the compiler where nothing is compiled."""

    @staticmethod
    def graph_break(*_: object) -> None:
        """Nothing is traced, so there is nothing to break."""

    @staticmethod
    def disable(function: Callable[..., Any], *_: object, **__: object) -> Callable[..., Any]:
        """Nothing is compiled, so the function is as it was."""
        return function

    class config:  # noqa: N801 - as torch calls it
        """The compiler's options."""

        error_on_nested_fx_trace = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(_NAME) is self:  # another version asks for more: then it is loaded after all
            del sys.modules[_NAME]
            torch._dynamo = import_module(_NAME)
        return getattr(torch._dynamo, name)
