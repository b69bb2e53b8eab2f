"""`peft-advisor doctor`: what this machine and installation offer, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from advisor.cli import options
from advisor.cli.outputs import Outputs
from advisor.cli.streams import nothing_more, results_apart
from advisor.units import format_bytes

if TYPE_CHECKING:
    from advisor.doctor import Device, Diagnosis, Package

_SCHEMA_VERSION = 1
_ALL_THERE = "All that is needed is there."


def command(json: options.JsonPath = None, form: options.TextForm = "terminal") -> None:
    """Look for what is wrong with this installation, and tell what this machine offers.

    Exit codes: 0 all that is needed is there, 1 something isn't.

    Examples:
        peft-advisor doctor
        peft-advisor doctor --json -
        peft-advisor doctor --format markdown
    """
    outputs = Outputs({"--json": json}, form)

    import dataclasses
    from json import dumps

    from advisor.doctor import examine

    with results_apart():  # what libraries print when they are imported
        found = examine()
    content = {"schema_version": _SCHEMA_VERSION} | dataclasses.asdict(found)
    outputs.write("--json", lambda: dumps(content, indent=2) + "\n")
    outputs.write_form(
        {"json": lambda: dumps(content, indent=2) + "\n", "markdown": lambda: _markdown(found)}
    )
    if outputs.to_stdout:
        nothing_more()
    else:
        _print(found)
    outputs.end(1 if found.problems else 0)


def _print(found: Diagnosis) -> None:
    from rich.text import Text

    from advisor.report.fitted import folded
    from advisor.report.terminal import Output

    console = Output(highlight=False)
    lines = [] if found.problems else [Text(_ALL_THERE, style="green")]
    for title, rows in _sections(found):
        lines.append(Text(title, style="bold"))
        width = max(len(name) for name, _ in rows) + 4
        for name, text in rows:
            told = folded(text, console.width - width, len(text) + 1)
            starts = [f"  {name}", *[""] * (len(told) - 1)]
            lines += [Text(f"{start:<{width}}{line}") for start, line in zip(starts, told, strict=True)]
    for line in lines:
        console.print(line, no_wrap=True, crop=False, overflow="ignore")


def _markdown(found: Diagnosis) -> str:
    from advisor.report.text_tables import plain

    lines = [] if found.problems else [_ALL_THERE, ""]
    for title, rows in _sections(found):
        named = (f"- {plain(f'{name}: {text}' if name != '-' else text)}" for name, text in rows)
        lines += [f"## {title}", "", *named, ""]
    return "\n".join(lines)


def _sections(found: Diagnosis) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Problems first."""
    if found.problems:
        yield "Problems", [("-", f"{problem.what}: {problem.mend}") for problem in found.problems]
    yield "Versions", [(package.name, package.version or "not installed") for package in found.needed]
    yield "Optional", [(package.name, _optional(package)) for package in found.optional]
    yield "Devices", [(device.kind, _device(device)) for device in found.devices]
    works = "works: the choice is run under --ram as a hard limit"
    fails = "doesn't work here: the allocator's own peak is compared with --ram instead"
    store = found.store
    held = f"{store.results:,} results, {format_bytes(store.size_bytes)}" if store.exists else "nothing yet"
    yield (
        "This machine",
        [
            ("memory limit", works if found.memory_limit_works else fails),
            ("store", f"{store.path or 'nowhere'}: {held}"),
        ],
    )


def _optional(package: Package) -> str:
    if package.version is not None:
        return package.version
    return f"not installed: {package.install} gives {package.gives}"


def _device(device: Device) -> str:
    parts = [device.name]
    if device.cores is not None:
        usable = device.usable_cores
        limited = f", {usable} of them for this process" if usable not in (None, device.cores) else ""
        parts.append(f"{device.cores} core{'s' * (device.cores != 1)}{limited}")
    if device.threads is not None:
        parts.append(f"{device.threads} thread{'s' * (device.threads != 1)}")
    if device.memory_bytes is not None:
        free = "" if device.available_bytes is None else f"{format_bytes(device.available_bytes)} free of "
        parts.append(f"memory {free}{format_bytes(device.memory_bytes)}")
    return "; ".join(parts)
