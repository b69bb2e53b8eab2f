"""Which faults the tests notice: one operator, constant or condition is changed at a time, and tests are run.

    python -m measurements.mutants --seconds 600     # of work, before it stops; then the same again
    python -m measurements.mutants --wider           # those that live: with all tests that concern them
    python -m measurements.mutants --again           # those that live: with what tests there are now

Of each package so many mutants are drawn as `--each` says. Each is tried in a copy of the project, in a
process of its own: forked from one that has collected the tests, and given the changed function there. What
stands outside of functions is changed before anything is imported. Seconds are a processor's.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import copy
import gc
import hashlib
import importlib
import json
import os
import py_compile
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from measurements.tables import README, table, write_tables

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "mutants.json"
PACKAGES = ("costs", "solver", "probes", "methods")
# Where the tests of a module are not in the file that has its name.
ELSEWHERE = {
    "costs/allocator.py": ("costs/test_simulate.py",),
    "costs/fvcore_check.py": ("costs/test_flops.py",),
    "costs/passes.py": ("costs/test_flops.py", "costs/test_simulate.py"),
    "costs/recorder.py": (
        *("costs/test_closely.py", "costs/test_simulate.py", "costs/test_flops.py", "device/test_target.py"),
    ),
    "costs/steps.py": ("costs/test_simulate.py",),
    "costs/work.py": ("costs/test_flops.py", "costs/test_simulate.py", "probes/test_clock.py"),
    "costs/workspace.py": ("costs/test_workspace.py", "costs/test_simulate.py"),
    "methods/adapter.py": ("methods/test_adapter.py", "methods/test_contract.py"),
    "methods/base.py": ("methods/test_contract.py", "methods/test_another_method.py"),
    "methods/bias.py": ("methods/test_contract.py",),
    "methods/full.py": ("methods/test_contract.py",),
    "methods/head.py": ("methods/test_contract.py",),
    "methods/ia3.py": ("methods/test_ia3_ssf.py",),
    "methods/loha.py": ("methods/test_loha_lokr.py",),
    "methods/lokr.py": ("methods/test_loha_lokr.py",),
    "methods/lora.py": ("methods/test_low_rank.py",),
    "methods/norm.py": ("methods/test_contract.py",),
    "methods/recalibrate.py": ("methods/test_tent.py", "methods/test_contract.py"),
    "methods/ridge.py": ("parts/test_closed_form.py", "methods/test_contract.py"),
    "methods/ssf.py": ("methods/test_ia3_ssf.py",),
    "probes/findings.py": ("probes/test_findings.py", "probes/test_race.py", "test_compare.py"),
    "solver/budget.py": ("solver/test_solver.py",),
    "solver/choose.py": ("solver/test_solver.py", "solver/test_laws.py"),
    "solver/explain.py": ("solver/test_solver.py", "report/test_screen.py"),
    "solver/limits.py": ("solver/test_solver.py", "solver/test_laws.py"),
    "solver/relax.py": ("solver/test_solver.py", "solver/test_laws.py"),
}
SECONDS = (60, 240)  # of a processor, for the first and for all tests; more where these take longer anyway
_AS_IT_IS = 1200
MEMORY = 8 * 2**30
# What tests need, imported once.
IMPORTED = (
    *("torch", "torchvision.models", "torch.utils.checkpoint", "torch._subclasses.fake_tensor", "timm"),
    *("fvcore.nn", "scipy.optimize", "scipy.stats", "sklearn.gaussian_process", "PIL.Image", "jinja2"),
    *("safetensors.torch", "joblib", "cloudpickle", "typer", "rich.console", "pytest"),
)
# Code whose assertions pytest has rewritten, as it does in the package of a plugin, would not be found again.
HOW = ("-rfE", "--tb=no", "-p", "no:cacheprovider", "--assert=plain")
COMPARED = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
COMPUTED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
NONE = "changes nothing"  # how what is said of a mutant begins, where no test could notice it
HEADS = (
    "package",
    "mutants",
    "change nothing",
    "noticed",
    "by the tests that there were",
    "share of the rest",
)
NAMED = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """A change of one expression; found again by its function and its text, wherever its lines have moved."""

    path: str  # below advisor/
    where: str  # the function's dotted name
    before: str
    after: str
    nth: int  # of those alike
    span: tuple[int, int, int, int] = field(compare=False)  # lines and columns, as ast has them
    inside: bool = field(compare=False)  # a function's body

    def name(self) -> str:
        """What it is known by."""
        return f"{self.path}:{self.where}: {self.before} -> {self.after} #{self.nth}"

    def in_function(self) -> bool:
        """Whether giving functions other code is enough."""
        return self.inside

    def applied(self, source: str) -> str:
        """The module with the change, on as many lines."""
        lines = source.encode().splitlines(keepends=True)
        first, start, last, end = self.span
        text = f"({self.after})".encode()
        whole = b"".join(lines[first - 1 : last])
        tail = len(b"".join(lines[first - 1 : last - 1])) + end
        changed = whole[:start] + text + whole[tail:]
        return b"".join([*lines[: first - 1], changed, *lines[last:]]).decode()


def mutants_of(path: Path, below: Path) -> list[Mutant]:
    """All that are made of a module, in the order of its text."""
    tree = ast.parse(path.read_text())
    seen: dict[tuple[str, str, str], int] = {}
    found = []
    for node, where, inside in _expressions(tree, "", inside=False):
        before = ast.unparse(node)
        for changed in _changes(node):
            after = ast.unparse(ast.fix_missing_locations(changed))
            nth = seen[where, before, after] = seen.get((where, before, after), -1) + 1
            span = (node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0)
            found.append(Mutant(path.relative_to(below).as_posix(), where, before, after, nth, span, inside))
    return found


def _expressions(node: ast.AST, where: str, *, inside: bool) -> Iterator[tuple[ast.expr, str, bool]]:
    """Those that are computed; not what is told to users, typed, asserted, or says how a class is made."""
    for name, value in ast.iter_fields(node):
        is_call = isinstance(node, ast.Call)
        if name in ("annotation", "returns", "decorator_list", "bases", "keywords") and not is_call:
            continue
        # Defaults are computed as the function is made.
        within = inside or (name == "body" and isinstance(node, ast.FunctionDef))
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Raise | ast.Assert | ast.JoinedStr):
                continue
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.Call) and ast.unparse(child.func).startswith(("_log.", "cast")):
                continue
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                yield from _expressions(child, f"{where}.{child.name}".lstrip("."), inside=within)
                continue
            if isinstance(child, ast.expr):
                yield child, where, within
            yield from _expressions(child, where, inside=within)


def _changes(node: ast.expr) -> Iterator[ast.expr]:
    changed: Any = copy.deepcopy(node)
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARED:
        changed.ops = [COMPARED[type(node.ops[0])]()]
    elif isinstance(node, ast.BinOp) and type(node.op) in COMPUTED and not _is_type(node):
        changed.op = COMPUTED[type(node.op)]()
    elif isinstance(node, ast.BoolOp):
        changed.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        changed = changed.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        changed.value = not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        changed.value = node.value + 1
    elif isinstance(node, ast.Constant) and isinstance(node.value, float):
        changed.value = 2 * node.value or 1.0
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAMED:
        changed.func.id = NAMED[node.func.id]
    elif isinstance(node, ast.IfExp):
        changed.test = ast.UnaryOp(ast.Not(), changed.test)
    else:
        return
    yield changed


def _is_type(node: ast.BinOp) -> bool:
    """Whether it is `X | None` and the like."""
    text = ast.unparse(node)
    return isinstance(node.op, ast.BitOr) and bool(re.search(r"\b(None|int|float|str|nn\.Module)\b", text))


def every(package: str) -> list[Mutant]:
    """All of a package."""
    files = sorted((ROOT / "advisor" / package).glob("*.py"))
    return [one for path in files for one in mutants_of(path, ROOT / "advisor")]


def drawn(each: int) -> list[Mutant]:
    """So many of each package, at random: whatever is edited elsewhere, the same ones each time."""
    return [one for package in PACKAGES for one in sorted(every(package), key=_lot)[:each]]


def _lot(mutant: Mutant) -> str:
    return hashlib.sha256(mutant.name().encode()).hexdigest()


def tests_of(path: str) -> tuple[list[str], list[str]]:
    """Those of the module itself, and all that concern it."""
    package, _, file = path.partition("/")
    own = [f"tests/{each}" for each in ELSEWHERE.get(path, (f"{package}/test_{file}",))]
    own = [each for each in own if (ROOT / each).exists()]
    module = re.compile(rf"advisor\.{package}\.{file.removesuffix('.py')}\b")
    named = [p for p in sorted((ROOT / "tests").rglob("test_*.py")) if module.search(p.read_text())]
    more = [*sorted((ROOT / "tests" / package).glob("test_*.py")), *named, ROOT / "tests/test_constants.py"]
    kept = [p.relative_to(ROOT).as_posix() for p in more if p.parts[-2] not in ("zoo", "browser", "hostile")]
    return own or kept, [each for each in dict.fromkeys(kept) if each not in own]


class Bench:
    """A copy of the project, in which one module at a time is another."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "copy"
        self._pass: dict[str, bool] = {}  # tests, without any mutant
        left = shutil.ignore_patterns(".git", ".venv", "__pycache__", "results", "reports")
        shutil.copytree(ROOT, self.root, ignore=left)
        os.chdir(self.root)
        sys.path[:] = [str(self.root), *(each for each in sys.path if each not in ("", str(ROOT)))]
        os.environ |= {"PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        sys.dont_write_bytecode = True
        hashed = py_compile.PycInvalidationMode.CHECKED_HASH  # of another source it is not used
        compileall.compile_dir(str(self.root / "advisor"), quiet=2, invalidation_mode=hashed)
        for module in IMPORTED:
            importlib.import_module(module)
        gc.freeze()

    def fates(
        self, mutants: Sequence[Mutant], tests: Sequence[str], seconds: int
    ) -> Iterator[tuple[Mutant, str, float]]:
        """What becomes of the tests with each, and how long that took: `passed`, `too long`, or which failed.

        Tests that fail without any mutant are left out: some hold to a clock, and machines are busy. So many
        seconds are more where the tests take longer anyway.

        Raises:
            ValueError: no tests are found.
        """
        usual = None
        while mutants:
            again = []
            for mutant, what, took in self._tried(mutants, tests, seconds):
                if what == "too long" and usual is None:
                    [(_, _, usual)] = self._session([None], tests, _AS_IT_IS)
                if what == "too long" and usual is not None and _more(usual) > seconds:
                    again.append(mutant)
                elif "::" in what and not self._passes(test := what.split("\n")[0]):
                    print(f"left out, as it fails without any mutant: {test}", flush=True)
                    tests = [*tests, f"--deselect={test}"]
                    again.append(mutant)
                else:
                    yield mutant, what, took
            mutants, seconds = again, max(seconds, _more(usual or 0.0))

    def _tried(
        self, mutants: Sequence[Mutant], tests: Sequence[str], seconds: int
    ) -> Iterator[tuple[Mutant, str, float]]:
        yield from self._session([each for each in mutants if each.in_function()], tests, seconds)
        for mutant in mutants:
            if not mutant.in_function():
                with self._changed(mutant):
                    found = list(self._session([mutant], tests, seconds))
                yield from found

    def _passes(self, test: str) -> bool:
        """Without any mutant."""
        if test not in self._pass:
            [(_, what, _)] = self._session([None], [test], _AS_IT_IS)
            self._pass[test] = what == "passed"
        return self._pass[test]

    @contextmanager
    def _changed(self, mutant: Mutant) -> Iterator[None]:
        """The file is the mutant: for processes that tests start, too."""
        target = self.root / "advisor" / mutant.path
        source = target.read_text()
        target.write_text(mutant.applied(source))
        try:
            yield
        finally:
            target.write_text(source)

    def _session(
        self, mutants: Sequence[Mutant | None], tests: Sequence[str], seconds: int
    ) -> Iterator[tuple[Any, str, float]]:
        if not mutants:
            return
        read, write = os.pipe()
        go, on = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(on)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(1, 2)
                import pytest

                code = int(pytest.main([*HOW, *tests], plugins=[_Trials(self, mutants, seconds, write, go)]))
            finally:
                os._exit(code)
        os.close(write)
        os.close(go)
        waiting = list(mutants)
        with os.fdopen(read) as said:
            for line in said:
                what, took = json.loads(line)
                yield waiting.pop(0), what, took
                # Not before: whether a test fails without any mutant is tried on the same files.
                with suppress(BrokenPipeError):
                    os.write(on, b".")
        os.close(on)
        os.waitpid(child, 0)
        if len(waiting) == len(mutants) and (mutants[0] is None or mutants[0].in_function()):
            raise ValueError(f"nothing is found to be run: {', '.join(tests)}")
        for mutant in waiting:  # it ended all of them, or nothing could be imported
            yield mutant, "ended", 0.0


class _Trials:
    """Plugin of pytest: in place of one run of the tests, one for each mutant, each in its own process."""

    def __init__(
        self, bench: Bench, mutants: Sequence[Mutant | None], seconds: int, write: int, go: int
    ) -> None:
        self._bench, self._mutants, self._seconds = bench, mutants, seconds
        self._write, self._go = write, go  # what became of one, and that the next may be tried
        self._failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self._failed.append(report.nodeid)

    def pytest_runtestloop(self, session: Any) -> bool:
        functions = [each for each in gc.get_objects() if isinstance(each, FunctionType)]
        for mutant in self._mutants:
            if mutant is None or not mutant.in_function():
                what = self._trial(session, {})
            else:
                source = (self._bench.root / "advisor" / mutant.path).read_text()
                file = str(self._bench.root / "advisor" / mutant.path)
                new = dict(zip(_codes(source, file), _codes(mutant.applied(source), file), strict=True))
                of_it = [each for each in functions if each.__code__.co_filename == file]
                with self._bench._changed(mutant):
                    codes = {each: new[each.__code__] for each in of_it if each.__code__ in new}
                    what = self._trial(session, codes)
            os.write(self._write, (json.dumps(what) + "\n").encode())
            os.read(self._go, 1)
        return True

    def _trial(self, session: Any, changed: dict[FunctionType, CodeType]) -> tuple[str, float]:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                session.config.option.maxfail = 1
                self._tested(session, changed, write)
            finally:
                os._exit(1)
        os.close(write)
        with os.fdopen(read) as said:
            failed = said.read()
        _, status, used = os.wait4(child, 0)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        took = round(used.ru_utime + used.ru_stime, 1)
        if os.WIFSIGNALED(status):
            return ("too long" if os.WTERMSIG(status) == signal.SIGXCPU else "died"), took
        return "passed" if os.WEXITSTATUS(status) == 0 else failed or "ended", took

    def _tested(self, session: Any, changed: dict[FunctionType, CodeType], write: int) -> None:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (self._seconds, self._seconds + 5))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        for function, code in changed.items():
            function.__code__ = code
        from _pytest.main import pytest_runtestloop

        with suppress(session.Failed, session.Interrupted):
            pytest_runtestloop(session)
        os.write(write, "\n".join(self._failed).encode())
        os._exit(bool(session.testsfailed))


