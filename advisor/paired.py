"""Two candidates on the same held-out samples: how far apart they are, and how sure that is."""

from __future__ import annotations

from advisor.records import Accuracy

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
    # Resampling n of n differences, of which few differ, is a multinomial draw of their counts.
    values, counts = np.unique(shares[0] - shares[1], return_counts=True)
    draws = np.random.default_rng(0).multinomial(shared, counts / shared, size=_RESAMPLES)
    means = draws @ values / shared
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
