"""Study: simulated peak memory of an update against the CPU allocator's own events.

    python -m measurements.memory_accuracy             # torchvision's classifiers, about 16 minutes
    python -m measurements.memory_accuracy --quick     # five of them, under 2 minutes
    python -m measurements.memory_accuracy --minutes 240   # more models, methods and batches

Every model in turn, smallest first, with the next few methods in turn, at batch 1 and 8, until the time
is over; a second, third, ... round takes the methods that are left. Writes
results/memory_accuracy.json and the table in README.md. torchinfo comes with the extra `studies`.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from advisor.costs import Simulator
from advisor.costs.allocator import allocator_peak
from advisor.costs.simulate import shape_copy
from advisor.methods import methods
from advisor.models.layers import take_census
from advisor.records import Candidate, Census, Levers
from advisor.training.update import begin, update
from measurements.tables import README, table, write_tables

QUICK = ("squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small", "mobilenet_v2", "resnet18")
PEERS = ("mobilenet_v2", "mobilenet_v3_small", "resnet18", "efficientnet_b0", "shufflenet_v2_x1_0")
SIZE = (3, 224, 224)
AT_ONCE = 3  # methods of one model in one round
MOST_BYTES = 8e9  # an update that would hold more is left out
MOST_SECONDS = 40.0  # so is one that would take longer
MIB = 2**20
RESULTS = Path(__file__).parent / "results" / "memory_accuracy.json"


def models() -> list[str]:
    """torchvision's classifiers by parameters."""
    names = torchvision.models.list_models(module=torchvision.models)
    weights = {name: torchvision.models.get_model_weights(name) for name in names}
    return sorted(names, key=lambda name: next(iter(weights[name])).meta["num_params"])


def candidates(census: Census) -> list[Candidate]:
    """One of each method."""
    found = []
    for name, method in methods().items():
        settings = list(method.settings(census, (4,)))
        found += [Candidate.of(name, settings[0], Levers())] if settings else []
    return found


def measure(model: nn.Module, census: Census, candidate: Candidate, batch: int) -> int:
    """The allocator's peak in the second update."""
    trainable, optimizer = begin(copy.deepcopy(model), census, candidate, 1e-6)
    images, labels = torch.rand(batch, *census.input_size), torch.zeros(batch, dtype=torch.int64)
    update(trainable, optimizer, images, labels)
    gc.collect()
    return allocator_peak(trainable, optimizer, images, labels)


def study(names: list[str], seconds: float) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows, and what was left out."""
    start = time.perf_counter()
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for round_ in range(-(-len(methods()) // AT_ONCE)):
        for position, name in enumerate(names):
            if name in left_out:
                continue
            if time.perf_counter() - start > seconds:
                return rows, [f"{name}: {why}" for name, why in left_out.items()]
            try:
                for row in _rows(name, round_, position):
                    rows.append(row)
                    print(
                        f"{row['model']:24s} b{row['batch']} {row['candidate']:28s} "
                        f"{row['measured_bytes'] / MIB:9.1f} MiB {row['error']:+.3%}",
                        flush=True,
                    )
            except _LeftOutError as why:
                left_out[name] = str(why)
            except RuntimeError as error:
                left_out[name] = f"an update fails: {str(error).strip().splitlines()[0]}"
    return rows, [f"{name}: {why}" for name, why in left_out.items()]


class _LeftOutError(Exception):
    pass


def _rows(name: str, round_: int, position: int) -> Iterator[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torchvision.models.get_model(name, weights=None)
    size = (3, 299, 299) if name == "inception_v3" else SIZE
    begun = time.perf_counter()
    census = take_census(model, size)
    forward = (time.perf_counter() - begun) / 2
    everything = candidates(census)
    # Shifted by the model, so that one round has every method.
    first = (round_ * AT_ONCE + position * AT_ONCE) % len(everything)
    chosen = [everything[(first + offset) % len(everything)] for offset in range(AT_ONCE)]
    counted, tensors = Simulator(model, census), Simulator(model, census, workspace=False)
    for batch in (1, 8):
        if batch * forward * 8 > MOST_SECONDS:  # two updates, each about three forward passes
            if batch == 1:
                raise _LeftOutError(f"an update takes more than {MOST_SECONDS:g} s")
            continue
        for candidate in chosen:
            try:
                simulated = counted.cost(candidate, batch)
            except ValueError as error:  # BatchNorm refuses to normalise one value
                if batch == 1 and "more than 1 value" in str(error):
                    continue
                raise
            if simulated.peak_memory_bytes > MOST_BYTES:
                continue
            measured = measure(model, census, candidate, batch)
            yield {
                "model": name,
                "batch": batch,
                "candidate": candidate.id,
                "fidelity": simulated.fidelity,
                "simulated_bytes": simulated.peak_memory_bytes,
                "tensors_bytes": tensors.cost(candidate, batch).peak_memory_bytes,
                "measured_bytes": measured,
                "error": simulated.peak_memory_bytes / measured - 1,
            }


def peers(names: tuple[str, ...], batch: int = 8) -> list[dict[str, Any]]:
    """Full fine-tuning with Adam: ours, torch's MemTracker and torchinfo, in bytes."""
    from torchinfo import summary

    found = []
    for name in names:
        model = torchvision.models.get_model(name, weights=None)
        census = take_census(model, SIZE)
        ours = Simulator(model, census).cost(Candidate("full"), batch)
        theirs = summary(model, input_size=(batch, *SIZE), verbose=0, device="cpu")
        found.append(
            {
                "model": name,
                "batch": batch,
                "measured_bytes": measure(model, census, Candidate("full"), batch),
                "ours_bytes": ours.peak_memory_bytes,
                "mem_tracker_bytes": mem_tracker(model, batch)[0],
                # What its summary prints as the estimated total size.
                "torchinfo_bytes": theirs.total_input + theirs.total_output_bytes + theirs.total_param_bytes,
            }
        )
    return found


