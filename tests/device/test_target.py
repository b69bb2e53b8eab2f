"""A target's profile: what it is told by, what is refused, and what the advice makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from math import prod
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import advisor.device
from advisor import Request, profile, recommend
from advisor.costs import Simulator
from advisor.costs.figures import FIGURES
from advisor.costs.memo import UncompiledMode, tensors_in
from advisor.costs.work import work_of
from advisor.device import measure
from advisor.device.profile import Clock, read_profile, shipped
from advisor.device.program import program
from advisor.errors import InputError
from advisor.models import take_census
from advisor.records import Candidate
from tests.device import profiles

SCHEMA = json.loads((Path(advisor.device.__file__).parent / "device.schema.json").read_text())
ASKED = {"input_size": (3, 16, 16), "batch_size": 4, "methods": "head,norm,full", "verify": False}


def network():
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8)]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "pi4.json"
    path.write_text(json.dumps(profiles.profile(watts=5.0)))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "few.npz"
    images = np.random.default_rng(0).integers(0, 255, (40, 3, 16, 16), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(40) % 4)
    return str(path)


def test_made_profiles_are_as_the_schema_says():
    jsonschema.Draft202012Validator(SCHEMA).validate(profiles.profile())


# All shapes, each a few times: the program itself, in a process of its own, as on a board.
_FEW = {
    "_SECONDS = 0.04": "_SECONDS = 0",
    "_FEWEST, _MOST_SECONDS = 4": "_FEWEST, _MOST_SECONDS = 1",
    "_APART, _MOST_COPIES = 48 * 2**20, 64": "_APART, _MOST_COPIES = 2**20, 2",
}


def test_what_the_program_prints_is_a_profile(tmp_path):
    text = program()
    for usual, quick in _FEW.items():
        assert usual in text
        text = text.replace(usual, quick)
    (tmp_path / "measure_device.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-I", "measure_device.py", "--threads", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(done.stdout))
    (tmp_path / "here.json").write_text(done.stdout)
    found = read_profile(str(tmp_path / "here.json"))
    assert found.threads == 1
    assert found.runtime_bytes > 20_000_000
    assert all(sum(_prices(price)) > 0 for price in found.operators)


def _prices(price):
    return [getattr(price, name) for name in type(price).__slots__ if name.startswith("seconds")]


def test_the_program_counts_its_own_networks_as_updates_are_counted():
    for network, batch, side in measure._networks():
        told = Counter()
        for kind, phase, figures in measure._work_of(network, torch.rand(batch, 3, side, side)):
            told += Counter({(kind, phase, n): figure for n, figure in enumerate(figures)})
        found = Simulator(network, take_census(network, (3, side, side))).cost(Candidate("full"), batch).work
        own = {(w.kind, w.phase, n): getattr(w, name) for w in found for n, name in enumerate(FIGURES)}
        kinds = {"standard", "pointwise", "depthwise", "norm", "adam"}
        assert kinds - {"pointwise", "depthwise"} < {kind for kind, *_ in told}
        for place, amount in told.items():
            if place[0] in kinds or (place[0] == "linear" and place[2] < 2):  # its bias is read besides
                assert own[place] == amount, place
        pieces = {place[:2] for place in told}
        for place, amount in own.items():
            assert place[:2] not in pieces or place[0] not in kinds or told[place] == amount, place


class _Seen(UncompiledMode):
    """The pieces of all operators that are run."""

    def __init__(self):
        super().__init__()
        self.pieces = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        read, made = tensors_in((args, kwargs)), tensors_in(result)
        self.pieces += work_of(func, args, result, read, made, None)
        return result


def _seen(run):
    with _Seen() as seen:
        run()
    return {(kind, phase): tuple(figures) for kind, phase, *figures in seen.pieces}


@pytest.mark.parametrize("shape", [shape for shape in measure._CONVOLUTIONS if prod(shape[:4]) < 10**6])
def test_the_program_counts_each_shape_as_updates_count_it(shape):
    batch, inputs, outputs, side, kernel, stride, groups = shape
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    x = torch.rand(batch, inputs, side, side, requires_grad=True)
    kind, figures = measure._product_figures(layer, x, layer(x))
    found = _seen(lambda: layer(x).sum().backward())
    assert {phase: found[kind, phase] for phase in figures} == figures


@pytest.mark.parametrize("shape", measure._POOLS)
def test_the_program_counts_each_pool_as_updates_count_it(shape, monkeypatch):
    batch, channels, side, window, stride = shape
    monkeypatch.setattr(measure, "_fastest", lambda run, calls: run() and 1.0)
    x = torch.rand(batch, channels, side, side)
    told = [(place, figures) for *place, figures, _ in measure._pool(x, window, stride)]
    for n, function in enumerate((functional.max_pool2d, functional.avg_pool2d)):
        y = x.clone().requires_grad_(True)
        found = _seen(lambda: function(y, window, stride).sum().backward())  # noqa: B023
        assert {tuple(place): figures for place, figures in told[2 * n : 2 * n + 2]}.items() <= found.items()


def test_memory_is_new_from_where_the_kernel_hands_it_out():
    """As many bytes as the kernel counts, in a process that gives freed memory back as a board's does."""
    if not sys.platform.startswith("linux") or "[always]" in Path(_PAGES).read_text():
        pytest.skip("pages of 4 KiB are counted")
    code = """
import resource, sys, torch
from torch.nn import functional
from advisor.costs.figures import new_bytes
from advisor.costs.process import give_back_freed_memory
torch.set_num_threads(1)
give_back_freed_memory()
for elements in (4_000, 300_000):
    x = torch.rand(elements)
    functional.relu(x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [functional.relu(x) for _ in range(20)]
    print(20 * new_bytes(x.nbytes), 4096 * (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    small, large = ([int(word) for word in line.split()] for line in done.stdout.splitlines())
    assert small[0] == 0
    assert small[1] < 20 * 16_000 * 1.1  # the heap itself may grow
    assert large[1] == pytest.approx(large[0], rel=0.05)


_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"


def test_what_takes_longer_in_whole_updates_is_told_from_what_each_call_takes_more():
    """Of prices that are half of the truth, both factors must come out as 2."""
    told = [[0.4, 0.1], [0.05, 0.45], [0.25, 0.25], [0.1, 0.4]]
    shares = torch.tensor(told, dtype=torch.float64)
    assert measure._not_negative(shares).tolist() == pytest.approx([2, 2])
    # What only adds noise stays out, and nothing is below 0.
    assert measure._not_negative(torch.tensor([[1.0, 2.0], [1.0, 3.0]], dtype=torch.float64))[1] == 0


def test_seconds_add_up_from_calls_and_flops(target):
    model = network()
    cost = Simulator(model, take_census(model, (3, 16, 16))).cost(Candidate("full"), 4)
    clock = Clock(read_profile(str(target)))
    expected = 1e-6 * (1 + sum(w.calls for w in cost.work)) + 1e-9 * sum(w.flops for w in cost.work)
    found = clock.forecast(cost, updates=10, batch_size=4, judged=0)
    assert found.update_seconds == pytest.approx(expected)
    assert found.tune_seconds == pytest.approx(10 * expected)
    assert found.tune_joules == pytest.approx(50 * expected)
    longer = clock.forecast(cost, updates=10, batch_size=4, judged=100)
    assert found.tune_seconds < longer.tune_seconds < found.tune_seconds + 25 * expected
    assert clock.forecast(cost).tune_seconds is None


def test_micro_batches_take_as_many_calls_more():
    model = network()
    simulator = Simulator(model, take_census(model, (3, 16, 16)))

    def calls(name):
        work = simulator.cost(Candidate.parse(name), 8).work
        return {(w.kind, w.phase): w.calls for w in work}

    whole, twos, ones = calls("full"), calls("full@micro-4"), calls("full@micro-1")
    for place in (("standard", "forward"), ("depthwise", "input_gradient"), ("norm", "input_gradient")):
        assert (twos[place], ones[place]) == (2 * whole[place], 8 * whole[place])
    assert whole["adam", "forward"] == ones["adam", "forward"] == len(list(model.parameters()))


def test_every_candidate_has_its_seconds_and_limits_on_them_hold(target, data):
    found = recommend(network(), data=data, target=target, probe_seconds=None, **ASKED)
    assert found.target.name == "pi4"
    seconds = {e.candidate.id: e.forecast for e in found.evaluations}
    assert all(each.tune_seconds > each.update_seconds > 0 for each in seconds.values())
    assert seconds["head"].update_seconds < seconds["full"].update_seconds
    assert seconds["head"].update_joules == pytest.approx(5 * seconds["head"].update_seconds)
    step = (seconds["head"].update_seconds + seconds["full"].update_seconds) / 2
    total = (seconds["head"].tune_seconds + seconds["full"].tune_seconds) / 2
    energy = 5 * total  # at 5 watts
    for limit in ({"step_time": step}, {"total_time": total}, {"energy": energy}):
        limited = recommend(network(), data=data, target=target, probe_seconds=None, **limit, **ASKED)
        (name,) = limit
        fits = {e.candidate.id: e for e in limited.evaluations}
        assert fits["head"].fits
        assert fits["full"].violations[0].limit == name
        assert "takes" in fits["full"].violations[0].reason


def test_the_targets_runtime_counts_within_ram(target):
    found = recommend(network(), target=target, ram="151MB", **ASKED)
    assert found.runtime.where == "pi4"
    assert found.runtime.bytes == 150_000_000 + 4 * 3 * 16 * 16
    assert found.budget.runtime_overhead_bytes == found.runtime.bytes
    without = recommend(network(), target=target, ram="151MB", ram_includes_runtime=False, **ASKED)
    assert without.budget.runtime_overhead_bytes == 0
    with pytest.raises(InputError, match="takes 150 MB on pi4, more than --ram 100 MB"):
        recommend(network(), target=target, ram="100MB", **ASKED)


def test_the_targets_kernels_count_as_well(tmp_path):
    path = tmp_path / "pi4.json"
    path.write_text(json.dumps(profiles.profile(kernel_bytes=100_000)))

    def asked(room):
        return recommend(network(), target=path, ram=150_000_000 + 4 * 3 * 16 * 16 + room, **ASKED)

    found = asked(10_000_000)
    assert found.runtime.kernel_bytes == found.budget.kernel_bytes == 100_000
    full = found.evaluation("full").cost
    assert full.kernels > found.evaluation("head").cost.kernels > 0
    # A limit between the update with its kernels and the update alone shuts it out.
    close = asked(full.peak_memory_bytes + full.kernels * 100_000 - 1)
    assert [each.limit for each in close.evaluation("full").violations] == ["ram"]
    assert asked(full.peak_memory_bytes + full.kernels * 100_000).evaluation("full").fits


def test_a_profile_of_costs_has_them_too(target):
    found = profile(network(), Request(input_size=(3, 16, 16), methods=("norm",), target=target))
    assert all(e.forecast.tune_seconds is None for e in found.evaluations)
    assert found.target.threads == 4


def test_total_time_needs_a_target_and_data(target):
    for more in ({}, {"target": target}):
        with pytest.raises(InputError, match="give --target and --data"):
            recommend(network(), total_time="5m", **more, **ASKED)


def test_energy_needs_a_target_that_tells_its_power_and_data(target, data, tmp_path):
    for more in ({"data": data}, {"target": target}):
        with pytest.raises(InputError, match=r"--energy .* give --target and --data"):
            recommend(network(), energy="5J", probe_seconds=None, **more, **ASKED)
    silent = tmp_path / "silent.json"
    silent.write_text(json.dumps(profiles.profile()))
    with pytest.raises(InputError, match=r"silent\.json didn't tell its power"):
        recommend(network(), energy="5J", data=data, target=silent, probe_seconds=None, **ASKED)


def test_a_throttled_device_is_told(tmp_path):
    path = tmp_path / "hot.json"
    path.write_text(json.dumps(profiles.profile(slowdown=1.4)))
    found = recommend(network(), target=path, **ASKED)
    assert any("1.40 times as slow" in warning for warning in found.warnings)
    path.write_text(json.dumps(profiles.profile(throttled=True)))
    assert "it was throttled" in read_profile(str(path)).warning
    path.write_text(json.dumps(profiles.profile(throttled=False)))
    assert read_profile(str(path)).warning == ""


@pytest.mark.parametrize("name", shipped())
def test_what_is_shipped_is_found_by_its_name_unless_a_file_is_called_so(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = read_profile(name)
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(shipped()[name].read_text()))
    assert found.warning == ""
    Path(name).write_text(json.dumps(profiles.profile(threads=3)))
    assert read_profile(name).threads == 3


def _with_operator(**more):
    operators = profiles.profile()["operators"]
    return {"operators": [operators[0] | more, *operators[1:]]}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "something"}, "it is no device's profile"),
        ({"schema_version": 1}, "schema_version is 1, this release reads 2"),
        ({"schema_version": True}, "schema_version is True"),
        ({"threads": 0}, "threads and runtime_bytes must be above 0"),
        ({"runtime_bytes": "many"}, "runtime_bytes"),
        ({"kernel_bytes": -1}, "kernel_bytes are below 0"),
        ({"watts": 0.0}, "below 0, or not finite"),
        ({"slowdown": 1e400}, "JSON"),
        ({"operators": []}, "it has no operator standard, forward"),
        ({"operators": [profiles.operator("standard", "forward")] * 2}, "one operator's phase twice"),
        ({"operators": [profiles.operator("a", str(n)) for n in range(2000)]}, "more than 1000 operators"),
        (_with_operator(seconds_per_call=-1.0), "below 0, or not finite"),
        (_with_operator(seconds_per_byte=None), "seconds_per_byte"),
    ],
)
def test_a_hostile_or_old_profile_is_refused_in_one_line(tmp_path, change, told):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(profiles.profile(**change)))
    with pytest.raises(InputError) as raised:
        read_profile(str(path))
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "; give what `peft-advisor device measure` printed on the device, or" in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"kind": NaN}'])
def test_what_is_no_profile_at_all_is_refused(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^--target ") as raised:
        read_profile(str(path))
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="can't be read"):
        read_profile(str(tmp_path / "nowhere.json"))
