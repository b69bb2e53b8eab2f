"""Two candidates on the same held-out samples: how far apart they are, and how sure that is."""

from __future__ import annotations

import numpy as np

from advisor.records import Accuracy

_RESAMPLES = 2000


def paired_gap(better: Accuracy, other: Accuracy) -> tuple[float, float]:
    """The 95 % interval of the difference in accuracy, by paired bootstrap on the same held-out samples.

    Where the two were judged on different numbers of samples, on those that both have seen.
    """
    shared = min(len(better.correct), len(other.correct))
    if shared == 0:  # accuracies read back from a file carry no samples: compare intervals
        return better.low - other.high, better.high - other.low
    differences = np.frombuffer(better.correct[:shared], np.uint8).astype(np.int8)
    differences = differences - np.frombuffer(other.correct[:shared], np.uint8).astype(np.int8)
    # Resampling n of n differences that are -1, 0 or 1 is a multinomial draw of their counts.
    counts = np.array([(differences == value).sum() for value in (-1, 0, 1)])
    draws = np.random.default_rng(0).multinomial(shared, counts / shared, size=_RESAMPLES)
    means = (draws[:, 2] - draws[:, 0]) / shared
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
