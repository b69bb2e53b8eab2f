"""Whether the processor was made slower because it became hot, or its supply weak, as Linux tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

_SYS = Path("/sys")
_FIRMWARE = "devices/platform/soc/soc:firmware/get_throttled"  # a Raspberry Pi's
# Of its bits: too little voltage, frequency capped, throttled, at the soft limit; now, and since it started.
_NOW, _SINCE = 0b1111, 16


def watch_throttling(root: Path = _SYS) -> Callable[[], bool | None]:
    """Start to watch. What is returned tells whether it was throttled since; None: the device doesn't tell.

    Args:
        root: where the kernel's `/sys` is.
    """
    counters = sorted(root.glob("devices/system/cpu/cpu*/thermal_throttle/*_throttle_count"))
    before = {path: _number(path) for path in counters}
    firmware = root / _FIRMWARE
    since = _number(firmware, 16)
    coolers = [
        folder / "cur_state"
        for folder in sorted(root.glob("class/thermal/cooling_device*"))
        if _is_of_a_processor(folder / "type")
    ]

    def stop() -> bool | None:
        told: list[bool] = []
        for path, count in before.items():
            after = _number(path)
            if count is not None and after is not None:
                told.append(after > count)
        bits = _number(firmware, 16)
        if since is not None and bits is not None:
            told.append(bool(bits & _NOW or (bits & ~since) >> _SINCE))
        # A cooler that is at work at the end of the load was at work under it.
        states = [state for path in coolers if (state := _number(path)) is not None]
        told += [state > 0 for state in states]
        return any(told) if told else None

    return stop


def _is_of_a_processor(path: Path) -> bool:
    """Whether that cooling device is a processor that runs slower: fans and other parts are none."""
    try:
        return "cpufreq" in path.read_text()
    except (OSError, ValueError):
        return False


def _number(path: Path, base: int = 10) -> int | None:
    try:
        return int(path.read_text().strip(), base)
    except (OSError, ValueError):
        return None
