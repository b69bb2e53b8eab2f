"""What an update costs: estimated from a table, simulated exactly, measured in a child process.

The functions `simulate` and `measure` are in the modules of their names, which they would hide here.
"""

from advisor.costs.estimate import Estimates, Estimator
from advisor.costs.fvcore_check import fvcore_forward_flops
from advisor.costs.measure import WaitingChild
from advisor.costs.process import keep_freed_memory, return_freed_memory
from advisor.costs.simulate import Simulator, without_collector
from advisor.system.machine import available_bytes

__all__ = [
    "Estimates",
    "Estimator",
    "Simulator",
    "WaitingChild",
    "available_bytes",
    "fvcore_forward_flops",
    "keep_freed_memory",
    "return_freed_memory",
    "without_collector",
]
