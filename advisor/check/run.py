"""The check of a configuration: each model in a process of its own, then held against the baseline.

Nothing here imports torch, and nothing that a model's code does reaches this process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from advisor.check.baseline import Baseline, renewed
from advisor.check.compare import compare
from advisor.check.configuration import Configuration, Target
from advisor.check.records import Checked, CheckReport, Finding, Snapshot, TargetReport
from advisor.confine import EXIT_CONFINED, Limits, apart, memory_by_default, watching
from advisor.errors import InputError, first_line
from advisor.plain import decode, encode
from advisor.system.temporary import TemporaryFolder
from advisor.units import format_seconds

# Looks for garbage take a quarter of the imports' time and move peaks; the process doesn't live long.
_MAIN = "import gc; gc.disable(); from advisor.check.child import main; main(sys.argv[1])"
_PROGRAM = f"import sys; sys.path[:] = sys.argv[2:]; {_MAIN}"
_GRACE = 10.0  # seconds in which a process that is watched has to be ended
_MOST_PRINTED = 2**20  # bytes at the beginning, and at the end
_LAST = 2000  # characters of what a process printed, where it must tell why it ended


@dataclass(frozen=True, slots=True)
class Priced:
    """A target, and what came of pricing it."""

    target: Target
    checked: Checked | None
    failure: str = ""  # why not
    printed: str = ""  # by the model's code, and by libraries
    seconds: float = 0.0  # wall clock, its share of the process


def price_all(
    configuration: Configuration,
    before: Baseline,
    *,
    to_keep: bool = False,
    began: Callable[[str], None] = lambda model: None,
) -> list[Priced]:
    """Price every target, several models at once where the machine has cores for them.

    Args:
        before: the baseline, whose candidates are priced again where they are no longer the choice.
        to_keep: whether what is found is to become a baseline.
        began: called with a model's name when its turn comes.
    """
    models: dict[str, list[Target]] = {}
    for target in configuration.targets:
        models.setdefault(target.model, []).append(target)
    running: list[subprocess.Popen[str]] = []

    def price_model(name: str) -> list[Priced]:
        began(name)
        known = before.get(name, {})
        return _priced(configuration, models[name], known, (to_keep, name in helped), running)

    cores = os.cpu_count() or 1
    helped = _with_a_core_to_spare(list(models), cores)
    with ThreadPoolExecutor(max(1, min(len(models), cores))) as pool:
        jobs = [pool.submit(price_model, name) for name in models]
        try:
            return [priced for job in jobs for priced in job.result()]
        except BaseException:  # an interrupt: nothing goes on without us
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                _kill(process)
            raise


def _with_a_core_to_spare(models: Sequence[str], cores: int) -> set[str]:
    """The last ones, if they are too few for the cores: those begin as others end."""
    last = (len(models) - 1) % cores + 1
    return set(models[-last:]) if 2 * last <= cores else set()


def check(configuration: Configuration, priced: Sequence[Priced], before: Baseline | None) -> CheckReport:
    """What is to be said of what was priced.

    Args:
        before: None: there is no baseline, and limits alone are checked.
    """
    reports = []
    for each in priced:
        target = each.target
        known = (before or {}).get(target.model, {}).get(target.name)
        if each.checked is None:
            findings = [Finding("model-failed", "error", each.failure)]
        else:
            findings = compare(
                each.checked, known, configuration.fail_on_increase, expected=before is not None
            )
        reports.append(
            TargetReport(target.model, target.name, tuple(findings), each.checked, known, each.seconds)
        )
    return CheckReport(
        tuple(reports),
        _relative(configuration.file),
        configuration.lines,
        configuration.fail_on_increase,
    )


def _priced(
    configuration: Configuration,
    targets: Sequence[Target],
    before: Mapping[str, Snapshot],
    how: tuple[bool, bool],
    running: list[subprocess.Popen[str]],
) -> list[Priced]:
    """Targets of one model, in one process; `how`: for a baseline, and with another process to help."""
    start = time.monotonic()
    with TemporaryFolder() as folder:
        job, log = Path(folder, "job.json"), Path(folder, "log.txt")
        items = [{"target": encode(t), "before": encode(before.get(t.name))} for t in targets]
        job.write_text(json.dumps({"targets": items, "to_keep": how[0], "ahead": how[1]}), encoding="utf-8")
        trust = any(target.trust for target in targets)
        failure = _run(job, log, configuration, trust, running)
        printed = _text(log)
        seconds = (time.monotonic() - start) / len(targets)
        result = job.with_suffix(".result")
        if not result.exists():
            failure = failure or "it ended the process that loaded it"
            last = printed.strip().splitlines()[-1:] or ["nothing"]
            failure = f"{targets[0].source}: {failure}; the last that it printed: {last[0][:_LAST]}"
            return [Priced(target, None, failure, printed, seconds) for target in targets]
        try:
            found = json.loads(result.read_text(encoding="utf-8"))
            return [
                Priced(
                    target,
                    decode(Checked, content["checked"]) if "checked" in content else None,
                    content.get("error", ""),
                    printed,
                    seconds,
                )
                for target, content in zip(targets, found, strict=True)
            ]
        except (InputError, ValueError, KeyError, TypeError, AttributeError) as error:
            if not trust:
                raise
            # Its code could write there, too.
            failure = f"{targets[0].source}: what its process wrote is no result ({first_line(error)})"
            return [Priced(target, None, failure, printed, seconds) for target in targets]


def _run(
    job: Path, log: Path, configuration: Configuration, trust: bool, running: list[subprocess.Popen[str]]
) -> str:
    """Run the child to its end; why it didn't come to one, else nothing.

    Where a file may run its code, the child is a process apart, and another one watches it.
    """
    limits = Limits(memory_by_default(), configuration.time_limit)
    path = [entry or str(Path.cwd()) for entry in sys.path]
    command = [sys.executable, "-c", _PROGRAM, str(job), *path]
    if trust:
        command = watching(apart(_MAIN, [str(job)], limits), limits)
    with log.open("w", encoding="utf-8") as output:
        try:
            process = subprocess.Popen(  # noqa: S603 - our own
                command,
                cwd=configuration.folder,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # a terminal's Ctrl-C is for the parent alone
            )
        except OSError as error:
            raise InputError(f"no process can be started in {configuration.folder}: {error}") from error
        running.append(process)
        try:
            code = process.wait(configuration.time_limit + _GRACE * trust)
        except subprocess.TimeoutExpired:
            return (
                f"it takes longer than {format_seconds(configuration.time_limit)} to load and price; "
                "find what it waits for, or raise time-limit"
            )
        finally:
            _kill(process)
    if code < 0:
        return f"the process that loaded it was killed by {signal.Signals(-code).name}"
    if trust and code == EXIT_CONFINED:
        return "the process that loaded it was ended"
    return f"the process that loaded it ended with exit code {code}" if code else ""


def _text(log: Path) -> str:
    """What was printed; of what is endless, the beginning and the end."""
    with log.open("rb") as file:
        content = file.read(_MOST_PRINTED)
        left = log.stat().st_size - len(content)
        if left > 0:
            file.seek(max(left - _MOST_PRINTED, 0), os.SEEK_CUR)
            content += b"\n...\n" + file.read(_MOST_PRINTED)
    return content.decode("utf-8", errors="replace")


def _kill(process: subprocess.Popen[str]) -> None:
    """End it, and all that it has started."""
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _relative(path: Path | None) -> str:
    """As GitHub wants it, from the checkout's root; elsewhere from the current folder."""
    if path is None:
        return ""
    for folder in (os.environ.get("GITHUB_WORKSPACE"), Path.cwd()):
        if folder and path.resolve().is_relative_to(Path(folder).resolve()):
            return str(path.resolve().relative_to(Path(folder).resolve()))
    return str(path)


def to_keep(priced: Sequence[Priced], before: Baseline | None, *, whole: bool) -> Baseline:
    """The baseline as it should be from now on.

    Args:
        before: what it is.
        whole: whether everything was priced that is configured: what else the baseline has is dropped.
    """
    known: dict[str, dict[str, Snapshot]] = {}
    if before is not None and not whole:
        known = {model: dict(targets) for model, targets in before.items()}
    for each in priced:
        if each.checked is not None:
            model, target = each.target.model, each.target.name
            old = (before or {}).get(model, {}).get(target)
            known.setdefault(model, {})[target] = renewed(old, each.checked.snapshot)
    return known
