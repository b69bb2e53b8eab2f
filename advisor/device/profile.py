"""A device's profile, as `device measure` writes it: read as what a stranger may have written.

What an update asks of a device (`Work`) adds up over operators, and so do its seconds: each kind of operator,
in each phase, has its seconds a call, a FLOP and a byte. `device.schema.json` documents the file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from advisor.errors import InputError, first_line
from advisor.plain import decode, shortened
from advisor.records import Cost, Forecast, Target, Work
from advisor.system.files import parse_json, read_text

SCHEMA_VERSION = 2
KIND = "peft-advisor device"
_PHASES = ("forward", "input_gradient", "weight_gradient")
# Every operator is one of these: without a price it would be for nothing.
_NEEDED = (
    *product(("standard", "pointwise", "pointwise_few", "pointwise_blocks", "pointwise_groups"), _PHASES),
    *product(("depthwise", "depthwise_wide", "grouped", "linear"), _PHASES),
    *product(("norm", "pool", "elementwise"), _PHASES[:2]),
    *product(("in_place", "view", "update", "adam", "momentum", "sgd"), _PHASES[:1]),
)
_MOST_OPERATORS = 1000
_HOT = 1.15  # times as long at the end as at the beginning


@dataclass(frozen=True, slots=True)
class Price:
    """Seconds of operators of one kind, in one phase; they add up."""

    kind: str
    phase: str
    seconds_per_call: float
    seconds_per_flop: float
    seconds_per_flop_in_8s: float
    seconds_per_flop_in_16s: float
    seconds_per_byte: float
    seconds_per_new_byte: float
    median_error: float  # of the shapes that it was fitted to, relatively

    def seconds(self, work: Work) -> float:
        """That so much work takes."""
        return (
            self.seconds_per_call * work.calls
            + self.seconds_per_flop * work.flops
            + self.seconds_per_flop_in_8s * work.flops_in_8s
            + self.seconds_per_flop_in_16s * work.flops_in_16s
            + self.seconds_per_byte * work.bytes
            + self.seconds_per_new_byte * work.new_bytes
        )


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """What was measured on a device."""

    kind: str
    schema_version: int
    machine: str  # system and processor type
    torch: str
    threads: int
    runtime_bytes: int  # resident before any update: Python, PyTorch, Pillow where it is there
    watts: float | None  # of the whole processor under load; None: the device doesn't tell
    slowdown: float  # of an operator timed again at the end: above 1 it had become slower
    measuring_seconds: float
    operators: tuple[Price, ...]
    kernel_bytes: int = 0  # that PyTorch keeps of a kernel, one for each shape of a convolution and direction
    throttled: bool | None = None  # as the device itself tells; None: it doesn't

    @property
    def warning(self) -> str:
        """That it was throttled while it was measured; empty where not."""
        if self.throttled:
            return "it was throttled while it was measured, so it may be quicker than predicted"
        if self.slowdown < _HOT:
            return ""
        return (
            f"it had become {self.slowdown:.2f} times as slow by the end of its measuring: throttled, or busy"
        )


def shipped() -> dict[str, Path]:
    """Profiles that come with the package, by name: of machines that were really measured."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "profiles").glob("*.json"))}


def read_profile(path: str) -> DeviceProfile:
    """The profile in a file, or a shipped one. Raises InputError, in one line, where it is none of ours."""
    try:
        place = path if os.path.lexists(path) else shipped().get(path, path)
        document = parse_json(read_text(place), parse_constant=_refused)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"--target {path}: can't be read ({reason}); {_MEND}") from error
    except ValueError as error:  # UnicodeDecodeError included
        raise InputError(f"--target {path}: it is not JSON ({first_line(error)}); {_MEND}") from error
    try:
        return _checked(document)
    except InputError as error:
        raise InputError(f"--target {path}: {error}; {_MEND}") from error


