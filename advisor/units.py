"""Sizes, FLOP counts and durations: parsed and printed in one place.

MB = 10^6 bytes, MiB = 2^20 bytes; 1 multiply-add = 2 FLOPs. Anything ambiguous is refused with a hint.
"""

from __future__ import annotations

import re

from advisor.errors import UnitError

_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTES |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_FLOPS = {"FLOP": 1, "KFLOP": 10**3, "MFLOP": 10**6, "GFLOP": 10**9, "TFLOP": 10**12}
_COUNTS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SECONDS = {"MS": 1e-3, "S": 1.0, "SEC": 1.0, "M": 60.0, "MIN": 60.0, "H": 3600.0}
_JOULES = {"mJ": 1e-3, "J": 1.0, "kJ": 1e3, "MJ": 1e6, "mWh": 3.6, "Wh": 3.6e3, "kWh": 3.6e6}
_NUMBER_AND_UNIT = re.compile(r"\s*([+-]?\d+(?:\.\d*)?(?:e[+-]?\d+)?|[+-]?\.\d+)\s*([a-z]*)\s*", re.I)


def parse_bytes(text: str) -> int:
    """`512MB` -> 512_000_000. Raises UnitError on anything but a positive number with a unit."""
    number, unit = _split(text, "a size", "512MB (10^6) or 512MiB (2^20)")
    if unit.upper() not in _BYTES:
        hint = (
            "write MB (10^6 bytes) or MiB (2^20 bytes)" if not unit else "use B, KB, MB, GB, KiB, MiB or GiB"
        )
        raise UnitError(f"size {text!r}: {_unit_problem(unit)}; {hint}")
    return _positive(text, "size", number * _BYTES[unit.upper()])


def parse_flops(text: str) -> int:
    """`2GFLOPs` -> 2_000_000_000. Raises UnitError; refuses GFLOPS, which is a rate.

    The lower-case plural `FLOPs` is a count; an upper-case `FLOPS` or a `/s` is operations per second.
    """
    number, unit = _split(text.replace("/s", "PS"), "a FLOP count", "2GFLOPs")
    if unit.endswith("S"):
        rate = f"{unit.removesuffix('PS')}/s" if "/s" in text else unit
        raise UnitError(
            f"FLOP count {text!r}: {rate!r} is a rate (operations per second); "
            "give the count for one update, such as 2GFLOPs"
        )
    key = unit.removesuffix("s").upper()
    if key not in _FLOPS:
        raise UnitError(f"FLOP count {text!r}: {_unit_problem(unit)}; use MFLOPs, GFLOPs or TFLOPs")
    return _positive(text, "FLOP count", number * _FLOPS[key])


def parse_seconds(text: str) -> float:
    """`5m` -> 300.0; also s, ms, h. Raises UnitError."""
    number, unit = _split(text, "a duration", "90s or 5m")
    if unit.upper() not in _SECONDS:
        raise UnitError(f"duration {text!r}: {_unit_problem(unit)}; use ms, s, m or h, such as 90s or 5m")
    if number <= 0:
        raise UnitError(f"duration {text!r} must be greater than 0")
    return number * _SECONDS[unit.upper()]


def parse_joules(text: str) -> float:
    """`2kJ` -> 2000.0, `1Wh` -> 3600.0. Raises UnitError; upper and lower case differ: mJ and MJ."""
    number, unit = _split(text, "an energy", "500J or 1Wh")
    if unit not in _JOULES:
        raise UnitError(f"energy {text!r}: {_unit_problem(unit)}; use mJ, J, kJ, mWh or Wh, such as 500J")
    if number <= 0:
        raise UnitError(f"energy {text!r} must be greater than 0")
    return number * _JOULES[unit]


def parse_count(text: str) -> int:
    """`1.5M` -> 1_500_000; a plain number, or with k, M or G. Raises UnitError."""
    number, unit = _split(text, "a count", "50000, 50k or 1.5M")
    if unit.upper() not in _COUNTS:
        raise UnitError(f"count {text!r}: {_unit_problem(unit)}; use k, M, G or T, such as 50k")
    value = number * _COUNTS[unit.upper()]
    if not 0 <= value < float("inf"):
        raise UnitError(f"count {text!r} must be 0 or more")
    return round(value)


