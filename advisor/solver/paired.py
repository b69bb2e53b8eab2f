"""Two candidates on the same held-out samples: how far apart they are, and how sure that is."""

from __future__ import annotations

from advisor.records import Z95, Accuracy

_RESAMPLES = 2000


def paired_gap(better: Accuracy, other: Accuracy) -> tuple[float, float]:
    """The 95 % interval of the difference in accuracy, by paired bootstrap on the same held-out samples.

    Where the two were judged on different numbers of samples, on those that both have seen.
    """
    import numpy as np

    shared = min(len(better.correct), len(other.correct))
    if shared == 0:  # accuracies read back from a file carry no samples: compare intervals
        return better.low - other.high, better.high - other.low
    shares = [
        np.frombuffer(accuracy.correct[:shared], np.uint8) / accuracy.seeds for accuracy in (better, other)
    ]
    weights = np.ones(shared) if better.weights is None else np.array(better.weights[:shared])
    # Resampling n of n samples, of which few differ, is a multinomial draw of their counts.
    kinds, counts = np.unique(np.stack([shares[0] - shares[1], weights]), axis=1, return_counts=True)
    draws = np.random.default_rng(0).multinomial(shared, counts / shared, size=_RESAMPLES)
    totals = draws @ kinds[1]
    means = draws @ (kinds[0] * kinds[1]) / np.where(totals, totals, 1)  # none that counts drawn: no gap
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def paired_error(one: Accuracy, other: Accuracy) -> float:
    """The standard error of the difference in accuracy, on the samples that both have seen."""
    import numpy as np

    shared = min(len(one.correct), len(other.correct))
    if shared == 0:  # read back from a file: the intervals', as if they were independent
        return (one.high - one.low + other.high - other.low) / (2 * Z95)
    first, second = (
        np.frombuffer(accuracy.correct[:shared], np.uint8) / accuracy.seeds for accuracy in (one, other)
    )
    weights = np.ones(shared) if one.weights is None else np.array(one.weights[:shared])
    apart = first - second - np.average(first - second, weights=weights)
    return float(np.sqrt(np.sum((weights * apart) ** 2)) / weights.sum())


def paired_half_width(one: Accuracy, other: Accuracy) -> float:
    """Half the 95 % interval of the difference, as it is told.

    Where next to no sample tells the two apart, the standard error says that the difference is certain; by
    the rule of three (Hanley and Lippman-Hand, 1983), what none of n samples showed may be true of 3 in n.
    """
    half = Z95 * paired_error(one, other)
    shared = min(len(one.correct), len(other.correct))
    if shared == 0:
        return half
    weights = (1.0,) * shared if one.weights is None else one.weights[:shared]
    counted = sum(weights) ** 2 / sum(weight**2 for weight in weights)  # those of weight 0 tell nothing
    return max(half, min(3 / counted, 1.0))
