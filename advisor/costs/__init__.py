"""What an update costs: estimated from a table, simulated exactly, measured in a child process."""

from advisor.costs.estimate import Estimates, Estimator
from advisor.costs.fvcore_check import fvcore_forward_flops
from advisor.costs.measure import WaitingChild, measure
from advisor.costs.process import available_bytes
from advisor.costs.simulate import Simulator, simulate, without_collector

__all__ = [
    "Estimates",
    "Estimator",
    "Simulator",
    "WaitingChild",
    "available_bytes",
    "fvcore_forward_flops",
    "measure",
    "simulate",
    "without_collector",
]