def _more(usual: float) -> int:
    """Of a processor: what takes longer than this is in an endless loop."""
    return int(2 * usual) + 10


def _codes(source: str, file: str) -> list[CodeType]:
    """Of all functions in a module, in its order: names are not enough, as lambdas have the same one."""

    def inside(code: CodeType) -> Iterator[CodeType]:
        for each in code.co_consts:
            if isinstance(each, CodeType):
                yield each
                yield from inside(each)

    return list(inside(compile(source, file, "exec", dont_inherit=True)))


def keep(found: dict[str, Any]) -> None:
    """Write what is known, and the tables."""
    RESULTS.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    shares = {package: [e for n, e in found.items() if n.startswith(f"{package}/")] for package in PACKAGES}
    rows = [(package, *_counts(own)) for package, own in (shares | {"all": list(found.values())}).items()]
    lives = [(f"`{name}`", each.get("why", "")) for name, each in sorted(found.items()) if each["lives"]]
    tables = {
        "mutants": table(HEADS, rows),
        "mutants_alive": table(("lives", "why"), [(_cell(name), why) for name, why in lives]),
    }
    write_tables(README, tables)


def _counts(found: Sequence[dict[str, Any]]) -> tuple[int, int, int, int, str]:
    none = sum(each.get("why", "").startswith(NONE) for each in found)
    dead = [each for each in found if not each["lives"]]
    return (
        len(found),
        none,
        len(dead),
        sum(not each.get("late", False) for each in dead),
        f"{len(dead) / max(len(found) - none, 1):.0%}",
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Try what has not been tried."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of work, before it stops")
    parser.add_argument("--each", type=int, default=30, help="mutants of each package")
    parser.add_argument("--wider", action="store_true", help="those that live, with all that concerns them")
    parser.add_argument("--again", action="store_true", help="those that live once more")
    parser.add_argument("--only", nargs="*", default=[""], help="those whose names hold one of these")
    asked = parser.parse_args()
    there = {one.name(): one for package in PACKAGES for one in every(package)}
    known: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known = {name: found for name, found in known.items() if name in there}  # others' code has changed since
    end = time.monotonic() + asked.seconds
    by_path: dict[str, list[Mutant]] = {}
    for mutant in {**{one.name(): one for one in drawn(asked.each)}, **{n: there[n] for n in known}}.values():
        found = known.get(mutant.name())
        lives = found is not None and found["lives"] and not found.get("why", "").startswith(NONE)
        wanted = (
            lives and (asked.again or found["tests"] == "own") if asked.wider or asked.again else not found
        )
        if wanted and any(part in mutant.name() for part in asked.only):
            by_path.setdefault(mutant.path, []).append(mutant)
    folder = Path(tempfile.mkdtemp())  # removed here alone: a forked process that ends would do it, too
    try:
        bench = Bench(folder)
        for path, mutants in by_path.items():
            if time.monotonic() > end:
                break
            own, more = tests_of(path)
            tests, seconds, which = (more, SECONDS[1], "all") if asked.wider else (own, SECONDS[0], "own")
            for mutant, what, took in bench.fates(mutants, tests, seconds):
                before = known.get(mutant.name(), {})
                kept = {"why": before["why"]} if "why" in before and what == "passed" else {}
                if asked.again or before.get("late"):  # tests were written since it was first tried
                    kept["late"] = True
                known[mutant.name()] = {
                    "lives": what == "passed",
                    "by": what,
                    "tests": which,
                    "seconds": took,
                } | kept
                print("lives:" if what == "passed" else "noticed:", mutant.name(), what, took, flush=True)
                keep(known)
    finally:
        os.chdir(ROOT)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
