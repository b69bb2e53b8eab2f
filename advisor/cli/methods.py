"""`peft-advisor methods`: what each method is, its formula, its source."""

from __future__ import annotations

from typing import Annotated

import typer

from advisor.cli import options


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
        for line, style in ((method.summary, ""), (method.formula, ""), (method.source, "dim")):
            text = Text(line, style=style)
            if console.is_terminal:
                console.print(Padding(text, (0, 0, 0, 4), expand=False))
            else:  # one line each, for grep
                console.print(Text("    ") + text, soft_wrap=True)
