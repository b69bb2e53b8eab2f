"""Joules, where the machine tells: RAPL for the processor, INA3221 on a Jetson, NVML for a GPU.

The counters and sensors know no programs: they tell what the whole package or board used, idling included.
So an update's joules are what the machine used meanwhile. Where there are none, or they are only readable
with more rights (Linux keeps RAPL for root), the answer is None.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

# Stops the count: joules since it was started; None: unknown.
Stop = Callable[[], float | None]

_POWERCAP = Path("/sys/class/powercap")
_HWMON = Path("/sys/class/hwmon")
_INPUTS = ("VDD_IN", "POM_5V_IN")  # the rails of a Jetson's module that hold all others
_BETWEEN_READINGS = 0.05  # seconds


def count_joules(device: torch.device) -> Stop:
    """Start to count what `device` uses."""
    if device.type == "cuda":
        return count_nvml(str(torch.cuda.get_device_properties(device).uuid))
    inputs = ina3221_inputs()
    return count_watts(lambda: watts_of(inputs)) if inputs else count_rapl()


def count_rapl(root: Path = _POWERCAP) -> Stop:
    """Start to count the processor packages and the memory that is counted beside them."""
    zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if _counts(zone)]
    before = {zone: _microjoules(zone, "energy_uj") for zone in zones}

    def stop() -> float | None:
        used = [_used(zone, start) for zone, start in before.items()]
        known = [microjoules for microjoules in used if microjoules is not None]
        total = sum(known)
        # Less than all zones would be too low a figure, and a counter that stood still counts nothing.
        return total / 1e6 if len(known) == len(used) and total > 0 else None

    return stop


def count_nvml(uuid: str) -> Stop:
    """Start to count the GPU with this UUID; needs nvidia-ml-py and a Volta or newer."""
    try:
        import pynvml
    except ImportError:
        return _unknown
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        before = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return _unknown

    def stop() -> float | None:
        try:
            millijoules = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - before
        except pynvml.NVMLError:
            return None
        return millijoules / 1e3 if millijoules > 0 else None

    return stop


def ina3221_inputs(root: Path = _HWMON) -> list[tuple[Path, Path]]:
    """The files with millivolts and milliamperes of what goes into the board; none: no sensor tells of it.

    A board that only has sensors of some of its rails tells too little, so that counts as unknown.
    """
    found = []
    for sensor in sorted(root.glob("hwmon*")):
        if _text(sensor / "name") == "ina3221":
            labels = [label for label in sorted(sensor.glob("in[123]_label")) if _text(label) in _INPUTS]
            numbers = [label.name.removeprefix("in").removesuffix("_label") for label in labels]
            found += [(sensor / f"in{n}_input", sensor / f"curr{n}_input") for n in numbers]
    return found


def watts_of(inputs: list[tuple[Path, Path]]) -> float | None:
    """That go in now; None: one can't be read."""
    total = 0.0
    for volts, amperes in inputs:
        try:
            total += int(volts.read_text()) * int(amperes.read_text()) / 1e6
        except (OSError, ValueError):
            return None
    return total


def count_watts(watts: Callable[[], float | None]) -> Stop:
    """Start to add up what a sensor of power reads, several times a second, in a thread."""
    began, readings, done = time.perf_counter(), [watts()], threading.Event()

    def read() -> None:
        while not done.wait(_BETWEEN_READINGS):
            readings.append(watts())

    thread = threading.Thread(target=read, daemon=True)
    thread.start()

    def stop() -> float | None:
        done.set()
        thread.join()
        readings.append(watts())
        known = [reading for reading in readings if reading is not None]
        seconds = time.perf_counter() - began
        # A reading that failed would leave a gap, and a sensor that tells nothing tells 0.
        return seconds * sum(known) / len(known) if len(known) == len(readings) and sum(known) > 0 else None

    return stop


def _counts(zone: Path) -> bool:
    """Whether no other zone's figure holds this one's: cores are in packages, packages in `psys`."""
    name = _text(zone / "name")
    return name.startswith("package") or name == "dram"


def _used(zone: Path, before: int | None) -> int | None:
    after = _microjoules(zone, "energy_uj")
    if before is None or after is None:
        return None
    if after >= before:
        return after - before
    largest = _microjoules(zone, "max_energy_range_uj")  # after which it begins at 0 again
    return None if largest is None else after + largest - before


def _microjoules(zone: Path, name: str) -> int | None:
    try:
        return int((zone / name).read_text())
    except (OSError, ValueError):
        return None


def _text(path: Path) -> str:
    """What a file of one word holds; empty where it can't be read."""
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


def _unknown() -> None:
    return None
