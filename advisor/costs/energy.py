"""Joules, where the machine counts them: RAPL for the processor, NVML for a GPU.

The counters know no programs: they hold what the whole package or board used, idling included. So an
update's joules are what the machine used meanwhile. Where a counter is missing, or only readable
with more rights (Linux keeps RAPL for root), the answer is None.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

# Stops the count: joules since it was started; None: unknown.
Stop = Callable[[], float | None]

_POWERCAP = Path("/sys/class/powercap")


def count_joules(device: torch.device) -> Stop:
    """Start to count what `device` uses."""
    if device.type == "cuda":
        return count_nvml(str(torch.cuda.get_device_properties(device).uuid))
    return count_rapl()


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


def _counts(zone: Path) -> bool:
    """Whether no other zone's figure holds this one's: cores are in packages, packages in `psys`."""
    try:
        name = (zone / "name").read_text().strip()
    except OSError:
        return False
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


def _unknown() -> None:
    return None
