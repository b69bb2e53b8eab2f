"""Measure this device, for peft-advisor's --target: python measure_device.py > device.json

It needs PyTorch, and nothing else; where Pillow is there, what it takes is counted in. Operators are run as
a bundle's finetune.py runs them: without the compiler, freed memory going back to the kernel at once. Each
is timed at several shapes, the fastest of its repetitions, and so many seconds a call, FLOP and byte are
fitted to that. In an update they take longer than alone: how much, whole updates of small networks tell.
With one thread the clock is the processor's own, so other programs hardly matter.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import combinations, product
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from advisor.costs.energy import count_joules
from advisor.costs.figures import FIGURES, convolution_figures, convolution_kind, new_bytes
from advisor.costs.process import (
    give_back_freed_memory,
    process_bytes,
    return_freed_memory,
)
from advisor.device.lean import leave_compiler_out
from advisor.device.throttling import watch_throttling
from advisor.system.machine import end_with_parent

SCHEMA_VERSION = 2
KIND = "peft-advisor device"
_SECONDS = 0.04  # that an operator's repetitions take
_FEWEST, _MOST_SECONDS = 4, 0.5  # repetitions; of one operator
# Bytes of tensors that take turns, and how many do: in an update, nothing is in the nearest caches.
_APART, _MOST_COPIES = 48 * 2**20, 64

# (batch, channels in, channels out, side, kernel, stride, groups)
_CONVOLUTIONS = (
    *((8, 3, 32, 128, 3, 2, 1), (2, 3, 16, 64, 7, 2, 1), (8, 3, 16, 32, 3, 1, 1)),
    *((8, 16, 16, 32, 3, 1, 1), (8, 64, 64, 28, 3, 1, 1), (4, 128, 128, 14, 3, 1, 1)),
    *((8, 256, 256, 7, 3, 1, 1), (2, 64, 64, 8, 3, 1, 1), (8, 64, 4, 28, 3, 1, 1)),
    *((8, 64, 128, 28, 3, 2, 1), (8, 8, 8, 8, 3, 1, 1), (2, 32, 64, 56, 3, 1, 1), (4, 384, 384, 4, 3, 1, 1)),
    # Pointwise.
    *((8, 16, 96, 56, 1, 1, 1), (8, 96, 24, 28, 1, 1, 1), (8, 24, 144, 28, 1, 1, 1)),
    *((8, 192, 64, 14, 1, 1, 1), (8, 576, 160, 7, 1, 1, 1), (8, 320, 1280, 5, 1, 1, 1)),
    *((8, 144, 4, 28, 1, 1, 1), (8, 4, 144, 28, 1, 1, 1), (1, 96, 576, 14, 1, 1, 1)),
    *((8, 16, 8, 8, 1, 1, 1), (8, 256, 64, 28, 1, 1, 1), (8, 40, 240, 1, 1, 1, 1)),
    # Of few places.
    *((8, 96, 384, 2, 1, 1, 1), (4, 640, 320, 2, 1, 1, 1), (8, 160, 480, 3, 1, 1, 1)),
    *((4, 480, 80, 3, 1, 1, 1), (2, 16, 64, 3, 1, 1, 1)),
    # Of many images, or strided.
    *((16, 24, 144, 28, 1, 1, 1), (16, 384, 64, 14, 1, 1, 1), (32, 160, 480, 4, 1, 1, 1)),
    *((8, 64, 128, 28, 1, 2, 1), (16, 16, 8, 8, 1, 1, 1), (16, 240, 40, 1, 1, 1, 1)),
    # In groups.
    *((8, 96, 96, 14, 1, 1, 96), (4, 384, 384, 3, 1, 1, 384), (8, 64, 64, 7, 1, 1, 4)),
    # Depthwise.
    *((8, 32, 32, 80, 3, 1, 32), (8, 96, 96, 56, 3, 2, 96), (8, 144, 144, 28, 3, 1, 144)),
    *((8, 8, 8, 8, 3, 1, 8), (8, 384, 384, 14, 3, 1, 384), (8, 576, 576, 7, 3, 1, 576)),
    *((1, 144, 144, 28, 3, 1, 144), (8, 16, 16, 32, 3, 1, 16)),
    # Wide.
    *((8, 240, 240, 14, 5, 1, 240), (8, 144, 144, 28, 5, 2, 144), (8, 480, 480, 7, 5, 1, 480)),
    *((2, 48, 48, 14, 5, 1, 48), (4, 96, 96, 14, 7, 1, 96), (4, 640, 640, 4, 5, 1, 640)),
    # Grouped.
    *((8, 64, 64, 28, 3, 1, 2), (8, 128, 128, 14, 3, 1, 32), (16, 256, 256, 7, 1, 1, 4)),
    *((2, 64, 64, 14, 3, 1, 8), (8, 16, 16, 8, 3, 1, 2), (4, 192, 192, 14, 3, 2, 12)),
)
# Rows, inputs and outputs.
_LINEAR = ((8, 1280, 100), (8, 512, 1000), (8, 64, 10), (1576, 192, 576), (512, 64, 64), (8, 960, 1280))
# Images, channels, side, window and stride.
_POOLS = ((8, 64, 28, 3, 2), (2, 32, 56, 2, 2), (4, 16, 14, 3, 1))
_NORMS = ((8, 32, 80), (8, 96, 28), (8, 16, 32), (8, 576, 7), (1, 64, 28), (8, 8, 8), (2, 256, 14))
_ELEMENTS = (10**3, 10**4, 2 * 10**5, 2 * 10**6)
_PARAMETERS = (64, 4_096, 262_144, 2_000_000)

Sample = tuple[str, str, tuple[int, ...], float]  # kind, phase, figures of one call, seconds


def main() -> int:
    """Print what is asked for, as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runtime", action="store_true", help="what the runtime takes, and nothing else")
    parser.add_argument("--threads", type=int, help="default: as many as PyTorch would take")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    leave_compiler_out()
    give_back_freed_memory()
    if options.runtime:
        end_with_parent()  # which asked for it, and may be interrupted
        print(json.dumps(runtime()))
    else:
        print(json.dumps(measured(_runtime_of_another_process()), indent=1))
    return 0


