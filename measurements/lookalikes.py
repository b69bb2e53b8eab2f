"""Study: whether holding look-alikes out together tells the accuracy on photos of other visits.

    python -m measurements.lookalikes --data FOLDER

FOLDER holds clothing/ and grocery/, each with one folder of photos for each class, and perhaps cifar/ with
train/. A network with ImageNet weights gives features; a ridge classifier on them is judged on a random
split, and on splits in which images of a class whose standardised features correlate by more than a threshold
are on one side. What is true is known of grocery alone: its photos named `val-...` are of other visits.
Clothing and CIFAR-10 have no visits, so the split must change nothing there. Three draws each.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.preprocessing import StandardScaler

from advisor.data.loading import LabelledImages
from advisor.data.pixels import Frame
from advisor.data.sources import find
from advisor.data.splits import sample, split, split_groups
from advisor.models import take_census
from advisor.probes.lookalikes import ALIKE, features, groups_of
from advisor.records import Framing
from measurements.photo_networks import NETWORKS
from measurements.tables import README, table, write_tables

RESULTS = Path(__file__).parent / "results" / "lookalikes.json"
SIZE, MOST, DRAWS = (3, 160, 160), 1600, 3
THRESHOLDS = (0.8, 0.7, 0.6, 0.55, 0.5, 0.4)
SETS = {"clothing": "", "grocery": "val-", "cifar/train": ""}  # and what photos of other visits are named


def judged(features: np.ndarray, labels: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> float:
    """The share of the held-out that a classifier of the others gets right."""
    scaler = StandardScaler().fit(features[train])
    classifier = RidgeClassifierCV(np.logspace(1, 5, 9))
    classifier.fit(scaler.transform(features[train]), labels[train])
    return float(classifier.score(scaler.transform(features[held_out]), labels[held_out]))


def study(folder: Path, others: str, network: str) -> dict[str, float | None]:
    """Accuracies in percent, by split."""
    found, normalisation = find(str(folder)), NETWORKS[network].normalisation
    pool = found.train
    names = [pool.name(index) for index in range(len(pool.labels))]
    apart = np.array([bool(others) and others in Path(name).name for name in names])
    given = np.flatnonzero(~apart)
    given = given[sample(pool.labels[given], MOST, seed=0)]
    indices = np.concatenate([given, np.flatnonzero(apart)])
    pixels, _ = pool.read(indices, Frame(SIZE, Framing()))
    images = LabelledImages(pixels, torch.from_numpy(pool.labels[indices]))
    model = NETWORKS[network].make()
    head = take_census(model, SIZE).head
    assert head is not None
    seen = features(model, head, images, normalisation)
    every, labels, count = seen.double().numpy(), pool.labels[indices], len(given)

    def mean(parts: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> float:
        return round(100 * statistics.mean(judged(every, labels, *parts(seed)) for seed in range(DRAWS)), 1)

    own = labels[:count]
    rows: dict[str, float | None] = {"random": mean(lambda seed: split(own, count, count, seed))}
    for threshold in THRESHOLDS:
        groups = groups_of(seen[:count], images.labels[:count], threshold)
        rows[f"{threshold}"] = mean(lambda seed, of=groups: split_groups(own, of, count, count, seed))
        rows[f"{threshold}, alike"] = round(100 * float((np.bincount(groups)[groups] > 1).mean()), 1)
    rows["other visits"] = (
        mean(lambda _: (np.arange(count), np.arange(count, len(labels)))) if others else None
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    folder = parser.parse_args().data
    rows = {
        f"{network}, {name}": study(folder / name, others, network)
        for name, others in SETS.items()
        if (folder / name).is_dir()
        for network in NETWORKS
    }
    RESULTS.write_text(json.dumps({"threshold": ALIKE, "rows": rows}, indent=1) + "\n")
    heads = ["network, photos", "random split", *(f"> {each}" for each in THRESHOLDS), "other visits"]
    lines = []
    for name, row in rows.items():
        cells = [f"{row[str(each)]} ({row[f'{each}, alike']})" for each in THRESHOLDS]
        lines.append(
            [name, row["random"], *cells, "-" if row["other visits"] is None else row["other visits"]]
        )
    write_tables(README, {"lookalikes": table(heads, lines)})
    print(table(heads, lines))


if __name__ == "__main__":
    main()
