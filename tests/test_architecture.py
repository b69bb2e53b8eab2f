"""The shape of the package: imports point one way, the public names are there, --help stays light."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import pkgutil
import subprocess
import sys
from pathlib import Path

import advisor

ROOT = Path(advisor.__file__).parent
# Each may import those before it.
ORDER = [
    "errors",
    "names",
    "units",
    "system",
    "confine",
    "records",
    "plain",
    "store",
    "models",
    "data",
    "parts",
    "methods",
    "training",
    "costs",
    "device",
    "probes",
    "solver",
    "story",
    "advise",
    "compare",
    "check",
    "delivery",
    "board",
    "report",
    "demo",
    "doctor",
    "cli",
    "pytest_plugin",
]
UPWARD = {("records.py", "advisor.report.formats")}  # `Recommendation.load`, on its first call
RENDERERS = ["solver", "report"]  # pure functions of records


def imports(path: Path) -> set[str]:
    """Every `advisor.X` that the file imports, and `torch` where it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_imports_point_one_way():
    for path in ROOT.rglob("*.py"):
        package = package_of(path)
        if package in ("__init__", "__main__"):
            continue
        for module in imports(path):
            parts = module.split(".")
            if (path.relative_to(ROOT).as_posix(), module) in UPWARD:
                continue
            if parts[0] == "advisor" and len(parts) > 1 and parts[1] != package:
                assert ORDER.index(parts[1]) < ORDER.index(package), f"{path} imports {module}"


def test_solver_and_renderers_know_no_torch():
    for package in RENDERERS:
        for path in (ROOT / package).rglob("*.py"):
            assert not any(m.split(".")[0] in ("torch", "torchvision") for m in imports(path)), path


def test_the_public_names_are_the_api():
    for name in advisor.__all__:
        assert getattr(advisor, name) is not None
    assert sorted(advisor.__all__) == advisor.__all__
    assert dir(advisor) == sorted([*advisor.__all__, "__version__"])
    assert advisor.__version__ == importlib.metadata.version("peft-advisor")


def test_help_imports_nothing_heavy():
    code = (
        "import sys, advisor.cli\n"
        "heavy = {'torch', 'torchvision', 'sklearn', 'scipy', 'numpy', 'PIL', 'fvcore', 'jinja2', 'rich'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_name_hides_a_module():
    """`import advisor.probes.race` once gave a function: the package exported it under the module's name."""
    found = [
        name for _, name, _ in pkgutil.walk_packages(advisor.__path__, "advisor.") if "__main__" not in name
    ]
    for name in found:
        module = importlib.import_module(name)
        package, _, last = name.rpartition(".")
        assert getattr(sys.modules[package], last) is module, name
    assert len(found) > 60