def _runtime_of_another_process() -> dict[str, int]:
    """In one that has run nothing else."""
    threads = ["--threads", str(torch.get_num_threads())]
    # Run from a file, or as text behind -c.
    program = [sys.argv[0]] if sys.argv[0] != "-c" else ["-c", sys.orig_argv[sys.orig_argv.index("-c") + 1]]
    command = [sys.executable, *program, "--runtime", *threads]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - this program
    found: dict[str, int] = json.loads(done.stdout)
    return found


def runtime() -> dict[str, int]:
    """Resident bytes that Python, PyTorch and Pillow take in a fresh process, once updates have run.

    The code of all kinds of convolutions is loaded, threads are started, a picture was read. What the small
    network itself takes, some KB, is counted in. What PyTorch makes for a shape is told apart, for each
    kernel: one for each shape and direction.
    """
    _read_a_picture()
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 16, 1)),
        *(nn.BatchNorm2d(16), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    )
    optimizer = torch.optim.Adam(network.parameters(), foreach=False)
    for _ in range(3):
        optimizer.zero_grad()
        scores = network(torch.rand(4, 3, 32, 32))
        functional.cross_entropy(scores, torch.arange(4)).backward()
        optimizer.step()
    few = _make_kernels(range(2))
    before = resident()
    more = _make_kernels(range(2, 12))
    each = max(resident() - before, 0) // more
    return {"runtime_bytes": before - few * each, "kernel_bytes": each}


def _make_kernels(steps: Iterable[int]) -> int:
    """Those of a convolution of each kind that the library does, of so many shapes; how many they are."""
    made = 0
    for step, (kernel, per_group) in product(steps, ((3, None), (1, None), (3, 1), (3, 8))):
        channels = 16 + 8 * step
        groups = channels // (per_group or channels)
        layer = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=groups, bias=False)
        layer(torch.ones(16, channels, 6 + step, 6 + step, requires_grad=True)).sum().backward()
        made += 3  # forward, and both gradients
    return made


def resident() -> int:
    """Bytes, once what was freed has gone back to the kernel."""
    return_freed_memory()
    return process_bytes("VmRSS")


