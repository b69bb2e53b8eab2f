"""Whole zoos: what becomes of each of torchvision's classifiers, and of one network of each family of timm.

Each is loaded with random weights, in a process of its own with limits on time and memory. Its census is
taken, and every method is priced, attached, trained for one update, saved and loaded again, and merged.
Images are as small as the network takes. The smallest come first; a run goes on where the last one stopped.

    python -m measurements.zoos --seconds 600    # of work, before it stops; then the same again
    python -m measurements.zoos --only regnet --again
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import re
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from advisor.costs import Simulator
from advisor.delivery.adapters import Recipe, load_adapter, save_adapter
from advisor.errors import InputError, first_line
from advisor.methods import Method, get_method, methods, middle_rate
from advisor.models import index, load_model, take_census
from advisor.models.layers import logits
from advisor.records import Candidate, Census, Levers
from advisor.system.files import write_whole
from advisor.training.update import begin, solve_head, update
from measurements.tables import README, table, write_tables

RESULTS = Path(__file__).parent / "results" / "zoos.json"
SIDES = (64, 96, 128, 160)  # tried before the network's own
BATCH, RANK = 2, 4
CLOSE = 1e-5  # of outputs, against the largest, or 1
SMALL = ("test_", "atto", "femto", "pico", "nano", "xxs", "xxt", "tiny", "_xs", "_s", "small", "mini")


@dataclass(frozen=True)
class Network:
    name: str  # as on the command line
    family: str  # timm's module and the architecture's first word; torchvision's networks are one each
    size: int  # how long it takes, roughly: entries of its state dict, and parameters where they are known


def networks() -> list[Network]:
    """The smallest first."""
    import timm

    with np.load(Path(index.__file__).with_name("index.npz")) as file:
        known = dict(zip(file["models"].tolist(), file["sizes"].tolist(), strict=True))
    families = {
        f"timm:{name}": f"{module}, {_leading(name)}"
        for module in timm.list_modules()
        for name in timm.list_models(module=module)
    }
    found = [
        Network(name, name, size + _parameters(name.removeprefix("torchvision:")) // 100_000)
        for name, size in known.items()
        if name.startswith("torchvision:")
    ]
    smallest: dict[str, Network] = {}
    for name, size in sorted(known.items(), key=lambda item: (item[1], _rank(item[0]), item[0])):
        family = families.get(name)
        if family is not None and (
            family not in smallest or _rank(name) < _rank(smallest[family].name) == len(SMALL)
        ):
            smallest[family] = Network(name, family, size)
    # Few entries may be large ones: of timm's, those whose names say that they are small come first.
    return sorted(
        (*found, *smallest.values()),
        key=lambda network: (
            network.name.startswith("timm:") and _rank(network.name) == len(SMALL),
            network.size,
            network.name,
        ),
    )


def _parameters(name: str) -> int:
    from torchvision.models import get_model_weights

    return int(next(iter(get_model_weights(name))).meta["num_params"])


def _leading(name: str) -> str:
    """The word that names an architecture: mixnet of tf_mixnet_s, but not whose weights these are."""
    word = re.match("(?:test_|tf_|hf_|legacy_)?([a-z]+)", name)
    return word[1] if word else name


def _rank(name: str) -> int:
    return next((place for place, word in enumerate(SMALL) if word in name), len(SMALL))


def tried(name: str) -> Iterator[tuple[str, Any]]:
    """What is found out about a network, piece by piece."""
    torch.manual_seed(0)
    begun = time.process_time()
    loaded = load_model(name)
    model = loaded.module
    yield "load seconds", time.process_time() - begun
    yield "parameters", sum(parameter.numel() for parameter in model.parameters())
    begun = time.process_time()
    census = _census(model, loaded.input_size or (3, 224, 224))
    yield "census seconds", time.process_time() - begun
    yield "input size", census.input_size
    yield "classifier", census.head
    yield "blocks", len(census.blocks)
    yield "whole because", census.whole_because
    images = torch.randn(BATCH, *census.input_size)
    labels = torch.arange(BATCH) % (census.classes or 1)
    with torch.no_grad():
        before = logits(model.eval()(images[:1]))
    simulator = Simulator(model, census, BATCH)
    for method in methods().values():
        yield method.name, _method(method, model, census, simulator, images, labels, before)


def _census(model: nn.Module, own: tuple[int, int, int]) -> Census:
    """At the smallest size that the network runs on, in training, too."""
    for side in SIDES:
        size = (own[0], side, side)
        if side >= own[1]:
            break
        try:
            census = take_census(model, size)
            copied = copy.deepcopy(model).train()
            logits(copied(torch.randn(BATCH, *size))).sum().backward()
        except Exception:  # noqa: BLE001 - it takes larger ones, or its own alone
            continue
        return census
    return take_census(model, own)


def _method(
    method: Method,
    model: nn.Module,
    census: Census,
    simulator: Simulator,
    images: torch.Tensor,
    labels: torch.Tensor,
    before: torch.Tensor,
) -> dict[str, Any]:
    """Its fidelity and seconds, or at which step which error came."""
    one = images[:1]  # once trained, an image's outputs are its own
    step = "settings"
    begun = time.process_time()
    try:
        if method.needs_data:
            return {"without": "it needs images"}
        settings = method.settings(census, (RANK,))
        if not settings:
            return {"without": "the network has nothing for it"}
        candidate = Candidate.of(method.name, settings[len(settings) // 2], Levers())
        step = "costs"
        cost = simulator.cost(candidate, BATCH)
        seconds = time.process_time() - begun
        step = "attach"
        copied = copy.deepcopy(model)
        trainable, optimizer = begin(copied, census, candidate, _rate(candidate))
        _same(copied, one, before, "before training")
        step = "update"
        trainable.train_mode()
        loss = update(trainable, optimizer, images, labels)
        if loss is not None and not loss.isfinite():
            raise ValueError("the loss is not finite")
        if trainable.solved is not None:
            solve_head(trainable, census, [(images, labels)])
        del optimizer, loss  # with the gradients twice the largest networks' memory
        copied.zero_grad()
        step = "reload"
        with torch.no_grad():
            after = logits(copied.eval()(one))
        with tempfile.TemporaryDirectory() as folder:
            save_adapter(folder, trainable, Recipe.of(model, candidate, census))
            _same(load_adapter(model, folder), one, after, "once loaded")
        step = "merge"
        _same(get_method(method.name).merge(copied), one, after, "once merged")
    except InputError as refused:
        return {"without": first_line(refused)}
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return {"step": step, "error": f"{type(error).__name__}: {first_line(error)}"[:300]}
    return {"fidelity": cost.fidelity, "seconds": seconds, "uncounted": list(cost.uncounted_operators)}


def _rate(candidate: Candidate) -> float:
    return middle_rate(candidate) if get_method(candidate.method).learning_rates else 1e-3


def _same(model: nn.Module, images: torch.Tensor, expected: torch.Tensor, when: str) -> None:
    with torch.no_grad():
        found = logits(model.eval()(images))
    off = float((found - expected).abs().max() / expected.abs().max().clamp_min(1))
    if not off <= CLOSE:
        raise ValueError(f"outputs differ by {off:.0e} {when}")


def in_a_process(name: str, seconds: int, memory: int) -> dict[str, Any]:
    """What is found out within these limits, of processor time and bytes; `failed` says why no more is."""
    fork = multiprocessing.get_context("fork")
    reader, writer = fork.Pipe(duplex=False)
    child = fork.Process(target=_child, args=(name, writer, seconds, memory))
    child.start()
    writer.close()
    found: dict[str, Any] = {}
    try:
        while True:
            found |= dict([reader.recv()])
    except EOFError:
        child.join()
    if child.exitcode and "failed" not in found:
        found["failed"] = f"ended with exit code {child.exitcode}: {seconds} s, {memory / 1e9:.0f} GB allowed"
    return found


def _child(name: str, writer: Any, seconds: int, memory: int) -> None:
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, used + seconds + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    try:
        for part in tried(name):
            writer.send(part)
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        writer.send(("failed", f"{type(error).__name__}: {first_line(error)}"[:300]))


def outcome(found: dict[str, Any]) -> str:
    """`right`, or what is wrong."""
    if "failed" in found:
        return f"failed: {found['failed']}"
    wrong = defaultdict(list)
    for method in methods():
        if "error" in (each := found[method]):
            wrong[f"{each['step']}: {each['error']}"].append(method)
    return "; ".join(f"{', '.join(names)}: {why}" for why, names in wrong.items()) or "right"


def write(known: dict[str, Any], every: list[Network]) -> None:
    """The results, and the README's tables."""
    families = {network.name: network.family for network in every}
    document = {"networks": known, "versions": _versions()}
    write_whole(RESULTS, json.dumps(document, indent=1) + "\n")
    rows, wrong = [], []
    for library in ("torchvision", "timm"):
        mine = {name: found for name, found in known.items() if name.startswith(f"{library}:")}
        outcomes = {name: outcome(found) for name, found in mine.items()}
        wrong += [(name, said.replace("|", "/")) for name, said in outcomes.items() if said != "right"]
        right = sum(said == "right" for said in outcomes.values())
        of = sum(name.startswith(f"{library}:") for name in families)
        whole = sum(bool(found.get("whole because")) for found in mine.values())
        slow = [sum(each["seconds"] for each in _priced(found)) for found in mine.values()]
        priced = (f"{np.median(slow):.1f}", f"{max(slow):.1f}") if slow else ("-", "-")
        rows.append((library, of, len(mine), right, whole, *priced))
    heads = (
        "library",
        "networks",
        "tried",
        "all right",
        "no last part of it",
        "seconds to price, median",
        "most",
    )
    tables = {
        "zoos": table(heads, rows),
        "zoos-wrong": table(("network", "what is wrong"), wrong or [("none", "-")]),
    }
    write_tables(README, tables)


def _priced(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in found.values() if isinstance(each, dict) and "seconds" in each]


def _versions() -> dict[str, str]:
    import timm
    import torchvision

    return {"torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__}


def main() -> None:
    """Go on with the study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin no other network after so many"
    )
    parser.add_argument("--only", default="", help="a part of the names")
    parser.add_argument("--again", action="store_true", help="also what was tried and is not right")
    parser.add_argument("--limit", type=int, default=600, help="processor seconds for one network")
    parser.add_argument("--memory", type=float, default=12, help="GB for one network")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    known = json.loads(RESULTS.read_text())["networks"] if RESULTS.exists() else {}
    every = networks()
    begun = time.monotonic()
    for network in every:
        name = network.name
        done = name in known and not (given.again and outcome(known[name]) != "right")
        if done or given.only not in name:
            continue
        if time.monotonic() - begun > given.seconds:
            break
        known[name] = in_a_process(name, given.limit, int(given.memory * 1e9))
        write(known, every)
        sys.stderr.write(f"{name}: {outcome(known[name])}\n")
    counts = Counter(outcome(found) == "right" for found in known.values())
    print(f"{counts[True]} right, {counts[False]} not, {len(every) - len(known)} to come")


if __name__ == "__main__":
    main()
