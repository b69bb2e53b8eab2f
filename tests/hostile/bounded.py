"""Opening a file of anybody's in a child process that is watched: what it did, took and said.

    outcome = opened("model", path, home=folder)             # by the package's own loader, see `LOADERS`
    outcome = opened("command", "profile", path, home=folder)
    assert not outcome.faults

In the child every event that code of a file would need to do harm is noted by an audit hook, wherever the
call comes from.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import select
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

MOST_SECONDS = 10  # of a processor: this machine may be busy
_HANGS_AFTER = 60  # seconds, whatever it waits for
MOST_MEMORY = 10**9  # bytes that opening may take
_MOST_ASKED = 2 * MOST_MEMORY  # with what is never written to: a network whose names look alike may be built
# What no loader does, and any attack would have to: of the events in Python's table of audit events.
_FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "os.kill"),
    *(
        "subprocess.",
        "pty.",
        "socket.",
        "urllib.",
        "http.",
        "ftplib.",
        "smtplib.",
        "webbrowser.",
        "code.interact",
    ),
    *("os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.chown", "shutil."),
    *("sys.addaudithook", "sys.setprofile", "sys.settrace", "pickle.find_class", "pdb.", "signal."),
    *("builtins.breakpoint", "builtins.input"),
)
_OWN_DOING = {"store": ("os.remove", "os.rename"), "command": ("os.", "subprocess.", "socket.", "signal.")}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CANARY = "canary-of-the-corpus"  # what attacks leave where they are run


@dataclass
class Outcome:
    """What became of opening it."""

    said: str = ""  # the one line that refuses it; empty where it was opened
    faults: list[str] = field(default_factory=list)  # what must not be
    seconds: float = 0.0  # of a processor
    memory: int = 0  # bytes that were taken at most

    @property
    def was_refused(self):
        """With a reason."""
        return bool(self.said)


def opened(kind, *arguments, home):
    """Open it as one of `LOADERS` does.

    Args:
        arguments: of the loader; paths are absolute.
        home: an empty folder, for what the child may leave.
    """
    from tests.processes import start_python  # which imports of the package what fuzzing is to import

    for name in ("tmp", "cwd"):
        (home / name).mkdir()
    words = [os.fsdecode(each) for each in arguments]
    code = f"from tests.hostile.bounded import child; child({kind!r}, {words!r}, {_size(words[-1])})"
    with start_python(code, cwd=home / "cwd", env={"TMPDIR": str(home / "tmp")}) as process:
        begun = time.monotonic()
        first = process.stdout.fileno()
        most = _status(process.pid).get("VmRSS", 0) + 2 * MOST_MEMORY
        fault, content = "", b""
        while not fault:
            if select.select([first], [], [], 0.02)[0]:
                piece = os.read(first, 65536)
                if not piece:
                    break
                content += piece
            elif _seconds(process.pid) > MOST_SECONDS or time.monotonic() - begun > _HANGS_AFTER:
                fault = f"took over {MOST_SECONDS} s"
            elif _status(process.pid).get("VmRSS", 0) > most:
                fault = f"took over {2 * MOST_MEMORY:,} bytes of memory"
        if fault:
            process.kill()
        code = process.wait()
    outcome = Outcome(**json.loads(content)) if content and not fault else Outcome()
    outcome.faults += [fault] if fault else [f"its process ended with {code}"] if code else []
    left = [str(each.relative_to(home)) for each in home.glob("*/*")]
    outcome.faults += [f"left {', '.join(left)}"] if left else []
    return outcome


def _size(path):
    """Of a file, which may be mapped into memory as it is."""
    path = Path(path)
    return path.stat().st_size if len(path.name) < 255 and path.is_file() else 0


def child(kind, arguments, size):
    """What the process does that opens it: it writes an `Outcome` to stdout."""
    answers = os.dup(1)
    os.dup2(2, 1)
    os.environ["TMPDIR"] = tempfile.tempdir = str(Path.cwd().parent / "tmp")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory is that from here on
    before, begun = _status("self"), time.process_time()
    events = []
    found = {"said": "", "faults": []}
    heard = io.StringIO()
    sys.addaudithook(lambda event, arguments: events.append(forbidden(kind, event, arguments)))
    try:
        with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
            found["said"] = LOADERS[kind](*arguments) or ""
    except BaseException as error:  # noqa: BLE001 - that is what is looked for
        where = traceback.extract_tb(error.__traceback__)[-1]
        words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        found["faults"].append(f"{words} ({Path(where.filename).name}:{where.lineno})")
        raised = error
    else:
        raised = _raised.pop() if _raised else None
    found["faults"] += sorted({*filter(None, events)})
    if _ran_out_of_memory(raised):
        found["faults"].append("asked for more memory than there is")
    after = _status("self")
    found["seconds"] = time.process_time() - begun
    found["memory"] = after["VmHWM"] - before["VmRSS"]
    asked = after["VmPeak"] - before["VmSize"] - size
    if found["memory"] > MOST_MEMORY or asked > _MOST_ASKED:
        found["faults"].append(f"asked for {max(found['memory'], asked):,} bytes")
    content = json.dumps(found).encode()
    while content:
        content = content[os.write(answers, content) :]
    os._exit(0)


def forbidden(kind, event, arguments):
    """What an event of Python's audit hooks says that no loader of that kind does; empty where one does."""
    if event.startswith(_FORBIDDEN) and not event.startswith(_OWN_DOING.get(kind, ())):
        return f"did {event}"
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
        path = str(arguments[0])
        if not (path.startswith((tempfile.gettempdir(), "/dev/null")) or path.isdigit() or ".sqlite" in path):
            return f"wrote {path}"
    if event == "exec" and CANARY in repr(getattr(arguments[0], "co_consts", "")):
        return "ran code of the file"
    return ""