def _read_a_picture() -> None:
    """Load Pillow with its JPEG decoder, where it is installed."""
    if find_spec("PIL") is None:
        return
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG")
    Image.open(file).convert("RGB").resize((32, 32)).tobytes()


def measured(runtime: Mapping[str, int]) -> dict[str, Any]:
    """The profile: `device.schema.json` tells what is in it."""
    began, joules, throttled = time.perf_counter(), count_joules(torch.device("cpu")), watch_throttling()
    torch.manual_seed(0)
    first = _reference()
    samples: list[Sample] = []
    for sample in _samples():
        samples.append(sample)
        if len(samples) % 40 == 0:
            print(f"{len(samples)} operators timed", file=sys.stderr, flush=True)
    operators = fitted(samples)
    factor, more = in_context(operators)
    for each in operators:
        for name in _PER:
            each[f"seconds_per_{name}"] *= factor
        each["seconds_per_call"] += 0.0 if each["kind"] in _NOT_WORK else more
    last, used = _reference(), joules()
    took = time.perf_counter() - began
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "machine": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **runtime,
        "watts": used / took if used is not None else None,
        "slowdown": last / first,
        "throttled": throttled(),
        "measuring_seconds": took,
        "in_context": {"factor": factor, "seconds_per_call": more},
        "operators": operators,
        "samples": [
            {"kind": kind, "phase": phase, **dict(zip(FIGURES, figures, strict=True)), "seconds": seconds}
            for kind, phase, figures, seconds in samples
        ],
    }


