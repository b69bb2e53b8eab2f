"""Study: what a bundle's finetune.py takes of a board's memory, as predicted and as it is.

    python -m measurements.resident              # about 10 minutes
    python -m measurements.resident --quick      # the first network alone
    python -m measurements.resident --tables     # writes those of what is known, and runs nothing
    python -m measurements.resident --python ONE/bin/python OTHER/bin/python    # their builds of PyTorch

Predicted: what the runtime takes there, with the kernels that it makes for shapes of convolutions, the
update's simulated peak, and the images of a batch on their way. Measured: the most that was resident in the
process, from its start to its end (the kernel's VmHWM): photos are read, both networks judged, an epoch is
trained, and files are written. What is known, failures included, is kept at once: started again, it goes on;
--anew forgets it. Writes results/resident.json and the tables in README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
from PIL import Image

from advisor.advise import recommend
from advisor.board.export import SCRIPT, export
from advisor.delivery.apply import Application
from advisor.device.program import program
from advisor.plain import decode, encode
from advisor.records import Budget, Candidate, Cost, Evaluation, Runtime
from advisor.story.pricing import simulator_for
from advisor.story.situation import Request, prepare
from measurements.tables import README, table, write_tables

RESULTS = Path(__file__).parent / "results" / "resident.json"
CLASSES, PHOTOS = 4, 15  # of each class
# (network, side of the images, batch, candidates)
UPDATES = (
    (
        *("mobilenet_v2", 96, 16),
        ("full", "full@checkpoint@per-parameter", "lora-rank=4@last-6", "norm@micro-4", "head"),
    ),
    ("mobilenet_v2", 128, 4, ("full@momentum", "ssf@last-3", "ridge-features=late", "recalibrate", "ia3")),
    ("resnet18", 64, 8, ("full", "full@sgd@per-parameter", "galore-rank=4", "lora-rank=8", "head")),
    (
        *("resnet18", 96, 16),
        ("full@last-2", "dora-rank=2@last-4", "norm@checkpoint", "bias", "ridge-features=all"),
    ),
    ("resnet50", 64, 4, ("full", "full@sgd@per-parameter", "norm", "lora-rank=4@last-3", "head")),
    ("mobilenet_v3_small", 128, 16, ("full", "ssf", "bias@last-4@micro-2", "lokr-rank=4", "head")),
    ("mobilenet_v3_large", 96, 8, ("full", "norm@statistics-frozen", "adapter", "tent", "recalibrate")),
    (
        "shufflenet_v2_x1_0",
        96,
        16,
        ("full@momentum", "norm", "lora-rank=4@checkpoint", "loha-rank=2", "head"),
    ),
    ("efficientnet_b0", 64, 8, ("full@sgd", "full@micro-2", "norm@last-4", "ssf", "head@head-ridge-late")),
    ("efficientnet_b0", 96, 16, ("full@checkpoint", "lora-rank=4", "bias@last-3", "sparse", "head")),
    ("regnet_y_400mf", 64, 16, ("full", "full@last-2", "norm@micro-8", "dora-rank=4", "ridge-features=last")),
    ("squeezenet1_1", 96, 16, ("full", "lora-rank=4", "bias", "full@last-3", "head")),
    ("convnext_tiny", 64, 4, ("full@sgd", "norm", "head")),
)
# Where a method has settings that are not in its name above.
SETTINGS = {
    "adapter": "adapter-kind=parallel-reduction=8@last-4",
    "sparse": "sparse-fraction=0.25",
    "ridge-features=all": "ridge-features=all",
}


def photos(folder: Path) -> Path:
    """Pictures of noise, which take as much memory as any."""
    random = np.random.default_rng(0)
    for number in range(CLASSES * PHOTOS):
        path = folder / f"class{number % CLASSES}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (160, 160, 3), dtype=np.uint8)).save(path)
    return folder


def runtime_of(python: str) -> tuple[str, Runtime]:
    """The build of PyTorch that an interpreter has, and what its runtime takes."""
    told = subprocess.run(
        [python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True, check=True
    )
    command = [python, "-P", "-c", program(), "--runtime", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return told.stdout.strip(), Runtime(found["runtime_bytes"], "", found["kernel_bytes"])


def bundles(
    network: str, side: int, batch_size: int, candidates: Iterable[str], data: Path, folder: Path, epochs: int
) -> Iterator[tuple[Candidate, Cost]]:
    """Each candidate in turn, with its cost, as a bundle in the folder that is as if it had been advised."""
    request = Request(
        data=str(data),
        input_size=(3, side, side),
        batch_size=batch_size,
        methods=("head",),
        probe_seconds=None,
        verify=False,
    )
    model = f"torchvision:{network}"
    advice = recommend(model, Budget(), request)
    simulator = simulator_for(prepare(model, request, lambda *_: None))
    for candidate in map(Candidate.parse, candidates):
        cost = simulator.cost(candidate, batch_size)
        told = replace(advice, evaluations=(Evaluation(candidate, cost),), recommended=candidate.id)
        export(model, told, Application(folder / "bundle", epochs=epochs))
        yield candidate, cost


def study(pythons: Sequence[str], results: dict[str, Any], *, quick: bool) -> None:
    """Every update that is not known yet, of each build; kept after each, those that fail as well."""
    builds = {}
    for python in pythons:
        build, runtime = runtime_of(python)
        builds[build] = python
        results.setdefault(build, {"runtime": encode(runtime), "updates": []})

    def missing(name: str, side: int, batch_size: int, text: str) -> list[str]:
        """Builds of which it is not known."""
        asked = {"network": name, "side": side, "batch_size": batch_size, "candidate": text}.items()
        return [
            build for build in builds if not any(asked <= each.items() for each in results[build]["updates"])
        ]

    with tempfile.TemporaryDirectory() as folder:
        data = photos(Path(folder, "photos"))
        for name, side, batch_size, candidates in UPDATES[: 1 if quick else None]:
            named = [SETTINGS.get(each, each) for each in candidates]
            wanted = {text: found for text in named if (found := missing(name, side, batch_size, text))}
            if not wanted:
                continue
            for candidate, cost in bundles(name, side, batch_size, wanted, data, Path(folder), epochs=1):
                text = candidate.id
                known = {"network": name, "side": side, "batch_size": batch_size, "candidate": text}
                known |= {
                    "update_bytes": cost.peak_memory_bytes,
                    "kernels": cost.kernels,
                    "in_flight_bytes": batch_size * 3 * side * side,
                }
                for build in wanted[text]:
                    found = known | outcome(builds[build], Path(folder), data)
                    results[build]["updates"].append(found)
                    keep(results)
                    line = said(found, decode(Runtime, results[build]["runtime"]))
                    print(f"{build} {name} {side} b{batch_size} {text}: {line}", flush=True)


def outcome(python: str, folder: Path, data: Path) -> dict[str, Any]:
    """Bytes that were resident at most while the folder's bundle ran, or why it didn't come to its end."""
    output = Path(tempfile.mkdtemp(dir=folder))
    command = [python, str(folder / "bundle" / SCRIPT), str(data), "--output", str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        *_, last = [f"it ended with {done.returncode}", *filter(None, done.stderr.splitlines())]
        return {"failure": last}
    return {"measured_bytes": json.loads((output / "history.json").read_text())["peak_resident_bytes"]}


def said(each: Mapping[str, Any], runtime: Runtime) -> str:
    """How far the prediction is off, or why there is nothing to hold it against."""
    if "failure" in each:
        return f"failed: {each['failure']}"
    predicted, measured = predicted_bytes(each, runtime), each["measured_bytes"]
    return f"{off(each, runtime):+.1%}; predicted {predicted / 1e6:.1f} MB, measured {measured / 1e6:.1f}"


def keep(results: dict[str, Any]) -> None:
    """Write all that is known."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def predicted_bytes(each: Mapping[str, Any], runtime: Runtime) -> int:
    """The runtime with the kernels that it makes, the update, and a batch's images on their way."""
    of_kernels = each["kernels"] * runtime.kernel_bytes
    return int(runtime.bytes + of_kernels + each["update_bytes"] + each["in_flight_bytes"])


