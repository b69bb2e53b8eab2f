"""The figures that an operator's seconds follow from, in plain numbers: no torch."""

from __future__ import annotations

from advisor.costs.process import BACK_AT_ONCE

# Calls; FLOPs (of elementwise operators those alone that take more than their bytes); FLOPs where eight, or
# sixteen, are done at a time, the idle ones included; bytes read and written; bytes of memory that the kernel
# has to hand out for it.
FIGURES = ("calls", "flops", "flops_in_8s", "flops_in_16s", "bytes", "new_bytes")

_FEW_IMAGES = _FEW_PLACES = 16
_WIDE = 9  # taps


def new_bytes(*sizes: int) -> int:
    """What allocations of these sizes take from the kernel: small ones find room where others were."""
    return sum(size for size in sizes if size >= BACK_AT_ONCE)


def is_product(images: int, taps: int, *, strided: bool) -> bool:
    """Whether PyTorch does a convolution as a product of matrices for each image, and each group.

    With one thread and few images it does those with one tap so; all others are done by a library that works
    on blocks of channels.
    """
    return taps == 1 and images < _FEW_IMAGES and not strided


def convolution_kind(
    images: int, places: int, inputs: int, taps: int, groups: int, *, strided: bool = False
) -> str:
    """Of so many images with `inputs` channels, `places` in the output of each, and `taps` in the kernel."""
    if is_product(images, taps, strided=strided):
        if groups > 1:
            return "pointwise_groups"
        return "pointwise_few" if 1 < places < _FEW_PLACES else "pointwise"
    if groups == 1:
        return "standard" if taps > 1 else "pointwise_blocks"
    if groups < inputs:
        return "grouped"
    return "depthwise_wide" if taps > _WIDE else "depthwise"


def convolution_figures(
    kind: str,
    images: int,
    places: int,
    inputs: int,
    outputs: int,
    taps: int,
    groups: int,
    read: tuple[int, ...],
    made: int,
) -> tuple[int, ...]:
    """All figures of one pass, with the bytes of each tensor that is read, and of the one that is made."""

    def filled(step: int) -> int:
        each = 2 * images * places * taps
        if groups == inputs > 1:
            return each * _up(outputs, step)
        return each * groups * _up(inputs // groups, step) * _up(outputs // groups, step)

    # Blocks of channels are copies, of all that is read and made.
    copied = () if kind in ("pointwise", "pointwise_few", "pointwise_groups") else (*read, made)
    calls = images * groups if kind == "pointwise_groups" else 1
    return calls, filled(1), filled(8), filled(16), sum(read) + made, new_bytes(made, *copied)


def _up(count: int, step: int) -> int:
    return -(-count // step) * step
