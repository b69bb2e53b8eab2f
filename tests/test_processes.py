"""A forked command can't tell that it is one."""

from __future__ import annotations

import json
import signal

import pytest

from tests.processes import FORKS, run_command, start_command

TELLING = """
import json, locale, os, signal, sys, warnings
import torch

def make():
    main, streams = sys.modules["__main__"], (sys.stdin, sys.__stdout__, sys.__stderr__)
    print(json.dumps({
        "path": sys.path, "arguments": sys.argv, "all": sys.orig_argv,
        "main": [main.__file__, main.__spec__.name],
        "environment": dict(os.environ), "folder": os.getcwd(), "files": sorted(os.listdir("/proc/self/fd")),
        "signals": [str(signal.getsignal(each)) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
        "blocked": [int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        "warnings": [str(each) for each in warnings.filters], "locale": locale.setlocale(locale.LC_ALL),
        "streams": [
            [s.name, s.mode, s.encoding, s.errors, s.line_buffering, s.write_through, s.isatty()]
            for s in streams
        ],
        "input": sys.stdin.read(), "threads": torch.get_num_threads(), "seed": torch.initial_seed(),
        "session": os.getsid(0), "group": os.getpgrp(), "mask": os.umask(0o22),
    }, sort_keys=True))
    sys.exit(7)
"""


@pytest.mark.skipif(not FORKS, reason="commands are not forked here")
def test_it_finds_all_as_a_fresh_one_does(tmp_path):
    (tmp_path / "telling.py").write_text(TELLING)
    asked = ("profile", "telling:make", "--input-size", "1x8x8")
    how = {"cwd": tmp_path, "env": {"MORE": "\udcff"}, "stdin": "some text\n"}
    forked, fresh = (run_command(*asked, **how, fresh=fresh) for fresh in (False, True))
    assert forked.returncode == fresh.returncode
    assert forked.stdout == fresh.stdout
    found, expected = (done.stderr.splitlines() for done in (forked, fresh))
    assert [*map(json.loads, found[1:2])] == [*map(json.loads, expected[1:2])]
    assert found == expected


def test_one_that_is_killed_says_so(tmp_path):
    with start_command("methods", cwd=tmp_path) as running:
        running.kill()
        assert running.wait(60) == -signal.SIGKILL
        assert running.poll() == -signal.SIGKILL
