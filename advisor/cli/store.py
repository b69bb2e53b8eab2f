"""`peft-advisor store`: what is remembered, and forgetting it."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advisor.cli import options, talk
from advisor.cli.commands import App
from advisor.cli.done import Done, say
from advisor.cli.outputs import Outputs
from advisor.errors import InputError
from advisor.units import format_bytes

if TYPE_CHECKING:
    from advisor.store import Store

_PAIRS_SHOWN = 10  # of a model and a data set

app = App(help="Show, export or clear what finished work is remembered.")


@app.command("show")
def show(store: options.StorePath = None, form: options.TextForm = "terminal") -> None:
    """Show where the store is, how large it is, and what is in it.

    Examples:
        peft-advisor store show
        peft-advisor store show --format json
    """
    outputs = Outputs({}, form)

    from advisor.store import SCHEMA_VERSION, set_aside_files

    path = _path(store)
    with _opened(path) as opened:
        results = [] if opened is None else list(opened)
        exists, size = opened is not None, _size(path)
    kinds = Counter(result.kind for result in results)
    pairs = Counter(
        (str(result.key.get("model")), str(result.key.get("data")))
        for result in results
        if result.kind == "probe"
    )
    aside = {str(file): file.stat().st_size for file in set_aside_files(path)}
    if exists:
        held = f"{_results(len(results))}, {format_bytes(size)}, schema version {SCHEMA_VERSION}"
        lines = [("", f"{path}: {held}")]
        if results:
            lines.append(("", f"from {_day(results[0].created)} to {_day(results[-1].created)}"))
    else:
        lines = [("", f"{path}: nothing is stored yet")]
    lines += [("", f"  {kind}: {count:,}") for kind, count in sorted(kinds.items())]
    lines += [
        ("", f"  model {model[:8]} on data {data[:8]}: {count:,} of the probes")
        for (model, data), count in pairs.most_common(_PAIRS_SHOWN)
    ]
    if len(pairs) > _PAIRS_SHOWN:
        lines.append(("", f"  and {len(pairs) - _PAIRS_SHOWN} more models or data sets"))
    lines += [
        ("", f"could not be read, and was set aside: {file} ({format_bytes(bytes_)})")
        for file, bytes_ in aside.items()
    ]
    figures = {
        "path": str(path),
        "exists": exists,
        "bytes": size,
        "store_version": SCHEMA_VERSION,
        "results": len(results),
        "oldest": _moment(results[0].created) if results else None,
        "newest": _moment(results[-1].created) if results else None,
        "kinds": dict(kinds),
        "probes": [
            {"model": model, "data": data, "results": count} for (model, data), count in pairs.most_common()
        ],
        "set_aside": [{"path": file, "bytes": bytes_} for file, bytes_ in aside.items()],
    }
    say(Done("store show", tuple(lines), figures), outputs)
    outputs.end()


@app.command("export")
def export(
    file: Annotated[str, typer.Argument(metavar="[FILE]", help="Where to; - is the standard output.")] = "-",
    store: options.StorePath = None,
) -> None:
    """Write every result as one line of JSON, the oldest first.

    Examples:
        peft-advisor store export results.jsonl
    """
    outputs = Outputs({"FILE": file})
    path = _path(store)
    with _opened(path) as opened:
        if opened is None:
            raise InputError(f"there is no store at {path}; give its --store")
        lines = [
            json.dumps(
                {"kind": result.kind, "key": result.key, "value": result.value, "created": result.created}
            )
            for result in opened
        ]
    text = "".join(f"{line}\n" for line in lines)
    if outputs.write("FILE", lambda: text) and not outputs.to_stdout:
        talk.hint(f"{_results(len(lines))}: {file}")
    outputs.end()


@app.command("clear")
def clear(
    store: options.StorePath = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
) -> None:
    """Forget every result. Files that were set aside stay.

    Exit codes: 0 done, 1 not confirmed.

    Examples:
        peft-advisor store clear --yes
    """
    path = _path(store)
    with _opened(path) as opened:
        if opened is None:
            typer.echo(f"{path}: nothing is stored yet")
            return
        if not yes:
            if not sys.stdin.isatty():
                raise InputError("`store clear` asks before it forgets; where nobody can answer, give --yes")
            count = _results(len(list(opened)))
            if not typer.confirm(f"Forget {count} in {path}?", err=True):
                talk.notice("nothing was forgotten")
                raise typer.Exit(1)
        typer.echo(f"{path}: {_results(opened.clear())} forgotten")


def _path(text: str | None) -> Path:
    from advisor.store import default_path

    return default_path() if text is None else Path(text)


@contextmanager
def _opened(path: Path) -> Iterator[Store | None]:
    """The store; None where there is none, and none is made."""
    from advisor.store import Store

    if not path.exists():
        yield None
        return
    with Store(path) as store:
        yield store


def _size(path: Path) -> int:
    """Bytes on disk, with what is not yet moved from the log into the database."""
    files = [file for file in (path, Path(f"{path}-wal")) if file.exists()]
    return sum(file.stat().st_size for file in files)


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _results(count: int) -> str:
    return f"{count:,} result{'s' * (count != 1)}"