def fitted(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Seconds for each figure, by kind and phase: none below 0, and as close as can be, relatively."""
    groups = defaultdict(list)
    for kind, phase, figures, seconds in samples:
        groups[kind, phase].append([float(figure) / seconds for figure in figures])
    found = []
    for (kind, phase), each in groups.items():
        shares = torch.tensor(each, dtype=torch.float64)
        prices = _not_negative(shares)
        per = {f"seconds_per_{name}": float(price) for name, price in zip(_PER, prices, strict=True)}
        error = float((shares @ prices - 1).abs().median())
        found.append({"kind": kind, "phase": phase, **per, "median_error": error})
    return found


_PER = ("call", "flop", "flop_in_8s", "flop_in_16s", "byte", "new_byte")


def in_context(operators: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """How many times as long operators take in whole updates, and how much longer each call.

    Weights, tensors and code have to come from farther away than where an operator is repeated.
    """
    prices = {
        (each["kind"], each["phase"]): [each[f"seconds_per_{name}"] for name in _PER] for each in operators
    }
    shares = []
    for network, batch, side in _networks():
        x, labels = torch.rand(batch, 3, side, side), torch.zeros(batch, dtype=torch.int64)
        work = _work_of(network, x)
        alone = prices["update", "forward"][0]
        for kind, phase, figures in work:
            alone += sum(price * figure for price, figure in zip(prices[kind, phase], figures, strict=True))
        seconds = _fastest(_update_of(network, x, labels), 1)
        shares.append([alone / seconds, len(work) / seconds])
    told = torch.tensor(shares, dtype=torch.float64)
    factor, more = _not_negative(told).tolist()
    if factor < 1:  # an update is no quicker than its operators: what is left is the calls'
        left = float((told[:, 1] * (1 - told[:, 0])).sum() / (told[:, 1] ** 2).sum())
        factor, more = 1.0, max(left, 0.0)
    return factor, more


_NOT_WORK = ("view", "update", "pointwise_groups")  # many calls of the last are one operator


def _networks() -> Iterator[tuple[nn.Module, int, int]]:
    """Of the usual layers, with the batch and the side of its images; large ones and small ones."""
    for batch, side, width, depth in ((8, 32, 24, 4), (8, 8, 48, 8), (2, 4, 16, 12)):
        yield _of_blocks([_separable(width) for _ in range(depth)], width), batch, side
        yield _of_blocks([_plain(width) for _ in range(depth)], width), batch, side


def _of_blocks(blocks: Sequence[nn.Module], width: int) -> nn.Module:
    stem = (nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)).train()


def _plain(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def _separable(width: int) -> nn.Module:
    inside = 4 * width
    widen = (nn.Conv2d(width, inside, 1, bias=False), nn.BatchNorm2d(inside), nn.ReLU())
    depthwise = nn.Conv2d(inside, inside, 3, padding=1, groups=inside, bias=False)
    narrow = (nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width))
    return nn.Sequential(*widen, depthwise, nn.BatchNorm2d(inside), nn.ReLU(), *narrow)


def _work_of(network: nn.Module, x: torch.Tensor) -> list[tuple[str, str, tuple[int, ...]]]:
    """Kind, phase and figures of what an update with Adam does in the layers that we have."""
    found: list[tuple[str, str, tuple[int, ...]]] = []

    def seen(layer: Any, inputs: Any, y: torch.Tensor) -> None:
        given = inputs[0]
        size = given.nbytes + y.nbytes
        if isinstance(layer, nn.BatchNorm2d):
            forward, backward = _norm_figures(given.numel(), layer.num_features, training=True)
            found.extend((("norm", "forward", forward), ("norm", "input_gradient", backward)))
            found.append(("in_place", "forward", (1, 0, 0, 0, 16, 0)))  # it counts its batches
        elif isinstance(layer, nn.ReLU):
            new = new_bytes(y.nbytes)
            found.append(("elementwise", "forward", (1, 0, 0, 0, size, new)))
            found.append(("elementwise", "input_gradient", (1, 0, 0, 0, size + y.nbytes, new)))
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            kind, figures = _product_figures(layer, given, y)
            phases = ["forward", "weight_gradient", *(["input_gradient"] if given is not x else [])]
            found.extend((kind, phase, figures[phase]) for phase in phases)

    handles = [layer.register_forward_hook(seen) for layer in network.modules()]
    with torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()
    steps = [("adam", "forward", _step_figures(each.nbytes, "adam")) for each in network.parameters()]
    return [*found, *steps]


def _product_figures(layer: Any, x: torch.Tensor, y: torch.Tensor) -> tuple[str, dict[str, tuple[int, ...]]]:
    """The layer's kind, and the figures of each phase."""
    sizes = {
        "forward": (x.nbytes, layer.weight.nbytes, y.nbytes),
        "input_gradient": (y.nbytes, layer.weight.nbytes, x.nbytes),
        "weight_gradient": (y.nbytes, x.nbytes, layer.weight.nbytes),
    }
    if isinstance(layer, nn.Linear):
        count = 2 * y.numel() * layer.in_features
        return "linear", {
            phase: (1, count, count, count, sum(size), new_bytes(size[-1])) for phase, size in sizes.items()
        }
    taps, inputs, outputs = layer.kernel_size[0] ** 2, layer.in_channels, layer.out_channels
    images = len(x)
    places = y.numel() // outputs // images
    kind = convolution_kind(images, places, inputs, taps, layer.groups, strided=layer.stride[0] > 1)
    return kind, {
        phase: convolution_figures(kind, images, places, inputs, outputs, taps, layer.groups, (a, b), made)
        for phase, (a, b, made) in sizes.items()
    }


def _update_of(network: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-6, foreach=False)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(network(x), labels).backward()
        optimizer.step()

    return run


def _norm_figures(elements: int, channels: int, *, training: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the forward pass, and of all gradients."""
    own = 4 * channels  # bytes of one of its vectors
    saved = 2 * own if training else 0
    forward, backward = elements * (6 if training else 2), elements * (8 if training else 5)
    new = new_bytes(4 * elements)
    return (
        (1, forward, forward, forward, 8 * elements + 4 * own + saved, new),
        (1, backward, backward, backward, 12 * elements + 5 * own + saved, new),
    )


def _step_figures(size: int, name: str) -> tuple[int, ...]:
    """Of a parameter of that many bytes: it, its gradient and state are read, it and its state written."""
    states, temporaries = _STEPS[name]
    return (1, 0, 0, 0, size * (3 + 2 * states), new_bytes(*[size] * temporaries))


_STEPS = {"adam": (2, 2), "momentum": (1, 0), "sgd": (0, 0)}  # states, tensors made on the way


def _not_negative(shares: torch.Tensor) -> torch.Tensor:
    """Least squares of shares @ prices = 1, by trying every set of figures that may count."""
    rows, columns = shares.shape
    best, least = torch.zeros(columns, dtype=torch.float64), float("inf")
    scale = shares.abs().amax(dim=0).clamp(min=1e-300)
    for count in range(1, min(max(rows // 2, 1), columns) + 1):  # more would fit what is chance
        for chosen in combinations(range(columns), count):
            part = (shares / scale)[:, chosen]
            prices = torch.linalg.lstsq(part, torch.ones(rows, 1, dtype=torch.float64)).solution[:, 0]
            error = float(((part @ prices - 1) ** 2).sum())
            if bool((prices >= 0).all()) and error < least * 0.999:
                least = error
                best = torch.zeros(columns, dtype=torch.float64)
                best[list(chosen)] = prices / scale[list(chosen)]
    return best


def _fastest(run: Callable[[], object], calls: int) -> float:
    """Seconds a call, of the fastest repetition."""
    clock = _clock()
    run()  # what is only done once
    best, total, count = float("inf"), 0.0, 0
    while (count < _FEWEST or total < _SECONDS) and total < _MOST_SECONDS:
        before = clock()
        run()
        took = clock() - before
        best, total, count = min(best, took), total + took, count + 1
    return best / calls


def _clock() -> Callable[[], float]:
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def _reference() -> float:
    """One that is repeated at the end: a device that has become hot takes longer."""
    layer, x = nn.Conv2d(64, 64, 3, padding=1), torch.rand(4, 64, 28, 28)
    return min(_fastest(lambda: layer(x), 1) for _ in range(3))


def _samples() -> Iterator[Sample]:
    for shape in _CONVOLUTIONS:
        yield from _convolution(*shape)
    for rows, inputs, outputs in _LINEAR:
        yield from _product(nn.Linear(inputs, outputs), torch.rand(rows, inputs))
    for batch, channels, side in _NORMS:
        for training in (True, False):
            yield from _norm(batch, channels, side, training=training)
    for batch, channels, side, window, stride in _POOLS:
        yield from _pool(torch.rand(batch, channels, side, side), window, stride)
    for elements in _ELEMENTS:
        yield from _elementwise(elements)
    for elements in _PARAMETERS:
        yield from _optimizers(elements)
    x = torch.rand(8, 8, requires_grad=True)
    nothing = (1, 0, 0, 0, 0, 0)
    yield "view", "forward", nothing, _fastest(lambda: [x.view(64) for _ in range(100)], 100)
    smallest = nn.Linear(4, 2)
    run = _update_of(smallest, torch.rand(2, 4), torch.tensor([0, 1]))
    yield "update", "forward", nothing, _fastest(run, 1)


def _copies(layer: nn.Module, x: torch.Tensor) -> list[tuple[nn.Module, torch.Tensor]]:
    """So many that their tensors are not all in the processor's caches, as in an update.

    Of what takes long there are fewer, or a slow board would take many minutes.
    """
    clock = _clock()
    before = clock()
    layer(x)
    took = max(clock() - before, 1e-6)
    size = 3 * x.nbytes + 2 * sum(each.nbytes for each in layer.parameters())
    count = min(_APART // size, _MOST_COPIES, int(_MOST_SECONDS / 4 / took))
    return [(copy.deepcopy(layer), x.clone()) for _ in range(max(count, 2))]


def _phases(layer: nn.Module, x: torch.Tensor) -> Iterator[tuple[str, float]]:
    """Seconds of one call: forward, and of each gradient alone."""
    pairs = _copies(layer, x)
    layers, xs = [each for each, _ in pairs], [each for _, each in pairs]
    weights = [each for one in layers for each in one.parameters()]
    yield "forward", _fastest(lambda: [one(given) for one, given in pairs], len(pairs))
    for phase, wanted, others in (("input_gradient", xs, weights), ("weight_gradient", weights, xs)):
        for tensor in wanted:
            tensor.requires_grad_(True)
        for tensor in others:
            tensor.requires_grad_(False)
        yield phase, _fastest(_backward([one(given) for one, given in pairs], wanted), len(pairs))


def _backward(ys: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> Callable[[], object]:
    """Through all of them at once, as through a network."""
    gradients = [torch.rand_like(y) for y in ys]
    return lambda: torch.autograd.grad(ys, wanted, gradients, retain_graph=True)


def _convolution(
    batch: int, inputs: int, outputs: int, side: int, kernel: int, stride: int, groups: int
) -> Iterator[Sample]:
    layer = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    yield from _product(layer, torch.rand(batch, inputs, side, side))


def _product(layer: nn.Module, x: torch.Tensor) -> Iterator[Sample]:
    with torch.no_grad():
        y = layer(x)
    kind, figures = _product_figures(layer, x, y)
    for phase, seconds in _phases(layer, x):
        yield kind, phase, figures[phase], seconds


def _pool(x: torch.Tensor, window: int, stride: int) -> Iterator[Sample]:
    xs = [x.requires_grad_(True) for _, x in _copies(nn.Identity(), x)]
    functions = (
        (functional.max_pool2d, 3),  # it keeps where each largest was, in eight bytes
        (functional.avg_pool2d, 1),
    )
    for function, parts in functions:
        ys = [function(each, window, stride) for each in xs]
        made, taps = ys[0].nbytes, ys[0].numel() * window**2
        seconds = _fastest(lambda: [function(each, window, stride) for each in xs], len(xs))  # noqa: B023
        new = new_bytes(made, made * (parts - 1))
        yield "pool", "forward", (1, taps, taps, taps, x.nbytes + parts * made, new), seconds
        count = ys[0].numel()
        figures = (1, count, count, count, parts * made + 2 * x.nbytes, new_bytes(x.nbytes))
        yield "pool", "input_gradient", figures, _fastest(_backward(ys, xs), len(xs))


def _norm(batch: int, channels: int, side: int, *, training: bool) -> Iterator[Sample]:
    pairs = _copies(nn.BatchNorm2d(channels).train(training), torch.rand(batch, channels, side, side))
    forward, backward = _norm_figures(prod(pairs[0][1].shape), channels, training=training)
    seconds = _fastest(lambda: [one(given) for one, given in pairs], len(pairs))
    yield "norm", "forward", forward, seconds
    xs = [x.requires_grad_(True) for _, x in pairs]
    wanted = [*xs, *(each for one, _ in pairs for each in one.parameters())]
    seconds = _fastest(_backward([one(given) for one, given in pairs], wanted), len(pairs))
    yield "norm", "input_gradient", backward, seconds


def _elementwise(elements: int) -> Iterator[Sample]:
    pairs = [x for _, x in _copies(nn.Identity(), torch.rand(elements))]
    count, size = len(pairs), 4 * elements
    new = new_bytes(size)
    for costly, function in ((0, functional.relu), (0, functional.hardswish), (elements, functional.silu)):
        xs = [x.detach().requires_grad_(True) for x in pairs]
        work = (costly, costly, costly)
        seconds = _fastest(lambda: [function(x) for x in xs], count)  # noqa: B023 - it is run here
        yield "elementwise", "forward", (1, *work, 2 * size, new), seconds
        run = _backward([function(x) for x in xs], xs)
        yield "elementwise", "input_gradient", (1, *work, 3 * size, new), _fastest(run, count)
    others = [torch.rand(elements).requires_grad_(True) for _ in pairs]
    seconds = _fastest(lambda: [x + y for x, y in zip(pairs, others, strict=True)], count)
    yield "elementwise", "forward", (1, 0, 0, 0, 3 * size, new), seconds
    for costly, in_place in ((0, functional.relu_), (elements, torch.sigmoid_)):
        seconds = _fastest(lambda: [in_place(x) for x in pairs], count)  # noqa: B023
        yield "in_place", "forward", (1, costly, costly, costly, 2 * size, 0), seconds


def _optimizers(elements: int) -> Iterator[Sample]:
    """One parameter's step."""
    count = min(max(_APART // (16 * elements), 2), _MOST_COPIES)
    for name, (states, _) in _STEPS.items():
        weights = [nn.Parameter(torch.rand(elements)) for _ in range(count)]
        for weight in weights:
            weight.grad = torch.rand(elements)
        optimizer: torch.optim.Optimizer
        if name == "adam":
            optimizer = torch.optim.Adam(weights, lr=1e-6, foreach=False)
        else:
            optimizer = torch.optim.SGD(weights, lr=1e-6, momentum=0.9 * states, foreach=False)
        figures = _step_figures(4 * elements, name)
        yield name, "forward", figures, _fastest(optimizer.step, count)
