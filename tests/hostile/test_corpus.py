"""Whatever a file holds, opening it runs none of its code, ends soon, takes little memory, says one line."""

from __future__ import annotations

import collections
import shutil
import statistics
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.hostile.bounded import opened
from tests.hostile.corpus import corpus

# What was wrong once: each of these ran, hung, crashed or took gigabytes.
FOUND = (
    *("model: pickle, older format: huge bytes", "model: pickle, older format: huge integer"),
    *("model: pickle: tuples doubled as a set", "model: pickle: a key of ten thousand digits"),
    *("model: zip: exported, with another shape", "model: zip: exported, with a number"),
    *("model: tensors: thousands of the same half megabyte", "model: older.pth, 4 bytes changed"),
    *("model: tensors, older format: huge storage", "model: module: called for an embedding"),
    *("model: safetensors: a type of half bytes", "model: hub: its index is nested"),
    *("model: hub: adapters, nested", "data: grey.png, 32 bytes changed"),
    *("model: hub: distributed, huge", "data: image folder with a pipe", "data: data.npz is a pipe"),
    *("data: arrays: a huge shape", "data: arrays: a huge element", "data: arrays: a pickle"),
    *(
        "data: list: state of a dataset, nested",
        "data: list: a cell of a megabyte",
        "answer: advice.json is a pipe",
    ),
    *("answer: advice.json is a link to a device without an end", "answer: advice.json is 64 GiB of nothing"),
    *("baseline: baseline.json is a pipe", "store: store: a view in place of the table"),
    *("store: store: other columns", "adapter: adapter: a huge head", "adapter: adapter: a huge input"),
    *("adapter: recipe.json is a pipe", "adapter: adapter.safetensors is a device"),
    *("configuration: pyproject.toml is a pipe", "configuration: pyproject.toml is 64 GiB of nothing"),
)
# And, of the rest, one in so many.
EACH = 80


@pytest.fixture(scope="module")
def cases():
    return {str(case): case for case in corpus()}


def tried(cases, folder):
    """What became of each, by name."""

    def one(home, name, path):
        work = home.with_name(f"{home.name}-work")
        work.mkdir()
        outcome = opened(cases[name].kind, *cases[name].options, path, home=work)
        shutil.rmtree(home)
        return name, outcome

    with ThreadPoolExecutor(2) as pool:
        found = []
        for number, (name, case) in enumerate(cases.items()):
            home = folder / str(number)
            home.mkdir()
            found.append(pool.submit(one, home, name, case.write(home)))
        return dict(each.result() for each in found)


def test_what_was_found_and_a_sample(cases, tmp_path):
    assert len(cases) > 1000
    assert set(FOUND) <= cases.keys()
    # What it takes a second to make one of stays out.
    slow = ("command: ", "unlabelled: ", "answer: value", "model: program", "model: hub: ")
    quick = [name for name in cases if not name.startswith(slow)]
    chosen = {name: cases[name] for name in (*FOUND, *quick[::EACH])}
    found = tried(chosen, tmp_path)
    assert {name: each.faults for name, each in found.items() if each.faults} == {}


@pytest.mark.long
def test_all_of_the_corpus(cases, tmp_path, figure):
    found = tried(cases, tmp_path)
    kinds = collections.Counter(case.kind for case in cases.values())
    faults = {name: each.faults for name, each in found.items() if each.faults}
    print(*(f"{name}: {', '.join(each)}" for name, each in faults.items()), sep="\n")
    seconds = [each.seconds for each in found.values()]
    figure("hostile files: with a fault of any kind", len(faults), 0, of=len(found))
    told = [fault for each in faults.values() for fault in each]
    for words, title in {
        "did ": "ran code or touched what is not theirs",
        "took over": "hung for over 10 s or took over 2 GB",
        "asked for": "took over 1 GB, or asked for over 2 GB",
        "Error": "ended in an exception of Python's",
    }.items():
        figure(f"hostile files: {title}", sum(words in fault for fault in told), 0, of=len(found))
    figure(
        "hostile files: refused with a reason",
        sum(each.was_refused for each in found.values()),
        "-",
        of=len(found),
    )
    figure(
        "hostile files: median seconds of a processor to open",
        round(statistics.median(seconds), 2),
        "-",
        of=len(found),
    )
    figure("hostile files: most seconds of a processor to open", round(max(seconds), 1), 10, of=len(found))
    figure(
        "hostile files: most MB of memory",
        max(each.memory for each in found.values()) // 10**6,
        1000,
        of=len(found),
    )
    for kind, count in sorted(kinds.items()):
        wrong = sum(name.startswith(f"{kind}: ") for name in faults)
        figure(f"hostile files opened as {kind}: with a fault", wrong, 0, of=count)
