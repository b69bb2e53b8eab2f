"""The program that measures a device: one file that needs PyTorch alone, made of modules as they are."""

from __future__ import annotations

import ast
from pathlib import Path

import advisor

# What the last one needs of ours comes before it. They import torch and Python's own modules, nothing else.
_MODULES = (
    *("system/machine.py", "costs/process.py", "costs/energy.py", "costs/figures.py"),
    *("device/lean.py", "device/throttling.py", "device/measure.py"),
)
_START = '\n\nif __name__ == "__main__":\n    sys.exit(main())\n'


def program() -> str:
    """Its text: what it says of itself, then each module without what it says, and imports from another."""
    folder = Path(advisor.__file__).parent
    texts = [(folder / name).read_text(encoding="utf-8") for name in _MODULES]
    said = ast.get_docstring(ast.parse(texts[-1]), clean=False)
    head = f'"""{said}"""\n\nfrom __future__ import annotations\n'
    return head + "".join(map(_own, texts)) + _START


def _own(text: str) -> str:
    first, *others = ast.parse(text).body
    left_out = [first]  # the docstring
    for node in others:
        module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        if module == "__future__" or module.partition(".")[0] == advisor.__name__:
            left_out.append(node)
    lines = text.splitlines(keepends=True)
    for node in left_out:
        for number in range(node.lineno - 1, node.end_lineno or node.lineno):
            lines[number] = ""
    return "\n" + "".join(lines).strip("\n") + "\n"
