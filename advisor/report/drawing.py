"""What all charts are drawn with: lines, words and ticks, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable

from markupsafe import Markup

CHARACTER, LINE = 6.3, 12.0  # a label's width for each of its characters, and its height, at 11 units


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    """A straight line."""
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        kind, x1, y1, x2, y2
    )


def text_at(kind: str, x: float, y: float, words: str) -> Markup:
    """Words that begin, end or have their middle there, as their class says."""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(kind, x, y, words)


def linear_ticks(low: float, high: float) -> tuple[float, ...]:
    """Round values between them, about five."""
    step = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(step))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * 0.999)
    first = math.ceil(low / step - 1e-9)
    return tuple(n * step for n in range(first, math.floor(high / step + 1e-9) + 1))


number: Callable[[float], str] = "{:,.6g}".format