def mem_tracker(model: nn.Module, batch: int) -> tuple[int, float]:
    """Its peak and time of one update on fake tensors, the optimizer's state in place."""
    mode = FakeTensorMode()
    copied = shape_copy(model, mode)
    with mode:
        copied.train()
        optimizer = torch.optim.Adam(copied.parameters())
        images, labels = torch.zeros(batch, *SIZE), torch.zeros(batch, dtype=torch.int64)
        tracker = MemTracker()
        tracker.track_external(copied, optimizer, images, labels)
        with tracker:
            for round_ in range(2):
                if round_:
                    tracker.reset_mod_stats()  # it refuses a second call of a module otherwise
                begun = time.perf_counter()
                F.cross_entropy(copied(images), labels).backward()
                optimizer.step()
                optimizer.zero_grad()
                seconds = time.perf_counter() - begun
    peak = next(iter(tracker.get_tracker_snapshot("peak").values()))
    return peak["Total"], seconds


def summarise(rows: list[dict[str, Any]]) -> dict[str, float]:
    errors = sorted(abs(row["error"]) for row in rows)
    return {
        "updates": len(rows),
        "models": len({row["model"] for row in rows}),
        "median": statistics.median(errors),
        "percentile_95": errors[int(0.95 * (len(errors) - 1))],
        "largest": errors[-1],
        "most_below": min(row["error"] for row in rows),
        "tensors_only_median": statistics.median(
            abs(row["tensors_bytes"] / row["measured_bytes"] - 1) for row in rows
        ),
        "tensors_only_most_below": min(row["tensors_bytes"] / row["measured_bytes"] - 1 for row in rows),
    }


def tables(summary: dict[str, float], compared: list[dict[str, Any]]) -> str:
    heads = ("updates", "models", "median error", "95th percentile", "largest", "most below the truth")
    errors = (
        *(f"{summary['updates']}", f"{summary['models']}", f"{summary['median']:.3%}"),
        *(f"{summary['percentile_95']:.3%}", f"{summary['largest']:.2%}", f"{summary['most_below']:+.2%}"),
        *(f"{summary['tensors_only_median']:.2%}", f"{summary['tensors_only_most_below']:+.1%}"),
    )
    peers_rows = []
    for row in compared:
        truth = row["measured_bytes"]
        ours, tracked, listed = (
            row[f"{key}_bytes"] / truth - 1 for key in ("ours", "mem_tracker", "torchinfo")
        )
        cells = (f"{truth / MIB:.1f}", f"{ours:+.2%}", f"{tracked:+.2%}", f"{listed:+.1%}")
        peers_rows.append((row["model"], *cells))
    return "\n\n".join(
        (
            table((*heads, "tensors alone: median", "most below"), [errors]),
            table(("full, batch 8", "measured MiB", "ours", "MemTracker", "torchinfo"), peers_rows),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="five models, printed, nothing written")
    parser.add_argument("--minutes", type=float, default=14.0, help="wall clock for the models in turn")
    given = parser.parse_args()
    rows, left_out = study(
        list(QUICK) if given.quick else models(), 60 * (1 if given.quick else given.minutes)
    )
    compared = peers(PEERS[:2] if given.quick else PEERS)
    summary = summarise(rows)
    print(tables(summary, compared))
    print(*left_out, sep="\n")
    if not given.quick:
        content = {
            "input_size": SIZE,
            "torch": torch.__version__.split("+")[0],
            "threads": torch.get_num_threads(),
            "summary": summary,
            "peers": compared,
            "left_out": left_out,
            "rows": rows,
        }
        RESULTS.write_text(json.dumps(content, indent=1) + "\n")
        write_tables(README, {"memory_accuracy": tables(summary, compared)})


if __name__ == "__main__":
    main()
