"""The choice: limits, ranking, and the reasons in words. Pure functions of records; no torch."""

from advisor.solver.budget import parse_budget
from advisor.solver.choose import cheapest_first, expected_loss, pareto_front, rank
from advisor.solver.explain import (
    LEAST,
    answer,
    cheaper_text,
    describe,
    lever_words,
    rate_words,
    whole_memory,
)
from advisor.solver.limits import (
    LIMIT,
    allowed_memory,
    enforced_memory,
    figures_of,
    judged,
    limits_of,
    violations,
)
from advisor.solver.relax import relaxations
from advisor.solver.verdict import Verdict, has_learnt, solve

__all__ = [
    "LEAST",
    "LIMIT",
    "Verdict",
    "allowed_memory",
    "answer",
    "cheaper_text",
    "cheapest_first",
    "describe",
    "enforced_memory",
    "expected_loss",
    "figures_of",
    "has_learnt",
    "judged",
    "lever_words",
    "limits_of",
    "pareto_front",
    "parse_budget",
    "rank",
    "rate_words",
    "relaxations",
    "solve",
    "violations",
    "whole_memory",
]
