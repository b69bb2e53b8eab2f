"""Which training is run next: the one whose answer promises most for its work. Pure functions of numbers.

What a probe is worth is its knowledge gradient (Frazier, Powell and Dayanik 2009): by how much the expected
accuracy of what would be chosen in the end rises with its answer, on average over the answers that it may
give. A short training is worth something as far as it tells of long ones, of its own and of others like it.
What is cheap can be tried more often; but as only the best of all tries counts, n of them are worth no more
than sqrt(log n) times one (the expected maximum of n normal numbers). So that is how work counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from advisor.probes.picture import Belief, expit

_NODES = 41  # of the quadrature over a probe's answers
_CONTENDERS = 150  # points that may be the best in the end; the others hardly ever are
_HOPEFUL = 2.0  # standard deviations above what is expected of a point
_LEAST_GAIN = 1e-4  # in accuracy: what promises less is not worth any time


@dataclass(frozen=True, slots=True)
class Option:
    """A training that can be run now, for so many updates."""

    name: Any  # what the caller calls it
    rows: tuple[int, ...]  # the points of the picture that it would show: one for each of its heads
    ends: tuple[int, ...]  # those of the same training, run to its end
    seconds: float
    work: float  # in FLOPs: tells the same on a busy machine
    is_last: bool  # it is trained for as long as any is
    samples: int  # that it is judged on


def contenders(belief: Belief, finals: Sequence[int]) -> list[int]:
    """Of the points that can be chosen in the end, those that may be the best: best first."""
    import numpy as np

    rows = np.asarray(finals, dtype=np.int64)
    hopes = belief.means[rows] + _HOPEFUL * np.sqrt(belief.variances[rows])
    return [int(row) for row in rows[np.argsort(-hopes, kind="stable")][:_CONTENDERS]]


def knowledge_gradients(belief: Belief, asked: Sequence[tuple[int, int]], finals: Sequence[int]) -> Any:
    """By how much each probe would raise the best of the finals, in accuracy: (asked,).

    Args:
        asked: the point that a probe shows, and on how many samples.
    """
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    moves = belief.moves(finals, asked)
    means = belief.means[list(finals)]
    best = means.max()
    raised = sum(
        weight * (means[:, None] + node * moves).max(0) for node, weight in zip(nodes, weights, strict=True)
    )
    share = expit(float(best))
    return (raised / weights.sum() - best) * share * (1 - share)


def chosen(belief: Belief, options: Sequence[Option], finals: Sequence[int], seconds: float) -> Option | None:
    """What is run next in the seconds that are left; None: nothing that can be run is worth it.

    Time is kept for what leads now to be trained for as long as any is: one of those is chosen in the end.
    What there is no time for can't be chosen then, and leads nothing.
    """
    import numpy as np

    late = {row for option in options if option.is_last and option.seconds > seconds for row in option.ends}
    hopeful = contenders(belief, [row for row in finals if row not in late] or finals)
    if not options or not hopeful:
        return None
    leader = max(hopeful, key=lambda row: belief.means[row])
    ending = next((each for each in options if each.is_last and leader in each.ends), None)
    kept = 0.0 if ending is None or ending.seconds > seconds else ending.seconds
    able = [o for o in options if o.seconds + (0.0 if o is ending else kept) <= seconds]
    asked = [(row, option.samples) for option in able for row in option.rows]
    if asked:
        gains = iter(knowledge_gradients(belief, asked, hopeful).tolist())
        of_each = np.array([max(next(gains) for _ in option.rows) for option in able])
        work = np.array([option.work for option in able])
        each_for_work = of_each * np.sqrt(np.log1p(max(option.work for option in options) / work))
        best = int(np.argmax(np.where(of_each >= _LEAST_GAIN, each_for_work, -1.0)))
        if of_each[best] >= _LEAST_GAIN:
            return able[best]
    return ending if kept else None
