"""`python -m advisor` is `peft-advisor`."""

from advisor.cli import main

main()