_MEND = (
    "give what `peft-advisor device measure` printed on the device, or a profile that is shipped: "
    + ", ".join(shipped())
)


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _checked(document: object) -> DeviceProfile:
    if not isinstance(document, Mapping) or document.get("kind") != KIND:
        raise InputError("it is no device's profile")
    version = document.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise InputError(f"schema_version is {shortened(version)}, this release reads {SCHEMA_VERSION}")
    known = {field.name for field in fields(DeviceProfile)}
    profile = decode(DeviceProfile, {name: value for name, value in document.items() if name in known})
    if not 1 <= profile.threads <= 4096 or profile.runtime_bytes < 1:
        raise InputError("its threads and runtime_bytes must be above 0")
    if profile.kernel_bytes < 0:
        raise InputError("its kernel_bytes are below 0")
    if len(profile.operators) > _MOST_OPERATORS:
        raise InputError(f"it has more than {_MOST_OPERATORS} operators")
    watts = [] if profile.watts is None else [profile.watts]
    figures = [profile.slowdown, profile.measuring_seconds, *watts]
    figures += [
        value for price in profile.operators for name, value in _numbers(price) if name.startswith("seconds")
    ]
    if not all(0 <= value < math.inf for value in figures) or 0 in (profile.slowdown, *watts):
        raise InputError("a figure of it is below 0, or not finite")
    places = [(price.kind, price.phase) for price in profile.operators]
    if len(set(places)) < len(places):
        raise InputError("it has one operator's phase twice")
    missing = [place for place in _NEEDED if place not in places]
    if missing:
        raise InputError(f"it has no operator {missing[0][0]}, {missing[0][1]}")
    return profile


def _numbers(price: Price) -> Iterable[tuple[str, float]]:
    return [(field.name, getattr(price, field.name)) for field in fields(price)]


def target_of(path: str, profile: DeviceProfile) -> Target:
    """What an answer says of it: its file's name without the suffix is its own."""
    name = _plain(Path(path).stem) or "the target"
    return Target(name, _plain(profile.machine), profile.threads, _plain(profile.torch))


def _plain(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:24])


class Clock:
    """Predicts how long updates take on a device."""

    def __init__(self, profile: DeviceProfile) -> None:
        """Of the device that was measured."""
        self._profile = profile
        self._prices = {(price.kind, price.phase): price for price in profile.operators}

    def seconds(self, work: Iterable[Work], phase: str = "") -> float:
        """That operators take; of that phase alone, where one is given."""
        return sum(self._price(each).seconds(each) for each in work if phase in ("", each.phase))

    def update_seconds(self, work: Iterable[Work]) -> float:
        """Of an update that is so much work."""
        return self.seconds(work) + self._prices["update", "forward"].seconds_per_call

    def forecast(
        self, cost: Cost, *, updates: int | None = None, batch_size: int = 1, judged: int = 0
    ) -> Forecast:
        """Seconds and joules of an update of that cost, and of the whole fine-tune.

        Args:
            updates: of the whole fine-tune; None: not known.
            batch_size: images of an update.
            judged: images that run forward only, over all epochs: those held out, after each.
        """
        update = self.update_seconds(cost.work)
        of_optimizers = ("adam", "momentum", "sgd")
        forward = self.seconds([each for each in cost.work if each.kind not in of_optimizers], "forward")
        watts = self._profile.watts
        whole = None
        if updates is not None:
            # What is set up runs forward, too: at what a FLOP takes there.
            setup = cost.setup_flops * forward / cost.flops.forward if cost.flops.forward else 0.0
            whole = updates * update + setup + judged * forward / batch_size
        return Forecast(
            update,
            whole,
            update * watts if watts is not None else None,
            whole * watts if watts is not None and whole is not None else None,
        )

    def _price(self, work: Work) -> Price:
        found = self._prices.get((work.kind, work.phase))
        return found if found is not None else self._prices["elementwise", "forward"]
