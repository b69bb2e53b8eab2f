"""Study: seconds of updates as predicted from this machine's profile, and as they are.

    python -m measurements.device           # about 8 minutes on a machine that does nothing else
    python -m measurements.device --quick   # one thread, the first few updates
    python -m measurements.device --tables  # writes those of what is known, and runs nothing

For 1 and for 2 threads: the profile is measured as `peft-advisor device measure` does, then updates of
networks that it knows nothing of are priced and run as on a board, each in a process that has run nothing
else: what others have freed would spare it memory that the kernel hands out. The fastest of its repetitions
counts. With one thread the clock is the processor's own, so other programs hardly matter. What is known is
kept at once: started again, it goes on; --anew forgets it. Writes results/device.json and the tables in
README.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import astuple
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import nn

from advisor.costs.process import give_back_freed_memory
from advisor.costs.simulate import Simulator
from advisor.device.profile import Clock, read_profile
from advisor.device.program import program
from advisor.models import load_model, take_census
from advisor.models.architectures import import_torchvision
from advisor.records import Candidate, Work
from advisor.training.update import begin, update
from measurements.tables import README, table, write_tables

RESULTS = Path(__file__).parent / "results" / "device.json"
THREADS = (1, 2)
FEWEST, SECONDS, MOST_SECONDS = 6, 1.0, 8.0  # of an update's repetitions
# (network, side of the images, batch, candidates)
UPDATES = (
    ("mobilenet_v2", 96, 8, ("full", "norm@last-3", "lora-rank=4", "head")),
    ("resnet18", 64, 8, ("full", "lora-rank=4@last-2", "recalibrate")),
    ("mobilenet_v3_small", 128, 4, ("full", "ssf", "bias@last-4@micro-2")),
    ("shufflenet_v2_x1_0", 96, 8, ("full@momentum", "norm")),
    ("efficientnet_b0", 64, 4, ("full@sgd", "adapter-kind=parallel-reduction=8@last-4")),
    ("regnet_y_400mf", 64, 4, ("full", "head")),
    ("mnasnet0_5", 96, 16, ("full", "lora-rank=4@last-4")),
    ("squeezenet1_1", 96, 16, ("full@sgd", "bias")),
    ("densenet121", 64, 4, ("full", "ssf@last-2")),
    ("convnext_tiny", 64, 2, ("norm",)),
    ("small", 32, 16, ("full", "dora-rank=2", "norm@checkpoint", "head")),
)
QUICK = 3


class Small(nn.Module):
    """Of three residual blocks, for 32-pixel images: what an operator takes besides its work counts here."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(*(self._block(16) for _ in range(3)))
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores (N, 10)."""
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        scores: torch.Tensor = self.head(x.mean((2, 3)))
        return scores

    def _block(self, width: int) -> nn.Sequential:
        one = (nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        return nn.Sequential(*one, nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))


def network(name: str) -> nn.Module:
    """With random weights, which take as long as any."""
    torch.manual_seed(0)
    return Small() if name == "small" else load_model(f"torchvision:{name}").module


def measured(threads: int) -> dict[str, Any]:
    """This machine's profile, from the program that runs on a board."""
    command = [sys.executable, "-P", "-c", program(), "--threads", str(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def fastest_update(name: str, side: int, batch_size: int, text: str, threads: int) -> float:
    """Seconds of one update, as a bundle's finetune.py runs it, in a process of its own."""
    torch.set_num_threads(threads)
    # Random weights lead to such numbers, which take longer; trained ones don't.
    torch.set_flush_denormal(True)
    give_back_freed_memory()
    module = network(name)
    census = take_census(module, (3, side, side))
    trainable, optimizer = begin(module, census, Candidate.parse(text), learning_rate=1e-6)
    images = torch.rand(batch_size, 3, side, side)
    labels = torch.arange(batch_size) % (census.classes or 1)
    clock = time.process_time if threads == 1 else time.perf_counter
    update(trainable, optimizer, images, labels)
    best, total, count = float("inf"), 0.0, 0
    while (count < FEWEST or total < SECONDS) and total < MOST_SECONDS:
        before = clock()
        update(trainable, optimizer, images, labels)
        took = clock() - before
        best, total, count = min(best, took), total + took, count + 1
    return best


def study(threads: int, results: dict[str, Any], *, quick: bool) -> None:
    """Of one thread count; kept after every update."""
    own = results.setdefault(str(threads), {"updates": []})
    if "profile" not in own:
        own["profile"] = measured(threads)
        keep(results)
    known = {(each["network"], each["candidate"]) for each in own["updates"]}
    import_torchvision()  # once, and nothing is run here: a process that is forked off begins as it is
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as fresh:
        for name, side, batch_size, candidates in UPDATES[: QUICK if quick else None]:
            for text in candidates:
                if (name, text) in known:
                    continue
                seconds = fresh.apply(fastest_update, (name, side, batch_size, text, threads))
                found = {"network": name, "candidate": text, "side": side, "batch_size": batch_size}
                own["updates"].append(found | {"measured_seconds": seconds})
                keep(results)
                print(f"{threads} {name} {text}: {1e3 * seconds:.1f} ms", flush=True)


def price(own: dict[str, Any]) -> None:
    """What each update asks of a device."""
    for name, side, batch_size, _ in UPDATES:
        wanted = [each for each in own["updates"] if each["network"] == name and "work" not in each]
        if not wanted:
            continue
        module = network(name)
        simulator = Simulator(module, take_census(module, (3, side, side)), workspace=False)
        for each in wanted:
            cost = simulator.cost(Candidate.parse(each["candidate"]), batch_size)
            each["work"] = [list(astuple(work)) for work in cost.work]


def predict(own: dict[str, Any]) -> None:
    """The seconds of every update that was priced, from the profile as it is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "here.json")
        path.write_text(json.dumps(own["profile"]))
        clock = Clock(read_profile(str(path)))
    for each in own["updates"]:
        each["predicted_seconds"] = clock.update_seconds(Work(*values) for values in each["work"])


def keep(results: dict[str, Any]) -> None:
    """Write all that is known."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def _off(each: dict[str, Any]) -> float:
    off: float = each["predicted_seconds"] / each["measured_seconds"] - 1
    return off


def summary(updates: list[dict[str, Any]]) -> dict[str, float]:
    """How far predictions are off, and whether their order is right: over all, and within each network."""
    from scipy.stats import spearmanr

    off = sorted(abs(_off(each)) for each in updates)
    predicted, actual = ([each[f"{kind}_seconds"] for each in updates] for kind in ("predicted", "measured"))
    return {
        "updates": len(updates),
        "median_error": median(off),
        "percentile_95": quantiles(off, n=20, method="inclusive")[-1],
        "spearman": float(spearmanr(predicted, actual).statistic),
    }


def tables(results: dict[str, Any]) -> dict[str, str]:
    """For README.md, by name."""
    rows, each_row = [], []
    for threads in map(str, THREADS):
        if threads not in results or not results[threads]["updates"]:
            continue
        found = results[threads]["summary"]
        rows.append(
            (
                threads,
                str(found["updates"]),
                f"{found['median_error']:.0%}",
                f"{found['percentile_95']:.0%}",
                f"{found['spearman']:.2f}",
                f"{results[threads]['profile']['measuring_seconds']:.0f}",
            )
        )
        each_row += [
            (
                f"{each['network']}, {each['side']} pixels, batch {each['batch_size']}",
                each["candidate"],
                threads,
                f"{1e3 * each['predicted_seconds']:.1f}",
                f"{1e3 * each['measured_seconds']:.1f}",
                f"{_off(each):+.0%}",
            )
            for each in results[threads]["updates"]
        ]
    header = ("threads", "updates", "median error", "95th percentile", "Spearman", "seconds to measure")
    columns = ("network", "candidate", "threads", "predicted, ms", "measured, ms", "off")
    return {"device": table(header, rows), "device_updates": table(columns, each_row)}


def main() -> None:
    """Run it, or what of it is not known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tables", action="store_true", help="of what is known, and nothing else")
    parser.add_argument("--anew", action="store_true", help="forget what is known")
    parser.add_argument("--threads", type=int, help="this number alone")
    options = parser.parse_args()
    if options.anew and options.threads is None:
        RESULTS.unlink(missing_ok=True)
    if options.threads is not None:
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        study(options.threads, results, quick=options.quick)
        return
    for threads in THREADS[: 0 if options.tables else 1 if options.quick else None]:
        more = ["--quick"] if options.quick else []
        command = [sys.executable, "-m", "measurements.device", "--threads", str(threads), *more]
        subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=True)
    results = json.loads(RESULTS.read_text())
    for threads in map(str, THREADS):
        if threads in results:
            price(results[threads])
            predict(results[threads])
            results[threads]["summary"] = summary(results[threads]["updates"])
            results[threads]["profile"].pop("samples", None)
    results["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    results["torch"] = torch.__version__
    keep(results)
    if not options.quick:
        write_tables(README, tables(results))


if __name__ == "__main__":
    main()
