"""What an update costs: simulated exactly, measured in a child process."""

from advisor.costs.fvcore_check import fvcore_forward_flops
from advisor.costs.measure import measure
from advisor.costs.simulate import forward_flops, simulate

__all__ = ["forward_flops", "fvcore_forward_flops", "measure", "simulate"]