def _ran_out_of_memory(error):
    """Whether anything on the way to it failed to allocate: elsewhere there may be as much."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _seconds(process):
    """That it had of a processor so far."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status(process):
    """What the kernel says of its memory, bytes by name."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":\t") for line in lines if line.endswith(" kB"))
    return {name: 1024 * int(value.split()[0]) for name, value in pairs}


# How each kind is opened: what refuses it, in one line, is returned.

_raised = []


def _loader(load):
    def loading(*arguments):
        from advisor.errors import AdvisorError

        try:
            load(*arguments)
        except AdvisorError as error:
            _raised.append(error)
            return str(error)
        return ""

    return loading


def _model(path):
    from advisor.models import load_model

    load_model(path)


def _data(path):
    from advisor.data import load_data

    load_data(path, (3, 32, 32)).train.images.sum()


def _unlabelled(path):
    from advisor.data.loading import load_unlabelled
    from advisor.data.pixels import Frame

    load_unlabelled(path, Frame((3, 32, 32)), apart_from="digits")[0].images.sum()


def _picture(path):
    import numpy as np

    from advisor.data.files import image_pool
    from advisor.data.pixels import Frame

    pool = image_pool([path], np.zeros(1, np.int64), lambda index: path)
    pool.read(np.arange(len(pool.labels)), Frame((3, 32, 32)))


def _answer(path):
    from advisor.records import Recommendation

    Recommendation.load(path)


def _baseline(path):
    from advisor.check import baseline

    baseline.read(Path(path))


def _configuration(path):
    from advisor.check.configuration import read_configuration

    read_configuration(Path(path))


def _defaults(path):
    from advisor.cli import defaults

    defaults.from_file("profile", None, Path(path))


def _store(path):
    from advisor.store import Store

    with Store(Path(path)) as store:
        list(store)
        store.put("probe", {"a": 1}, {"b": 2})
        assert store.trouble or store.get("probe", {"a": 1}) == {"b": 2}


def _adapter(path):
    from advisor.delivery.adapters import load_adapter
    from tests.hostile.saved import network

    load_adapter(network(), path)


def _sums(path):
    import hashlib

    from advisor.delivery.kept_sums import KeptSums

    KeptSums.read(Path(path), hashlib.sha256(Path(path).read_bytes()).hexdigest())


def _checkpoint(path):
    from advisor.models.pickles import read_data
    from advisor.training.epochs import Epochs, Length

    # It is read and held against the run's own before anything is done with it.
    Epochs(None, Length(1, 1), {"candidate": "norm"}, Path(path), read_data).resume()


def _command(*arguments):
    """The whole command line, which must end as it says it does."""
    from advisor.cli import main

    said, printed, code = io.StringIO(), io.StringIO(), None
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
            main(list(arguments))
    except SystemExit as done:
        code = done.code
    lines = said.getvalue().splitlines()
    refusal = next((line for line in lines if line.startswith("peft-advisor: error:")), "")
    assert code in (0, 1, 2), f"exit code {code}"
    assert "Traceback" not in said.getvalue(), lines[-1]
    assert "\x1b" not in said.getvalue() + printed.getvalue(), "it says what a terminal would obey"
    assert "unexpected" not in refusal, refusal
    assert refusal or code != 2, lines
    return refusal


LOADERS = {
    "model": _loader(_model),
    "data": _loader(_data),
    "unlabelled": _loader(_unlabelled),
    "picture": _loader(_picture),
    "answer": _loader(_answer),
    "baseline": _loader(_baseline),
    "configuration": _loader(_configuration),
    "defaults": _loader(_defaults),
    "store": _loader(_store),
    "adapter": _loader(_adapter),
    "sums": _loader(_sums),
    "checkpoint": _loader(_checkpoint),
    "command": _command,
}
