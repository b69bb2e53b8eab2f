"""The figures that an operator's seconds follow from, in plain numbers: no torch, nothing of ours."""

from __future__ import annotations

# Calls; FLOPs (of elementwise operators those alone that take more than their bytes); FLOPs where channels
# are done eight, or sixteen, at a time, the idle ones included; bytes read and written.
FIGURES = ("calls", "flops", "flops_in_8s", "flops_in_16s", "bytes")


def convolution_kind(inputs: int, kernel: int, groups: int) -> str:
    """Of `inputs` channels, with a kernel of so many taps."""
    if groups == 1:
        return "pointwise" if kernel == 1 else "standard"
    return "depthwise" if groups == inputs else "grouped"


def convolution_figures(
    positions: int, inputs: int, outputs: int, kernel: int, groups: int, size: int
) -> tuple[int, int, int, int]:
    """FLOPs, those in eights and in sixteens, and bytes, of one pass.

    Args:
        positions: of the whole batch, each of which sees `kernel` taps.
        size: bytes read and written.
    """
    is_depthwise = convolution_kind(inputs, kernel, groups) == "depthwise"

    def filled(step: int) -> int:
        if is_depthwise:
            return 2 * positions * kernel * _up(outputs, step)
        return 2 * positions * kernel * groups * _up(inputs // groups, step) * _up(outputs // groups, step)

    return filled(1), filled(8), filled(16), size


def _up(count: int, step: int) -> int:
    return -(-count // step) * step