def off(each: Mapping[str, Any], runtime: Runtime) -> float:
    """How much more is predicted than was measured, relatively."""
    return float(predicted_bytes(each, runtime) / each["measured_bytes"] - 1)


def summary(own: Mapping[str, Any]) -> dict[str, float]:
    """How far predictions are off, over all updates of a build that came to their end."""
    runtime = decode(Runtime, own["runtime"])
    signed = [off(each, runtime) for each in own["updates"] if "failure" not in each]
    errors = [abs(each) for each in signed]
    return {
        "updates": len(errors),
        "failed": len(own["updates"]) - len(errors),
        "median_error": median(errors),
        "percentile_95": quantiles(errors, n=20, method="inclusive")[-1],
        "within_5_percent": sum(error <= 0.05 for error in errors) / len(errors),
        "most_short": -min(signed),
    }


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """For README.md, by name."""
    rows, each_row = [], []
    for build, own in results.items():
        found, runtime = summary(own), decode(Runtime, own["runtime"])
        rows.append(
            (
                build,
                f"{runtime.bytes / 1e6:.0f}",
                f"{runtime.kernel_bytes / 1e3:.0f}",
                str(found["updates"]),
                str(found["failed"]),
                f"{found['median_error']:.1%}",
                f"{found['percentile_95']:.1%}",
                f"{found['within_5_percent']:.0%}",
                f"{found['most_short']:.1%}",
            )
        )
        each_row += [
            (
                f"{each['network']}, {each['side']} pixels, batch {each['batch_size']}",
                each["candidate"],
                build,
                f"{predicted_bytes(each, runtime) / 1e6:.0f}",
                *(
                    (each["failure"], "failed")
                    if "failure" in each
                    else (f"{each['measured_bytes'] / 1e6:.0f}", f"{off(each, runtime):+.1%}")
                ),
            )
            for each in own["updates"]
        ]
    header = (
        *("PyTorch", "runtime, MB", "a kernel, kB", "updates", "failed"),
        *("median error", "95th percentile", "within 5 %", "most too low"),
    )
    columns = ("network", "candidate", "PyTorch", "predicted, MB", "measured, MB", "off")
    return {"resident": table(header, rows), "resident_updates": table(columns, each_row)}


def main() -> None:
    """Run it, or what of it is not known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tables", action="store_true", help="of what is known, and nothing else")
    parser.add_argument("--anew", action="store_true", help="forget what is known")
    parser.add_argument(
        "--python",
        nargs="+",
        default=[sys.executable],
        help="that have PyTorch and Pillow; default: this one",
    )
    options = parser.parse_args()
    if options.anew:
        RESULTS.unlink(missing_ok=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not options.tables:
        study(options.python, results, quick=options.quick)
    if not options.quick:
        write_tables(README, tables(results))


if __name__ == "__main__":
    main()
