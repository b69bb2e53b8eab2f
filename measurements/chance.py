"""Study: what somebody would lose who had trained everything, and chose by a sample of photos.

    python -m measurements.chance   # seconds; of the trainings that measurements.photos has kept here

The best of a hundred trainings on some photos is, in part, the luckiest on them: on others it is one of the
good ones. So a regret against the best of a truth can't come to nothing, however much is tried. Each task's
judging images are split again and again: by one part the best is chosen, on the other it is compared with
what is best there. Writes results/chance.json, and the table in README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from advisor.store import Store, default_path
from measurements.advice import read
from measurements.photos import RESULTS as PHOTOS
from measurements.tables import README, table, write_tables

RESULTS = Path(__file__).parent / "results" / "chance.json"
_BY = (150, 500)  # photos that choose; half of all, too
_DRAWS = 1000
_LEAST = 60  # answers that are kept of a task: else it says little of its best


def answers(store: Store) -> dict[str, np.ndarray[Any, Any]]:
    """By task, what each training got right with each head, of one seed: (answers, images)."""
    found: dict[str, list[Any]] = defaultdict(list)
    for kept in store:
        if kept.kind != "truth" or kept.key["seed"] or "accuracies" not in kept.value:
            continue
        for right in kept.value["correct"].values():
            found[kept.key["task"]].append(np.unpackbits(np.frombuffer(bytes.fromhex(right), np.uint8)))
    return {task: np.array(rows) for task, rows in found.items() if len(rows) >= _LEAST}


def lost(right: np.ndarray[Any, Any], by: int) -> float:
    """Percentage points, on average, when so many photos choose and all others judge."""
    random, found = np.random.default_rng(0), []
    for _ in range(_DRAWS):
        order = random.permutation(right.shape[1])
        chosen = right[:, order[:by]].mean(1).argmax()
        judged = right[:, order[by:]].mean(1)
        found.append(100 * float(judged.max() - judged[chosen]))
    return statistics.fmean(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--kept", type=Path, default=default_path().parent / "photos", help="where measurements.photos keeps"
    )
    given = parser.parse_args()
    with Store(given.kept / "photos.sqlite") as store:
        right = answers(store)
    found = {}
    tasks = read(PHOTOS)["tasks"]
    for task in (name for name in tasks if name in right):
        of = right[task][:, : tasks[task]["judged_on"]]  # without what fills the last byte
        half = of.shape[1] // 2
        found[task] = {"answers": len(of), "half": half} | {
            f"by_{by}": lost(of, count) for by, count in (*((n, n) for n in _BY), ("half", half))
        }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    rows = [
        (
            name,
            of["answers"],
            *(f"{of[f'by_{by}']:.2f}" for by in _BY),
            f"{of['by_half']:.2f} ({of['half']:,})",
        )
        for name, of in found.items()
    ]
    heads = ("task", "answers", *(f"chosen by {by} photos" for by in _BY), "by half of all")
    write_tables(README, {"chance": table(heads, rows)})


if __name__ == "__main__":
    main()
