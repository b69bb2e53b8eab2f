"""What Linux denies a process and all that it starts, for good: it needs no privilege, and can't be undone.

Root's privileges go first, but those over files: with them it could raise limits, and look into others. Then
two means, each of which may be missing. **seccomp** has system calls fail: no socket is made, whatever its
family, so that neither the network nor a service behind a local socket is reached; nor is there another way
to one, io_uring say; a pair of sockets, which processes of one program talk by, is none that leads out.
**Landlock** keeps the process from those outside: it can't look into their memory, nor into the environment
that they were started with, which /proc shows to every process of the same user, nor send them signals.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2  # of sys/prctl.h, linux/seccomp.h
_PR_CAPBSET_DROP = 24
# Of linux/capability.h: the version whose sets have 64 bits; those over files, CAP_CHOWN to CAP_FSETID.
_CAPABILITY_VERSION, _OVER_FILES, _CAPABILITIES = 0x20080522, 0b11111, 64
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000  # what a filter answers; the last with an errno
_EACCES = 13
# Of linux/bpf_common.h: load a word of what is asked, compare it, answer.
_LOAD, _IS, _IS_AT_LEAST, _ANSWER = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE = 0, 4  # where they stand in struct seccomp_data
_X32 = 0x40000000  # calls of x86-64's other ABI begin here
_DENIED: dict[str, tuple[int, tuple[int, ...]]] = {  # the architecture of linux/audit.h, and calls' numbers
    # socket, ptrace, process_vm_readv and _writev, add_key, request_key, keyctl, io_uring_setup, pidfd_getfd
    "x86_64": (0xC000003E, (41, 101, 310, 311, 248, 249, 250, 425, 438)),
    "aarch64": (0xC00000B7, (198, 117, 270, 271, 217, 218, 219, 425, 438)),
}
# Of linux/landlock.h. Each version of it brought more; a ruleset may name but what the kernel knows.
_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1
_MAKE_DEVICES_AND_SOCKETS = 1 << 6 | 1 << 9 | 1 << 11
_REFER = 1 << 13  # to move files between folders, which every ruleset forbids that doesn't grant it
_BIND_AND_CONNECT_TCP, _REFER_SINCE, _TCP_SINCE = 0b11, 2, 4
_ABSTRACT_SOCKETS_AND_SIGNALS, _SCOPES_SINCE = 0b11, 6


def drop_privileges() -> None:
    """All that root may do more than others, but what concerns files, it may no longer do."""
    if not _has_own_calls():
        return
    for capability in range(_CAPABILITIES):
        if not _OVER_FILES >> capability & 1:
            _libc().prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # what a program started as root would get
    header = struct.pack("Ii", _CAPABILITY_VERSION, 0)
    sets = ctypes.create_string_buffer(
        24
    )  # effective, permitted, inheritable: their lower halves, their upper
    if _libc().capget(header, sets) == 0:
        lower = struct.unpack("3I", sets.raw[:12])
        _libc().capset(header, struct.pack("6I", *(each & _OVER_FILES for each in lower), 0, 0, 0))


def deny_sockets() -> bool:
    """No socket from here on, nor a look into other processes; whether the kernel sees to it."""
    known = _DENIED.get(platform.machine())
    if known is None or not _has_own_calls() or not _keep_privileges():
        return False
    program = b"".join(_filter(*known))
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog
    length_and_address = struct.pack("HP", len(program) // 8, ctypes.addressof(code))
    return _libc().prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, length_and_address, 0, 0) == 0


def hide_others() -> bool:
    """Processes outside can't be looked into, from here on; whether the kernel sees to it."""
    version = _libc().syscall(_CREATE, None, 0, _VERSION) if _has_own_calls() else -1
    if version < 1 or not _keep_privileges():
        return False
    files = _MAKE_DEVICES_AND_SOCKETS | (_REFER if version >= _REFER_SINCE else 0)
    tcp = _BIND_AND_CONNECT_TCP if version >= _TCP_SINCE else 0
    scopes = _ABSTRACT_SOCKETS_AND_SIGNALS if version >= _SCOPES_SINCE else 0
    size = 24 if version >= _SCOPES_SINCE else 16 if version >= _TCP_SINCE else 8
    ruleset = _libc().syscall(_CREATE, struct.pack("QQQ", files, tcp, scopes), size, 0)
    if ruleset < 0:
        return False
    try:
        if version >= _REFER_SINCE:
            root = os.open("/", os.O_PATH)
            granted = _libc().syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", _REFER, root), 0)
            os.close(root)
            if granted:
                return False
        return bool(_libc().syscall(_RESTRICT, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _filter(architecture: int, denied: tuple[int, ...]) -> list[bytes]:
    """struct sock_filter, one a line: the operation, how many to skip if so, if not, and the operand."""
    is_x86 = platform.machine() == "x86_64"
    lines = [(_LOAD, 0, 0, _ARCHITECTURE), (_IS, 1, 0, architecture), (_ANSWER, 0, 0, _KILL)]
    lines.append((_LOAD, 0, 0, _NUMBER))
    if is_x86:
        lines += [(_IS_AT_LEAST, 0, 1, _X32), (_ANSWER, 0, 0, _FAIL | _EACCES)]
    for number in denied:
        lines += [(_IS, 0, 1, number), (_ANSWER, 0, 0, _FAIL | _EACCES)]
    return [struct.pack("HBBI", *line) for line in [*lines, (_ANSWER, 0, 0, _ALLOW)]]


def _keep_privileges() -> bool:
    """No program that it starts gets more: what both means want of a process without privileges."""
    return bool(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0)


def _has_own_calls() -> bool:
    # A 32-bit interpreter makes calls by other numbers.
    return sys.platform.startswith("linux") and sys.maxsize > 2**32


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
