"""peft-advisor: which fine-tuning method fits this model, this data and this device, at what cost.

    from advisor import recommend
    recommendation = recommend("torchvision:mobilenet_v2", ram="512MB")
    print(recommendation.answer)

Names are imported on first use: torch takes seconds, and `peft-advisor --help` needs none of it.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

# torch's profiler, which measures operators' workspace, writes its stages to stderr; read at its start.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

if TYPE_CHECKING:
    from advisor.advise import profile, recommend
    from advisor.delivery.adapters import Recipe, load_adapter, save_adapter
    from advisor.delivery.apply import apply_advice
    from advisor.errors import AdvisorError
    from advisor.models import load_model
    from advisor.records import Budget, Recommendation
    from advisor.report import to_pandas, write_html, write_json
    from advisor.solver import parse_budget
    from advisor.story.situation import Request

__all__ = [
    "AdvisorError",
    "Budget",
    "Recipe",
    "Recommendation",
    "Request",
    "apply_advice",
    "load_adapter",
    "load_model",
    "parse_budget",
    "profile",
    "recommend",
    "save_adapter",
    "to_pandas",
    "write_html",
    "write_json",
]

_HOMES = {
    "AdvisorError": "advisor.errors",
    "Budget": "advisor.records",
    "Recipe": "advisor.delivery.adapters",
    "Recommendation": "advisor.records",
    "Request": "advisor.story.situation",
    "apply_advice": "advisor.delivery.apply",
    "load_adapter": "advisor.delivery.adapters",
    "load_model": "advisor.models",
    "parse_budget": "advisor.solver",
    "profile": "advisor.advise",
    "recommend": "advisor.advise",
    "save_adapter": "advisor.delivery.adapters",
    "to_pandas": "advisor.report",
    "write_html": "advisor.report",
    "write_json": "advisor.report",
}


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("peft-advisor")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
