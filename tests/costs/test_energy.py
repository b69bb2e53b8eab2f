"""Joules from counters: a sysfs tree and an NVML made for the test."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pytest
import torch

from advisor.costs.energy import (
    count_joules,
    count_nvml,
    count_rapl,
    count_watts,
    ina3221_inputs,
    watts_of,
)


def zone(root, number, name, microjoules, largest=1_000_000):
    folder = root / f"intel-rapl:{number}"
    folder.mkdir()
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{largest}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder


def test_packages_and_memory_add_up_and_nothing_counts_twice(tmp_path):
    zones = {
        "package-0": zone(tmp_path, "0", "package-0", 100),
        "core": zone(tmp_path, "0:0", "core", 100),
        "dram": zone(tmp_path, "0:1", "dram", 100),
        "package-1": zone(tmp_path, "1", "package-1", 100),
        "psys": zone(tmp_path, "2", "psys", 100),
    }
    stop = count_rapl(tmp_path)
    used = {"package-0": 2_000, "core": 1_000, "dram": 300, "package-1": 40_000, "psys": 90_000}
    for name, microjoules in used.items():
        (zones[name] / "energy_uj").write_text(str(100 + microjoules))
    assert stop() == pytest.approx((2_000 + 300 + 40_000) / 1e6)


def test_a_counter_that_began_anew(tmp_path):
    package = zone(tmp_path, "0", "package-0", 999_000, largest=1_000_000)
    stop = count_rapl(tmp_path)
    (package / "energy_uj").write_text("5000")
    assert stop() == pytest.approx(6_000 / 1e6)
    (package / "max_energy_range_uj").unlink()
    assert stop() is None


@pytest.mark.parametrize("content", [None, "", "not a number"])
def test_one_unreadable_zone_makes_the_whole_unknown(tmp_path, content):
    package, dram = zone(tmp_path, "0", "package-0", 0), zone(tmp_path, "0:0", "dram", 0)
    # A folder in its place can't be read by root either.
    (dram / "energy_uj").unlink()
    if content is None:
        (dram / "energy_uj").mkdir()
    else:
        (dram / "energy_uj").write_text(content)
    stop = count_rapl(tmp_path)
    (package / "energy_uj").write_text("700")
    assert stop() is None


def test_unknown_is_never_zero(tmp_path):
    assert count_rapl(tmp_path / "nothing")() is None
    assert count_rapl(tmp_path)() is None
    zone(tmp_path, "0", "package-0", 500)
    assert count_rapl(tmp_path)() is None  # it stood still


def sensor(root, number, name, rails):
    """A chip in hwmon's layout; of each rail its label, millivolts and milliamperes."""
    folder = root / f"hwmon{number}"
    folder.mkdir()
    (folder / "name").write_text(f"{name}\n")
    for n, (label, millivolts, milliamperes) in enumerate(rails, 1):
        (folder / f"in{n}_label").write_text(f"{label}\n")
        (folder / f"in{n}_input").write_text(f"{millivolts}\n")
        (folder / f"curr{n}_input").write_text(f"{milliamperes}\n")
    return folder


def test_of_a_jetsons_rails_the_one_that_holds_all_others_counts(tmp_path):
    sensor(tmp_path, 0, "acpitz", [("VDD_IN", 99_000, 9_000)])
    rails = [("VDD_IN", 5_000, 1_200), ("VDD_CPU_GPU_CV", 5_000, 400), ("VDD_SOC", 5_000, 300)]
    board = sensor(tmp_path, 1, "ina3221", rails)
    (board / "in7_label").write_text("sum of shunt voltages\n")
    inputs = ina3221_inputs(tmp_path)
    assert watts_of(inputs) == pytest.approx(6.0)
    (board / "curr1_input").write_text("2000\n")
    assert watts_of(inputs) == pytest.approx(10.0)
    (board / "in1_input").unlink()
    assert watts_of(inputs) is None


def test_a_board_that_tells_of_some_rails_alone_is_unknown(tmp_path):
    sensor(tmp_path, 0, "ina3221", [("VDD_GPU_SOC", 5_000, 400), ("VDD_CPU_CV", 5_000, 300)])
    assert ina3221_inputs(tmp_path) == []
    assert ina3221_inputs(tmp_path / "nothing") == []


@pytest.mark.parametrize(("readings", "share"), [([6.0], 6.0), ([0.0], None), ([6.0, None], None)])
def test_power_adds_up_over_time(readings, share):
    """A sensor that fails once, or tells nothing, makes the whole unknown."""
    told = iter([*readings, *[readings[-1]] * 1000])
    before = time.perf_counter()
    stop = count_watts(lambda: next(told))
    joules = stop()
    after = time.perf_counter()
    if share is None:
        assert joules is None
    else:
        assert 0 < joules <= share * (after - before)


class FakeNVMLError(Exception):
    pass


def fake_nvml(readings, asked):
    def energy(handle):
        reading = next(readings)
        if reading is None:
            raise FakeNVMLError("not supported")
        return reading

    return SimpleNamespace(
        NVMLError=FakeNVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=asked.append,
        nvmlDeviceGetTotalEnergyConsumption=energy,
    )


@pytest.mark.parametrize(
    ("readings", "joules"),
    [((1_000, 3_500), 2.5), ((1_000, 1_000), None), ((None,), None), ((1, None), None)],
)
def test_a_gpus_total(monkeypatch, readings, joules):
    asked = []
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(iter(readings), asked))
    assert count_nvml("1234")() == joules
    assert asked == ["GPU-1234"]


def test_without_nvml_a_gpus_joules_are_unknown(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)  # the import fails
    assert count_nvml("1234")() is None


def test_the_processors_counters_are_asked_for_the_cpu():
    joules = count_joules(torch.device("cpu"))()
    assert joules is None or joules > 0
