"""A process that has imported what commands import, and forks for each: a command then starts in no time.

`tests.processes` starts it, and sends it what to run. What a fork runs ends as any other process does. All
that a new process has is new to it, too: its folder, import path, environment, arguments, streams, signals.
A child that checks a model is forked alike, and one that measures is, too, of a process of its own, which
gives freed memory back.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import termios
import threading
import warnings
from pathlib import Path

from tests.processes import fork_children

# What commands import where they use it; the package's own modules find the rest.
LATER = (
    *("concurrent.futures.process", "joblib", "safetensors.torch", "sklearn.datasets", "fvcore.nn"),
    *("sklearn.model_selection", "rich.console", "rich.live", "rich.progress", "rich.table", "torchvision"),
)
# What children that measure import, sooner or later.
CHILDREN = ("advisor.costs.child", "torchvision", "torch._dynamo", "cloudpickle")


def main(kind, descriptor, owner, addresses):
    """Fork for each request on a socket; a fork returns as the main module of an interpreter would.

    Args:
        kind: `commands`, or `children` that measure.
        owner: the process with which this one ends.
        addresses: where each kind is forked, for what commands start.
    """
    import_all(CHILDREN if kind == "children" else (*modules(), *LATER))
    fork_children(addresses.__getitem__)
    with socket.socket(fileno=descriptor) as requests:
        wanted = serve(requests, owner)
    become(wanted)
    run(*wanted["program"])


def modules():
    """All of the package."""
    import advisor

    names = (found.name for found in pkgutil.walk_packages(advisor.__path__, "advisor."))
    return [name for name in names if name != "advisor.__main__"]


def import_all(names):
    """Whatever may be needed; no thread may be there afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as where they are used
        for name in names:
            importlib.import_module(name)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "threads that a fork lacks"
    gc.collect()  # a fork needn't look through it
    gc.freeze()


def serve(requests, owner):
    """Fork for each request; in a fork, return what to run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tests' own end ends it
    keepers = []
    end = os.pidfd_open(owner)
    while end not in select.select([requests, end], [], [])[0]:
        with requests.accept()[0] as request:
            content, files, _, _ = socket.recv_fds(request, 2**20, 4)
        keepers.append(os.fork())
        if not keepers[-1]:
            requests.close()
            os.close(end)
            wanted = json.loads(content)
            keep(wanted, files)
            return wanted
        for file in files:
            os.close(file)
        keepers = [each for each in keepers if not os.waitpid(each, os.WNOHANG)[0]]
    os._exit(0)


def keep(wanted, files):
    """Start it and say how it ended; whoever wanted it is gone: it ends, too. Only its process returns."""
    *streams, answer = files
    process = os.fork()
    if process:
        for each in streams:
            os.close(each)
        ended = os.pidfd_open(process)
        if ended not in select.select([ended, answer], [], [])[0]:
            os.kill(process, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        try:
            os.write(answer, b"%d\n" % status)
        finally:
            os._exit(0)
    if wanted["session"]:
        os.setsid()
    os.write(answer, b"%d\n" % os.getpid())  # from here on it can be killed with all that it starts
    os.close(answer)
    for each, descriptor in zip(streams, range(3), strict=True):
        os.dup2(each, descriptor)
        os.close(each)


def become(wanted):
    """What the interpreter does at a start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if wanted["session"] and os.isatty(0):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update({"KINETO_LOG_LEVEL": "99"} | wanted["env"])  # as the package's import does
    sys.path[0] = str(Path.cwd())
    importlib.invalidate_caches()
    unbuffered = wanted["env"].get("PYTHONUNBUFFERED", "") not in ("", "0")
    sys.stdin = sys.__stdin__ = stream(0, sys.__stdin__, unbuffered)
    sys.stdout = sys.__stdout__ = stream(1, sys.__stdout__, unbuffered)
    sys.stderr = sys.__stderr__ = stream(2, sys.__stderr__, unbuffered)
    import numpy as np

    np.random.seed()  # the global one, which a start seeds anew
    option, _, *arguments = wanted["program"]
    sys.argv = [option, *arguments]
    sys.orig_argv = [sys.executable, *wanted["program"]]


def stream(descriptor, like, unbuffered):
    """As the interpreter opens it, in the encoding of this process."""
    name, mode = ("<stdin>", "<stdout>", "<stderr>")[descriptor], "w" if descriptor else "r"
    binary = open(descriptor, mode + "b", 0 if unbuffered and descriptor else -1, closefd=False)  # noqa: SIM115
    getattr(binary, "raw", binary).name = name
    text = io.TextIOWrapper(
        binary,
        like.encoding,
        like.errors,
        newline="\n" if descriptor else None,
        line_buffering=not unbuffered and (descriptor == 2 or binary.isatty()),
        write_through=unbuffered,
    )
    text.mode = mode
    return text


def run(option, program, *_):
    """What `python -m MODULE` or `python -c CODE` does; a module at its end takes apart only what it made."""
    if option == "-c":
        exec(program, vars(sys.modules["__main__"]))
        return
    try:
        runpy._run_module_as_main(program)
    except SystemExit as done:
        if isinstance(done.code or 0, int):
            threading._shutdown()
            atexit._run_exitfuncs()
            for each in (sys.stdout, sys.stderr):
                if each is not None and not each.closed:
                    each.flush()  # may fail
            gc.collect()
            ctypes.CDLL(None).exit(done.code or 0)
        raise
    finally:
        gc.unfreeze()  # some libraries take what stays for a leak
