"""`peft-advisor methods`: what each method is, its formula, its source."""

from __future__ import annotations


def command() -> None:
    """List the methods: what each one trains, its formula, its source."""
    from rich.text import Text

    from advisor.cli.streams import results_apart
    from advisor.methods import methods
    from advisor.report.terminal import Output

    with results_apart():  # third parties' are imported
        known = methods()
    console = Output()
    for name, method in known.items():
        console.print(Text(name, style="bold"), highlight=False)
        for line in (method.summary, method.formula, method.source):
            console.print(Text(f"    {line}"), highlight=False, soft_wrap=True)
