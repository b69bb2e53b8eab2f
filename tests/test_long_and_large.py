"""Asked a thousand times, of a thousand layers, of a billion parameters: nothing grows that shouldn't."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from advisor import Request, profile, recommend
from advisor.costs.process import process_bytes, return_freed_memory
from tests.processes import ROOT

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]
REQUEST = Request(input_size=(3, 8, 8), batch_size=4, ranks=(2,), probe_seconds=None, verify=False)
FEW = ("full", "head", "norm", "lora")
MOST_GROWTH = 1.0  # kB of memory for each recommendation: less can't be told from noise
NEAR_LINEAR = 1.2  # of the exponent


def network(layers=2, width=8):
    """So many convolutions and linear layers, one after the other."""
    torch.manual_seed(0)
    sizes = [3] + [width] * (layers - 1)
    body = [
        part
        for size in sizes[:-1]
        for part in (nn.Conv2d(size, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    ]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


def alone(function: Callable, *arguments):
    """What the function of this file returns in a process of its own, whose temporary files are its own."""
    code = (
        "import json, sys, tests.test_long_and_large as tests\n"
        "print(json.dumps(getattr(tests, sys.argv[1])(*json.loads(sys.argv[2]))))"
    )
    command = (sys.executable, "-c", code, function.__name__, json.dumps(arguments))
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": folder}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def held():
    """What this process holds: kB of memory, open files, threads, children, temporary files."""
    return_freed_memory()
    tasks = list(Path("/proc/self/task").iterdir())
    return {
        "memory": process_bytes("VmRSS") / 1000,
        "open files": len([*Path("/proc/self/fd").iterdir()]),
        "threads": len(tasks),
        "child processes": sum(len((task / "children").read_text().split()) for task in tasks),
        "temporary files": len([*Path(tempfile.gettempdir()).iterdir()]),
    }


def asked(times, every, ask):
    """What is held after each so many."""
    found = []
    for time_ in range(1, times + 1):
        ask(time_)
        if time_ % every == 0:
            found.append(held())
    return found


def without_data(times, every):
    """Of four methods, and each fifth time of all."""
    model, few = network(), replace(REQUEST, methods=FEW)
    return asked(
        times, every, lambda time_: recommend(model, ram="1MB", request=REQUEST if time_ % 5 == 0 else few)
    )


def with_data(times, every, verify):
    """With probes of a second."""
    random = np.random.default_rng(0)
    labels = np.arange(320) % 4
    images = (random.random((320, 8, 8, 3)) * 60 + 40 * labels[:, None, None, None]).astype(np.uint8)
    request = replace(
        REQUEST, methods=("head", "norm"), data=(images, labels), probe_seconds=1.0, epochs=1, verify=verify
    )
    model = network()
    return asked(times, every, lambda _: recommend(model, ram="1MB", request=request))


def slope(found, every):
    """kB for each recommendation, by a line through the last three quarters."""
    memory = [each["memory"] for each in found[len(found) // 4 :]]
    return float(np.polyfit(np.arange(len(memory)) * every, memory, 1)[0])


def tell_left(figure, name, found, every, times):
    for what in ("open files", "threads", "child processes", "temporary files"):
        figure(f"{name}: {what} more than after {every}", found[-1][what] - found[0][what], 0, of=times)


def tell_growth(figure, name, found, every, times):
    tell_left(figure, name, found, every, times)
    growth = round(slope(found, every), 2)
    figure(f"{name}: growth of memory, kB for each", growth, MOST_GROWTH, of=times)


def test_a_thousand_recommendations_leave_nothing_behind(figure):
    tell_growth(figure, "1,000 recommendations in a process", alone(without_data, 1000, 25), 25, 1000)


def test_recommendations_with_data_leave_nothing_behind(figure):
    found = alone(with_data, 60, 3, False)
    tell_left(figure, "60 recommendations with data in a process", found, 3, 60)
    figure(
        "60 recommendations with data in a process: growth of memory, kB for each",
        round(slope(found, 3), 1),
        "near 0",
        of=60,
    )


def test_recommendations_that_are_run_leave_nothing_behind(figure):
    found = alone(with_data, 4, 1, True)
    tell_left(figure, "4 recommendations with data, run under the limit", found, 1, 4)


def seconds_of(ask):
    """Of the processor, with how many candidates were costed."""
    gc.collect()
    begin = time.process_time()
    found = ask()
    return time.process_time() - begin, len(found.evaluations)


def of_layers(*sizes):
    """(layers, seconds) of costing four methods on networks of so many."""
    request = replace(REQUEST, methods=FEW)
    profile(network(10), request)
    models = [(size, network(size)) for size in sizes]
    return [(size, seconds_of(partial(profile, model, request))[0]) for size, model in models]


def of_candidates(*most_ranks):
    """(candidates, seconds) of a recommendation among so many."""
    model, request = network(6, width=256), replace(REQUEST, methods=("lora",))

    def ask(ranks):
        return recommend(model, ram="64MB", request=replace(request, ranks=tuple(range(1, ranks + 1))))

    ask(3)
    return [seconds_of(partial(ask, ranks))[::-1] for ranks in most_ranks]


def exponent(found):
    """Of the power law that fits best."""
    sizes, seconds = np.log(np.array(found, dtype=float)).T
    return round(float(np.polyfit(sizes, seconds, 1)[0]), 2)


def said(found, of):
    return ", ".join(f"{seconds:.1f} s for {size:,}" for size, seconds in found) + f" {of}"


def test_cost_against_layers(figure):
    found = alone(of_layers, 125, 250, 500, 1000)
    figure(
        "costing 13 candidates against layers: exponent",
        exponent(found),
        NEAR_LINEAR,
        of=said(found, "layers"),
    )


def test_cost_against_candidates(figure):
    found = alone(of_candidates, 15, 60, 240)
    figure(
        "recommending against candidates: exponent",
        exponent(found),
        NEAR_LINEAR,
        of=said(found, "candidates"),
    )


def large(kind):
    """Seconds, candidates, MB of memory at the peak beyond those before, parameters."""
    profile(network(), REQUEST)
    if kind == "deep":
        model, request = network(1000), REQUEST
    else:
        with torch.device("meta"):
            model, request = network(29, width=2048), REQUEST
    before = process_bytes("VmHWM")
    seconds, candidates = seconds_of(partial(profile, model, request))
    more = (process_bytes("VmHWM") - before) / 1e6
    return seconds, candidates, more, sum(parameter.numel() for parameter in model.parameters())


def test_a_thousand_layers(figure):
    seconds, candidates, more, _ = alone(large, "deep")
    assert candidates > 40
    of = f"{candidates} candidates of all methods"
    figure("1,000 layers: seconds of a processor", round(seconds), 600, of=of)
    figure("1,000 layers: memory more than for a small network, MB", round(more), 1000, of=of)


def test_a_billion_parameters(figure):
    seconds, candidates, more, parameters = alone(large, "wide")
    assert candidates > 40
    assert parameters > 1e9
    of = f"{candidates} candidates of all methods"
    figure("1 B parameters: seconds of a processor", round(seconds), 600, of=of)
    # The weights alone would take 4,000.
    figure("1 B parameters: memory more than for a small network, MB", round(more), 1000, of=of)
