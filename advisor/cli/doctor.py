"""`peft-advisor doctor`: what this machine and installation offer, and what is wrong with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from advisor.cli import options
from advisor.cli.outputs import Outputs
from advisor.cli.streams import nothing_more, results_apart
from advisor.units import format_bytes

if TYPE_CHECKING:
    from advisor.doctor import Device, Diagnosis, Package

_SCHEMA_VERSION = 1


def command(json: options.JsonPath = None) -> None:
    """Look for what is wrong with this installation, and tell what this machine offers.

    Exit codes: 0 all that is needed is there, 1 something isn't.

    Examples:
        peft-advisor doctor
        peft-advisor doctor --json -
    """
    outputs = Outputs({"--json": json})

    import dataclasses
    from json import dumps

    from advisor.doctor import examine

    with results_apart():  # what libraries print when they are imported
        found = examine()
    content = {"schema_version": _SCHEMA_VERSION} | dataclasses.asdict(found)
    outputs.write("--json", lambda: dumps(content, indent=2) + "\n")
    if outputs.to_stdout:
        nothing_more()
    else:
        _print(found)
    outputs.end(1 if found.problems else 0)


def _print(found: Diagnosis) -> None:
    """Problems first."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from advisor.report.terminal import Output

    console = Output(highlight=False)

    def section(title: str, rows: list[tuple[str, str]]) -> None:
        grid = Table.grid(padding=(0, 2))
        for name, text in rows:
            grid.add_row(Text(name), Text(text))
        console.print(Text(title, style="bold"))
        console.print(Padding(grid, (0, 0, 0, 2)))

    if found.problems:
        section("Problems", [("-", f"{problem.what}: {problem.mend}") for problem in found.problems])
    else:
        console.print(Text("All that is needed is there.", style="green"))
    section("Versions", [(package.name, package.version or "not installed") for package in found.needed])
    section("Optional", [(package.name, _optional(package)) for package in found.optional])
    section("Devices", [(device.kind, _device(device)) for device in found.devices])
    works = "works: the choice is run under --ram as a hard limit"
    fails = "doesn't work here: the allocator's own peak is compared with --ram instead"
    store = found.store
    held = f"{store.results:,} results, {format_bytes(store.size_bytes)}" if store.exists else "nothing yet"
    section(
        "This machine",
        [
            ("memory limit", works if found.memory_limit_works else fails),
            ("store", f"{store.path or 'nowhere'}: {held}"),
        ],
    )


def _optional(package: Package) -> str:
    if package.version is not None:
        return package.version
    return f"not installed; would give {package.gives}: {package.install}"


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
