"""Two candidates on the same held-out samples: how far apart they are, and how sure that is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from advisor.records import Z95, Accuracy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_RESAMPLES = 2000


def paired_gap(better: Accuracy, other: Accuracy) -> tuple[float, float]:
    """The 95 % interval of the difference in accuracy, by paired bootstrap on the same held-out samples.

    Where the two were judged on different numbers of samples, on those that both have seen.
    """
    import numpy as np

    apart, weights = _apart(better, other)
    if not weights.any():  # accuracies read back from a file carry no samples: compare intervals
        return better.low - other.high, better.high - other.low
    # Resampling n of n samples, of which few differ, is a multinomial draw of their counts.
    kinds, counts = np.unique(np.stack([apart, weights]), axis=1, return_counts=True)
    draws = np.random.default_rng(0).multinomial(len(apart), counts / len(apart), size=_RESAMPLES)
    totals = draws @ kinds[1]
    means = draws @ (kinds[0] * kinds[1]) / np.where(totals, totals, 1)  # none that counts drawn: no gap
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def paired_error(one: Accuracy, other: Accuracy) -> float:
    """The standard error of the difference in accuracy, on the samples that both have seen."""
    import numpy as np

    apart, weights = _apart(one, other)
    if not weights.any():  # the intervals', as if they were independent
        return (one.high - one.low + other.high - other.low) / (2 * Z95)
    apart = apart - np.average(apart, weights=weights)
    return float(np.sqrt(np.sum((weights * apart) ** 2)) / weights.sum())


def paired_half_width(one: Accuracy, other: Accuracy) -> float:
    """Half the 95 % interval of the difference, as it is told.

    Where next to no sample tells the two apart, the standard error says that the difference is certain; by
    the rule of three (Hanley and Lippman-Hand, 1983), what none of n samples showed may be true of 3 in n.
    """
    half = Z95 * paired_error(one, other)
    _, weights = _apart(one, other)
    if not weights.any():
        return half
    counted = weights.sum() ** 2 / (weights**2).sum()  # those of weight 0 tell nothing
    return max(half, min(3 / float(counted), 1.0))


def _apart(one: Accuracy, other: Accuracy) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each sample that both have seen, in how much more of its trainings one was right; and its weight."""
    import numpy as np

    shared = min(len(one.correct), len(other.correct))
    first, second = (
        np.frombuffer(accuracy.correct[:shared], np.uint8) / accuracy.seeds for accuracy in (one, other)
    )
    weights = np.ones(shared) if one.weights is None else np.array(one.weights[:shared], np.float64)
    return first - second, weights
