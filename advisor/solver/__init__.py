"""The choice: limits, ranking, and the reasons in words. Pure functions of records; no torch."""

from advisor.solver.budget import allowed_memory, parse_budget, violations
from advisor.solver.choose import cheapest_first, pareto_front, rank
from advisor.solver.explain import answer, describe, lever_words, relaxations
from advisor.solver.verdict import Verdict, weigh

__all__ = [
    "Verdict",
    "allowed_memory",
    "answer",
    "cheapest_first",
    "describe",
    "lever_words",
    "pareto_front",
    "parse_budget",
    "rank",
    "relaxations",
    "violations",
    "weigh",
]
