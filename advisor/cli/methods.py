"""`peft-advisor methods`: what each method is, its formula, its source."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from advisor.cli import options
from advisor.cli.outputs import Outputs

if TYPE_CHECKING:
    from advisor.methods import Method

_SCHEMA_VERSION = 1


def command(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Only these; default: all.", show_default=False),
    ] = None,
    form: options.TableForm = "terminal",
) -> None:
    """List the methods: what each one trains, its formula, its source.

    Examples:
        peft-advisor methods
        peft-advisor methods lora dora
        peft-advisor methods --format markdown
    """
    for name in names or ():
        options.check_method(name)
    outputs = Outputs({}, form)

    from advisor.cli.streams import results_apart
    from advisor.methods import methods

    with results_apart():  # third parties' are imported
        known = methods()
    asked = {name: known[name] for name in names or known}
    outputs.write_form(
        {"json": lambda: _json(asked), "markdown": lambda: _markdown(asked), "csv": lambda: _csv(asked)}
    )
    if not outputs.to_stdout:
        _print(asked, in_full=bool(names))
    outputs.end()


def _print(asked: Mapping[str, Method], *, in_full: bool) -> None:
    from textwrap import wrap

    from rich.text import Text

    from advisor.report.terminal import Output

    console = Output(highlight=False)
    for name, method in asked.items():
        console.print(Text(name, style="bold"))
        more = [(line, "") for line in _more(method)] if in_full else []
        for line, style in ((method.summary, ""), (method.formula, ""), *more, (method.source, "dim")):
            # In a file one line each, for grep.
            told = wrap(line, console.width - 4, break_on_hyphens=False) if console.is_terminal else [line]
            for each in told:
                console.print(Text(f"    {each}", style=style), soft_wrap=True)


def _json(asked: Mapping[str, Method]) -> str:
    from json import dumps

    entries = [
        {
            "name": name,
            "summary": method.summary,
            "formula": method.formula,
            "source": method.source,
            "description": _described(method),
            "learning_rates": list(method.learning_rates),
            "peft_type": method.peft_type,
        }
        for name, method in asked.items()
    ]
    return dumps({"schema_version": _SCHEMA_VERSION, "methods": entries}, indent=2) + "\n"


def _markdown(asked: Mapping[str, Method]) -> str:
    from advisor.report.text_tables import plain

    lines = ["| method | what is trained | formula | source |", "|---|---|---|---|"]
    for name, method in asked.items():
        lines.append(f"| {' | '.join(map(plain, (name, method.summary, method.formula, method.source)))} |")
    return "\n".join(lines) + "\n"


def _csv(asked: Mapping[str, Method]) -> str:
    import csv
    import io

    from advisor.report.text_tables import no_formula

    written = io.StringIO()
    rows = csv.writer(written, lineterminator="\n")
    rows.writerow(["name", "summary", "formula", "source"])
    for name, method in asked.items():
        rows.writerow(map(no_formula, (name, method.summary, method.formula, method.source)))
    return written.getvalue()


def _described(method: Method) -> list[str]:
    """The paragraphs of its docstring that say more than its summary."""
    said = inspect.getdoc(type(method)) or ""
    paragraphs = (" ".join(paragraph.split()) for paragraph in said.split("\n\n"))
    return [each for each in paragraphs if each.strip(".").lower() != method.summary.lower()]


def _more(method: Method) -> Iterator[str]:
    """What is told of a method that was asked for by name."""
    yield from _described(method)
    if method.learning_rates:
        yield f"learning rates of its probes: {', '.join(f'{rate:g}' for rate in method.learning_rates)}"
    if method.peft_type is not None:
        yield f"in Hugging Face PEFT: {method.peft_type}"
