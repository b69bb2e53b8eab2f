"""`peft-advisor methods`: what each method is, its formula, its source."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from advisor.cli import options

if TYPE_CHECKING:
    from advisor.methods import Method


def command(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Only these; default: all.", show_default=False),
    ] = None,
) -> None:
    """List the methods: what each one trains, its formula, its source.

    Examples:
        peft-advisor methods
        peft-advisor methods lora dora
    """
    for name in names or ():
        options.check_method(name)

    from rich.padding import Padding
    from rich.text import Text

    from advisor.cli.streams import results_apart
    from advisor.methods import methods
    from advisor.report.terminal import Output

    with results_apart():  # third parties' are imported
        known = methods()
    console = Output(highlight=False)
    for name in names or known:
        method = known[name]
        console.print(Text(name, style="bold"))
        more = [(line, "") for line in _more(method)] if names else []
        for line, style in ((method.summary, ""), (method.formula, ""), *more, (method.source, "dim")):
            text = Text(line, style=style)
            if console.is_terminal:
                console.print(Padding(text, (0, 0, 0, 4), expand=False))
            else:  # one line each, for grep
                console.print(Text("    ") + text, soft_wrap=True)


def _more(method: Method) -> Iterator[str]:
    """What is told of a method that was asked for by name."""
    said = inspect.getdoc(type(method)) or ""
    paragraphs = (" ".join(paragraph.split()) for paragraph in said.split("\n\n"))
    yield from (each for each in paragraphs if each.strip(".").lower() != method.summary.lower())
    if method.learning_rates:
        yield f"learning rates of its probes: {', '.join(f'{rate:g}' for rate in method.learning_rates)}"
    if method.peft_type is not None:
        yield f"in Hugging Face PEFT: {method.peft_type}"
