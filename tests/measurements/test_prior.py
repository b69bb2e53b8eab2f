"""What tasks teach of others."""

from __future__ import annotations

import random

from advisor.methods import learning_rates
from advisor.probes.picture import Conditions, Point, expit
from advisor.records import Candidate, Levers
from measurements.prior import Row, Task, fitted

TRAININGS = [
    Candidate(method, levers=Levers(statistics=statistics))
    for method in ("full", "norm", "ssf")
    for statistics in ("frozen", "updated")
]
NORM_GAINS = {"small images": 0.1, "images": 0.5}  # in log odds, on average


def task(number, side, spread):
    """One in which methods differ as far as `spread` from what they come to on average."""
    under, chance = Conditions(blocks=10, batch_size=16, side=side), random.Random(number)
    easy = chance.gauss(1.0, 0.3)
    of_method = {
        method: gain + chance.gauss(0.0, spread)
        for method, gain in (("full", 0.0), ("norm", NORM_GAINS[under.world]), ("ssf", 0.0))
    }
    rows = []
    for training in TRAININGS:
        point = Point(training, learning_rates(training)[0])
        true, seen = (expit(easy + of_method[training.method] + chance.gauss(0.0, of)) for of in (0.02, 0.1))
        rows.append(Row(point, seen, true))
    return Task(f"network {number}, pictures", under, tuple(rows), judged_on=10_000)


def test_each_world_has_its_own_averages_and_tells_how_far_its_tasks_lie_apart():
    tasks = [task(number, 32, spread=0.3) for number in range(8)]
    tasks += [task(number, 160, spread=0.03) for number in range(8, 16)]
    small, images = fitted(tasks).values()
    group = "method, trained head"
    assert small.spreads[group] > 2 * images.spreads[group]
    gains = [prior.means[group, "norm"] - prior.means[group, "full"] for prior in (small, images)]
    assert gains[1] - gains[0] > 0.1
    assert abs(gains[1] - NORM_GAINS["images"]) < 0.15
