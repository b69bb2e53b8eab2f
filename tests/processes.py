"""Commands as users run them, in processes of their own, also in a terminal; and which processes are there.

    done = run_command("profile", "model.pt", cwd=folder)            # as subprocess.run: text, both streams
    done = run_command("methods", cwd=folder, env={"LC_ALL": "C"})   # more environment
    done = run_command("--help", cwd=folder, fresh=True)             # where the start itself is the subject
    running = start_command("apply", ..., cwd=folder)                # to signal it, or to read along
    terminal = Terminal("recommend", ..., cwd=folder)                # to press Ctrl-C

A process that has imported torch and the rest once (`tests.forkserver`) forks for each, which saves 4 s of a
processor. They are real all the same: their own process, streams, signals, exit code, and children. With
`fresh=True` it is `python -m advisor`, and so it is where `env` sets what only a new interpreter reads, its
locale say, and on platforms that don't fork. Children that measure or check are forked likewise
(`fork_children`).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

from advisor.costs.process import GIVE_BACK

ROOT = Path(__file__).parents[1]
_PYTHON = sys.executable
FORKS = sys.platform.startswith("linux")
# Of the environment, what is read before a command's own code is, or by libraries when they load.
AT_START = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC_", "GLIBC_", "OMP_", "MKL_", "OPENBLAS_", "TORCH")
AT_START += ("CUDA_",)
# But not: what torch sets in this process, once it has compiled something, and what a fork does by itself.
NOT_AT_START = ("TORCHINDUCTOR_CACHE_DIR", "PYTHONUNBUFFERED")
_ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
# What is forked from ends with it: of processes that run tests at once, the one that started them. They share
# what is forked from, as each takes six seconds of a processor to start.
_OWNER = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
_started = []
# The terminal becomes the controlling one, and the command its foreground.
_IN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, sys.argv[1:])
"""


