"""Whether a processor was throttled: a /sys made for the test, in the layout of the kernel's."""

from __future__ import annotations

import pytest

from advisor.device.throttling import watch_throttling


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def counters(root, core, package):
    folder = root / "devices/system/cpu/cpu0/thermal_throttle"
    write(folder / "core_throttle_count", core)
    write(folder / "package_throttle_count", package)


@pytest.mark.parametrize(("after", "throttled"), [((3, 7), False), ((3, 9), True), ((4, 7), True)])
def test_a_pcs_counters(tmp_path, after, throttled):
    counters(tmp_path, 3, 7)
    stop = watch_throttling(tmp_path)
    counters(tmp_path, *after)
    assert stop() is throttled


@pytest.mark.parametrize(
    ("before", "after", "throttled"),
    [
        ("0", "0", False),
        ("0", "20000", True),  # its frequency was capped since
        ("50000", "50000", False),  # too little voltage and throttled, but before: since it started
        ("50000", "50005", True),  # and now again
        ("0", "80008", True),  # at the soft limit of temperature
    ],
)
def test_a_raspberry_pis_bits(tmp_path, before, after, throttled):
    path = tmp_path / "devices/platform/soc/soc:firmware/get_throttled"
    write(path, before)
    stop = watch_throttling(tmp_path)
    write(path, after)
    assert stop() is throttled


def test_a_cooler_that_slows_the_processor_counts_and_a_fan_does_not(tmp_path):
    thermal = tmp_path / "class/thermal"
    write(thermal / "cooling_device0/type", "pwm-fan")
    write(thermal / "cooling_device0/cur_state", 3)
    assert watch_throttling(tmp_path)() is None  # nothing tells
    write(thermal / "cooling_device1/type", "cpufreq-cpu0")
    write(thermal / "cooling_device1/cur_state", 0)
    stop = watch_throttling(tmp_path)
    assert stop() is False
    write(thermal / "cooling_device1/cur_state", 2)
    assert stop() is True


@pytest.mark.parametrize("content", ["", "many"])
def test_what_can_not_be_read_tells_nothing(tmp_path, content):
    counters(tmp_path, content, content)
    assert watch_throttling(tmp_path)() is None
    assert watch_throttling(tmp_path / "nothing")() is None
