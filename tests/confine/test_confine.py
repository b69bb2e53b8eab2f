"""Code in a process apart sees no secret, reaches nobody, and is ended where it takes too much."""

from __future__ import annotations

import ast
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from advisor.confine import ConfinedError, Limits, Mends, apart, run, watching
from advisor.confine.environment import stripped
from advisor.confine.inside import Confinement
from tests.processes import ROOT, is_running, wait_until

LIMITS = Limits(400 * 10**6, 20.0)
MENDS = Mends("give it more memory", "give it longer")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="denied by Linux alone")


def confined(program, *arguments, limits=LIMITS):
    """Run Python's program apart: its exit code."""
    return run(apart(program, [*map(str, arguments)], limits), limits, MENDS)


@pytest.fixture
def tried(capfd):
    """What came of an expression in a process apart: its value, or the name of what it raised."""

    def go(expression, setup="", *arguments):
        program = (
            f"{setup}\n"
            f"try:\n    found = {expression}\n"
            "except BaseException as error:\n    found = type(error).__name__\n"
            "print(repr(found))"
        )
        assert confined(program, *arguments) == 0
        return ast.literal_eval(capfd.readouterr().out)

    return go


def test_no_secret_is_in_its_environment(tried, monkeypatch):
    for name in ("GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "DATABASE_URL", "PEFT_ADVISOR_TOKEN", "MINE"):
        monkeypatch.setenv(name, "canary")
    monkeypatch.setenv("PEFT_ADVISOR_RAM", "64MB")
    seen = tried("dict(os.environ)", "import os")
    assert "canary" not in seen.values()
    assert seen["PEFT_ADVISOR_RAM"] == "64MB"
    assert seen["PATH"] == os.environ["PATH"]


@linux
def test_nor_can_it_look_into_the_environment_of_others(tried, monkeypatch):
    """Which /proc shows to every process of the same user."""
    environment = "open(f'/proc/{sys.argv[1]}/environ', 'rb').read()"
    with subprocess.Popen(["sleep", "60"], env={"CANARY": "canary"}) as other:
        try:
            assert wait_until(lambda: b"canary" in Path(f"/proc/{other.pid}/environ").read_bytes(), 10)
            assert tried(environment, "import sys", other.pid) == "PermissionError"
            assert tried(environment, "import sys", os.getpid()) == "PermissionError"
            assert tried("open(f'/proc/{sys.argv[1]}/mem', 'rb').read(1)", "import sys", other.pid) in (
                "PermissionError",
                "OSError",
            )
            assert tried("os.kill(int(sys.argv[1]), 9)", "import os, sys", other.pid) == "PermissionError"
            assert other.poll() is None
        finally:
            other.kill()


@linux
@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_VSOCK", "AF_PACKET"])
def test_it_gets_no_socket(tried, family):
    assert tried(f"socket.socket(socket.{family}, socket.SOCK_DGRAM)", "import socket") == "PermissionError"


@linux
def test_neither_a_server_of_this_machine_nor_one_behind_a_file_is_reached(tried, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with closing(socket.create_connection(("127.0.0.1", port))):
            pass  # from here it is
        reach = "socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5)"
        assert tried(reach, "import socket, sys", port) == "PermissionError"
        # Nor by what it starts, which is denied the same.
        command = [sys.executable, "-c", f"import socket, sys; {reach}", str(port)]
        started = f"subprocess.run({command}, capture_output=True).stderr.endswith(b'Permission denied\\n')"
        assert tried(started, "import subprocess")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        setup = "import socket, sys"
        assert tried("socket.socket(socket.AF_UNIX).connect(sys.argv[1])", setup, tmp_path / "socket") == (
            "PermissionError"
        )


@linux
def test_there_is_no_other_way_to_a_socket(tried):
    """io_uring makes them, too; and some calls go by other numbers."""
    setup = "import ctypes; libc, room = ctypes.CDLL(None, use_errno=True), ctypes.create_string_buffer(200)"
    for number in (425, 0x40000000 + 41):
        assert tried(f"(libc.syscall({number}, 1, room), ctypes.get_errno())", setup) == (-1, 13)


@linux
def test_what_programs_need_is_left(tried, tmp_path):
    """Pipes, pairs of sockets, processes, files moved from folder to folder."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    move = "open(sys.argv[1] + '/a/x', 'w').close(), os.rename(sys.argv[1] + '/a/x', sys.argv[1] + '/b/x')"
    assert tried(f"({move})", "import os, sys", tmp_path) == (None, None)
    assert (tmp_path / "b" / "x").exists()
    assert tried("[each.close() for each in socket.socketpair()]", "import socket") == [None, None]
    pool = "concurrent.futures.ProcessPoolExecutor(1).submit(len, 'four').result()"
    assert tried(pool, "import concurrent.futures") == 4


@linux
def test_it_gets_no_more_memory_than_it_may_have(tried):
    assert tried("len(bytearray(10**9))") == "MemoryError"
    assert tried("len(bytearray(10**8))") == 10**8
    raised = "resource.setrlimit(resource.RLIMIT_DATA, (2**40, 2**40))"
    assert tried(raised, "import resource") == "ValueError"  # what Python makes of it
    assert tried("resource.getrlimit(resource.RLIMIT_CORE)", "import resource") == (0, 0)


@linux
@pytest.mark.parametrize(
    "program",
    [
        # Shared pages are nobody's own, and limits of the kernel leave them out.
        "import mmap, time; m = mmap.mmap(-1, 10**9)\nfor _ in '12345': m.write(bytes(10**8))\ntime.sleep(9)",
        # Each has little.
        "import os, time; [os.fork() for _ in range(3)]; held = b'x' * 10**8; time.sleep(60)",
    ],
    ids=["shared", "many"],
)
def test_nor_in_any_other_way(program):
    with pytest.raises(ConfinedError, match=r"took more than 400 MB of memory .* give it more memory"):
        confined(program)


def test_it_does_not_hang_for_ever():
    begun = time.monotonic()
    with pytest.raises(ConfinedError, match=r"ran for over 1\.00 s and was ended; give it longer"):
        confined("import time; time.sleep(60)", limits=Limits(LIMITS.memory_bytes, 1.0))
    assert time.monotonic() - begun < 10


@linux
def test_nor_does_anything_that_it_has_started(tmp_path):
    """Even what has left its session, and whose parent is gone."""
    program = (
        "import os, sys, time, signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if not os.fork():\n"
        "    os.setsid()\n"
        "    if os.fork(): os._exit(0)\n"
        "    open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "    time.sleep(60)\n"
        "os.wait()\n"
        "while not os.path.exists(sys.argv[1]) or not open(sys.argv[1]).read(): time.sleep(0.01)\n"
    )
    assert confined(program, tmp_path / "id") == 0
    assert not is_running(int((tmp_path / "id").read_text()))


@linux
def test_processes_that_were_there_already_go_on():
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            assert confined("pass") == 0
            assert other.poll() is None
        finally:
            other.kill()


@linux
def test_it_ends_with_the_process_that_watches_it(tmp_path):
    program = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    command = watching(apart(program, [str(tmp_path / "id")], LIMITS), LIMITS)
    with subprocess.Popen(command) as watcher:
        assert wait_until(lambda: (tmp_path / "id").exists() and (tmp_path / "id").read_text(), 20)
        watcher.kill()
    assert wait_until(lambda: not is_running(int((tmp_path / "id").read_text())), 10)


def test_the_exit_code_is_its_own():
    assert confined("raise SystemExit(7)") == 7


@linux
def test_one_that_is_killed_is_an_error_in_one_line():
    with pytest.raises(ConfinedError, match=r"ended by SIGSEGV"):
        confined("import os; os.kill(os.getpid(), 11)")


@linux
def test_a_signal_is_handed_on_once(tmp_path):
    program = (
        "import signal, sys, time\n"
        "seen = []\n"
        "signal.signal(signal.SIGINT, lambda *_: seen.append(1))\n"
        "open(sys.argv[1], 'w').close()\n"
        "while not seen: time.sleep(0.01)\n"
        "time.sleep(0.3); raise SystemExit(40 + len(seen))"
    )

    def press():
        assert wait_until((tmp_path / "up").exists, 20)
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    before = signal.getsignal(signal.SIGINT)
    assert confined(program, tmp_path / "up") == 41
    presser.join()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_module_of_the_current_folder_hides_none_of_pythons(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)  # which may name it
    assert confined("pass") == 0


def test_what_the_platform_can_not_deny_is_told():
    here = Confinement(LIMITS, network=True, others=True, memory=True)
    assert str(here).endswith(
        "no secrets of the environment, network or other processes, 400 MB and 20.0 s at most"
    )
    said = str(Confinement(Limits(10**9, 7200.0), network=False, others=False, memory=False))
    assert "no secrets of the environment, 2 h at most" in said
    assert said.endswith("this platform can't limit the network, looking into other processes or memory")


@linux
def test_a_machine_whose_calls_are_unknown_is_told_of():
    setup = "import platform; platform.machine = lambda: 'unheard-of'\nfrom advisor.confine.inside import *\n"
    code = f"{setup}print(confine(Limits(10**9, 60.0)))"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("this platform can't limit the network\n"), done.stderr


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "PYTHON_KEYRING_PASSWORD", "SSH_AUTH_SOCK", "CI_JOB_JWT", "http_proxy"]
)
def test_variables_that_may_be_secret_are_left_out(name):
    assert stripped({name: "x", "LC_ALL": "C"}) == {"LC_ALL": "C"}