def parse_percent(text: str) -> float:
    """`2.5%` -> 0.025. Raises UnitError: a bare number might be a fraction or percent."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*%\s*", text)
    if not match:
        raise UnitError(f"{text!r} is no percentage; write it like 2.5%")
    return float(match[1]) / 100


def parse_share(text: str) -> float:
    """`0.8`, or in percent `80` or `80%` -> 0.8. Raises UnitError on anything not above 0 and up to 1."""
    match = re.fullmatch(r"\s*(-?\d+(?:\.\d*)?|-?\.\d+)\s*(%?)\s*", text)
    if not match:
        raise UnitError(f"{text!r} is no share; write it like 0.8 or 80%")
    value = float(match[1])
    if match[2] or value > 1:
        value /= 100
    if not 0 < value <= 1:
        raise UnitError(f"{text.strip()} is out of range; give a fraction such as 0.8")
    return value


def parse_input_size(text: str) -> tuple[int, int, int]:
    """`3x224x224` -> (3, 224, 224). Raises UnitError."""
    match = re.fullmatch(r"([1-9]\d*)[x×,]([1-9]\d*)[x×,]([1-9]\d*)", text.strip().lower())
    if not match:
        raise UnitError(f"{text!r} is not a size; write channels x height x width, such as 3x224x224")
    return int(match[1]), int(match[2]), int(match[3])


def format_bytes(count: float) -> str:
    """Decimal units, three significant figures: 64_000_000 -> `64.0 MB`."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def format_flops(count: float) -> str:
    """Decimal units, three significant figures: 1_783_000_000 -> `1.78 GFLOP`."""
    return _scaled(count, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"))


def format_count(count: float) -> str:
    """A plain count, shortened: 2_236_682 -> `2.24 M`."""
    return _scaled(count, ("", "k", "M", "G", "T")).strip()


def format_seconds(seconds: float) -> str:
    """`0.012` -> `12.0 ms`, `75` -> `75.0 s`, `300` -> `5.0 min`."""
    if seconds < 1:
        return f"{_three(seconds * 1e3)} ms"
    return f"{_three(seconds)} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def format_percent(share: float, digits: int = 1) -> str:
    """`0.713` -> `71.3 %`."""
    return f"{share * 100:.{digits}f} %"


def format_percents(low: float, high: float) -> str:
    """`0.692, 0.731` -> `69.2 to 73.1 %`."""
    return f"{low * 100:.1f} to {format_percent(high)}"


def format_joules(joules: float) -> str:
    """`0.0125` -> `12.5 mJ`, `1234` -> `1.23 kJ`."""
    if joules < 1:
        return f"{_three(joules * 1e3)} mJ"
    for unit in ("J", "kJ"):
        if joules < 999.5:
            return f"{_three(joules)} {unit}"
        joules /= 1000
    return f"{_three(joules)} MJ"


def _split(text: str, what: str, example: str) -> tuple[float, str]:
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if not match:
        raise UnitError(f"{text!r} is not {what}; write it like {example}")
    return float(match[1]), match[2]


def _positive(text: str, what: str, value: float) -> int:
    if value < 1:
        raise UnitError(f"{what} {text!r} must be greater than 0")
    if value == float("inf"):
        raise UnitError(f"{what} {text!r} is too large")
    return round(value)


def _unit_problem(unit: str) -> str:
    return f"unknown unit {unit!r}" if unit else "no unit"


def _scaled(count: float, units: tuple[str, ...]) -> str:
    magnitude = 0
    while abs(count) >= 999.5 and magnitude < len(units) - 1:
        count /= 1000
        magnitude += 1
    number = f"{count:.0f}" if magnitude == 0 else _three(count)
    return f"{number} {units[magnitude]}"


def _three(value: float) -> str:
    return (
        f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"
    )
