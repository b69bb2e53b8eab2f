"""Study: what `peft-advisor check` takes, that it says the same every time, and how a real change looks.

    python -m measurements.check_costs           # about 3 minutes
    python -m measurements.check_costs --quick   # mobilenet_v2 alone

The change is one block of mobilenet_v2 that is twice as wide inside. Writes results/check_costs.json, the
table in README.md, and reports/check.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from measurements.tables import README, table, write_tables

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "check_costs.json"
REPORT = ROOT / "reports" / "check.md"
MODELS = ("mobilenet_v2", "mobilenet_v3_small", "resnet18")
CANDIDATE = "lora-rank=4@last-3"
BLOCK = 2  # of mobilenet_v2's features; its channels inside are doubled


def plain() -> nn.Module:
    """mobilenet_v2 as torchvision has it."""
    import torchvision

    return torchvision.models.mobilenet_v2(weights=None)


def widened() -> nn.Module:
    """With one block twice as wide inside."""
    model = plain()
    (expand, depthwise, project, norm) = model.features[BLOCK].conv
    narrow, wide = expand[0].in_channels, 2 * expand[0].out_channels
    model.features[BLOCK].conv = nn.Sequential(
        nn.Sequential(nn.Conv2d(narrow, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True)),
        nn.Sequential(
            nn.Conv2d(wide, wide, 3, depthwise[0].stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(inplace=True),
        ),
        nn.Conv2d(wide, project.out_channels, 1, bias=False),
        norm,
    )
    return model


def command(*arguments: str, folder: Path, **environment: str) -> tuple[int, float]:
    """Run peft-advisor in the folder: its exit code, and seconds."""
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "advisor", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 2:
        raise RuntimeError(done.stderr)
    return done.returncode, time.perf_counter() - begun


def configured(folder: Path, models: dict[str, str], **limits: str) -> None:
    """Write a configuration of these models, by name, with these limits for all."""
    lines = [
        "[tool.peft-advisor]",
        *(f'{key.replace("_", "-")} = "{value}"' for key, value in limits.items()),
    ]
    for name, source in models.items():
        lines += ["", f"[tool.peft-advisor.models.{name}]", f'model = "{source}"']
    (folder / "pyproject.toml").write_text("\n".join(lines) + "\n")


def timed(models: tuple[str, ...], repeats: int, **limits: str) -> dict[str, Any]:
    """Seconds of a check against a baseline, every method priced; whether baselines are the same bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        configured(folder, {model: f"torchvision:{model}" for model in models}, **limits)
        baselines = set()
        for threads in ("1", "2"):
            command("check", "--update", folder=folder, OMP_NUM_THREADS=threads)
            baselines.add((folder / "peft-advisor-baseline.json").read_bytes())
        runs = [command("check", folder=folder) for _ in range(repeats)]
    return {
        "models": list(models),
        "limits": limits,
        "seconds": [seconds for _, seconds in runs],
        "exit_codes": [code for code, _ in runs],
        "baselines_differ": len(baselines) > 1,
    }


def real_change() -> dict[str, Any]:
    """The Markdown for a pull request that widens one block."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "nets.py").write_text("from measurements.check_costs import plain as build\n")
        model = ("nets:build", "--name", "camera", "--input-size", "3x224x224")
        limits = ("--ram", "160MB", "--candidate", CANDIDATE)
        command("init", *model, *limits, folder=folder)
        (folder / "nets.py").write_text("from measurements.check_costs import widened as build\n")
        code, _ = command("check", "--markdown", "check.md", "--json", "check.json", folder=folder)
        REPORT.write_text((folder / "check.md").read_text())
        document = json.loads((folder / "check.json").read_text())
    (target,) = document["targets"]
    return {
        "exit_code": code,
        "rules": [finding["rule"] for finding in target["findings"]],
        "layers": [layer["name"] for layer in target["findings"][0]["layers"]],
        "before": target["before"]["figures"],
        "now": target["now"]["figures"],
    }


def main() -> None:
    """Run the study and write what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    cases = [timed(MODELS[:1], 3), timed(MODELS[:1], 3, ram="100MB")]
    if not quick:
        cases.append(timed(MODELS, 3))
    document = {
        "cases": cases,
        "change": real_change(),
        "machine": {"cores": os.cpu_count(), "torch": torch.__version__},
    }
    rows = [
        [
            ", ".join(case["models"]),
            case["limits"].get("ram", "none"),
            f"{min(case['seconds']):.1f}",
            f"{max(case['seconds']):.1f}",
            "no" if case["baselines_differ"] else "yes",
        ]
        for case in cases
    ]
    head = ["checked", "--ram", "seconds, fastest", "slowest", "same bytes with 1 and 2 threads"]
    print(table(head, rows))
    if not quick:
        RESULTS.write_text(json.dumps(document, indent=2) + "\n")
        write_tables(README, {"check_costs": table(head, rows)})


if __name__ == "__main__":
    main()