def run_command(*arguments, cwd, env=None, stdin=None, text=True, fresh=False, timeout=300):
    """Run `peft-advisor ARGUMENTS` to its end, in a process of its own.

    Args:
        arguments: text, bytes, paths or numbers.
        cwd: its current folder.
        env: set on top of this process's environment.
        stdin: what it can read, text or bytes; nothing by default.
        text: whether streams are text, not bytes.
        fresh: start a new interpreter, where how it starts is the subject.

    Returns:
        A subprocess.CompletedProcess: `returncode` (minus a signal's number), `stdout`, `stderr`.
    """
    streams = {"stdin": subprocess.PIPE, "text": text, "env": env, "fresh": fresh}
    with start_command(*arguments, cwd=cwd, **streams) as process:
        try:
            out, err = process.communicate(stdin, timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start_command(  # one keyword for each of Popen's
    *arguments,
    cwd,
    env=None,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    fresh=False,
    terminal=False,
):
    """Start `peft-advisor ARGUMENTS`: a subprocess.Popen, or a forked process that is used alike.

    Args:
        terminal: stdin is a terminal, which becomes that of a new session.
        others: as `run_command`'s, streams as Popen's.
    """
    arguments = [os.fsdecode(each if isinstance(each, bytes) else str(each)) for each in arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | (env or {})
    forks = FORKS and not fresh and _at_start(environment) == _at_start(_ENVIRONMENT)
    command = [sys.executable, "-m", "advisor", *arguments]
    if terminal and not forks:
        command = [sys.executable, "-c", _IN_TERMINAL, *command]
    return (partial(_Forked, _server("commands")) if forks else subprocess.Popen)(
        command,
        cwd=cwd,
        env=environment,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        text=text,
        start_new_session=terminal,
    )


def start_python(code, *, cwd, env=None):
    """Start `python -c CODE`, with all that commands import imported: a forked process, on Linux alone.

    Its stdout is a pipe of bytes; nothing else can be read.
    """
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    more = {"cwd": cwd, "env": _ENVIRONMENT | (env or {}), "text": False, "start_new_session": True}
    return _Forked(_server("commands"), [sys.executable, "-c", code], **streams, **more)


class Terminal:
    """A command in a pseudo-terminal of 80 columns."""

    def __init__(self, *arguments, cwd, columns=80, fresh=False, **environment):
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
        more = {"env": {"TERM": "xterm"} | environment, "fresh": fresh, "terminal": True}
        self.process = start_command(*arguments, cwd=cwd, **streams, **more)
        os.close(slave)
        self.seen = ""

    def press_ctrl_c(self):
        os.write(self._master, b"\x03")

    def wait_for(self, text, seconds=120):
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, self.seen[-2000:]
            assert self._read(), self.seen[-2000:]

    def ended(self, seconds=120):
        """The exit code, once everything is read."""
        end = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < end, self.seen[-2000:]
        return self.process.wait(seconds)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def _read(self):
        """Whether there may be more."""
        if select.select([self._master], [], [], 0.1)[0]:
            try:
                content = os.read(self._master, 65536)
            except OSError:  # the other end is closed
                return False
            self.seen += content.decode(errors="replace")
            return bool(content)
        return True


def descendants(process_id):
    """Ids of its children, their children and so on."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # ended meanwhile
            continue
    found, new = set(), {process_id}
    while new:
        new = {child for child, parent in parents.items() if parent in new}
        found |= new
    return found


def is_running(process_id):
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


class _Forked:
    """A forked process, with what is used of subprocess.Popen."""

    def __init__(self, server, args, *, env, stdin, stdout, stderr, text, start_new_session, cwd=".", **_):
        self.args, self.returncode = args, None
        ours, theirs = [], []
        for number, wanted in enumerate((stdin, stdout, stderr)):
            opened = None
            if wanted == subprocess.PIPE:
                ends = os.pipe() if number else os.pipe()[::-1]
                opened = os.fdopen(ends[0], ("r" if number else "w") + ("" if text else "b"))
                theirs.append(ends[1])
            elif wanted == subprocess.DEVNULL:
                theirs.append(os.open(os.devnull, os.O_RDWR))
            elif wanted == subprocess.STDOUT:
                theirs.append(os.dup(theirs[1]))
            else:
                theirs.append(os.dup(wanted if isinstance(wanted, int) else wanted.fileno()))
            ours.append(opened)
        self.stdin, self.stdout, self.stderr = ours
        self._answers, answers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        wanted = {"cwd": str(Path(cwd).absolute()), "env": env, "program": args[1:]}
        wanted["session"] = start_new_session
        with answers, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as requests:
            requests.connect(server)
            socket.send_fds(requests, [json.dumps(wanted).encode()], [*theirs, answers.fileno()])
        for each in theirs:
            os.close(each)
        begun = self._answers.recv(64)
        assert begun, "no process to fork from: what it says is on this one's stderr"
        self.pid = int(begun)

    def poll(self):
        """The exit code, or minus the signal's number; None while it runs."""
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            self.returncode = int(self._answers.recv(64))
            self._answers.close()
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None and not select.select([self._answers], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.poll()

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self, stdin=None, timeout=None):
        """Give it its input, read what it says, and wait: (stdout, stderr)."""
        read = {}

        def reading(stream):
            read[stream] = stream.read()

        outputs = [each for each in (self.stdout, self.stderr) if each]
        readers = [threading.Thread(target=reading, args=[each], daemon=True) for each in outputs]
        for each in readers:
            each.start()
        if self.stdin:
            with suppress(BrokenPipeError):  # it ended without
                if stdin:
                    self.stdin.write(stdin)
                self.stdin.close()
        end = None if timeout is None else time.monotonic() + timeout
        for each in readers:
            each.join(None if end is None else max(end - time.monotonic(), 0))
            if each.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait(None if end is None else max(end - time.monotonic(), 0))
        return read.get(self.stdout), read.get(self.stderr)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for each in (self.stdin, self.stdout, self.stderr):
            if each:
                each.close()
        self.wait()


def _at_start(environment):
    return {n: v for n, v in environment.items() if n.startswith(AT_START) and n not in NOT_AT_START}


@cache
def _server(kind):
    """The address of a process that forks `commands`, or `children` that measure."""
    address = f"\0peft-advisor-tests-{_OWNER}-{kind}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as requests:
        try:
            requests.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return address  # it was started by another process that runs tests
        requests.listen(16)
        addresses = {"commands": address, "children": _server("children")} if kind == "commands" else {}
        arguments = (kind, requests.fileno(), _OWNER, addresses)
        process = subprocess.Popen(
            [sys.executable, "-c", f"from tests.forkserver import main; main(*{arguments!r})"],
            cwd=ROOT,
            env=_ENVIRONMENT | (GIVE_BACK if kind == "children" else {}),
            stdin=subprocess.DEVNULL,
            pass_fds=[requests.fileno()],
        )
    _started.append(process)  # it may outlive this process
    return address


def fork_children(server=_server):
    """Have the package fork what it starts to measure and to check, where it comes out the same.

    Args:
        server: tells the address of what forks `commands`, or `children` that measure.
    """
    from advisor.check import run
    from advisor.costs import measure

    def start(kind, more, args, **how):
        # Its import path is among its arguments.
        env = how["env"] | {"PYTHONPATH": _ENVIRONMENT["PYTHONPATH"]}
        plain = args[0] == _PYTHON and args[1] in ("-c", "-m")
        if not plain or _at_start(env) != _at_start(_ENVIRONMENT | more):
            return subprocess.Popen(args, **how)
        return _Forked(server(kind), args, **how)

    for module, kind, more in ((measure, "children", GIVE_BACK), (run, "commands", {})):
        module.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": partial(start, kind, more)})
