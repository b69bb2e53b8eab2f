"""An index of the names and shapes of torchvision's and timm's networks: which of them may a state dict hold?

It only proposes: whoever uses it builds the network and compares. So an index of other versions costs
nothing but what they don't share. Entries are kept as checksums, class counts aside.

    python -m advisor.models.index    # writes index.npz, about 10 minutes with timm
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]

OUTPUTS = 7919  # a class count that no hidden layer has: it marks the heads of a trial build
_PATH = Path(__file__).with_name("index.npz")
_FEWEST = 6  # entries of a network
_ALIKE = 0.5  # of names, for a network to be proposed
_BEHIND = 0.25  # of the score of the likeliest, for others to be proposed, too
_KNOWN = 0.95  # or of the file's own names
# Its layers, one by one in a Sequential, as `nn.Sequential(*list(resnet.children())[:-1])` has them.
_RESNET = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc")


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read entries of a state dict as those of a network."""

    prefix: str  # what stands before them
    names: Mapping[str, str]  # the network's name of each, by the file's


@dataclass(frozen=True, slots=True)
class Proposal:
    """A network that entries may belong to."""

    reading: Reading
    name: str  # `torchvision:NAME` or `timm:NAME`
    shapes: float  # agreeing entries, as a share of all of either
    spelling: float  # the same of names alone

    @property
    def score(self) -> float:
        """Of 2."""
        return self.shapes + self.spelling


@dataclass(frozen=True, slots=True)
class _Index:
    models: Sequence[str]
    sizes: np.ndarray  # entries of each model
    entries: np.ndarray  # checksums of name and shape, ascending
    entry_owners: tuple[np.ndarray, np.ndarray]  # where each one's owners begin, and the owners
    names: np.ndarray
    name_owners: tuple[np.ndarray, np.ndarray]


def propose(shapes: Shapes) -> list[Proposal]:
    """Networks that some of the entries may belong to, the likeliest first; equally likely ones in order."""
    index = _load()
    found: list[Proposal] = []
    for reading in readings(shapes):
        own = {name: shapes[key] for key, name in reading.names.items() if tells(name)}
        entries = np.array([check for name, shape in own.items() for check in _checks(name, shape)])
        agreeing = _count(entries, index.entries, index.entry_owners, len(index.models))
        spelled = _count(
            np.array([crc32(name.encode()) for name in own]),
            index.names,
            index.name_owners,
            len(index.models),
        )
        whole = index.sizes + len(own)
        by_shape, by_name = agreeing / (whole - agreeing), spelled / (whole - spelled)
        score = by_shape + by_name
        known = np.maximum(by_name / _ALIKE, spelled / max(len(own), 1) / _KNOWN)  # of deeper relatives, too
        found += [
            Proposal(reading, index.models[each], float(by_shape[each]), float(by_name[each]))
            for each in map(int, np.flatnonzero((known > 1) & (score > score.max() - _BEHIND)))
        ]
    return sorted(found, key=lambda proposal: -proposal.score)


def readings(shapes: Shapes, fewest: int = _FEWEST) -> Iterator[Reading]:
    """Every subtree with enough entries: as it is, as the `features` of a network, as numbered layers."""
    counts: Counter[str] = Counter({"": len(shapes)})
    for key in shapes:
        parts = key.split(".")
        counts.update(".".join((*parts[:depth], "")) for depth in range(1, len(parts)))
    for prefix, count in counts.items():
        if count < fewest or count < len(shapes) // 20:
            continue
        names = {key: key.removeprefix(prefix) for key in shapes if key.startswith(prefix)}
        yield Reading(prefix, names)
        first = {name.partition(".")[0] for name in names.values()}
        if first and all(part.isdecimal() for part in first):
            yield Reading(prefix, {key: f"features.{name}" for key, name in names.items()})
            if max(map(int, first)) < len(_RESNET):
                yield Reading(prefix, {key: _spelled_out(name) for key, name in names.items()})


def _spelled_out(name: str) -> str:
    number, dot, rest = name.partition(".")
    return _RESNET[int(number)] + dot + rest


def tells(name: str) -> bool:
    """Whether an entry tells anything: counters of batches are not always there, and thop adds others."""
    return not name.endswith(("num_batches_tracked", "total_ops", "total_params"))


def _checks(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Of an entry as it is, and as a head's, whose class count may be any."""
    return _check(name, shape), _check(name, (OUTPUTS, *shape[1:]))


def _check(name: str, shape: tuple[int, ...]) -> int:
    return crc32(f"{name} {' '.join(map(str, shape))}".encode())


def _count(
    checks: np.ndarray, known: np.ndarray, owners: tuple[np.ndarray, np.ndarray], models: int
) -> np.ndarray:
    """How many of the checksums each model has."""
    starts, owned = owners
    places = np.searchsorted(known, checks).clip(max=len(known) - 1)
    hits = np.unique(places[known[places] == checks])
    members = [owned[starts[hit] : starts[hit + 1]] for hit in hits]
    return np.bincount(np.concatenate(members) if members else np.zeros(0, int), minlength=models)


@cache
def _load() -> _Index:
    with np.load(_PATH) as file:
        models, sizes = file["models"].tolist(), file["sizes"]
        entries, names = file["entries"], file["names"]
        members = np.cumsum(file["steps"])
    of = np.repeat(np.arange(len(models)), sizes)
    by_entry, entry_of = np.unique(entries, return_inverse=True)
    by_name, name_of = np.unique(names, return_inverse=True)
    return _Index(
        models,
        sizes,
        by_entry,
        _grouped(entry_of[members], of, len(by_entry)),
        by_name,
        _grouped(name_of[members], of, len(by_name)),
    )


def _grouped(keys: np.ndarray, values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(keys, kind="stable")
    return np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=count))]), values[order]


def write(networks: Mapping[str, Shapes], path: Path = _PATH) -> None:
    """Write the index of networks, which were built for `OUTPUTS` classes."""
    table = {
        name: [(_check(key, shape), crc32(key.encode())) for key, shape in each.items() if tells(key)]
        for name, each in networks.items()
    }
    # In the order of their appearance: then the steps from one to the next are small, and compress well.
    known = list(dict.fromkeys(pair for pairs in table.values() for pair in pairs))
    place = {pair: number for number, pair in enumerate(known)}
    members = np.array([place[pair] for pairs in table.values() for pair in pairs])
    arrays: dict[str, Any] = {
        "models": np.array(list(table)),
        "sizes": np.array([len(pairs) for pairs in table.values()]),
        "entries": np.array([entry for entry, _ in known], np.uint32),
        "names": np.array([name for _, name in known], np.uint32),
        "steps": np.diff(members, prepend=0).astype(np.int32),
    }
    np.savez_compressed(path, **arrays)


def _main() -> None:
    from advisor.models import architectures

    networks = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in architectures.library_names():
            shapes = architectures.trial_shapes(name)
            if shapes:
                networks[name] = shapes
    write(networks)


if __name__ == "__main__":
    _main()
