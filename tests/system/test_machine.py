"""The memory that is there: the machine's, and what control groups leave of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from advisor.system.machine import available_bytes
from tests.processes import is_running, wait_until

GB = 10**9
MACHINE = 8 * GB
V1 = "35 31 0:32 {part} /sys/fs/cgroup/memory rw,relatime shared:1 - cgroup cgroup rw,memory\n"
V2 = "35 31 0:32 {part} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
OTHERS = (
    "22 1 8:1 / / rw,relatime - ext4 /dev/vda rw\n36 31 0:9 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
)


@pytest.fixture
def root(tmp_path):
    """A file system with 8 GB available, and a function that adds files to it."""

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    write("proc/meminfo", f"MemTotal: 16000000 kB\nMemAvailable: {MACHINE // 1024} kB\n")
    return tmp_path, write


def in_groups(write, groups, mount, part="/"):
    write("proc/self/cgroup", groups)
    write("proc/self/mountinfo", OTHERS + mount.format(part=part))


def v2_group(write, folder, limit, current, inactive=0, high="max"):
    write(f"{folder}/memory.max", f"{limit}\n")
    write(f"{folder}/memory.high", f"{high}\n")
    write(f"{folder}/memory.current", f"{current}\n")
    write(f"{folder}/memory.stat", f"anon 1\ninactive_file {inactive}\nactive_file 7\n")


def v1_group(write, folder, limit, usage, inactive=0):
    write(f"{folder}/memory.limit_in_bytes", f"{limit}\n")
    write(f"{folder}/memory.usage_in_bytes", f"{usage}\n")
    write(f"{folder}/memory.stat", f"inactive_file 5\ntotal_inactive_file {inactive}\n")


def test_the_machine_alone(root):
    assert available_bytes(root[0]) == MACHINE // 1024 * 1024


def test_v2_counts_what_is_used_but_not_what_can_be_reclaimed(root):
    path, write = root
    in_groups(write, "0::/job\n", V2)
    v2_group(write, "sys/fs/cgroup/job", 3 * GB, 2 * GB, inactive=GB)
    assert available_bytes(path) == 2 * GB


def test_v2_a_parents_limit_counts_if_it_is_tighter(root):
    path, write = root
    in_groups(write, "0::/batch/job\n", V2)
    v2_group(write, "sys/fs/cgroup/batch/job", "max", GB)
    v2_group(write, "sys/fs/cgroup/batch", 4 * GB, 3 * GB)
    assert available_bytes(path) == GB


def test_v2_memory_high_counts_too(root):
    path, write = root
    in_groups(write, "0::/job\n", V2)
    v2_group(write, "sys/fs/cgroup/job", "max", GB, high=2 * GB)
    assert available_bytes(path) == GB


def test_v1_and_its_parents(root):
    path, write = root
    in_groups(write, "5:cpu:/\n4:cpuset,memory:/batch/job\n0::/\n", V1)
    v1_group(write, "sys/fs/cgroup/memory/batch/job", 9223372036854771712, GB)
    v1_group(write, "sys/fs/cgroup/memory/batch", 5 * GB, 4 * GB, inactive=2 * GB)
    assert available_bytes(path) == 3 * GB


@pytest.mark.parametrize(
    ("part", "group"), [("/docker/abc", "/docker/abc"), ("/", "/docker/abc"), ("/", "/../x")]
)
def test_in_a_container_the_mount_is_the_group(root, part, group):
    """Whether it shows its own part of the tree, or hides where it lies."""
    path, write = root
    in_groups(write, f"4:memory:{group}\n", V1, part)
    v1_group(write, "sys/fs/cgroup/memory", 2 * GB, GB)
    assert available_bytes(path) == GB


def test_more_used_than_allowed_is_nothing_left(root):
    path, write = root
    in_groups(write, "0::/job\n", V2)
    v2_group(write, "sys/fs/cgroup/job", GB, 2 * GB)
    assert available_bytes(path) == 0


@pytest.mark.parametrize("content", ["", "nonsense\n", "max\n"])
def test_what_cannot_be_read_limits_nothing(root, content):
    path, write = root
    in_groups(write, "0::/job\n", V2)
    v2_group(write, "sys/fs/cgroup/job", GB, 0)
    write("sys/fs/cgroup/job/memory.current", content)
    assert available_bytes(path) == MACHINE // 1024 * 1024


def test_here():
    assert 0 < available_bytes() < 2**50


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a file of Linux's")
def test_a_child_goes_first_where_memory_runs_out():
    score = "print(open('/proc/self/oom_score_adj').read())"
    program = f"from advisor.system.machine import end_with_parent; end_with_parent(); {score}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 1000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a signal of Linux's")
def test_a_child_ends_with_its_parent_however_that_ends():
    child = """
import time
from advisor.system.machine import end_with_parent
end_with_parent()
print("up", flush=True)
time.sleep(60)
"""
    parent = f"""
import os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=False)
    assert wait_until(lambda: not is_running(int(done.stdout)), 10), done.stderr
